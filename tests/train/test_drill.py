"""A drill: a small pretraining is killed (kill -9) many times at random moments and ends with the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from mls.pipeline.artifact import VOLATILE, open_artifact
from mls.pipeline.plan import plan_file
from mls.pipeline.status import job_state
from tests.conftest import SMALL, with_peers

ROOT = Path(__file__).parents[2]
MLS = [sys.executable, "-m", "mls"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MLS_PLAIN": "1"}


@pytest.mark.parametrize(("run", "kills"), [("mls", 4), ("slotcon", 2)])
def test_killed_runs_end_with_the_same_bytes(in_tmp: Path, run: str, kills: int) -> None:
    execution = {**SMALL["execution"], "checkpoint_every": 7}
    with Path("small.yaml").open("w") as file:
        YAML().dump(with_peers(pretrain={**SMALL["pretrain"], "epochs": 15 * kills}, execution=execution), file)
    plan = plan_file(Path("small.yaml"))
    (job,) = plan.find("pretrain", run)
    command = [*MLS, "pretrain", run, "-e", "small.yaml"]
    subprocess.run([*MLS, "data", "scenes", "-e", "small.yaml"], env=ENVIRONMENT, check=True)
    subprocess.run(command, env=ENVIRONMENT, check=True, timeout=300)
    expected = {file.name: file.read_bytes() for file in job.path.iterdir() if file.name not in VOLATILE}
    job.path.rename("undisturbed")
    shutil.rmtree(job.stored)

    moments = random.Random(0)
    steps = []
    for kill in range(kills):
        before = newest(job.work)
        running = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE)
        while newest(job.work) == before:  # it goes on from where the last one was killed
            assert running.poll() is None, f"kill {kill}: it ended by itself: {running.communicate()[1].decode()}"
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.1))
        running.kill()
        running.communicate()
        assert job_state(job) == "resumable"
        steps.append(newest(job.work))
    assert steps == sorted(set(steps)), "each life got further"
    subprocess.run(command, env=ENVIRONMENT, check=True, timeout=300)
    open_artifact(job.path, deep=True)
    assert {file.name: file.read_bytes() for file in job.path.iterdir() if file.name not in VOLATILE} == expected


def newest(work: Path) -> str:
    """Name of the last checkpoint; it carries the step."""
    return max((file.name for file in work.glob("checkpoint-*.pt")), default="")
