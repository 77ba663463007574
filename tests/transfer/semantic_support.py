"""A tiny store with index masks, and the task of a segmenter that trains in milliseconds."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mls.config.transfers import SemanticTransfer
from mls.data.image_store import IGNORE, ImageStore
from mls.data.writer import Record, encode_mask
from tests.transfer.support import write_records

CLASSES = ["ground", "red", "green", "blue"]
COLOURS = np.array([(90, 90, 90), (255, 0, 0), (0, 255, 0), (0, 0, 255)], dtype=np.uint8)
WIDTH, HEIGHT = 48, 32


def painted(seed: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """An index mask (H, W): two rectangles on the ground, and a strip that is ignored."""
    rng = np.random.default_rng(seed)
    mask_HW = np.zeros((height, width), dtype=np.uint8)
    for _ in range(2):
        w, h = (int(v) for v in rng.integers(12, 20, 2))
        x, y = int(rng.integers(width - w)), int(rng.integers(height - h))
        mask_HW[y : y + h, x : x + w] = rng.integers(1, len(CLASSES))
    mask_HW[:, -3:] = IGNORE
    return mask_HW


def masked_record(split: str, mask_HW: NDArray[np.uint8], with_mask: bool = True) -> Record:
    """An image that shows each class in its colour (ignored pixels look like ground), lossless."""
    height, width = mask_HW.shape
    buffer = io.BytesIO()
    Image.fromarray(COLOURS[np.where(mask_HW == IGNORE, 0, mask_HW)]).save(buffer, "PNG")
    classes = [int(value) for value in np.unique(mask_HW) if value < len(CLASSES)]
    mask = encode_mask(mask_HW) if with_mask else None
    return Record(split, split, buffer.getvalue(), width, height, classes, [], mask=mask)


def write_masked(out: Path, records: list[Record]) -> ImageStore:
    """Write and open a store of some records, whose splits are in order."""
    return write_records(out, records, CLASSES, "png")


def masked_store(out: Path, train: int = 7, test: int = 3, same: bool = False) -> ImageStore:
    """Train and test images of different content, or of the same."""
    records = [masked_record("train", painted(i)) for i in range(train)]
    return write_masked(out, records + [masked_record("test", painted(i if same else 100 + i)) for i in range(test)])


def tiny_task(**changes: Any) -> SemanticTransfer:
    """Six steps of two images."""
    of_head: dict[str, dict[str, Any]] = {"psp": {"pools": [1, 2]}, "psa": {"attention_window": 5}, "fcn": {}}
    values: dict[str, Any] = {
        "kind": "semantic",
        "dataset": "rectangles",
        "train_on": "train",
        "output_stride": 4,
        "iterations": 6,
        "batch_size": 2,
        "lr": 0.02,
        "crop": [24, 32],
        "scale": [0.75, 1.5],
        "head_channels": 8,
        **of_head[changes.get("head", "psp")],
    }
    if changes.get("inference") == "slide":
        values["stride"] = [16, 24]
    return SemanticTransfer(**{**values, **changes})
