"""The store keeps finished artifacts by id for all clones that share it; damaged ones are never linked."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mls.pipeline import artifact_store
from mls.pipeline.artifact import open_artifact, state
from mls.pipeline.artifact_store import add_all, being_made, claimed, link_back, restore
from mls.pipeline.gc import collect
from mls.pipeline.plan import Job, Plan
from mls.pipeline.runner import run_stage
from mls.pipeline.status import job_state, verify_plan
from mls.runtime import links
from mls.runtime.errors import DamagedArtifact, MlsError
from mls.runtime.paths import home, store, work
from tests.pipeline.support import never, write

ROOT = Path(__file__).parents[2]


def remove(*paths: Path) -> None:
    subprocess.run(["rm", "-rf", *map(str, paths)], check=True)


def refuse(source: Path, target: Path) -> None:
    """Fail as a link to another disk does."""
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def overwrite(file: Path, content: bytes) -> None:
    """Replace a file as an editor does, without changing the other names of a hard link."""
    file.unlink()
    file.write_bytes(content)


@pytest.mark.parametrize("way", ["as the disk can", "copies"])
def test_an_artifact_that_was_removed_is_linked_not_made(
    way: str, plan: Plan, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "copies":
        monkeypatch.setattr(os, "link", refuse)
        monkeypatch.setattr(links, "_reflink", refuse)
    run_stage(plan, job, write)
    manifest = (job.path / "artifact.json").read_bytes()
    remove(job.path)
    link_back(plan)
    assert (job.path / "artifact.json").read_bytes() == manifest and open_artifact(job.path, deep=True)
    remove(job.path)
    run_stage(plan, job, never)
    assert job_state(job) == "done" and not list(Path("artifacts/.staging").iterdir())
    assert not (job.work / "build").exists()
    assert sum(path.is_file() for path in Path(".store").rglob("*")) == 5, "four files and a lock"


def test_links_are_read_only_except_the_manifest_and_none_is_symbolic(plan: Plan, job: Job) -> None:
    run_stage(plan, job, write)
    for folder in (job.path, job.stored):
        for name in ("weights.bin", "sub/metrics.json", "params.json"):
            mode = (folder / name).lstat().st_mode
            assert stat.S_ISREG(mode) and not mode & 0o222, name
    manifests = [(folder / "artifact.json").stat() for folder in (job.path, job.stored)]
    assert manifests[0].st_mode & 0o200 and manifests[0].st_ino != manifests[1].st_ino, "Snakemake wants to write it"


def test_an_artifact_that_the_store_lacks_enters_when_it_is_read(plan: Plan, job: Job) -> None:
    """It was pulled, or is older than the store."""
    for made in (plan.stage("data")[0], job):
        run_stage(plan, made, write)
    remove(Path(".store"))
    link_back(plan)
    assert not Path(".store").exists(), "nobody read it"
    run_stage(plan, plan.find("features", "linear/random")[0], write)
    assert state(job.stored) == "done"
    remove(Path(".store"))
    run_stage(plan, job, never)
    assert state(job.stored) == "done"


def test_only_verified_artifacts_enter_the_store(plan: Plan, job: Job) -> None:
    (data,) = plan.stage("data")
    for made in (data, job):
        run_stage(plan, made, write)
    remove(Path(".store"))
    overwrite(job.path / "weights.bin", b"x" * 100)
    with pytest.raises(DamagedArtifact, match=r"weights\.bin has another content"):
        add_all()
    assert state(data.stored) == "done" and state(job.stored) == "missing"
    with pytest.raises(MlsError, match=r"needs pretrain random:0 .*another content"):
        run_stage(plan, plan.find("features", "linear/random")[0], never)


def test_damage_in_the_store_is_reported_and_never_linked(
    plan: Plan, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    run_stage(plan, job, write)
    remove(job.path)
    overwrite(job.stored / "weights.bin", b"w")
    link_back(plan)
    assert f"{job.stored} is damaged: weights.bin has 1 bytes instead of 100" in (said := capsys.readouterr().err)
    assert f"rm -rf {job.stored}" in said and state(job.path) == "missing"
    run_stage(plan, job, write)
    assert open_artifact(job.stored, deep=True) and open_artifact(job.path, deep=True)


def test_verify_checks_the_store_and_says_how_to_repair_it(
    plan: Plan, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    run_stage(plan, job, write)
    verify_plan(plan)
    assert "1 artifacts verified, 0 damaged" in (said := capsys.readouterr().out)
    assert "1 verified in the store, .store/, 0 damaged there" in said

    overwrite(job.path / "weights.bin", b"x" * 100)
    with pytest.raises(DamagedArtifact, match=f"rm -rf {job.path}`; {job.stored} is whole"):
        verify_plan(plan)
    remove(job.path)
    assert restore(plan, job)
    verify_plan(plan)

    overwrite(job.stored / "weights.bin", b"x" * 100)
    with pytest.raises(DamagedArtifact, match=f"rm -rf {job.stored}`; .*mls store add"):
        verify_plan(plan)
    remove(job.stored)
    add_all()
    verify_plan(plan)


def test_a_file_damaged_through_a_hard_link_is_damaged_in_both_places(plan: Plan, job: Job) -> None:
    run_stage(plan, job, write)
    overwrite(job.path / "weights.bin", b"x" * 100)
    (job.stored / "weights.bin").unlink()
    os.link(job.path / "weights.bin", job.stored / "weights.bin")
    with pytest.raises(DamagedArtifact, match=f"rm -rf {job.path} {job.stored}`; then `dvc pull"):
        open_artifact(job.path, deep=True)


def test_leftovers_of_a_kill_are_never_taken_for_an_artifact(
    plan: Plan, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    for staging in (Path(".store/.staging"), Path("artifacts/.staging")):
        (staging / job.id).mkdir(parents=True)
        (staging / job.id / "half").touch()

    def killed_before_the_second(source: Path, target: Path) -> None:
        if target == job.path:
            sys.exit("killed when the store has it and artifacts/ does not")
        install(source, target)

    install = artifact_store._install
    with monkeypatch.context() as patch:
        patch.setattr(artifact_store, "_install", killed_before_the_second)
        with pytest.raises(SystemExit):
            run_stage(plan, job, write)
    assert state(job.path) == "missing" and state(job.stored) == "done"
    run_stage(plan, job, never)
    assert open_artifact(job.path, deep=True) and not list(Path().rglob("half"))


PROGRAM = """
import os, sys, time
from pathlib import Path
from mls.pipeline.runner import run_stage
from tests.conftest import plan_of, small

