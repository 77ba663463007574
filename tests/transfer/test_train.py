"""Training resumes bit for bit, stops on a bad loss, and sees each image as often as it should."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import mls.transfer.train as module
from mls.data.store import Store
from mls.errors import DeterministicError, Interrupted, MlsError
from mls.experiment.params import Backbone, Execution
from mls.experiment.tasks import InstanceTransfer
from mls.train.runtime import set_up
from mls.transfer.torchvision import build_detector
from mls.transfer.train import History, Samples, learning_rate, plan_batch, total_steps, train

SEED = 1000


def fit(
    store: Store, config: Backbone, weights: Path, task: InstanceTransfer, execution: Execution, work: Path
) -> tuple[dict[str, Tensor], History]:
    """One process's life: set up, build, train."""
    work.mkdir(exist_ok=True)
    device = set_up(execution, SEED)
    detector = build_detector(config, weights, task, len(store.classes))
    samples = Samples(store, "train")
    history = train(
        detector,
        samples,
        task,
        seed=SEED,
        device=device,
        execution=execution,
        work=work,
        log=lambda message: None,
    )
    return detector.state_dict(), history


@pytest.mark.parametrize("how", ["signal", "kill"])
def test_resumed_equals_uninterrupted(
    store: Store,
    config: Backbone,
    weights: Path,
    task: InstanceTransfer,
    execution: Execution,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    assert total_steps(task, 7) == 6
    monkeypatch.setattr(module, "CURVE_EVERY", 2)
    whole, history = fit(store, config, weights, task, execution, tmp_path / "whole")

    calls = 0
    original = module.learning_rate

    def stop_in_step_3(task: InstanceTransfer, step: int, total: int) -> float:
        nonlocal calls
        calls += 1
        if how == "signal" and calls == 3:
            os.kill(os.getpid(), signal.SIGTERM)  # the step is finished, then the state is saved
        if how == "kill" and calls == 5:
            raise KeyboardInterrupt  # nothing is saved any more: step 3's checkpoint is what is left
        return original(task, step, total)

    every = execution if how == "signal" else execution.model_copy(update={"checkpoint_every": 3})
    monkeypatch.setattr(module, "learning_rate", stop_in_step_3)
    with pytest.raises(Interrupted if how == "signal" else KeyboardInterrupt):
        fit(store, config, weights, task, every, tmp_path / "parts")
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["checkpoint-000000003.pt"]
    monkeypatch.setattr(module, "learning_rate", original)
    resumed, resumed_history = fit(store, config, weights, task, execution, tmp_path / "parts")

    assert [row["step"] for row in history.curves] == [0, 2, 4, 5]
    assert resumed_history.curves == history.curves
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    kept = [path.name for path in sorted((tmp_path / "parts").iterdir())]
    assert kept == ["checkpoint-000000003.pt", "checkpoint-000000006.pt"]
    again, _ = fit(store, config, weights, task, execution, tmp_path / "parts")  # finished: trains no more
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_bad_loss_stops_before_the_update(
    store: Store, config: Backbone, weights: Path, task: InstanceTransfer, execution: Execution, tmp_path: Path
) -> None:
    device = set_up(execution, SEED)
    detector = build_detector(config, weights, task, 3)
    with torch.no_grad():
        detector.roi_heads.box_predictor.cls_score.bias[0] = float("nan")
    before = {key: value.clone() for key, value in detector.named_parameters()}
    with pytest.raises(DeterministicError, match=r"not finite at step 0 of 6 .*loss_classifier nan"):
        train(
            detector,
            Samples(store, "train"),
            task,
            seed=SEED,
            device=device,
            execution=execution,
            work=tmp_path,
            log=lambda message: None,
        )
    for key, value in detector.named_parameters():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)
    assert not list(tmp_path.glob("checkpoint*"))


def test_samples_leave_out_crowds_and_empty_images(store: Store) -> None:
    samples = Samples(store, "train")
    assert samples.rows == list(range(7))
    assert len(store.split("train")) == 9


def test_no_instances_is_an_error(store: Store) -> None:
    with pytest.raises(MlsError, match="'val' of this dataset holds no instances"):
        Samples(store, "val")


def test_flip_moves_everything(store: Store) -> None:
    samples = Samples(store, "train")
    image, target = samples.load(0, False)
    flipped, mirrored = samples.load(0, True)
    assert torch.equal(flipped, image.flip(-1))
    for boxes, masks in ((target["boxes"], target["masks"]), (mirrored["boxes"], mirrored["masks"])):
        assert masks.shape == (2, 40, 40)  # one from a polygon, one from a run-length code
        for box, mask in zip(boxes.int().tolist(), masks, strict=True):
            ys, xs = torch.where(mask == 1)
            assert [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] == box


def test_each_epoch_has_every_image_once() -> None:
    planned = [one for step in range(14) for one in plan_batch(step, 4, 7, SEED)]
    epochs = [[index for index, _ in planned[start : start + 7]] for start in range(0, 56, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert 0.3 < np.mean([flip for _, flip in planned]) < 0.7
    assert [one for step in range(14) for one in plan_batch(step, 4, 7, SEED + 1)] != planned


def test_learning_rate(task: InstanceTransfer) -> None:
    task = task.model_copy(update={"lr": 1.0, "warmup_steps": 10, "steps": [0.5, 0.75]})
    rates = [learning_rate(task, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.001)
    assert rates[5] == pytest.approx(0.5005)
    assert rates[10:50] == [1.0] * 40
    assert rates[50:75] == pytest.approx([0.1] * 25)
    assert rates[75:] == pytest.approx([0.01] * 25)
    assert learning_rate(task.model_copy(update={"warmup_steps": 0}), 0, 100) == 1.0
