"""Artifacts appear whole or not at all, and the message about a damaged one says what to do."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mls.pipeline.artifact import open_artifact, state
from mls.pipeline.artifact_store import building, reuse
from mls.pipeline.plan import Job, Plan
from mls.pipeline.runner import Context, run_stage
from mls.pipeline.status import forget_failure, job_state, verify_plan
from mls.runtime.errors import DamagedArtifact, DeterministicError, Interrupted, MlsError
from mls.runtime.files import explain_full_disk
from mls.runtime.locks import is_locked
from tests.conftest import plan_of, small
from tests.pipeline.support import never, write


def test_a_made_artifact_opens_and_verifies(plan: Plan, job: Job) -> None:
    assert job_state(job) == "missing"
    run_stage(plan, job, write)
    artifact = open_artifact(job.path, deep=True)
    assert artifact.read_json("sub/metrics.json") == {"a": 1}
    assert sorted(artifact.manifest["files"]) == ["params.json", "sub/metrics.json", "weights.bin"]
    assert artifact.read_json("params.json")["resolved"]["backbone"]["width"] == 0.125
    assert job_state(job) == "done"
    with pytest.raises(DamagedArtifact, match=r"holds no other\.bin"):
        artifact.file("other.bin")


def test_a_failure_leaves_nothing(plan: Plan, job: Job) -> None:
    def fail(context: Context) -> None:
        write(context)
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        run_stage(plan, job, fail)
    assert not job.path.exists() and not (job.work / "build").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(plan: Plan, job: Job) -> None:
    def fill(context: Context) -> None:
        write(context)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(MlsError, match=r"is full; nothing half-written was kept"):
        run_stage(plan, job, fill)
    assert not job.path.exists() and not (job.work / "build").exists()
    with pytest.raises(PermissionError), explain_full_disk(job.path):
        raise PermissionError(errno.EACCES, "other errors pass")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "weights.bin").unlink(), "weights.bin is missing"),
        (lambda p: (p / "weights.bin").write_bytes(b"w"), "weights.bin has 1 bytes instead of 100"),
        (lambda p: (p / "artifact.json").write_text("{"), "can't be read"),
        (lambda p: (p / "artifact.json").write_text("[]"), "can't be read"),
    ],
)
def test_damage_is_named_with_what_to_do(plan: Plan, job: Job, damage: object, message: str) -> None:
    run_stage(plan, job, write)
    damage(job.path)  # type: ignore[operator]
    assert job_state(job) == "damaged"
    with pytest.raises(DamagedArtifact, match=message) as caught:
        open_artifact(job.path)
    assert f"rm -rf {job.path}" in str(caught.value)


def test_equal_size_damage_is_found_by_verify(plan: Plan, job: Job) -> None:
    run_stage(plan, job, write)
    (job.path / "weights.bin").write_bytes(b"x" * 100)
    assert state(job.path) == "done", "sizes can't show it"
    with pytest.raises(DamagedArtifact, match=r"weights\.bin has another content"):
        verify_plan(plan)


def test_an_artifact_that_the_store_lost_too_is_made_again(plan: Plan, job: Job) -> None:
    run_stage(plan, job, write)
    subprocess.run(["rm", "-rf", str(job.path), str(job.stored)], check=True)
    run_stage(plan, job, lambda context: (context.out / "other").touch())
    assert (job.path / "other").exists() and open_artifact(job.path, deep=True)


def test_a_complete_folder_without_its_manifest_is_reused(plan: Plan, job: Job) -> None:
    run_stage(plan, job, write)
    manifest = (job.path / "artifact.json").read_bytes()
    (job.path / "artifact.json").unlink()  # what Snakemake does before it runs a job again
    run_stage(plan, job, never)
    assert (job.path / "artifact.json").read_bytes() == manifest


def test_a_changed_folder_without_its_manifest_is_replaced(plan: Plan, job: Job) -> None:
    run_stage(plan, job, write)
    (job.path / "artifact.json").unlink()
    (job.path / "weights.bin").unlink()
    (job.path / "weights.bin").write_bytes(b"x" * 100)
    assert reuse(job)
    assert (job.path / "weights.bin").read_bytes() == b"w" * 100


def test_two_builds_differ_only_in_volatile_facts(plan: Plan, job: Job) -> None:
    manifests = []
    for _ in range(2):
        run_stage(plan, job, write)
        manifests.append(json.loads((job.path / "artifact.json").read_text()))
        subprocess.run(["rm", "-rf", str(job.path), str(job.stored)], check=True)
    made = [manifest.pop("made") for manifest in manifests]
    assert manifests[0] == manifests[1]
    assert {"started", "wall_s", "host", "code", "packages"} <= set(made[0])


def test_a_deterministic_failure_is_refused_until_retry(plan: Plan, job: Job) -> None:
    calls = []

    def fail(context: Context) -> None:
        calls.append(1)
        raise DeterministicError("the loss is not finite at step 3")

    for _ in range(2):
        with pytest.raises(MlsError, match="the loss is not finite at step 3"):
            run_stage(plan, job, fail)
    assert len(calls) == 1 and job_state(job) == "failed"
    forget_failure(job.id)
    run_stage(plan, job, write)
    assert job_state(job) == "done"
    with pytest.raises(MlsError, match="no recorded failure"):
        forget_failure(job.id)


def test_every_failure_is_recorded_and_only_a_deterministic_one_is_refused(plan: Plan, job: Job) -> None:
    def fail(context: Context) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        run_stage(plan, job, fail)
    assert job_state(job) == "failed"
    run_stage(plan, job, write)
    assert job_state(job) == "done"


def test_a_second_attempt_refuses_any_recorded_failure_and_resumes_after_an_interruption(plan: Plan, job: Job) -> None:
    """Otherwise a scheduler that restarts failed jobs would repeat a bug many times."""

    def fail(context: Context) -> None:
        raise ValueError("a bug")

    def interrupted(context: Context) -> None:
        raise Interrupted("stopped by its time limit")

    with pytest.raises(Interrupted):
        run_stage(plan, job, interrupted)
    with pytest.raises(ValueError, match="a bug"):
        run_stage(plan, job, fail, attempt=2)
    with pytest.raises(MlsError, match=r"a bug .*failed before"):
        run_stage(plan, job, write, attempt=3)
    run_stage(plan, job, write)
    assert job_state(job) == "done"


def test_params_json_is_a_function_of_the_id(in_tmp: Path) -> None:
    """Labels, machine settings and params that the stage does not read leave no trace."""
    sha = "0" * 64
    texts = []
    for threads, file, run in ((1, "a.pth", "x"), (2, "b.pth", "y")):
        weights = {"file": file, "sha256": sha}
        runs = {run: {"method": "weights", "weights": weights, "mls": {"topk": 1 + threads}}}
        plan = plan_of(small(runs=runs, execution={"threads": threads}))
        (job,) = plan.find("pretrain", run)
        run_stage(plan, job, write)
        texts.append((job.id, (job.path / "params.json").read_bytes()))
        subprocess.run(["rm", "-rf", str(job.path), str(job.stored), str(job.work)], check=True)
    assert texts[0] == texts[1] and b"pth" not in texts[0][1]


def test_an_input_whose_manifest_another_workflow_just_deleted_is_reused(plan: Plan, job: Job) -> None:
    run_stage(plan, plan.stage("data")[0], write)
    run_stage(plan, job, write)
    (job.path / "artifact.json").unlink()
    (features,) = plan.find("features", "linear/random")
    run_stage(plan, features, write)
    assert job_state(job) == job_state(features) == "done"


def test_a_failure_of_other_code_is_tried_again(plan: Plan, job: Job) -> None:
    job.work.mkdir(parents=True)
    (job.work / "failed.json").write_text(json.dumps({"message": "m", "code": "another", "deterministic": True}))
    run_stage(plan, job, write)
    assert not (job.work / "failed.json").exists()


def test_a_missing_input_is_named(plan: Plan) -> None:
    (features,) = plan.find("features", "linear/random")
    with pytest.raises(MlsError, match=r"needs data scenes \[\w+\]: artifacts/data/\w+ is missing"):
        run_stage(plan, features, write)


def test_a_second_process_waits_and_finds_it_done(plan: Plan, job: Job) -> None:
    calls: list[int] = []

    def slow(context: Context) -> None:
        calls.append(1)
        assert is_locked(job.work / "lock")
        time.sleep(0.5)
        write(context)

    threads = [threading.Thread(target=run_stage, args=(plan, job, slow)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1] and job_state(job) == "done"


def test_a_killed_owner_frees_the_lock(plan: Plan, job: Job) -> None:
    job.work.mkdir(parents=True)
    code = "import sys, time; from pathlib import Path; from mls.runtime.locks import locked\n"
    code += "with locked(Path(sys.argv[1]), 'x'): print('held', flush=True); time.sleep(60)"
    root = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(job.work / "lock")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert child.stdout is not None and child.stdout.readline() == b"held\n"
    assert job_state(job) == "running"
    child.kill()
    child.wait()
    child.stdout.close()
    assert job_state(job) == "missing"


def test_building_replaces_what_another_program_left(job: Job) -> None:
    job.path.mkdir(parents=True)
    (job.path / "half").write_text("left by a broken copy")
    with building(job) as out:
        (out / "whole").write_text("1")
    assert sorted(p.name for p in job.path.iterdir()) == ["artifact.json", "whole"]
