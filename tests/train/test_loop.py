"""Resume equals an undisturbed run, byte for byte; interruptions save; bad losses stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import mls.data.stage
import mls.train.stage
from mls.errors import DeterministicError, Interrupted, MlsError
from mls.experiment.artifact import VOLATILE, open_artifact
from mls.experiment.plan import Job, Plan
from mls.experiment.stage import run_stage
from mls.experiment.status import job_state
from mls.methods.moco import MoCo
from mls.train import loop
from mls.train.checkpoint import NAME
from tests.conftest import SMALL, plan_of, small


@pytest.fixture(autouse=True)
def restore_torch() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def plan(in_tmp: Path) -> Plan:
    """9 steps of 8 images, 3 an epoch; the data is there."""
    plan = plan_of(small())
    run_stage(plan, plan.stage("data")[0], mls.data.stage.run)
    return plan


def job_of(plan: Plan, run: str) -> Job:
    (job,) = plan.find("pretrain", run)
    return job


def contents(job: Job) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in job.path.iterdir() if f.name not in VOLATILE}


def remove(job: Job) -> None:
    for file in job.path.iterdir():
        file.unlink()
    job.path.rmdir()
    (job.work / "artifact.json").unlink()


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, how: signal.Signals = signal.SIGTERM) -> None:
    """Send a signal to this process when a step is done."""
    original = MoCo.finish_step
    count = iter(range(1, 100))

    def finish(self: MoCo) -> None:
        original(self)
        if next(count) == step:
            os.kill(os.getpid(), how)

    monkeypatch.setattr(MoCo, "finish_step", finish)


@pytest.mark.parametrize("step", [1, 4, 6])  # in mid-epoch, and at an epoch's end
@pytest.mark.parametrize("run", ["mls", "moco-v2"])
def test_resume_equals_an_undisturbed_run(plan: Plan, run: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(plan, run)
    run_stage(plan, job, mls.train.stage.run)
    expected = contents(job)
    remove(job)
    with monkeypatch.context() as patch:
        stop_at(step, patch)
        with pytest.raises(Interrupted, match="SIGTERM"):
            run_stage(plan, job, mls.train.stage.run)
    assert job_state(job) == "resumable" and not job.path.exists()
    torch.manual_seed(99)  # whatever state a new process has
    run_stage(plan, job, mls.train.stage.run)
    assert contents(job) == expected
    assert not (job.work / NAME).exists(), "the artifact has the final state"


def test_workers_change_nothing(plan: Plan) -> None:
    job = job_of(plan, "mls")
    run_stage(plan, job, mls.train.stage.run)
    expected = contents(job)
    remove(job)
    execution = {**SMALL["execution"], "workers": 2}
    again = plan_of(small(execution=execution))
    run_stage(again, job_of(again, "mls"), mls.train.stage.run)
    assert contents(job) == expected


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGUSR1])
def test_other_signals_save_too(plan: Plan, how: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(3, monkeypatch, how)
    with pytest.raises(Interrupted, match=how.name):
        run_stage(plan, job_of(plan, "mls"), mls.train.stage.run)
    state = torch.load(job_of(plan, "mls").work / NAME, weights_only=True)
    assert state["step"] == 3


def test_a_cut_checkpoint_is_set_aside_and_said(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_of(plan, "mls")
    with monkeypatch.context() as patch:
        stop_at(4, patch)
        with pytest.raises(Interrupted):
            run_stage(plan, job, mls.train.stage.run)
    file = job.work / NAME
    file.write_bytes(file.read_bytes()[:5000])
    run_stage(plan, job, mls.train.stage.run)
    assert "can't be read" in capsys.readouterr().err
    assert (job.work / f"{NAME}.unreadable").stat().st_size == 5000
    assert job_state(job) == "done"


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    original = MoCo.losses
    calls = iter(range(100))

    def poisoned(self: MoCo, e: object) -> dict[str, torch.Tensor]:
        losses = original(self, e)  # type: ignore[arg-type]
        factor = float("nan") if next(calls) == 5 else 1.0
        return {name: value * factor for name, value in losses.items()}

    monkeypatch.setattr(MoCo, "losses", poisoned)
    updates: list[int] = []
    original_step = torch.optim.SGD.step

    def counted(self: torch.optim.SGD) -> None:
        updates.append(1)
        original_step(self)

    monkeypatch.setattr(torch.optim.SGD, "step", counted)
    with pytest.raises(DeterministicError, match="not finite at step 5"):
        run_stage(plan, job_of(plan, "moco-v2"), mls.train.stage.run)
    assert len(updates) == 5, "steps 0 to 4 and no other"
    assert job_state(job_of(plan, "moco-v2")) == "failed"


def test_a_gradient_that_is_not_finite_stops_too(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    original = MoCo.losses

    def poisoned(self: MoCo, e: object) -> dict[str, torch.Tensor]:
        losses = original(self, e)  # type: ignore[arg-type]
        weight = next(self.backbone.parameters()).flatten()[0]
        zero = weight - weight.detach()
        return {**losses, "loss": losses["loss"] + zero.abs().sqrt()}  # 0, with the slope of a root at 0

    monkeypatch.setattr(MoCo, "losses", poisoned)
    with pytest.raises(DeterministicError, match="gradient norm nan"):
        run_stage(plan, job_of(plan, "moco-v2"), mls.train.stage.run)


def test_the_artifact_holds_what_the_contract_says(plan: Plan) -> None:
    job = job_of(plan, "mls")
    run_stage(plan, job, mls.train.stage.run)
    artifact = open_artifact(job.path, deep=True)
    assert set(artifact.seal["files"]) == {
        "backbone.safetensors", "checkpoint.pt", "curves.csv", "metrics.json", "params.json", "timing.csv",
    }  # fmt: skip
    assert artifact.read_json("params.json")["derived"] == {"steps": 9, "steps_per_epoch": 3, "train_images": 24}
    lines = artifact.file("curves.csv").read_text().splitlines()
    assert lines[0] == "step,epoch,lr,loss,info_nce,multi_label" and lines[-1].startswith("9,3,")


def test_curves_average_their_window(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    original = loop.Trainer._train_step

    def watched(self: loop.Trainer, *args: torch.Tensor) -> dict[str, torch.Tensor]:
        losses = original(self, *args)
        seen.append(losses["loss"].item())
        return losses

    monkeypatch.setattr(loop.Trainer, "_train_step", watched)
    monkeypatch.setattr(loop, "LOG_EVERY", 2)
    job = job_of(plan, "moco-v2")
    run_stage(plan, job, mls.train.stage.run)
    rows = [line.split(",") for line in (job.path / "curves.csv").read_text().splitlines()[1:]]
    assert [int(row[0]) for row in rows] == [2, 4, 6, 8, 9]
    for row, window in zip(rows, (seen[:2], seen[2:4], seen[4:6], seen[6:8], seen[8:]), strict=True):
        assert float(row[3]) == pytest.approx(sum(window) / len(window), rel=1e-5)


def test_random_weights_are_those_of_their_seed(plan: Plan) -> None:
    job = job_of(plan, "random")
    run_stage(plan, job, mls.train.stage.run)
    first = contents(job)
    remove(job)
    run_stage(plan, job, mls.train.stage.run)
    assert contents(job) == first
    other = plan_of(small(seeds=[1]))
    run_stage(other, job_of(other, "random"), mls.train.stage.run)
    assert contents(job_of(other, "random"))["backbone.safetensors"] != first["backbone.safetensors"]


def test_a_batch_larger_than_the_dataset_is_a_clear_error(plan: Plan) -> None:
    big = plan_of(small(pretrain={**SMALL["pretrain"], "batch_size": 25}))
    with pytest.raises(MlsError, match=r"pretrain\.batch_size 25 is more than the 24 train images"):
        run_stage(big, job_of(big, "mls"), mls.train.stage.run)
