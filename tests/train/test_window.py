"""A window of the curves that a checkpoint of other code began is refused by name."""

from __future__ import annotations

import pytest
import torch

from mls.runtime.errors import MlsError
from mls.train.window import Window

CPU, TRUE = torch.device("cpu"), torch.tensor(True)


def test_a_window_goes_on_with_its_own_names_alone() -> None:
    saved = Window()
    saved.add(["loss"], torch.tensor([1.0]), TRUE)
    resumed, other = Window(), Window()
    for window in (resumed, other):
        window.load(saved.state(), CPU)
    with pytest.raises(MlsError, match="saved by code that logs other values; remove the run's folder"):
        other.add(["loss", "queue_mean"], torch.tensor([1.0, 2.0]), TRUE)
    resumed.add(["loss"], torch.tensor([3.0]), TRUE)
    assert resumed.means() == {"loss": 2.0}
    resumed.add(["loss", "queue_mean"], torch.tensor([1.0, 2.0]), TRUE)
    assert resumed.means() == {"loss": 1.0, "queue_mean": 2.0}, "a new window may have other names"
