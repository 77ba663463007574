"""Only artifacts that no file, branch or published result needs are collected."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mls.pipeline.artifact_store import lock_of
from mls.pipeline.gc import collect, needed_ids
from mls.pipeline.plan import Plan, plan_file
from mls.pipeline.runner import Context, run_stage
from mls.runtime.errors import MlsError
from mls.runtime.locks import locked
from tests.conftest import plan_of, small


def git(*args: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *identity, *args], check=True, capture_output=True)


def write(raw: dict[str, Any], name: str = "params.yaml") -> Plan:
    with Path(name).open("w") as file:
        YAML().dump(raw, file)
    return plan_of(raw)


def make(plan: Plan, run: str) -> str:
    def fill(context: Context) -> None:
        (context.out / "file").write_text("x")

    (job,) = plan.find("pretrain", run)
    run_stage(plan, job, fill)
    return job.id


def present() -> set[str]:
    return {path.name for path in Path("artifacts").glob("*/*")}


@pytest.fixture
def repository(in_tmp: Path) -> Path:
    git("init", "-q", "-b", "main")
    return in_tmp


def test_artifacts_that_a_file_a_branch_or_a_result_needs_stay(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = make(write(small(runs={"random": {"method": "none"}}, seeds=[1])), "random")
    git("add", "params.yaml")
    git("commit", "-q", "-m", "another seed")
    git("branch", "other")
    published = make(write(small(runs={"random": {"method": "none"}}, seeds=[2])), "random")
    Path("results/x").mkdir(parents=True)
    Path("results/x/provenance.json").write_text(json.dumps({"artifacts": {"pretrain": [published]}}))
    unneeded = make(write(small(runs={"random": {"method": "none"}}, seeds=[3])), "random")
    now = make(write(small(runs={"random": {"method": "none"}})), "random")
    git("commit", "-q", "-am", "now")
    assert present() == {old, published, unneeded, now}
    Path("work/.publish-x.lock").touch()  # what publishing leaves
    collect(delete=False)
    assert present() == {old, published, unneeded, now}, "a dry run removes nothing"
    assert unneeded in (text := capsys.readouterr().out) and "mls gc --delete" in text
    collect(delete=True)
    assert present() == {old, published, now}


def test_an_artifact_that_is_being_made_stays(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make(write(small(runs={"random": {"method": "none"}}, seeds=[1])), "random")
    write(small(runs={"random": {"method": "none"}}))
    git("add", "params.yaml")
    git("commit", "-q", "-m", "now")
    monkeypatch.setattr("mls.pipeline.gc.being_made", lambda job_id: False)  # when it looked
    with locked(lock_of(old), "somebody"):
        collect(delete=True)
    assert present() == {old} and "is being made now, and stays" in capsys.readouterr().out
    collect(delete=True)
    assert present() == set()


def test_artifacts_of_every_stash_entry_stay(repository: Path) -> None:
    """DVC's queue works like git's stash: one ref, whose older entries are only in its reflog."""
    write(small(runs={"random": {"method": "none"}}))
    git("add", "params.yaml")
    git("commit", "-q", "-m", "now")
    made = []
    for seed in (1, 2, 3):
        made.append(make(write(small(runs={"random": {"method": "none"}}, seeds=[seed])), "random"))
        git("stash", "-q")
    assert set(made) <= needed_ids()[0]
    git("stash", "drop", "-q", "stash@{1}")
    assert made[1] not in needed_ids()[0]


def test_a_dvc_experiment_that_runs_stops_a_deletion(repository: Path) -> None:
    unneeded = make(write(small(runs={"random": {"method": "none"}}, seeds=[3])), "random")
    write(small())
    copy = Path(".dvc/tmp/exps/tmpabc")
    copy.mkdir(parents=True)
    (copy / "params.yaml").touch()
    with pytest.raises(MlsError, match="nothing was removed"):
        collect(delete=True)
    assert "tmpabc" in needed_ids()[1][0] and unneeded in present()


def test_a_file_that_cannot_be_planned_stops_a_deletion(repository: Path) -> None:
    unneeded = make(write(small(runs={"random": {"method": "none"}}, seeds=[3])), "random")
    write(small())
    Path("experiments").mkdir()
    Path("experiments/future.yaml").write_text("experiment: future\nunknown: 1\n")
    assert "experiments/future.yaml" in needed_ids()[1][0]
    with pytest.raises(MlsError, match="nothing was removed"):
        collect(delete=True)
    assert unneeded in present()


def test_without_git_it_fails(in_tmp: Path) -> None:
    with pytest.raises(MlsError, match="git for-each-ref failed"):
        collect(delete=False)


def test_files_that_an_experiment_names_are_read_at_the_same_place(repository: Path) -> None:
    """The image ids differ between two branches, so each needs artifacts of its own."""
    raw = small(
        datasets={"coco": {"source": "coco", "subset": {"ids": "ids.txt"}}}, runs={"random": {"method": "none"}}
    )
    raw["probe"] = {"linear": {"kind": "linear", "dataset": "coco"}}
    raw["transfer"] = {}
    raw["tables"] = {"main": {"columns": ["linear.mAP"]}}
    Path("data.lock").write_text("coco: {sha256: abc}\n")
    ids = []
    for text in ("1\n2\n", "3\n4\n"):
        Path("ids.txt").write_text(text)
        with Path("params.yaml").open("w") as file:
            YAML().dump(raw, file)
        ids.append(plan_file(Path("params.yaml")).stage("data")[0].id)
        git("add", "-A")
        git("commit", "-q", "-m", text)
        git("branch", f"with-{text[0]}")
    needed, unreadable = needed_ids()
    assert len(set(ids)) == 2 and set(ids) <= needed and not unreadable
