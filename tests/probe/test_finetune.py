"""Training on images: what is frozen stays, a resumed run is the uninterrupted one, damage is named."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mls.config.probes import TrainedProbe
from mls.data.image_store import ImageStore
from mls.probe import finetune as module
from mls.probe.classifier import Classifier, learning_rate, loss_of
from mls.probe.finetune import ClassifierTraining, Views
from mls.runtime.checkpoint import load_resumable
from mls.runtime.errors import DeterministicError, Interrupted
from tests.probe.finetune_support import (
    CPU,
    EXECUTION,
    SEED,
    SIDE,
    changed,
    fit,
    make_backbone,
    make_task,
    parameters,
)


def test_classifier_lr_changes_only_the_classifier(store: ImageStore, tmp_path: Path) -> None:
    steps: dict[float, dict[str, torch.Tensor]] = {}
    for times in (0.5, 1.0, 8.0):
        task = make_task(epochs=1, batch_size=12, lr=1e-3, classifier_lr=times, momentum=0.0)  # a single step
        assert fit(task, store, tmp_path / f"{times}").steps == 1
        state, _ = load_resumable(tmp_path / f"{times}")
        assert state is not None
        steps[times] = state["model"]
    begun = Classifier(make_backbone(), 3, make_task(), SEED).state_dict()
    moved = {times: state["fc.weight"] - begun["fc.weight"] for times, state in steps.items()}
    torch.testing.assert_close(moved[8.0], 8 * moved[1.0], rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(moved[0.5], 0.5 * moved[1.0], rtol=1e-3, atol=1e-7)
    assert moved[1.0].abs().max() > 1e-5
    assert torch.equal(steps[8.0]["backbone.conv1.weight"], steps[1.0]["backbone.conv1.weight"])


def test_sgd_leaves_the_backbone_bit_for_bit(store: ImageStore, tmp_path: Path) -> None:
    backbone = make_backbone()
    before = parameters(backbone)
    outcome = fit(make_task("sgd", lr=0.1, weight_decay=0.1), store, tmp_path / "work", backbone=backbone)
    assert changed(backbone, before) == set()
    losses = [row["loss"] for row in outcome.curves]
    assert losses[-1] < losses[0]
    state, _ = load_resumable(tmp_path / "work")
    assert state is not None and set(state["model"]) == {"1.weight", "1.bias"}


@pytest.mark.parametrize(("batchnorm", "kept"), [("frozen", True), ("train", False)])
def test_statistics_of_batch_norm(store: ImageStore, tmp_path: Path, batchnorm: str, kept: bool) -> None:
    backbone = make_backbone()
    before = parameters(backbone)
    fit(make_task(epochs=1, batchnorm=batchnorm), store, tmp_path / "work", backbone=backbone)
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    assert changed(backbone, before) == {"weight", "bias"} | (set() if kept else statistics)


@pytest.mark.parametrize("multi_label", [True, False])
def test_mixup_by_hand(store: ImageStore, monkeypatch: pytest.MonkeyPatch, multi_label: bool) -> None:
    """Zhang et al.: cross-entropy of mixed images with mixed labels. Ignored classes leave the share of their image."""
    monkeypatch.setattr(store, "multi_label", multi_label)
    task = make_task(mixup=1.0, batchnorm="frozen", weight_decay=0.0)
    training = ClassifierTraining(
        Classifier(make_backbone(), 3, task, SEED), Views(store, store.split("train"), task, SEED), CPU
    )
    training.model.train()
    (batch,) = training.batches(range(1), 1)
    assert batch.mixture is not None and 0.02 < batch.mixture.share < 0.98
    share, partner_B = batch.mixture.share, batch.mixture.partner_B
    assert not torch.equal(partner_B, torch.arange(4))
    if not multi_label:
        batch = batch._replace(truth_BC=torch.eye(3).bool()[[0, 1, 2, 1]])
    images_BCHW = training.augment(batch.crops_BCHW, batch.draws_BU)
    logits_BC = training.model(share * images_BCHW + (1 - share) * images_BCHW[partner_B])
    truth_BC = batch.truth_BC.float()
    mixed_BC = share * truth_BC + (1 - share) * truth_BC[partner_B]
    loss_fn = torch.nn.BCEWithLogitsLoss() if multi_label else torch.nn.CrossEntropyLoss()
    torch.testing.assert_close(training.losses(batch)["loss"], loss_fn(logits_BC, mixed_BC))
    if multi_label:
        kept_BC = torch.ones(4, 3).bool()
        kept_BC[0] = False
        pairs_BC = torch.nn.functional.binary_cross_entropy_with_logits(logits_BC, truth_BC, reduction="none")
        theirs_BC = torch.nn.functional.binary_cross_entropy_with_logits(
            logits_BC, truth_BC[partner_B], reduction="none"
        )
        expected = share * pairs_BC[1:].mean() + (1 - share) * theirs_BC[partner_B != 0].mean()
        torch.testing.assert_close(training.losses(batch._replace(kept_BC=kept_BC))["loss"], expected)


def test_mixup_is_refused_where_the_backbone_is_frozen() -> None:
    with pytest.raises(ValidationError, match=r"mixup\n.*Extra inputs"):
        make_task("sgd", mixup=1.0)
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        make_task(mixup=-1.0)


@pytest.mark.parametrize("kind", ["finetune", "sgd"])
@pytest.mark.parametrize("how", ["signal", "kill", "damage"])
def test_a_resumed_training_equals_an_uninterrupted_one(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, how: str
) -> None:
    monkeypatch.setattr("mls.train.finetune.CURVE_EVERY", 2)
    own = {"batchnorm": True} if kind == "sgd" else {"mixup": 0.4, "augment": {"crop": SIDE, "resize": 18}}
    task = make_task(kind, epochs=3, batch_size=5, lr=0.1, warmup_epochs=1.0, nesterov=True, **own)
    whole = fit(task, store, tmp_path / "whole")
    assert whole.steps == 7
    original, calls = learning_rate, 0

    def stop_on_the_way(task: TrainedProbe, step: int, steps: int) -> float:
        nonlocal calls
        calls += 1
        if how == "signal" and calls == 3:
            os.kill(os.getpid(), signal.SIGTERM)  # the step is finished, then the state is saved
        if how != "signal" and calls == 6:
            raise KeyboardInterrupt  # nothing is saved any more
        return original(task, step, steps)

    every = EXECUTION.model_copy(update={"checkpoint_every": {"signal": 100, "kill": 4, "damage": 2}[how]})
    monkeypatch.setattr(module, "learning_rate", stop_on_the_way)
    with pytest.raises(Interrupted if how == "signal" else KeyboardInterrupt):
        fit(task, store, tmp_path / "parts", every)
    left = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert left == [f"checkpoint-{n:09d}.pt" for n in {"signal": [3], "kill": [4], "damage": [2, 4]}[how]]
    if how == "damage":
        with (tmp_path / "parts" / left[-1]).open("r+b") as file:
            file.truncate(1000)
    monkeypatch.setattr(module, "learning_rate", original)
    lines: list[str] = []
    resumed = fit(task, store, tmp_path / "parts", lines=lines)

    assert lines[-1] == f"going on from step { ({'signal': 3, 'kill': 4, 'damage': 2}[how]) } of 7"
    assert len(lines) == (2 if how == "damage" else 1)
    assert [row["step"] for row in whole.curves] == [0, 2, 4, 6]
    assert resumed.curves == whole.curves
    assert np.array_equal(resumed.evaluation.scores_NC, whole.evaluation.scores_NC)
    states = [load_resumable(tmp_path / folder)[0] for folder in ("whole", "parts")]
    for state in states:
        assert state is not None
        state["timing"] = None
    first, second = (flat(state) for state in states)
    assert len(first) == len(second) > 10
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(first, second, strict=True))
    again = fit(task, store, tmp_path / "parts")  # finished: trains no more
    assert np.array_equal(again.evaluation.scores_NC, whole.evaluation.scores_NC)
    assert again.curves == whole.curves


def flat(value: Any) -> list[Any]:
    """The leaves of nested containers, in order."""
    if isinstance(value, dict):
        return [leaf for key in sorted(value, key=str) for leaf in [key, *flat(value[key])]]
    if isinstance(value, list):
        return [leaf for item in value for leaf in flat(item)]
    return [value]


def test_bad_loss_stops_before_the_update(store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = make_backbone()
    before = parameters(backbone)

    def broken(*args: Any) -> torch.Tensor:
        return loss_of(*args) * math.inf

    monkeypatch.setattr(module, "loss_of", broken)
    with pytest.raises(DeterministicError, match=r"at step 0 of 18 \(loss inf\); .* 0\.5: lower lr \(now 0\.5\)"):
        fit(make_task(lr=0.5), store, tmp_path / "work", backbone=backbone)
    assert changed(backbone, before).isdisjoint({"weight", "bias"})
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("kind", ["finetune", "sgd"])
def test_a_broken_backbone_is_named(store: ImageStore, tmp_path: Path, kind: str) -> None:
    backbone = make_backbone()
    with torch.no_grad():
        backbone.layer4[1].bn2.bias[0] = math.inf
    with pytest.raises(DeterministicError, match=r"at step 0 of 18.*backbone's features are not.*pretraining diverged"):
        fit(make_task(kind), store, tmp_path / "work", backbone=backbone)


def test_logits_that_are_not_finite_are_refused(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = np.array([[0, math.nan, 0], [0, 0, 0]], dtype=np.float32)
    monkeypatch.setattr(module, "outputs_of", lambda *_: logits)
    with pytest.raises(DeterministicError, match=r"after 18 steps the logits of 1 of 2 val images are not finite"):
        fit(make_task(), store, tmp_path / "work")
