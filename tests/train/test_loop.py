"""Resuming gives the same bytes as an undisturbed run; signals save; non-finite steps change nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mls.data.build_store
import mls.train.pretrain
from mls.data.image_store import ImageStore
from mls.data.loader import ViewBatch
from mls.methods.method import Method, Pair
from mls.methods.moco import MoCo
from mls.pipeline.artifact import VOLATILE, open_artifact
from mls.pipeline.plan import Job, Plan
from mls.pipeline.runner import run_stage
from mls.pipeline.status import job_state
from mls.runtime.checkpoint import load_resumable
from mls.runtime.errors import DeterministicError, Interrupted, MlsError
from mls.train import loop
from tests.conftest import PEERS, SMALL, plan_of, small, with_peers
from tests.train.support import job_of


def contents(job: Job) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in job.path.iterdir() if f.name not in VOLATILE}


def remove(job: Job) -> None:
    for file in job.path.iterdir():
        file.unlink()
    job.path.rmdir()
    shutil.rmtree(job.stored)


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, how: signal.Signals = signal.SIGTERM) -> None:
    """Send a signal to this process when a step is done."""
    original = Method.finish_step
    count = iter(range(1, 100))

    def finish(self: Method[Any], finite: torch.Tensor) -> None:
        original(self, finite)
        if next(count) == step:
            os.kill(os.getpid(), how)

    monkeypatch.setattr(Method, "finish_step", finish)


@pytest.mark.parametrize(
    ("run", "step"),  # in mid-epoch, and at an epoch's end
    [*((run, step) for run in ("mls", "moco-v2") for step in (1, 4, 6)), *((run, 4) for run in (*PEERS, "multicrop"))],
)
def test_resume_gives_the_same_bytes(plan: Plan, run: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(with_peers())
    job = job_of(plan, run)
    run_stage(plan, job, mls.train.pretrain.run)
    expected = contents(job)
    remove(job)
    with monkeypatch.context() as patch:
        stop_at(step, patch)
        with pytest.raises(Interrupted, match="SIGTERM"):
            run_stage(plan, job, mls.train.pretrain.run)
    assert job_state(job) == "resumable" and not job.path.exists()
    torch.manual_seed(99)  # whatever state a new process has
    run_stage(plan, job, mls.train.pretrain.run)
    assert contents(job) == expected
    assert not list(job.work.glob("checkpoint*")), "the artifact has the final state"


def test_the_number_of_workers_changes_nothing(plan: Plan) -> None:
    job = job_of(plan, "mls")
    run_stage(plan, job, mls.train.pretrain.run)
    expected = contents(job)
    remove(job)
    execution = {**SMALL["execution"], "workers": 2}
    again = plan_of(small(execution=execution))
    run_stage(again, job_of(again, "mls"), mls.train.pretrain.run)
    assert contents(job) == expected


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGUSR1])
def test_every_stop_signal_saves(plan: Plan, how: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(3, monkeypatch, how)
    with pytest.raises(Interrupted, match=how.name):
        run_stage(plan, job_of(plan, "mls"), mls.train.pretrain.run)
    state = torch.load(job_of(plan, "mls").work / "checkpoint-000000003.pt", weights_only=True)
    assert state["step"] == 3


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_of(plan, "mls")
    run_stage(plan, job, mls.train.pretrain.run)
    expected = contents(job)
    remove(job)
    with monkeypatch.context() as patch:
        stop_at(5, patch)
        with pytest.raises(Interrupted):
            run_stage(plan, job, mls.train.pretrain.run)
    assert [file.name for file in sorted(job.work.glob("checkpoint*"))] == [
        "checkpoint-000000004.pt",
        "checkpoint-000000005.pt",
    ]
    file = job.work / "checkpoint-000000005.pt"
    file.write_bytes(file.read_bytes()[:5000])
    run_stage(plan, job, mls.train.pretrain.run)
    log = capsys.readouterr().err
    assert "can't be read" in log and "resumes at step 4 of 9" in log
    assert (job.work / f"{file.name}.unreadable").stat().st_size == 5000
    assert contents(job) == expected


@pytest.mark.parametrize(("run", "part"), [("mls", "backbone"), ("byol", "backbone"), ("slotcon", "key_backbone")])
def test_the_artifact_holds_the_network_that_its_authors_transfer(plan: Plan, run: str, part: str) -> None:
    job = job_of(plan_of(with_peers()), run)
    run_stage(plan_of(with_peers()), job, mls.train.pretrain.run)
    state = torch.load(job.path / "checkpoint.pt", weights_only=True)["method"]
    found = load_file(job.path / "backbone.safetensors")
    assert found["conv1.weight"].equal(state[f"{part}.conv1.weight"])
    assert not state["backbone.conv1.weight"].equal(state["key_backbone.conv1.weight"])


OWN = {
    "densecl": ("dense_Dd", "key_dense_projector.0.weight"),
    "byol": ("predictor.0.weight", "key_projector.1.running_mean"),
    "slotcon": ("centre_K", "key_prototypes.weight", "predictor.norms.0.weight"),
}
"""State that only this method has: it must be in the checkpoint, and change."""


def poison(monkeypatch: pytest.MonkeyPatch, *steps: int, how: str = "loss") -> None:
    """Make the loss, or only the gradient, not a number at some steps."""
    original = Method.forward
    calls = iter(range(100))

    def poisoned(self: Method[Any], pair: Pair) -> dict[str, torch.Tensor]:
        losses = original(self, pair)
        if next(calls) not in steps:
            return losses
        if how == "loss":
            return {name: value * float("nan") for name, value in losses.items()}
        weight = next(self.backbone.parameters()).flatten()[0]
        zero = weight - weight.detach()
        return {**losses, "loss": losses["loss"] + zero.abs().sqrt()}  # 0, with the slope of a root at 0

    monkeypatch.setattr(Method, "forward", poisoned)


@pytest.mark.parametrize(
    ("run", "how", "step"),
    [
        *(("moco-v2", how, step) for how in ("loss", "gradient") for step in (0, 4)),
        ("densecl", "loss", 0),
        ("byol", "gradient", 4),
        ("slotcon", "loss", 4),
        ("slotcon", "gradient", 0),
        ("multicrop", "loss", 4),
    ],
)
def test_a_non_finite_step_changes_nothing(
    plan: Plan, run: str, how: str, step: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights, optimiser state, key encoder, dictionaries and running statistics stay the same."""
    poison(monkeypatch, step, how=how)
    states: list[dict[str, torch.Tensor]] = []
    original = loop.Trainer._train_step

    def watched(self: loop.Trainer, batch: ViewBatch, *, asked: bool = False) -> None:
        def snapshot() -> dict[str, torch.Tensor]:
            state = {f"method.{k}": v.clone() for k, v in self.method.state_dict().items()}
            for i, values in self.optimizer.state_dict()["state"].items():
                state |= {f"optimizer.{i}.{k}": v.clone() for k, v in values.items()}
            return state

        if not states:
            states.append(snapshot())
        original(self, batch, asked=asked)
        states.append(snapshot())

    monkeypatch.setattr(loop.Trainer, "_train_step", watched)
    plan = plan_of(with_peers())
    job = job_of(plan, run)
    run_stage(plan, job, mls.train.pretrain.run)
    assert len(states) == 10 and any(name.startswith("optimizer") for name in states[0])
    for name in OWN.get(run, ()):
        assert not torch.equal(states[0][f"method.{name}"], states[-1][f"method.{name}"]), name
    for i in range(9):
        same = all(torch.equal(states[i][name], value) for name, value in states[i + 1].items())
        assert same == (i == step), f"step {i}"
    assert json.loads((job.path / "metrics.json").read_text())["nonfinite_steps"] == 1
    log = capsys.readouterr().err
    assert f"step {step} is not finite" in log and "1 of at most 10" in log
    (file,) = job.work.glob("nonfinite/rank-0/*.pt")
    held = torch.load(file, weights_only=True)
    assert held["step"] == step and len(held["images"]) == 8 and held["boxes"].shape == (2, 8, 4)
    assert ("local_draws" in held) == (run == "multicrop")
    for line in (job.path / "curves.csv").read_text().splitlines()[1:]:
        assert "nan" not in line and "inf," not in line


