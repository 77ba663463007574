"""Crops that the device cuts are those of the CPU, within the difference that `mls.data.resident` states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mls.config.datasets import ScenesDataset
from mls.config.views import Interpolation
from mls.data import scenes
from mls.data.augment import crop, crop_boxes, draw
from mls.data.image_store import ImageStore
from mls.data.resident import Resident
from mls.data.writer import write_store


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [24, 80])
def test_crops_are_those_of_the_cpu(
    tmp_path: Path, device: torch.device, interpolation: Interpolation, side: int
) -> None:
    config = ScenesDataset(source="scenes", train=6, val=1, test=1)
    write_store(tmp_path, scenes.records(config), scenes.CLASSES, True, [])
    store = ImageStore(tmp_path)
    rows = np.repeat(np.arange(len(store)), 20)
    boxes_N4 = crop_boxes(draw(0, 0, np.arange(len(rows)), 0), store.sizes_N2[rows], [0.05, 1.0])
    images = Resident(store, np.arange(len(store)), 1).to(device)
    ours = images.crops(torch.from_numpy(rows), torch.from_numpy(boxes_N4), side, interpolation)
    assert ours.device.type == device.type
    each = zip(rows, boxes_N4, strict=True)
    theirs = torch.stack([crop(store.decode(int(row)), box, side, interpolation) for row, box in each])
    difference = (ours.cpu().int() - theirs.int()).abs()
    if interpolation == "bilinear":
        assert int(difference.max()) <= 1
    else:
        assert int(difference.max()) <= 2
        assert float((difference > 0).float().mean()) < 0.02 and float((difference > 1).float().mean()) < 1e-4
