"""A small set of drawn images, and the features and probe stages run on it as `mls.pipeline.runner` runs them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw
from pydantic import TypeAdapter

from mls.config.experiment import Backbone, Execution
from mls.config.probes import Features, ProbeConfig
from mls.data.image_store import ImageStore
from mls.data.writer import Record, write_store
from mls.models.backbone import build_backbone, save_backbone
from mls.pipeline.artifact import Artifact
from mls.probe import features as features_stage
from mls.probe import run_probe as probe_stage
from mls.probe.evaluation import Evaluation
from mls.probe.feature_set import Images

Result = TypeVar("Result")
CLASSES = ["red", "blue", "rare", "unseen"]
COSTS = [0.01, 1.0, 100.0]
"""Candidates for the SVMs' C."""
LAYOUT = Backbone(name="resnet18", width=0.125, stem="small")


def make_store(out: Path, multi_label: bool, without: str = "", plain: bool = False) -> ImageStore:
    """Squares of two colours, 24 train, 12 val and 12 test images of 32 pixels.

    In multi-label sets only train has an image of "rare" and only test one of "unseen", and test's second image has a
    difficult object of the class that it does not show. Single-label sets have images of "red" and "blue" only; plain
    sets have no other class.
    """
    records = []
    for split, count in (("train", 24), ("val", 12), ("test", 12)):
        if split == without:
            continue
        for number in range(count):
            kinds = [number % 2] if number % 3 or not multi_label else [0, 1]
            image = Image.new("RGB", (32, 32), (120, 120, 120 + number))
            for kind in kinds:
                x = 3 + 16 * kind
                ImageDraw.Draw(image).rectangle((x, 4 + number % 8, x + 9, 20), fill=((255, 0, 0), (0, 0, 255))[kind])
            objects: list[dict[str, Any]] = []
            odd = multi_label and not plain
            if odd and number == 0 and split != "val":
                kinds = sorted([*kinds, 2 if split == "train" else 3])
            if odd and number == 1 and split == "test":
                objects = [{"category_id": 1, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0, "difficult": 1}]
                objects += [{**objects[0], "category_id": 2, "difficult": 0}]
            buffer = io.BytesIO()
            image.save(buffer, "JPEG")
            records.append(Record(f"{split}/{number:03d}.jpg", split, buffer.getvalue(), 32, 32, kinds, objects))
    out.mkdir(parents=True)
    write_store(out, records, CLASSES[:2] if plain else CLASSES, multi_label, [])
    return ImageStore(out)


def make_directions(n: int, seed: int, classes: int = 3, dims: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Noisy features whose directions tell the classes; their lengths tell nothing."""
    rng = np.random.default_rng(seed)
    truth = rng.random((n, classes)) < 0.3
    features = 2 * np.pad(truth, ((0, 0), (0, dims - classes))) + rng.normal(size=(n, dims))
    return (features * rng.gamma(4, size=(n, 1))).astype(np.float32), truth


def divide_by_length(features: np.ndarray) -> np.ndarray:
    """VISSL's normalisation, written independently."""
    return features.astype(np.float64) / (np.linalg.norm(features.astype(np.float64), axis=1) + 1e-5)[:, None]


def make_evaluation(n: int = 30, *, multi_label: bool = True, split: str = "test", decided: bool = True) -> Evaluation:
    """Evaluation images of four classes; the last one has no positive image."""
    rng = np.random.default_rng(n)
    label_N = np.arange(n) % 3
    truth = np.eye(4, dtype=bool)[label_N]
    ignored = np.zeros((n, 4), dtype=bool)
    if multi_label:
        truth[:, :3] |= rng.random((n, 3)) < 0.2
        ignored = ~truth & (rng.random((n, 4)) < 0.2)
        truth[0], ignored[0] = False, False  # an image without a class
    scores = (truth + rng.normal(size=(n, 4)) - 0.5).astype(np.float32)
    scores[:, 3] = -np.inf  # as a softmax scores a class that it never saw
    names = [f"{split}/{i}, grüße.jpg" for i in range(n)]
    classes = ["person", "fire | hydrant", "größe", "rare"]
    return Evaluation(np.arange(n) + 100, names, split, classes, multi_label, truth, ignored, scores, decided)


def images_of(
    features: Any, truth: Any, ignored: Any = None, *, multi_label: bool = True, classes: Sequence[str] = ()
) -> Images:
    """Images without names; by default no class is ignored, and classes are called ``class 0``, ``class 1``..."""
    n, classes = len(truth), list(classes) or [f"class {i}" for i in range(truth.shape[1])]
    ignored = np.zeros_like(truth) if ignored is None else ignored
    return Images(np.arange(n), [""] * n, features, truth, ignored, classes, multi_label)


def with_threads(threads: int, work: Callable[[], Result]) -> Result:
    """Work with this number of torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return work()
    finally:
        torch.set_num_threads(before)


def make_pretrain(folder: Path, poison: bool = False) -> Artifact:
    """A random backbone as the pretrain stage leaves it; a poisoned one has features that are not finite."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    net = build_backbone(LAYOUT)
    if poison:
        net.layer4[1].bn2.weight.data[3] = float("nan")
    save_backbone(net, folder / "backbone.safetensors")
    (folder / "params.json").write_text(json.dumps({"resolved": {"backbone": LAYOUT.model_dump(mode="json")}}))
    return Artifact(folder, {"files": {"backbone.safetensors": {}, "params.json": {}}})


def run_probe(store: ImageStore, folder: Path, poison: bool = False, **task: Any) -> dict[str, bytes]:
    """Run the probe stage, and the features stage before it where the probe reads features; return the probe's files.

    Features of ``image_size`` 32 are ``folder/features``.
    """
    config: Any = TypeAdapter(ProbeConfig).validate_python({"dataset": "d", **task})
    inputs = {"data": Artifact(store.path, {}), "pretrain": make_pretrain(folder / "pretrain", poison)}
    if isinstance(config, Features):
        features = Features(**{name: getattr(config, name) for name in Features.model_fields})
        features_stage.run(context(features, folder / "features", inputs))
        inputs["features"] = Artifact(folder / "features", {})
    probe_stage.run(context(config, folder / "out", inputs))
    return {file.name: file.read_bytes() for file in (folder / "out").iterdir()}


def context(config: Any, out: Path, inputs: dict[str, Artifact]) -> Any:
    """What the stage functions read of a context."""
    out.mkdir(parents=True)
    return SimpleNamespace(
        job=SimpleNamespace(config=config, seed=0),
        label="task/run:0",
        out=out,
        work=out.parent,
        execution=Execution(threads=1, workers=1, device="cpu"),
        inputs=inputs,
        log=print,
    )
