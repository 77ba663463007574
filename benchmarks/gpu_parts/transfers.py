"""Transfers: steps of the fine-tuning loop on photos, from the loader to the optimiser.

Mask R-CNN with FPN at 800 px at several batch sizes; PSPNet on crops of 512 x 1024; Detectron2's Mask R-CNN where it is
installed. The loop's own clock counts; its first step, in which cuDNN chooses, is left out.
"""

from __future__ import annotations

import shutil
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from gpu_parts.common import Bench, attempt, emit, main, peak, photos, say
from mls.config.transfers import TransferConfig
from mls.models.backbone import build_backbone, save_backbone
from mls.train.finetune import CURVE_EVERY, finetune
from mls.transfer.interface import Given, TransferTask, made_by

BATCHES = (2, 4, 8, 16)
WEIGHTS = Path("backbone.safetensors")
TINY: dict[str, dict[str, Any]] = {
    "instance": {"image_size": 48, "fpn_channels": 8, "head_channels": 8, "rois": 8, "proposals": 16},
    "semantic": {"crop": [32, 64], "head_channels": 8},
}
"""Shapes of the smoke run."""


def run(bench: Bench) -> None:
    """Measure, in order of value."""
    save_backbone(build_backbone(bench.layout()), WEIGHTS)
    batches = (2, 4) if bench.smoke else BATCHES
    detector, segmenter = {"kind": "instance"}, {"kind": "semantic"}
    for precision in ("fp32", "bf16"):
        with attempt(f"Mask R-CNN, {precision}"):
            some = batches if precision == "fp32" else batches[-1:]
            measure(bench, "Mask R-CNN FPN, {image_size} px", {**detector, "precision": precision}, some)
        with attempt(f"PSPNet, {precision}"):
            eight = (2,) if bench.smoke else (8,)
            measure(bench, "PSPNet, crops {crop}", {**segmenter, "precision": precision}, eight)
    name = "Detectron2's Mask R-CNN FPN"
    if not find_spec("detectron2"):
        say(left_out=f"{name}: Detectron2 is not installed")
    elif not bench.smoke:  # it has no tiny shapes
        with attempt(name):
            measure(bench, name, {**detector, "backend": "detectron2"}, (16,))


def measure(bench: Bench, name: str, task: dict[str, Any], batches: tuple[int, ...]) -> None:
    """Emit images a second of one task at each batch size; one that does not fit ends it.

    Args:
        bench: the device.
        name: with the task's keys in braces.
        task: its section.
        batches: images in each batch, ascending.
    """
    if bench.smoke:
        task = task | TINY[task["kind"]]
    config: Any = TypeAdapter(TransferConfig).validate_python({"dataset": "photos", "train_on": "train", **task})
    log = partial(print, file=sys.stderr)
    transfer = made_by(config)(config, Given(photos(), bench.layout(), WEIGHTS, 0, bench.device, log))
    precision = task.get("precision", "fp32")
    for batch in batches:
        rate, peak_GiB = rate_of(bench, transfer, batch, Path(f"{task['kind']}-{precision}-{batch}"))
        emit(
            f"{name.format_map(config.model_dump())}, {bench.label}, {precision}",
            rate,
            "images/s",
            batch=batch,
            peak_GiB=peak_GiB,
        )


def rate_of(bench: Bench, transfer: TransferTask, batch: int, work: Path) -> tuple[float, float | str]:
    """Train some steps at a batch size; return images a second without the first step, and the peak of memory."""
    work.mkdir()
    transfer.batch_size = batch
    transfer.total = 3 if bench.smoke else CURVE_EVERY + 1  # the loop notes its speed after the first step and the last
    with peak(bench) as peak_GiB:
        history = finetune(
            transfer, execution=bench.execution, work=work, log=lambda _: None, name=f"{transfer.task.kind} {batch}"
        )
        shutil.rmtree(work)  # the last checkpoint
        return history.timing[-1]["images_per_s"], peak_GiB()


if __name__ == "__main__":
    main(run)
