"""A tiny store of coloured rectangles and a tiny detector's task."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from mls.config.experiment import Backbone, Execution
from mls.config.transfers import TorchvisionDetector
from mls.data.image_store import ImageStore
from mls.data.writer import Record, write_store
from mls.models.backbone import build_backbone, save_backbone
from mls.transfer.interface import Given

CLASSES = ["red", "green", "blue"]
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
SIDE = 40
R50 = Backbone(name="resnet50")


def make_record(split: str, number: int, instances: int = 2, crowd: bool = False, like: str = "") -> Record:
    """An image with some rectangles; polygons and run-length codes take turns; ``like``: that of another split."""
    rng = np.random.default_rng((number, len(like or split)))
    image = Image.new("RGB", (SIDE, SIDE), (90, 90, 90))
    annotations: list[dict[str, Any]] = []
    for i in range(instances):
        label = int(rng.integers(len(CLASSES)))
        width, height = (int(v) for v in rng.integers(8, 16, 2))
        x, y = int(rng.integers(0, SIDE - width)), int(rng.integers(0, SIDE - height))
        ImageDraw.Draw(image).rectangle((x, y, x + width - 1, y + height - 1), fill=COLOURS[label])
        mask_HW = np.zeros((SIDE, SIDE), dtype=np.uint8, order="F")
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
    return Record(split, split, buffer.getvalue(), SIDE, SIDE, classes, annotations)


def make_store(out: Path, train: int = 7, test: int = 5) -> ImageStore:
    """Write and open a store; train also has an image without instances and one with a crowd alone."""
    records = [make_record("train", i) for i in range(train)]
    records += [make_record("train", 100, instances=0), make_record("train", 101, crowd=True)]
    records += [make_record("test", i) for i in range(test)]
    return write_records(out, records)


def write_records(out: Path, records: list[Record]) -> ImageStore:
    """Name some records, whose splits are in order; write and open a store of them."""
    for number, record in enumerate(records):
        record.name = f"{number:04d}.jpg"
    out.mkdir(parents=True)
    write_store(out, records, CLASSES, True, [])
    return ImageStore(out)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """Seven usable train images, five test images."""
    return make_store(tmp_path / "data")


@pytest.fixture
def config() -> Backbone:
    """The smallest backbone."""
    return Backbone(name="resnet18", width=0.125, stem="small")


@pytest.fixture
def weights(tmp_path: Path, config: Backbone) -> Path:
    """Its weights, written as a pretraining artifact holds them."""
    file = tmp_path / "backbone.safetensors"
    torch.manual_seed(0)
    save_backbone(build_backbone(config), file)
    return file


@pytest.fixture
def task() -> TorchvisionDetector:
    """A detector that trains in milliseconds: six steps of two images."""
    return TorchvisionDetector(
        kind="instance",
        dataset="rectangles",
        image_size=SIDE,
        epochs=12 / 7,
        batch_size=2,
        lr=0.01,
        warmup_steps=2,
        fpn_channels=8,
        head_channels=16,
        rois=8,
        proposals=20,
    )


@pytest.fixture
def execution() -> Execution:
    """One thread of each kind, on the CPU."""
    return Execution(threads=1, workers=1, device="cpu", checkpoint_every=100)


@pytest.fixture
def log() -> list[str]:
    """What was said to people."""
    return []


@pytest.fixture
def given(store: ImageStore, config: Backbone, weights: Path, log: list[str]) -> Given:
    """What a transfer starts from."""
    return Given(store, config, weights, 1000, torch.device("cpu"), log.append)


@pytest.fixture(scope="session")
def resnet50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a ResNet-50 whose batch norms have statistics of their own."""
    torch.manual_seed(0)
    net = build_backbone(R50)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith(("running_mean", "bias")):
                tensor.normal_(0, 0.05)
            if name.endswith("running_var"):
                tensor.uniform_(0.8, 1.2)
    file = tmp_path_factory.mktemp("resnet50") / "backbone.safetensors"
    save_backbone(net, file)
    return file


@pytest.fixture
def start(store: ImageStore, resnet50: Path, log: list[str]) -> Given:
    """What a transfer of a ResNet-50 starts from."""
    return Given(store, R50, resnet50, 1000, torch.device("cpu"), log.append)
