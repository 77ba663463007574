"""Two ranks (gloo on a CPU) that share a transfer's batches give what one process gives; they stop and resume alike."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ruamel.yaml import YAML

import mls.data.build_store
import mls.train.pretrain
from mls.pipeline.artifact import VOLATILE, open_artifact
from mls.pipeline.plan import Plan, plan_file
from mls.pipeline.runner import run_stage
from mls.pipeline.status import job_state
from mls.runtime.errors import MlsError
from mls.train.finetune import finetune
from mls.transfer.interface import Given
from mls.transfer.semantic import SemanticTraining
from tests.conftest import SMALL, plan_of, small
from tests.transfer import two_ranks
from tests.transfer.semantic_support import masked_store, tiny_task
from tests.transfer.support import assert_equal

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MLS_PLAIN": "1"}
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
CASES = ["instance", "detection", "semantic", "accumulated"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    two_ranks.make_data(path)
    return path


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, Any]:
    """What two ranks found in every case, from a single torchrun, because its start takes the longest."""
    cases = [*CASES, "official instance", "poisoned semantic"]
    command = [sys.executable, "-m", *TORCHRUN, "tests.transfer.two_ranks", str(folder), *cases]
    done = subprocess.run(command, env=ENVIRONMENT, timeout=500, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = torch.load(folder / "two.pt", weights_only=True)
    return found


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one(case: str, folder: Path, two: dict[str, Any]) -> None:
    """Images have unequal sizes and numbers of objects, some have none, and in half of the steps the second rank has
    no mask to learn."""
    one, shared = two_ranks.trace(case, folder), two[case]
    assert (one["world"], shared["world"]) == (1, 2)
    assert one["predicted"] and one["predicted"] == shared["predicted"], "before training: the same bits"
    assert len(one["rows"]) == len(shared["rows"]) == two_ranks.STEPS[case]
    for expected, found in zip(one["rows"], shared["rows"], strict=True):
        assert found == pytest.approx(expected, abs=1e-6)
    for name, value in one["state"].items():
        assert torch.allclose(value, shared["state"][name], rtol=1e-6, atol=1e-6), name
    assert one["metrics"] and shared["metrics"] == pytest.approx(one["metrics"], abs=1e-6)


def test_means_of_the_ranks_means_are_another_loss(two: dict[str, Any]) -> None:
    """What official trainings minimise; docs/protocols.md has the size of the difference."""
    ours, official = (two[case]["rows"][0] for case in ("instance", "official instance"))
    assert official["loss_mask"] < 0.6 * ours["loss_mask"], "the second rank has no mask, and counts as much"


def test_statistics_and_gradients_of_batch_norm(two: dict[str, Any]) -> None:
    """Of unequal numbers of maps, also of none on a rank."""
    expected = two_ranks.normed()
    assert len(expected) == len(two["norm"]) == 11
    for one, shared in zip(expected, two["norm"], strict=True):
        assert torch.allclose(one, shared, rtol=1e-12, atol=1e-12)


def test_a_loss_that_is_not_finite_on_one_rank_stops_all(two: dict[str, Any]) -> None:
    first, second = two["poisoned semantic"]["errors"]
    assert first == second and "the loss is not finite at step 1 of 20" in first


def test_accumulated_parts_are_batches_of_their_own(given: Given, log: list[str], tmp_path: Path) -> None:
    """Their gradients and losses are averaged, and batch norm sees one at a time."""
    store = masked_store(tmp_path / "masked")
    task = tiny_task(batch_size=4, accumulate=2, iterations=1, dropout=0.0)

    def built() -> SemanticTraining:
        torch.manual_seed(0)
        return SemanticTraining(task, Given(store, given.config, given.weights, 1000, given.device, log.append))

    expected, found = built(), built()
    parts = list(expected.batches(range(1), 1))
    assert [len(part) for part in parts] == [2, 2]
    expected.model.train()
    total = 0.0
    for part in parts:
        loss = torch.stack(list(expected.losses(part).values())).sum() / 2
        loss.backward()
        total += loss.item()
    expected.optimizer.step()
    execution = plan_of(small()).loaded.experiment.execution
    (row,) = finetune(found, execution=execution, work=tmp_path, log=log.append, name="test").curves
    assert row["loss"] == pytest.approx(total, rel=1e-6)
    assert_equal(expected, found)
    assert "2 parts of 2 images a step: batch norm sees 2 images at a time, not 4" in log


def test_ranks_that_do_not_divide_a_batch(given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = masked_store(tmp_path / "masked")
    task = tiny_task(batch_size=6, accumulate=3)
    training = SemanticTraining(task, Given(store, given.config, given.weights, 1000, given.device, given.log))
    monkeypatch.setattr("mls.transfer.interface.world", lambda: 4)
    with pytest.raises(MlsError, match="4 ranks do not divide batch_size 6 in 3 parts evenly"):
        training.share_batch()


# ------------------------------------------------------------------------------ stopped and killed


def written(epochs: int, **execution: int) -> Plan:
    """Write an experiment with one detection of few objects, here."""
    sizes = {"image_size": 32, "fpn_channels": 8, "head_channels": 8, "rois": 8, "proposals": 10}
    detect = {"kind": "instance", "dataset": "scenes", "batch_size": 4, "epochs": epochs, "warmup_steps": 2, **sizes}
    raw = small(
        runs={"random": {"method": "none"}},
        transfer={"detect": detect},
        execution={**SMALL["execution"], "checkpoint_every": 10, **execution},
    )
    with Path("small.yaml").open("w") as file:
        YAML().dump(raw, file)
    return plan_file(Path("small.yaml"))


def make_inputs(plan: Plan) -> None:
    """Make what the detection needs."""
    for stage, function in (("data", mls.data.build_store.run), ("pretrain", mls.train.pretrain.run)):
        run_stage(plan, plan.stage(stage)[0], function)


def start(*launcher: str, attempt: int = 1) -> subprocess.Popen[str]:
    """Two devices that exist only by name are two ranks on the CPU."""
    environment = {**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": "a,b", "MLS_LEASES": str(Path("leases").absolute())}
    command = [sys.executable, "-m", *launcher, "mls", "transfer", "detect/random", "-e", "small.yaml"]
    return subprocess.Popen([*command, "--attempt", str(attempt)], env=environment, stderr=subprocess.PIPE, text=True)


def finish(*launcher: str, attempt: int = 1) -> str:
    running = start(*launcher, attempt=attempt)
    _, log = running.communicate(timeout=300)
    assert running.returncode == 0, log
    return log


def wait_for(text: str, running: subprocess.Popen[str]) -> None:
    assert running.stderr is not None
    assert any(text in line for line in running.stderr), f"it ended before {text!r}"


def test_a_stopped_and_killed_transfer_resumes_to_the_same_bytes(in_tmp: Path) -> None:
    """SIGTERM saves and exits with 75; so does a killed rank, which is not the job's failure."""
    plan = written(epochs=15, gpus=2)
    make_inputs(plan)
    (job,) = plan.find("transfer", "detect/random")
    running = start()
    end = time.monotonic() + 300
    while not list(job.work.glob("checkpoint-*.pt")):
        assert running.poll() is None and time.monotonic() < end, running.communicate()[1]
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    _, log = running.communicate(timeout=300)
    assert running.returncode == 75, log
    assert "after saving" in log and "Traceback" not in log and job_state(job) == "resumable"

    running = start()
    wait_for("going on from step", running)
    ranks = [child for child in psutil.Process(running.pid).children() if "--attempt" in child.cmdline()]
    (second,) = [rank for rank in ranks if rank.environ()["RANK"] == "1"]
    second.kill()
    _, log = running.communicate(timeout=300)
    assert running.returncode == 75 and "a rank was killed" in log, log
    assert job_state(job) == "resumable"

    assert "going on from step" in finish(attempt=2)
    assert open_artifact(job.path, deep=True).manifest["made"]["ranks"] == 2
    resumed = contents(job.path)
    job.path.rename("resumed")
    shutil.rmtree(job.stored)
    assert "going on" not in finish(*TORCHRUN)
    assert contents(job.path) == resumed


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name not in VOLATILE}
