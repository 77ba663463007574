"""What a stage command waits for, in which order, and which old failures it forgets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import mls.data.build_store
import mls.pipeline.make
from mls.pipeline.artifact import state
from mls.pipeline.artifact_store import lock_of
from mls.pipeline.leases import leased
from mls.pipeline.plan import Job, Plan, plan_file
from mls.pipeline.provenance import digest
from mls.pipeline.runner import run_stage
from mls.runtime.errors import Interrupted, MlsError
from mls.runtime.locks import locked
from tests.conftest import small

ROOT = Path(__file__).parents[1]


@pytest.fixture
def plan(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """One untrained backbone to make, on one device that exists only by name."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "a")
    monkeypatch.setenv("MLS_LEASES", "leases")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with Path("small.yaml").open("w") as file:
        YAML().dump(small(runs={"random": {"method": "none"}}), file)
    plan = plan_file(Path("small.yaml"))
    run_stage(plan, plan.stage("data")[0], mls.data.build_store.run)
    return plan


def is_free(device: str) -> bool:
    """Whether a device is free, asked from another process: a process does not see its own locks as held."""
    code = f"import fcntl; fcntl.lockf(open('leases/{device}.lock', 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    return subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL, check=False).returncode == 0


def said(running: subprocess.Popen[str], text: str) -> None:
    """Read the log up to a line with the text."""
    assert running.stderr is not None
    lines = []
    for line in running.stderr:
        lines.append(line)
        if text in line:
            return
    raise AssertionError("".join(lines))


def test_no_device_is_held_while_another_makes_the_artifact(plan: Plan) -> None:
    """Neither if it is made when this process starts, nor if that begins while it waits for a device."""
    (job,) = plan.stage("pretrain")
    command = [sys.executable, "-m", "mls", "pretrain", "random", "-e", "small.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with leased(1):
        with locked(lock_of(job.id), "another clone"):
            running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
            said(running, f"process {os.getpid()} is making it; waiting for it")
        said(running, "waiting for 1 of the devices a")
        maker = locked(lock_of(job.id), "another clone")
        maker.__enter__()
    said(running, f"process {os.getpid()} is making it; waiting for it")
    assert is_free("a") and state(job.path) == "missing"
    maker.__exit__(None, None, None)
    _, log = running.communicate(timeout=120)
    assert running.returncode == 0, log
    assert state(job.path) == "done"


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_first_attempt_forgets_the_failure_of_an_earlier_run(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    """Otherwise the retry of an attempt that was stopped while it waited would take the old failure as its own."""

    @contextmanager
    def stopped(count: int) -> Iterator[None]:
        raise Interrupted("stopped while it waited for a device")
        yield

    (job,) = plan.stage("pretrain")
    job.work.mkdir(parents=True, exist_ok=True)
    record = {"message": "an old one", "deterministic": deterministic, "code": digest()}
    (job.work / "failed.json").write_text(json.dumps(record))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(mls.pipeline.make, "leased", stopped)
        make(plan, job, attempt=1)
    if deterministic:
        with pytest.raises(MlsError, match=r"an old one .*mls retry"):
            make(plan, job, attempt=2)
    else:
        make(plan, job, attempt=2)
        assert state(job.path) == "done"


def make(plan: Plan, job: Job, attempt: int) -> None:
    mls.pipeline.make.make("pretrain", plan, [job], Path("small.yaml"), attempt)
