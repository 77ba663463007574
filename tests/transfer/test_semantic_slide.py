"""Windows cover an image; where they overlap their logits are averaged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mls.transfer.semantic import slide, window_starts


def test_windows_cover_every_side() -> None:
    assert window_starts(1024, 512, 341) == [0, 341, 512]
    assert window_starts(2048, 1024, 683) == [0, 683, 1024]
    assert window_starts(512, 512, 341) == [0]
    for side in range(10, 40):
        starts = window_starts(side, 10, 7)
        grid = [min(i * 7, side - 10) for i in range(max(side - 10 + 7 - 1, 0) // 7 + 1)]  # mmsegmentation's
        assert starts == grid
        assert {pixel for start in starts for pixel in range(start, start + 10)} == set(range(side))


def test_sliding_averages_windows() -> None:
    image = torch.arange(3 * 13 * 17, dtype=torch.float32).reshape(1, 3, 13, 17)
    shown: list[Tensor] = []

    def local(x: Tensor) -> Tensor:
        """Logits that depend only on the pixel, and the window's mean, which differs between windows."""
        shown.append(x)
        return torch.cat([2 * x[:, :1], torch.ones_like(x[:, :1]) * x.mean()], dim=1)

    logits = slide(local, image, [6, 8], [4, 5], classes=2)
    assert {tuple(x.shape) for x in shown} == {(1, 3, 6, 8)}
    torch.testing.assert_close(logits[:, 0], 2 * image[:, 0])
    boxes = [(top, left) for top in (0, 4, 7) for left in (0, 5, 9)]
    for y, x in np.ndindex(13, 17):
        means = [
            float(image[..., top : top + 6, left : left + 8].mean())
            for top, left in boxes
            if top <= y < top + 6 and left <= x < left + 8
        ]
        assert means and float(logits[0, 1, y, x]) == pytest.approx(np.mean(means))


def test_small_images_are_padded_as_in_training() -> None:
    shown: list[Tensor] = []

    def net(x: Tensor) -> Tensor:
        shown.append(x)
        return x

    image = torch.randn(1, 3, 5, 20)
    assert torch.equal(slide(net, image, [8, 10], [8, 10], classes=3), image)
    assert [tuple(x.shape) for x in shown] == [(1, 3, 8, 10)] * 2
    assert not shown[0][:, :, 5:].any()
