"""The machine, and the pictures that the other parts read: generated scenes as JPEGs of COCO's usual size.

Scenes are drawn by all cores, squeezed to 640 x 480 with their masks, and encoded as COCO's photos are (quality 90,
4:2:0). Each is in the store several times: a copy costs as much to decode as any other image.
"""

from __future__ import annotations

import io
import os
import platform
import subprocess
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from pycocotools import mask as rle

from gpu_parts.common import PHOTOS, Bench, emit, main, say
from mls.config.datasets import ScenesDataset
from mls.data.scenes import CLASSES, make_scene
from mls.data.writer import Record, write_store
from mls.pipeline.provenance import code

DRAWN, COPIES, HELD_OUT = 192, 16, 8
"""Scenes drawn to train on, copies of each in the store, and scenes of val and of test."""


def run(bench: Bench) -> None:
    """Say what the machine is, and make the store."""
    say(facts=facts(bench))
    drawn, copies, size = (12, 1, (64, 48)) if bench.smoke else (DRAWN, COPIES, (640, 480))
    scenes = ScenesDataset(source="scenes", size=max(size) if bench.smoke else 512)
    jobs = [("train", i) for i in range(drawn)] + [(split, i) for split in ("val", "test") for i in range(HELD_OUT)]
    draw = partial(photo, scenes, size)
    if bench.smoke:
        made = [draw(*job) for job in jobs]
    else:  # not forked: this process may have started CUDA
        with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as pool:
            made = list(pool.map(draw, *zip(*jobs, strict=True), chunksize=4))
    Path(PHOTOS).mkdir()
    write_store(Path(PHOTOS), records(made, drawn, copies), CLASSES, True, [])
    emit("mean size of a JPEG", sum(len(one.data) for one in made) / len(made) / 1000, "kB")


def facts(bench: Bench) -> dict[str, Any]:
    """The columns that all results share."""
    on_gpu, driver = bench.device.type == "cuda", ""
    with suppress(OSError, subprocess.SubprocessError):
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout.split("\n")[0]
    known = code()
    return {
        "card": torch.cuda.get_device_name() if on_gpu else f"CPU, {bench.execution.threads} threads",
        "driver": driver.strip() if on_gpu else "",
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        # a copy without its git folder is known by its digest
        "code": known["revision"][:10] + "+" * known["dirty"] if known["revision"] else f"digest {known['digest']}",
    }


def photo(config: ScenesDataset, size: tuple[int, int], split: str, index: int) -> Record:
    """Draw a scene and squeeze it, with its boxes and masks.

    Args:
        config: side of the scene.
        size: width and height of the photo, pixels.
        split: of the image.
        index: of the image in its split.
    """
    scene = make_scene(config, split, index)
    file = io.BytesIO()
    Image.open(io.BytesIO(scene.data)).resize(size).save(file, "JPEG", quality=90)
    annotations = [one for one in (squeezed(a, size) for a in scene.annotations) if one["area"]]
    return Record(scene.name, split, file.getvalue(), *size, scene.classes, annotations)


def squeezed(annotation: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Return an annotation of the squeezed image."""
    mask_HW = Image.fromarray(rle.decode(annotation["segmentation"])).resize(size, Image.Resampling.NEAREST)
    coded = rle.encode(np.asfortranarray(mask_HW))
    segmentation = {"size": coded["size"], "counts": coded["counts"].decode("ascii")}
    box, area = rle.toBbox(coded).tolist(), int(rle.area(coded))
    return {**annotation, "bbox": box, "area": area, "segmentation": segmentation}


def records(made: list[Record], drawn: int, copies: int) -> Iterator[Record]:
    """Yield all images of the store in its order; those to train on are the first ``drawn``."""
    for copy in range(copies):
        for one in made[:drawn]:
            yield replace(one, name=f"train/{copy:03d}-{Path(one.name).name}")
    yield from made[drawn:]


if __name__ == "__main__":
    main(run)
