"""Two ranks (gloo on a CPU) give the losses, gradients and dictionaries of one; resumed, they give the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

import mls.data.build_store
from mls.config.experiment import Pretrain
from mls.config.methods import Moco
from mls.pipeline.artifact import VOLATILE, open_artifact
from mls.pipeline.plan import Plan, plan_file
from mls.pipeline.runner import run_stage
from mls.pipeline.status import job_state
from mls.runtime.checkpoint import load_resumable
from mls.runtime.errors import MlsError
from mls.train.pretrain import check_ranks
from tests.conftest import PEERS, SMALL, small, with_peers
from tests.runtime.support import BROKEN_DECODER
from tests.train import two_ranks

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MLS_PLAIN": "1"}


CASES = [("mls", 2), ("mls", 4), ("moco-v2", 2), *((run, 2) for run in PEERS), ("slotcon", 4)]
CASES += [("multicrop", 2), ("multicrop", 4)]
"""Run and number of batch-norm groups: with 2 each rank has one group, with 4 each has two."""


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The results of two ranks in every case, from a single torchrun, because its start takes the longest."""
    folder = tmp_path_factory.mktemp("two-ranks")
    with chdir(folder):
        make_data(two_ranks.plan(2))
    cases = [f"{run},{splits},20" for run, splits in CASES] + [f"{run},2,6,3" for run in ("mls", *PEERS)]
    command = [*TORCHRUN, "-m", "tests.train.two_ranks", "two.pt", *cases]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = torch.load(folder / "two.pt", weights_only=True)
    assert all(one["world"] == 2 for one in found.values())
    return found


def make_data(plan: Plan) -> None:
    run_stage(plan, plan.stage("data")[0], mls.data.build_store.run)


@pytest.mark.parametrize(("run", "splits"), CASES)
def test_two_ranks_equal_one_with_the_same_groups(
    in_tmp: Path, on_two_ranks: dict[str, dict[str, Any]], run: str, splits: int
) -> None:
    make_data(two_ranks.plan(splits))
    one, two = two_ranks.trace(run, splits, 20), on_two_ranks[f"{run},{splits},20"]
    for part in ("gradients", "state"):
        assert one[part].keys() == two[part].keys()
        for name, value in one[part].items():
            close(value, two[part][name], 1e-9, f"{part} {name} at step 1")
    assert (one["state"]["dictionary.row_D"] >= 0).sum() == 16, "the keys of both ranks, in rank order"
    losses = [torch.tensor(found["losses"], dtype=torch.float64) for found in (one, two)]
    close(losses[0][0], losses[1][0], 1e-9, "losses of step 1")
    close(losses[0], losses[1], 1e-6, "losses of 20 steps")
    other = two_ranks.trace(run, 1, 2)
    assert abs(other["losses"][1][0] - one["losses"][1][0]) > 1e-4, "the groups do matter"


@pytest.mark.parametrize("run", ["mls", *PEERS])
def test_a_step_that_is_not_finite_on_one_rank_changes_nothing_on_any(
    in_tmp: Path, on_two_ranks: dict[str, dict[str, Any]], run: str
) -> None:
    make_data(two_ranks.plan(2))
    one, two = two_ranks.trace(run, 2, 6, 3), on_two_ranks[f"{run},2,6,3"]
    assert (one["nonfinite"], two["nonfinite"]) == (1, 1)
    assert one["changed"] == two["changed"] == []
    for name, value in one["last"].items():
        close(value, two["last"][name], 1e-7, name)
    untouched = two_ranks.trace(run, 2, 6)
    assert not torch.equal(untouched["last"]["backbone.conv1.weight"], one["last"]["backbone.conv1.weight"])


def close(a: torch.Tensor, b: torch.Tensor, most: float, what: str) -> None:
    assert a.dtype == b.dtype, what
    apart = float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
    assert apart <= most * max(1.0, float(a.double().abs().max()) if a.numel() else 1.0), f"{what}: {apart}"


