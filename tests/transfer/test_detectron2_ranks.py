"""Two ranks that share the batches of Detectron2's detectors give what one process gives; skipped without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("detectron2", reason="needs detectron2 (README: Detectron2)")

from fvcore.nn.precise_bn import update_bn_stats

from mls.transfer.precise_statistics import precise_statistics
from tests.transfer import two_ranks
from tests.transfer.test_ranks import ENVIRONMENT, TORCHRUN


@pytest.mark.timeout(1200)
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    """Also the precise statistics, although a rank without objects has no masks."""
    two_ranks.make_data(tmp_path)
    command = [sys.executable, "-m", *TORCHRUN, "tests.transfer.two_ranks", str(tmp_path), "fpn"]
    done = subprocess.run(command, env=ENVIRONMENT, timeout=900, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    one, shared = two_ranks.trace("fpn", tmp_path), two["fpn"]
    assert one["predicted"] and one["predicted"] == shared["predicted"]
    for expected, found in zip(one["rows"], shared["rows"], strict=True):
        assert found == pytest.approx(expected, abs=1e-3)
    for name, value in one["state"].items():
        assert torch.allclose(value, shared["state"][name], rtol=1e-3, atol=1e-3), name


def test_precise_statistics_are_fvcores() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    batches = [torch.randn(size, 3, 5, 6) for size in (2, 4, 3)]
    update_bn_stats(model, batches, num_iters=3)
    expected = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
    precise_statistics(model, batches)
    assert len(expected) == 4 and all(torch.equal(model.get_buffer(name), value) for name, value in expected.items())