def write(context):
    print("makes", flush=True)
    time.sleep(0.5)
    (context.out / "weights.bin").write_bytes(b"w" * 100)

os.environ["MLS_STORE"] = sys.argv[1]
plan = plan_of(small())
(job,) = plan.find("pretrain", "random")
Path("ready").touch()
while not Path("go").exists():
    time.sleep(0.01)
run_stage(plan, job, write)
print("opens", (job.path / "weights.bin").read_bytes() == b"w" * 100)
"""


def test_two_clones_that_share_a_store_make_an_artifact_once(tmp_path: Path) -> None:
    started = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "store")]
        started.append(subprocess.Popen(command, cwd=tmp_path / name, env=env, stdout=subprocess.PIPE, text=True))
    while not all((tmp_path / name / "ready").exists() for name in ("a", "b")):
        assert all(process.poll() is None for process in started)
    for name in ("a", "b"):
        (tmp_path / name / "go").touch()
    said = [process.communicate()[0] for process in started]
    assert sorted(said) == ["makes\nopens True\n", "opens True\n"]


@pytest.mark.parametrize("shared", ["MLS_STORE", "MLS_WORK"])
def test_clones_that_share_the_store_or_the_state_see_the_maker(
    shared: str, plan: Plan, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(shared, str(tmp_path / "common"))
    with claimed(job, "it"):
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
        assert being_made(job.id)
        monkeypatch.delenv(shared)
        assert not being_made(job.id)


def test_a_copy_that_dvc_made_uses_the_main_trees_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MLS_DATA", "MLS_WEIGHTS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    assert (home(), work(), store()) == (Path(), Path("work"), Path(".store"))
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "tmp1x"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert (home(), work(), store()) == (tmp_path, tmp_path / "work", tmp_path / ".store")
    from mls.config.datasets import CocoDataset
    from mls.data.sources import find_root
    from mls.models.foreign import weights_root

    assert weights_root() == tmp_path / "weights"
    assert find_root(["coco"], CocoDataset(source="coco")) == tmp_path / "downloads" / "coco"
    monkeypatch.setenv("MLS_WORK", "elsewhere")
    monkeypatch.setenv("MLS_STORE", "/absolute")
    assert (work(), store()) == (tmp_path / "elsewhere", Path("/absolute"))


def test_gc_keeps_a_shared_store_without_the_option_shared(
    plan: Plan, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clone = tmp_path / "clone"
    clone.mkdir()
    monkeypatch.chdir(clone)
    subprocess.run(["git", "init", "-q"], check=True)
    monkeypatch.setenv("MLS_STORE", str(tmp_path / "common"))
    run_stage(plan, job, write)
    collect(delete=True)
    assert state(job.path) == "missing" and state(job.stored) == "done"
    said = capsys.readouterr().out
    assert f"{job.stored} (others may need it)" in said and "mls gc --delete --shared" in said
    collect(delete=True, shared=True)
    assert state(job.stored) == "missing"
    monkeypatch.delenv("MLS_STORE")
    run_stage(plan, job, write)
    collect(delete=True)
    assert state(job.path) == state(job.stored) == "missing", "nobody else uses a store in the clone"


def test_a_symbolic_link_of_dvc_is_stored_as_a_file(in_tmp: Path) -> None:
    Path("cache").write_text("content")
    Path("linked").symlink_to("cache")
    links.share(Path("linked"), Path("shared"))
    assert not Path("shared").is_symlink()
    Path("cache").unlink()
    assert Path("shared").read_text() == "content"