def test_too_many_non_finite_steps_fail_the_run_and_keep_the_last_checkpoint(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 3, 5, 6)
    execution = {**SMALL["execution"], "max_nonfinite": 2}
    strict = plan_of(small(execution=execution))
    job = job_of(strict, "moco-v2")
    with pytest.raises(DeterministicError, match=r"step 6 is not finite .*more than execution\.max_nonfinite \(2\)"):
        run_stage(strict, job, mls.train.pretrain.run)
    assert job_state(job) == "failed"
    state, problems = load_resumable(job.work)
    assert state is not None and not problems and state["step"] == 6 and state["nonfinite"] == 2
    assert all(torch.isfinite(value).all() for value in state["method"].values() if value.is_floating_point())
    with pytest.raises(MlsError, match="mls retry"):
        run_stage(strict, job, mls.train.pretrain.run)


def test_the_artifact_holds_what_the_contract_says(plan: Plan) -> None:
    job = job_of(plan, "mls")
    run_stage(plan, job, mls.train.pretrain.run)
    artifact = open_artifact(job.path, deep=True)
    assert set(artifact.manifest["files"]) == {
        "backbone.safetensors", "checkpoint.pt", "curves.csv", "metrics.json", "params.json", "timing.csv",
    }  # fmt: skip
    assert artifact.read_json("params.json")["derived"] == {"steps": 9, "steps_per_epoch": 3, "train_images": 24}
    lines = artifact.file("curves.csv").read_text().splitlines()
    assert lines[0] == (
        "step,epoch,lr,weight,loss,info_nce,multi_label,accuracy,filled,g_mean,g_std,z_mean,z_std,queue_mean,"
        "alignment,uniformity,grad_nce,grad_ml,grad_cosine,agreement,agreement_base,grad_norm,knn"
    )
    assert lines[-1].startswith("9,3,")


