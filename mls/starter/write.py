"""Choose the values of an experiment for some pictures, and write its file with the reason beside each.

path = start("birds", "folder", Path("/data/birds"), like="small", hours=2.0)
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import TypeAdapter, ValidationError

from mls.config.experiment import Pretrain
from mls.config.load import Loaded, check, parse_yaml
from mls.config.methods import LOGGED
from mls.config.values import Name
from mls.data.sources import pin
from mls.pipeline.plan import DATA_LOCK, make_plan, read_lock
from mls.pipeline.watch import clock
from mls.runtime.errors import MlsError
from mls.runtime.files import write_atomic
from mls.starter.look import Pictures, entry_of, look
from mls.starter.measure import seconds_per_image

FEWEST = 32
"""Train images to learn anything from."""
LEAST = 8
"""Of a batch and of a dictionary."""
PAPER_FEWEST = 2048
"""Train images for the paper's batch of 256 as an eighth of them."""
MOST_EPOCHS = 400
"""The paper's."""
RUNS = 2
"""Trainings that share the hours: MoCo-v2 and MLS."""
STEPS = 1500
"""Of a small detector."""
SHARE = 0.8
"""Of the hours, for pretraining; the rest is for data and tasks."""
Measure = Callable[[Pretrain, list[Path], int], float]


@dataclass(frozen=True)
class Recipe:
    """What is chosen for some pictures."""

    like: str
    crop: int
    short_side: int | None
    batch: int
    queue: int
    topk: int
    resident: bool
    epochs: int = 1
    hours: float = 0.0
    """That the trainings take, extrapolated from a few steps."""


def start(
    name: str, kind: str, root: Path, like: str | None, hours: float, measure: Measure = seconds_per_image
) -> Path:
    """Look at a data set, pin it in ``data.lock`` and write ``experiments/<name>.yaml``; return its path.

    Args:
        name: of the experiment and of the data set.
        kind: ``folder``, ``coco`` or ``voc``.
        root: of the data set.
        like: ``paper`` or ``small``; None: ``paper`` with a GPU and enough images, else ``small``.
        hours: budget.
        measure: returns seconds per image of a training.

    Raises:
        MlsError: there is such a file or data set already, or the pictures can't be used; nothing is written then.
    """
    path = Path("experiments") / f"{name}.yaml"
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise MlsError(f"{name!r} can't name an experiment: use letters, digits and . _ + -") from error
    if path.exists() or name in read_lock(DATA_LOCK):
        taken = path if path.exists() else f"{DATA_LOCK}, entry {name!r}"
        raise MlsError(f"{taken} is there already, and nothing is overwritten; choose another name")
    pictures = look(name, entry_of(kind, Path(os.path.normpath(root.absolute()))))
    gpu = torch.cuda.is_available()
    recipe = choose(pictures, like or ("paper" if gpu and pictures.train >= PAPER_FEWEST else "small"))

    def checked(recipe: Recipe) -> tuple[str, Loaded]:
        draft = text(path, pictures, recipe, gpu)
        return draft, check(parse_yaml(draft, str(path)), path)

    _, loaded = checked(recipe)
    threads = loaded.experiment.execution.threads
    seconds = RUNS * pictures.train * measure(loaded.runs["mls"], pictures.samples, threads)
    at_once = 1 if gpu else max(1, min(RUNS, len(os.sched_getaffinity(0)) // threads))
    epochs = min(MOST_EPOCHS, int(SHARE * hours * 3600 * at_once / seconds))
    if epochs < 1:
        need = seconds / at_once / SHARE / 3600
        raise MlsError(f"one epoch of both trainings takes {need:.1f} hours here; give more --hours, or --like small")
    draft, loaded = checked(replace(recipe, epochs=epochs, hours=epochs * seconds / at_once / 3600))
    make_plan(loaded, {**read_lock(DATA_LOCK), name: {"sha256": "0" * 64}})  # whatever its digest will be
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, draft)
    try:
        pin(name, pictures.config, DATA_LOCK)
    except BaseException:
        path.unlink()
        raise
    return path


def choose(pictures: Pictures, like: str) -> Recipe:
    """Choose what does not depend on time.

    Raises:
        MlsError: there are too few images.
    """
    images = pictures.train
    if images < FEWEST:
        raise MlsError(f"{pictures.root}: {images} train images are too few; {FEWEST} are the least")
    if like == "paper":
        if images < PAPER_FEWEST:
            raise MlsError(
                f"{pictures.root}: {images:,} train images are too few for the paper's batch and dictionary "
                f"({PAPER_FEWEST:,} are the least); use --like small"
            )
        queue = min(4096, images // 8 // 256 * 256)
        return Recipe("paper", 224, None, 256, queue, min(20, queue // 40), resident=False)
    crop = 64 if pictures.side >= 80 else max(16, pictures.side * 4 // 5 // 16 * 16)
    short_side = 2 * crop if pictures.side > 2.5 * crop else None
    batch = min(128, max(LEAST, 2 ** int(math.log2(images / 8))))
    queue = min(4096, max(LEAST, images // 8 // batch * batch))
    decoded = images * 3 * (short_side or pictures.side) ** 2 * 4 / 3
    resident = decoded < psutil.virtual_memory().total / 4
    return Recipe("small", crop, short_side, batch, queue, max(2, min(20, queue // 40)), resident)


def text(path: Path, pictures: Pictures, recipe: Recipe, gpu: bool) -> str:
    """Fill ``experiment.yaml.j2``, which has the reasons."""
    entry = dict(pictures.section) | ({"short_side": recipe.short_side} if recipe.short_side else {})
    detector = {"boxes": "detection", "boxes and masks": "instance"}.get(pictures.config.annotations)
    columns = [f"pretrain.{name}" for name in LOGGED]
    if pictures.labelled:
        columns = ["linear.mAP" if pictures.multi_label else "linear.top1"]
    columns += {"detection": ["detect.box_AP"], "instance": ["detect.box_AP", "detect.mask_AP"]}.get(detector or "", [])
    detector_epochs = round(min(12.0, STEPS * 4 / pictures.train), 2)
    loader = FileSystemLoader(Path(__file__).parent)
    template = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return template.get_template("experiment.yaml.j2").render(
        name=path.stem if parse_yaml(f"a: {path.stem}", "")["a"] == path.stem else json.dumps(path.stem),
        path=path,
        pictures=pictures,
        recipe=recipe,
        gpu=gpu,
        entry=json.dumps(entry, ensure_ascii=False),  # JSON is YAML too
        counts=", ".join(f"{count:,} {split}" for split, count in sorted(pictures.counts.items())),
        labels=f"{pictures.classes} classes" if pictures.labelled else "no labels",
        budget=f"both trainings: about {clock(recipe.hours * 3600)}, extrapolated from a few steps here",
        share=f"1/{round(pictures.train / recipe.queue)}",
        blur=round(recipe.crop / 112, 1),
        lr=f"{0.03 * recipe.batch / 128:.2g}",
        columns=columns,
        detector=detector,
        detector_epochs=detector_epochs,
        steps=f"{round(detector_epochs * pictures.train / 4):,}",
    )