@pytest.mark.parametrize(("run", "checkpoint_every"), [("mls", 1), ("slotcon", 25)])
def test_two_ranks_resume_to_the_same_bytes(in_tmp: Path, run: str, checkpoint_every: int) -> None:
    """A SIGTERM to one rank stops both; run again, they give the bytes of an undisturbed run."""
    execution = {**SMALL["execution"], "checkpoint_every": checkpoint_every}
    plan = written(with_peers(pretrain={**SMALL["pretrain"], "epochs": 30}, execution=execution))
    make_data(plan)
    (job,) = plan.find("pretrain", run)
    first = start(run)
    deadline = time.monotonic() + 120
    while not list(job.work.glob("checkpoint-*.pt")):
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()[1]
        time.sleep(0.02)
    (rank_1,) = [pid for pid in children(first.pid) if b"RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(rank_1, signal.SIGTERM)
    _, log = first.communicate(timeout=120)
    assert first.returncode != 0 and job_state(job) == "resumable", log
    assert "after saving" in log
    saved, _ = load_resumable(job.work)
    assert saved is not None and saved["step"] < 90
    assert checkpoint_every == 1 or saved["step"] % checkpoint_every, "not one of the regular checkpoints"
    log = finish(run)
    assert f"resumes at step {saved['step']} of 90" in log
    resumed = contents(job.path)
    job.path.rename("resumed")
    shutil.rmtree(job.stored)
    assert "resumes" not in finish(run)
    assert contents(job.path) == resumed
    made = open_artifact(job.path, deep=True).manifest["made"]
    assert made["ranks"] == 2


def written(raw: dict[str, Any]) -> Plan:
    with Path("small.yaml").open("w") as file:
        YAML().dump(raw, file)
    return plan_file(Path("small.yaml"))


def start(run: str, **environment: str) -> subprocess.Popen[str]:
    command = [*TORCHRUN, "-m", "mls", "pretrain", run, "-e", "small.yaml"]
    return subprocess.Popen(command, env={**ENVIRONMENT, **environment}, stderr=subprocess.PIPE, text=True)


def finish(run: str) -> str:
    running = start(run)
    _, log = running.communicate(timeout=120)
    assert running.returncode == 0, log
    return log


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_runs_that_do_not_train_need_one_rank(in_tmp: Path) -> None:
    plan = written(small())
    finish("random")
    (job,) = plan.find("pretrain", "random")
    open_artifact(job.path, deep=True)
    assert "is there" in finish("random")


def test_the_error_of_rank_0_is_reported(in_tmp: Path) -> None:
    """Its input is missing; the other rank leaves without an error of its own."""
    written(small())
    running = start("mls")
    _, log = running.communicate(timeout=120)
    assert running.returncode != 0 and "needs data scenes" in log
    assert "Connection closed" not in log


def test_the_record_of_a_failure_is_from_the_rank_that_failed(in_tmp: Path) -> None:
    """Rank 1 can't read an image; the record is not rank 0's view of it."""
    plan = written(small())
    make_data(plan)
    (job,) = plan.find("pretrain", "mls")
    Path("sitecustomize.py").write_text(BROKEN_DECODER)
    running = start("mls", PYTHONPATH=f"{in_tmp}:{ROOT}")
    _, log = running.communicate(timeout=120)
    assert running.returncode != 0, log
    record = json.loads((job.work / "failed.json").read_text())
    assert record["message"] == "broken on purpose" and record["rank"] == 1 and job_state(job) == "failed"


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name not in VOLATILE}


def test_other_stages_refuse_many_ranks(in_tmp: Path) -> None:
    written(small())
    command = [sys.executable, "-m", "mls", "probe", "linear/mls", "-e", "small.yaml"]
    done = subprocess.run(command, env={**ENVIRONMENT, "WORLD_SIZE": "2"}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "only pretrain and transfer" in done.stderr


@pytest.mark.parametrize(("splits", "what"), [(1, "SyncBN"), (3, "can't be shared evenly")])
def test_ranks_that_cannot_form_the_groups(splits: int, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mls.train.pretrain.world", lambda: 2)
    with pytest.raises(MlsError, match=what):
        check_ranks(Pretrain(moco=Moco(bn_splits=splits)), torch.device("cpu"))
    check_ranks(Pretrain(moco=Moco(bn_splits=4)), torch.device("cpu"))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="SyncBN needs two GPUs")
def test_sync_bn_equals_one_group(in_tmp: Path) -> None:
    """Two ranks with SyncBN have the first losses of one rank with plain batch norm."""
    raw = small(
        pretrain={**SMALL["pretrain"], "moco": {**SMALL["pretrain"]["moco"], "bn_splits": 1}},
        execution={**SMALL["execution"], "device": "cuda"},
    )
    plan = written(raw)
    make_data(plan)
    (job,) = plan.find("pretrain", "mls")
    rows = []
    for launcher in (TORCHRUN, [sys.executable]):
        subprocess.run([*launcher, "-m", "mls", "pretrain", "mls", "-e", "small.yaml"], env=ENVIRONMENT, check=True)
        rows.append((job.path / "curves.csv").read_text().splitlines()[1].split(",")[4:6])
        job.path.rename(f"made-{len(rows)}")
        shutil.rmtree(job.stored)
    for a, b in zip(*rows, strict=True):
        assert float(a) == pytest.approx(float(b), rel=1e-3)
