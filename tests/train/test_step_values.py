"""A window that different code began, in a checkpoint, is rejected."""

from __future__ import annotations

import pytest
import torch

from mls.runtime.errors import MlsError
from mls.train.step_values import Window

CPU, TRUE = torch.device("cpu"), torch.tensor(True)


def scalars(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_a_resumed_window_rejects_other_names() -> None:
    saved = Window()
    saved.add(scalars(loss=1.0), TRUE)
    resumed, other = Window(), Window()
    for window in (resumed, other):
        window.load(saved.state(), CPU)
    with pytest.raises(MlsError, match="saved by code that logs other values; remove the run's folder"):
        other.add(scalars(loss=1.0, queue_mean=2.0), TRUE)
    resumed.add(scalars(loss=3.0), TRUE)
    assert resumed.means() == {"loss": 2.0}
    resumed.add(scalars(loss=1.0, queue_mean=2.0), TRUE)
    assert resumed.means() == {"loss": 1.0, "queue_mean": 2.0}, "a new window may have other names"