def test_curves_average_their_window(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    original = MoCo.forward

    def watched(self: MoCo, pair: Pair) -> dict[str, torch.Tensor]:
        losses = original(self, pair)
        seen.append(losses["loss"].item())
        return losses

    monkeypatch.setattr(MoCo, "forward", watched)
    monkeypatch.setattr(loop, "LOG_EVERY", 2)
    job = job_of(plan, "moco-v2")
    run_stage(plan, job, mls.train.pretrain.run)
    rows = [line.split(",") for line in (job.path / "curves.csv").read_text().splitlines()[1:]]
    assert [int(row[0]) for row in rows] == [2, 3, 4, 6, 8, 9], "every 2 steps, and at each online kNN"
    windows = (seen[:2], seen[2:3], seen[3:4], seen[4:6], seen[6:8], seen[8:])
    for row, window in zip(rows, windows, strict=True):
        assert float(row[3]) == pytest.approx(sum(window) / len(window), rel=1e-5)


def with_truth() -> Plan:
    return plan_of(small(runs={"mls": {}, "truth": {"mls": {"label_space": "truth"}}}))


def test_true_labels_agree_more_often(plan: Plan) -> None:
    found = {}
    plan = with_truth()
    for run in ("mls", "truth"):
        run_stage(plan, job_of(plan, run), mls.train.pretrain.run)
        found[run] = json.loads((job_of(plan, run).path / "metrics.json").read_text())
    truth = found["truth"]
    assert truth["agreement"] > max(truth["agreement_base"], found["mls"]["agreement"])
    assert truth["multi_label"] != found["mls"]["multi_label"]


@pytest.mark.parametrize("lacking", ["all labels", "some labels"])
def test_label_space_truth_needs_labels(plan: Plan, lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, split = ImageStore.labels, ImageStore.split
    if lacking == "all labels":
        monkeypatch.setattr(ImageStore, "labels", lambda self, rows: np.zeros_like(labels(self, rows)))
    else:
        monkeypatch.setattr(ImageStore, "split", lambda self, name: split(self, "val" if name == "unlabeled" else name))
    plan = with_truth()
    with pytest.raises(MlsError, match=r"mls\.label_space is 'truth', but not every train image has labels"):
        run_stage(plan, job_of(plan, "truth"), mls.train.pretrain.run)
    run_stage(plan, job_of(plan, "mls"), mls.train.pretrain.run)


def test_random_weights_depend_on_the_seed_only(plan: Plan) -> None:
    job = job_of(plan, "random")
    run_stage(plan, job, mls.train.pretrain.run)
    first = contents(job)
    remove(job)
    run_stage(plan, job, mls.train.pretrain.run)
    assert contents(job) == first
    other = plan_of(small(seeds=[1]))
    run_stage(other, job_of(other, "random"), mls.train.pretrain.run)
    assert contents(job_of(other, "random"))["backbone.safetensors"] != first["backbone.safetensors"]


def test_a_batch_larger_than_the_dataset_is_an_error(plan: Plan) -> None:
    """Validation knows it of generated scenes only; of other data sets, the stage does."""
    job = job_of(plan, "mls")
    big = replace(job, config=job.config.model_copy(update={"batch_size": 26}))
    with pytest.raises(MlsError, match=r"pretrain\.batch_size 26 is more than the 24 train images"):
        run_stage(plan, big, mls.train.pretrain.run)
