"""Training resumes bit for bit, stops on a bad loss, and follows its schedule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mls.config.experiment import Execution
from mls.config.transfers import TorchvisionDetector
from mls.runtime.device import set_up
from mls.runtime.errors import DeterministicError, Interrupted
from mls.train.finetune import finetune
from mls.transfer.detector import warm_up_and_drops
from mls.transfer.interface import Given
from mls.transfer.order import plan_batch
from mls.transfer.torchvision import TorchvisionDetection
from tests.transfer.support import assert_equal, live, stopped, terminate


@pytest.mark.parametrize("kind", ["instance", "detection"])
@pytest.mark.parametrize("how", ["signal", "kill"])
def test_resumed_equals_uninterrupted(
    given: Given,
    task: TorchvisionDetector,
    execution: Execution,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    kind: str,
) -> None:
    task = task.model_copy(update={"kind": kind})
    monkeypatch.setattr("mls.train.finetune.CURVE_EVERY", 2)
    whole, history = live(TorchvisionDetection, task, given, execution, tmp_path / "whole")

    def interrupt() -> None:
        raise KeyboardInterrupt  # nothing more is saved: only step 3's checkpoint is left

    # a step that gets the signal is finished, then the state is saved
    step, stop, error = (2, terminate, Interrupted) if how == "signal" else (4, interrupt, KeyboardInterrupt)
    every = execution if how == "signal" else execution.model_copy(update={"checkpoint_every": 3})
    with stopped(TorchvisionDetection, step, stop), pytest.raises(error):
        live(TorchvisionDetection, task, given, every, tmp_path / "parts")
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["checkpoint-000000003.pt"]
    resumed, resumed_history = live(TorchvisionDetection, task, given, execution, tmp_path / "parts")

    assert [row["step"] for row in history.curves] == [0, 2, 4, 5]
    assert resumed_history.curves == history.curves
    assert_equal(resumed, whole)
    kept = [path.name for path in sorted((tmp_path / "parts").iterdir())]
    assert kept == ["checkpoint-000000003.pt", "checkpoint-000000006.pt"]
    again, _ = live(TorchvisionDetection, task, given, execution, tmp_path / "parts")  # finished: trains no more
    assert_equal(again, whole)


def test_bad_loss_stops_before_the_update(
    given: Given, task: TorchvisionDetector, execution: Execution, tmp_path: Path
) -> None:
    set_up(execution.device, execution.threads, given.seed)
    transfer = TorchvisionDetection(task, given)
    with torch.no_grad():
        transfer.model.roi_heads.box_predictor.cls_score.bias[0] = float("nan")
    before = {key: value.clone() for key, value in transfer.model.named_parameters()}
    with pytest.raises(DeterministicError, match=r"not finite at step 0 of 6 .*loss_classifier nan"):
        finetune(transfer, execution=execution, work=tmp_path, log=given.log, name="test")
    for key, value in transfer.model.named_parameters():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)
    assert not list(tmp_path.glob("checkpoint*"))


def test_each_epoch_has_every_image_once() -> None:
    planned = [one for step in range(14) for one in plan_batch(step, 4, 7, 1000)]
    epochs = [[index for index, _, _ in planned[start : start + 7]] for start in range(0, 56, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert [epoch for _, _, epoch in planned] == [i // 7 for i in range(56)]
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert 0.3 < np.mean([flip for _, flip, _ in planned]) < 0.7
    assert [one for step in range(14) for one in plan_batch(step, 4, 7, 1001)] != planned


def test_learning_rate() -> None:
    rates = [warm_up_and_drops(1.0, step, 100, 10, [0.5, 0.75]) for step in range(100)]
    assert rates[0] == pytest.approx(0.001)
    assert rates[5] == pytest.approx(0.5005)
    assert rates[10:50] == [1.0] * 40
    assert rates[50:75] == pytest.approx([0.1] * 25)
    assert rates[75:] == pytest.approx([0.01] * 25)
    assert warm_up_and_drops(1.0, 0, 100, 0, [0.5, 0.75]) == 1.0
