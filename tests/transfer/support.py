"""Shared by the tests of transfer tasks: a tiny store of coloured rectangles, perfect results, whole trainings."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from mls.config.experiment import Backbone, Execution
from mls.config.transfers import TransferSection
from mls.data.image_store import ImageStore
from mls.data.writer import Record, write_store
from mls.runtime.device import set_up
from mls.train.finetune import History, finetune
from mls.transfer.interface import Given, TransferTask

CLASSES = ["red", "green", "blue"]
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
SIDE = 40
R50 = Backbone(name="resnet50")

Task = TypeVar("Task", bound=TransferTask)


def make_record(
    split: str, number: int, instances: int = 2, crowd: bool = False, like: str = "", wide: int = SIDE
) -> Record:
    """An image with some rectangles; polygons and run-length codes take turns; ``like``: that of another split."""
    rng = np.random.default_rng((number, len(like or split)))
    image = Image.new("RGB", (wide, SIDE), (90, 90, 90))
    annotations: list[dict[str, Any]] = []
    for i in range(instances):
        label = int(rng.integers(len(CLASSES)))
        width, height = (int(v) for v in rng.integers(8, 16, 2))
        x, y = int(rng.integers(0, SIDE - width)), int(rng.integers(0, SIDE - height))
        ImageDraw.Draw(image).rectangle((x, y, x + width - 1, y + height - 1), fill=COLOURS[label])
        mask_HW = np.zeros((SIDE, wide), dtype=np.uint8, order="F")
        mask_HW[y : y + height, x : x + width] = 1
        code = coco_mask.encode(mask_HW)
        corners = [float(v) for v in (x, y, x + width, y, x + width, y + height, x, y + height)]
        annotations.append(
            {
                "category_id": label + 1,
                "bbox": [float(x), float(y), float(width), float(height)],
                "area": float(width * height),
                "iscrowd": int(crowd),
                "segmentation": {"size": code["size"], "counts": code["counts"].decode()} if i % 2 else [corners],
            }
        )
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    classes = sorted({a["category_id"] - 1 for a in annotations})
    return Record(split, split, buffer.getvalue(), wide, SIDE, classes, annotations)


def make_store(out: Path, train: int = 7, test: int = 5) -> ImageStore:
    """Write and open a store; train also has an image without instances and one with only a crowd."""
    records = [make_record("train", i) for i in range(train)]
    records += [make_record("train", 100, instances=0), make_record("train", 101, crowd=True)]
    records += [make_record("test", i) for i in range(test)]
    return write_records(out, records)


def write_records(
    out: Path, records: list[Record], classes: Sequence[str] = CLASSES, ending: str = "jpg"
) -> ImageStore:
    """Name some records, whose splits are in order; write and open a store of them."""
    for number, record in enumerate(records):
        record.name = f"{number:04d}.{ending}"
    out.mkdir(parents=True)
    write_store(out, records, list(classes), True, [])
    return ImageStore(out)


def perfect(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """The annotations as predictions, without crowds."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    results = []
    for annotation in truth["annotations"]:
        if annotation["iscrowd"]:
            continue
        code = annotation["segmentation"]
        if not isinstance(code, dict) or isinstance(code["counts"], list):
            code = coco_mask.frPyObjects(code, *sizes[annotation["image_id"]])
            code = coco_mask.merge(code) if isinstance(code, list) else code
        kept = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
        results.append({**kept, "score": 0.9, "segmentation": code})
    return results


def live(
    made_by: Callable[[Any, Given], Task], task: TransferSection, given: Given, execution: Execution, work: Path
) -> tuple[Task, History]:
    """One process's life: set up, build, train."""
    work.mkdir(exist_ok=True)
    set_up(execution.device, execution.threads, given.seed)
    transfer = made_by(task, given)
    return transfer, finetune(transfer, execution=execution, work=work, log=given.log, name="test")


def terminate() -> None:
    """What a scheduler does to this process."""
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def stopped(made_by: type[TransferTask], step: int, stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` in a step of each training, counted from 0."""
    original = made_by.learning_rate

    def learning_rate(self: TransferTask, at: int) -> float:
        if at == step:
            stop()
        return original(self, at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made_by, "learning_rate", learning_rate)
        yield


def assert_equal(one: TransferTask, other: TransferTask) -> None:
    """Two models hold the same bits."""
    expected, found = (transfer.model.state_dict() for transfer in (one, other))
    assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)
