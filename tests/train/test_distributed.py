"""Two ranks are one: the same losses, gradients and dictionaries; resumed, the same bytes. (gloo on a CPU.)"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

import mls.data.stage
from mls.errors import MlsError
from mls.experiment.artifact import VOLATILE, open_artifact
from mls.experiment.params import Moco, Pretrain
from mls.experiment.plan import plan_file
from mls.experiment.stage import run_stage
from mls.experiment.status import job_state
from mls.train.stage import check_ranks
from tests.conftest import SMALL, small
from tests.train import two_ranks

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MLS_PLAIN": "1"}


def test_two_ranks_equal_one_with_two_groups(in_tmp: Path) -> None:
    plan = two_ranks.plan()
    run_stage(plan, plan.stage("data")[0], mls.data.stage.run)
    command = [*TORCHRUN, "-m", "tests.train.two_ranks", "two.pt", "20"]
    subprocess.run(command, env=ENVIRONMENT, check=True, timeout=300, capture_output=True)
    one, two = two_ranks.trace(20), torch.load("two.pt", weights_only=True)
    assert (one["world"], two["world"]) == (1, 2)
    for part in ("gradients", "state"):
        assert one[part].keys() == two[part].keys()
        for name, value in one[part].items():
            close(value, two[part][name], 1e-9, f"{part} {name} at step 1")
    assert (one["state"]["dictionary.row_D"] >= 0).sum() == 8, "the keys of both ranks, in rank order"
    close(torch.tensor(one["losses"][0]), torch.tensor(two["losses"][0]), 1e-9, "step 1")
    close(torch.tensor(one["losses"]), torch.tensor(two["losses"]), 1e-6, "20 steps")


def close(a: torch.Tensor, b: torch.Tensor, most: float, what: str) -> None:
    assert a.dtype == b.dtype, what
    apart = float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
    assert apart <= most * max(1.0, float(a.double().abs().max()) if a.numel() else 1.0), f"{what}: {apart}"


def test_two_ranks_resume_to_the_same_bytes(in_tmp: Path) -> None:
    """Stopped by SIGTERM in the middle and run again, against an undisturbed run of two ranks."""
    raw: dict[str, Any] = small(pretrain={**SMALL["pretrain"], "epochs": 60})
    with Path("small.yaml").open("w") as file:
        YAML().dump(raw, file)
    plan = plan_file(Path("small.yaml"))
    run_stage(plan, plan.stage("data")[0], mls.data.stage.run)
    (job,) = plan.find("pretrain", "mls")
    command = [*TORCHRUN, "-m", "mls", "pretrain", "mls", "-e", "small.yaml"]

    def run() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE)

    first = run()
    deadline = time.monotonic() + 120
    while not list(job.work.glob("checkpoint-*.pt")):
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()[1]
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    _, log = first.communicate(timeout=120)
    assert first.returncode != 0 and job_state(job) == "resumable", log.decode()
    second = run()
    _, log = second.communicate(timeout=120)
    assert second.returncode == 0 and b"resumes at step" in log, log.decode()
    resumed = contents(job.path)
    job.path.rename("resumed")
    (job.work / "artifact.json").unlink(missing_ok=True)
    third = run()
    _, log = third.communicate(timeout=120)
    assert third.returncode == 0 and b"resumes" not in log, log.decode()
    assert contents(job.path) == resumed
    open_artifact(job.path, deep=True)


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name not in VOLATILE}


def test_other_stages_refuse_many_ranks(in_tmp: Path) -> None:
    with Path("small.yaml").open("w") as file:
        YAML().dump(small(), file)
    command = [sys.executable, "-m", "mls", "probe", "linear/mls", "-e", "small.yaml"]
    done = subprocess.run(command, env={**ENVIRONMENT, "WORLD_SIZE": "2"}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "only pretrain" in done.stderr


@pytest.mark.parametrize(("splits", "what"), [(1, "SyncBN"), (3, "can't be shared evenly")])
def test_ranks_that_cannot_form_the_groups(splits: int, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mls.train.stage.world", lambda: 2)
    with pytest.raises(MlsError, match=what):
        check_ranks(Pretrain(moco=Moco(bn_splits=splits)), torch.device("cpu"))
    check_ranks(Pretrain(moco=Moco(bn_splits=4)), torch.device("cpu"))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="SyncBN needs two GPUs")
def test_sync_bn_equals_one_group(in_tmp: Path) -> None:
    """The first losses of two ranks with SyncBN are those of one rank with plain batch norm."""
    raw = small(
        pretrain={**SMALL["pretrain"], "moco": {**SMALL["pretrain"]["moco"], "bn_splits": 1}},
        execution={**SMALL["execution"], "device": "cuda"},
    )
    with Path("small.yaml").open("w") as file:
        YAML().dump(raw, file)
    plan = plan_file(Path("small.yaml"))
    run_stage(plan, plan.stage("data")[0], mls.data.stage.run)
    (job,) = plan.find("pretrain", "mls")
    rows = []
    for launcher in (TORCHRUN, [sys.executable]):
        subprocess.run([*launcher, "-m", "mls", "pretrain", "mls", "-e", "small.yaml"], env=ENVIRONMENT, check=True)
        rows.append((job.path / "curves.csv").read_text().splitlines()[1].split(",")[4:6])
        job.path.rename(f"made-{len(rows)}")
        (job.work / "artifact.json").unlink(missing_ok=True)
    for a, b in zip(*rows, strict=True):
        assert float(a) == pytest.approx(float(b), rel=1e-3)
