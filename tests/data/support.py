"""Image files, small copies of COCO and VOC, and plans of data sets that several tests use."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mls.config.load import check
from mls.data import build_store
from mls.download.reader import Reader
from mls.pipeline.artifact import open_artifact
from mls.pipeline.plan import DATA_LOCK, Job, Plan, make_plan, read_lock
from mls.pipeline.runner import run_stage

# ------------------------------------------------------------------------------------ images

H, W = 40, 56
Y, X = np.mgrid[0:H, 0:W]
PIXELS = np.stack([X * 4, Y * 6, (X + Y) * 2], -1).astype(np.uint8)
PHOTO = Image.fromarray(PIXELS)
NOISY = Image.fromarray(np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8))
"""Random pixels, so that a cut anywhere loses data."""


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def palette() -> Image.Image:
    return PHOTO.quantize(64)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, colour: int, rows: bytes, depth: int = 16) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def output_of(code: str) -> str:
    """Run code in a fresh process; return what it prints. Nothing may go to its stderr."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stderr == ""
    return done.stdout


# ------------------------------------------------------------------------------------ sources

WIDTH, HEIGHT = 40, 30
CATEGORIES = [{"id": 17, "name": "cat"}, {"id": 3, "name": "car"}, {"id": 90, "name": "toothbrush"}]


def instances(first: int, count: int) -> dict[str, Any]:
    images: list[dict[str, Any]] = [
        {"id": i, "file_name": f"{i:012d}.jpg", "width": 20, "height": 10} for i in range(first, first + count)
    ]
    box = {"bbox": [1.5, 2, 8, 5], "area": 40.0, "iscrowd": 0, "segmentation": [[1.5, 2, 9.5, 2, 9.5, 7]]}
    annotations = [{**box, "id": 1000 - i["id"], "image_id": i["id"], "category_id": 17} for i in images[1:]]
    crowd = {"segmentation": {"size": [10, 20], "counts": [0, 200]}, "bbox": [0, 0, 20, 10], "area": 200, "iscrowd": 1}
    annotations.append({**crowd, "id": 2000 + first, "image_id": first + 1, "category_id": 3})
    return {"images": images, "annotations": annotations, "categories": [dict(one) for one in CATEGORIES]}


def make_coco(root: Path, change: Callable[[dict[str, Any]], object] = lambda train: None) -> Reader:
    (root / "annotations").mkdir(exist_ok=True)
    for split, raw in (("train2017", instances(1, 10)), ("val2017", instances(50, 4))):
        (root / split).mkdir(exist_ok=True)
        for image in raw["images"]:
            Image.new("RGB", (20, 10), (image["id"], 0, 0)).save(root / split / image["file_name"])
        if split == "train2017":
            change(raw)
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(raw))
    return Reader(root)


def an_object(name: str = "dog", box: tuple[object, ...] = (3, 4, 12, 10), extra: str = "") -> str:
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name><pose>Left</pose>{extra}<bndbox>{sides}</bndbox></object>"


def xml(image: str, *objects: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> str:
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    head = f"<folder>VOC2007</folder><filename>{image}.jpg</filename><source><image>flickr</image></source>"
    return f"<annotation>\n\t{head}\n\t{sides}<segmented>0</segmented>{''.join(objects)}</annotation>\n"


def add_set(root: Path, entry: str, images: list[str]) -> None:
    """Write one image set with its pictures, each with one dog."""
    year, name = entry.split("/")
    folder = root / f"VOC{year}"
    for sub in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    for image in images:
        Image.new("RGB", (WIDTH, HEIGHT), (len(image), 80, 0)).save(folder / f"JPEGImages/{image}.jpg")
        (folder / f"Annotations/{image}.xml").write_text(xml(image, an_object()))
    (folder / f"ImageSets/Main/{name}.txt").write_text("".join(f"{image}\n" for image in images))


def make_voc_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``$MLS_DATA/voc``: VOC2007 with 8 trainval and 3 test images, VOC2012 with 2; and an empty working tree."""
    root = tmp_path / "data" / "voc"
    add_set(root, "2007/trainval", [f"{i:06d}" for i in range(1, 9)])
    add_set(root, "2007/test", [f"{i:06d}" for i in range(9, 12)])
    add_set(root, "2012/trainval", ["2008_000008", "2008_000015"])
    (root / "VOC2007/ImageSets/Main/dog_trainval.txt").write_text("000001  1\n000002 -1\n")
    monkeypatch.setenv("MLS_DATA", str(tmp_path / "data"))
    (tmp_path / "tree").mkdir()
    monkeypatch.chdir(tmp_path / "tree")
    return root


# ------------------------------------------------------------------------------------ plans


def experiment_of(**datasets: dict[str, Any]) -> dict[str, Any]:
    """An experiment that reads each data set once."""
    probes = {f"on-{name}": {"kind": "linear", "dataset": name} for name in datasets}
    return {
        "experiment": "t",
        "datasets": datasets,
        "runs": {"random": {"method": "none"}},
        "probe": probes,
        "tables": {"t": {"columns": [f"{next(iter(probes))}.mAP"]}},
        "execution": {"threads": 1},
    }


def plan_of(lock: dict[str, Any] | None = None, **datasets: dict[str, Any]) -> tuple[Plan, Job]:
    """The plan of `experiment_of`, by default with the digests of ``data.lock``, and the data job of the first."""
    experiment = check(experiment_of(**datasets), Path("t.yaml"))
    plan = make_plan(experiment, read_lock(DATA_LOCK) if lock is None else lock)
    return plan, plan.find("data", next(iter(datasets)))[0]


def make(**datasets: dict[str, Any]) -> Path:
    """Run the data stage of the first data set; return its verified artifact."""
    plan, job = plan_of(**datasets)
    run_stage(plan, job, build_store.run)
    open_artifact(job.path, deep=True)
    return job.path.absolute()
