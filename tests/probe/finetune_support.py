"""Small sets, backbones and trainings for the tests of probes that train on images."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torchvision.models.resnet import ResNet

from mls.config.experiment import Backbone, Execution
from mls.config.probes import FinetuneProbe, SgdProbe, TrainedProbe
from mls.data.image_store import ImageStore
from mls.data.writer import Record, write_store
from mls.models.backbone import build_backbone
from mls.probe.evaluation import Evaluation
from mls.probe.finetune import train_and_score
from mls.runtime.device import set_up

SEED = 1000
SIDE = 16
CPU = torch.device("cpu")
EXECUTION = Execution(threads=1, workers=1, device="cpu", checkpoint_every=100)
COLOURS = ((220, 40, 40), (40, 220, 40), (40, 40, 220))


class Fitted(NamedTuple):
    """What a training gave, and what it wrote."""

    evaluation: Evaluation
    facts: dict[str, Any]
    steps: int
    curves: list[dict[Any, Any]]
    timing: list[dict[Any, Any]]


def make_backbone() -> ResNet:
    """A tiny ResNet whose running statistics are away from their start."""
    torch.manual_seed(0)
    net = build_backbone(Backbone(name="resnet18", width=0.125, stem="small"))
    with torch.no_grad():
        net.train()(torch.randn(32, 3, SIDE, SIDE))
    return net


def make_task(kind: str = "finetune", **changes: Any) -> TrainedProbe:
    """Six epochs of 3 steps, of the 12 images in train of `make_store`."""
    values = {"kind": kind, "dataset": "d", "epochs": 6, "batch_size": 4, "augment": {"crop": SIDE}, "test": False}
    return (FinetuneProbe if kind == "finetune" else SgdProbe).model_validate(values | changes)


def record(split: str, number: int, classes: list[int]) -> Record:
    """A noisy image that holds a bar in the colour of each of its classes."""
    pixels_HW3 = np.random.default_rng((number, len(split))).integers(80, 120, (20, 24, 3))
    for c in classes:
        pixels_HW3[2 + 6 * c : 7 + 6 * c] = COLOURS[c]
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW3.astype(np.uint8)).save(buffer, "PNG")
    return Record(f"{number:02d}.png", split, buffer.getvalue(), 24, 20, classes, [])


def make_store(out: Path, test_bytes: bytes | None = None, **labels: list[list[int]]) -> ImageStore:
    """Twelve train, six val and six test images; ``test_bytes``: what the last are instead, ``labels``: of a split."""
    some = [[0], [1], [0, 1], []]
    records = []
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        for number, classes in enumerate(labels.get(split, (some * 3)[:count])):
            records.append(record(split, number, classes))
            if split == "test" and test_bytes is not None:
                records[-1].data = test_bytes
    out.mkdir()
    write_store(out, records, ["red", "green", "blue"], True, [])
    return ImageStore(out)


def fit(
    task: TrainedProbe,
    store: ImageStore,
    work: Path,
    execution: Execution = EXECUTION,
    backbone: ResNet | None = None,
    lines: list[str] | None = None,
) -> Fitted:
    """One process's life: set up, build, train, score."""
    work.mkdir(exist_ok=True)
    log = (lines if lines is not None else []).append
    given = {"job": SimpleNamespace(seed=0), "label": "task/run:0", "execution": execution, "log": log}
    context: Any = SimpleNamespace(work=work, out=work, **given)
    device = set_up(execution.device, execution.threads, SEED)
    evaluation, facts = train_and_score(context, task, store, backbone or make_backbone(), device)
    curves, timing = (pd.read_csv(work / name).to_dict("records") for name in ("curves.csv", "timing.csv"))
    return Fitted(evaluation, facts, json.loads((work / "derived.json").read_text())["total_steps"], curves, timing)


def parameters(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


def changed(net: torch.nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    """Kinds of what is not bit for bit as it was: ``running_mean``, ``weight``, ..."""
    return {key.split(".")[-1] for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
