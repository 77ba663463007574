"""What COCO's scoring takes on a test set of COCO's size: CPU time and memory of each engine.

python benchmarks/scoring.py                       # 5,000 images with 100 predictions each, boxes and masks; 10 minutes
python benchmarks/scoring.py --images 500 --targets box

Truth and predictions are generated: 80 classes as uneven as COCO's, 7 objects an image on average, most of them found,
the other predictions anywhere. Each line is a process of its own. ``official`` is what pycocotools' own example does,
with all classes at once; the others are `mls.transfer.coco_score`, a class at a time. Lines are added to
benchmarks/results/scoring.csv: ``before_MiB`` with truth and predictions loaded, ``peak_MiB`` while they are scored.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import psutil
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from record import append

from mls.config.transfers import Engine
from mls.pipeline.provenance import code
from mls.transfer.coco_score import TARGETS, coco_metrics

RESULTS = Path(__file__).parent.resolve() / "results/scoring.csv"
CLASSES, OBJECTS, HEIGHT, WIDTH = 80, 7, 480, 640
SIDES = ("official", *get_args(Engine))


def main() -> None:
    """Measure and write one line a process; with ``--side``, be that process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--boxes", type=int, default=100, help="predictions per image")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, args.targets[0], args.images, args.boxes)))
        return
    for target in args.targets:
        for side in SIDES:
            command = [sys.executable, str(Path(__file__).resolve()), "--side", side, "--targets", target]
            command += ["--images", str(args.images), "--boxes", str(args.boxes)]
            done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
            row = {"target": target, "side": side, "images": args.images, "boxes": args.boxes}
            row |= json.loads(done.stdout) | {
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "load": round(os.getloadavg()[0], 1),
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in ("numpy", "pycocotools", "faster-coco-eval")},
                "code": (code()["revision"] or "")[:10],
            }
            print("\n".join(f"{key:16} {value}" for key, value in row.items()), end="\n\n", flush=True)
            append(RESULTS, [row])


def measure(side: str, target: str, images: int, boxes: int) -> dict[str, float]:
    """Score in this process."""
    truth, results = generate(images, boxes, masks=target == "mask")
    before_B, began = psutil.Process().memory_info().rss, time.process_time()
    found = official(truth, results, target) if side == "official" else ours(truth, results, target, side)
    return {
        "cpu_s": round(time.process_time() - began, 1),
        "before_MiB": round(before_B / 2**20),
        "peak_MiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "AP": round(found, 10),
    }


def ours(truth: dict[str, Any], results: list[dict[str, Any]], target: str, engine: Any) -> float:
    """AP by `mls.transfer.coco_score`."""
    return float(coco_metrics(truth, results, (target,), engine)[f"{target}_AP"])


def official(truth: dict[str, Any], results: list[dict[str, Any]], target: str) -> float:
    """AP as in pycocotools' example."""
    with contextlib.redirect_stdout(io.StringIO()):
        true = COCO()
        true.dataset = truth
        true.createIndex()
        evaluation = COCOeval(true, true.loadRes(results), TARGETS[target])
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(100 * evaluation.stats[0])


def generate(images: int, boxes: int, masks: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """COCO's truth and results; masks are filled boxes."""
    rng = np.random.default_rng(0)
    shares_C = 1 / np.arange(2, CLASSES + 2)
    shares_C /= shares_C.sum()
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(images):
        count = min(int(rng.poisson(OBJECTS)), boxes)
        true_N4, classes_N = some_boxes(rng, count), rng.choice(CLASSES, count, p=shares_C) + 1
        moved_N4 = true_N4 + rng.normal(0, 0.1, (count, 4)) * np.tile(true_N4[:, 2:], 2)
        found_N4 = np.concatenate([moved_N4, some_boxes(rng, boxes - count)])
        found_N4[:, 2:] = np.clip(found_N4[:, 2:], 1, [WIDTH, HEIGHT])
        guesses_N = np.concatenate([classes_N, rng.choice(CLASSES, boxes - count, p=shares_C) + 1])
        scores_N = np.concatenate([rng.beta(4, 2, count), rng.beta(1, 6, boxes - count)]).astype(np.float32)
        for xywh, category in zip(true_N4.tolist(), classes_N.tolist(), strict=True):
            one = {"id": len(annotations) + 1, "image_id": image, "category_id": category, "bbox": xywh}
            annotations.append(one | {"area": xywh[2] * xywh[3], "iscrowd": int(rng.random() < 0.01)})
        for xywh, category, score in zip(found_N4.tolist(), guesses_N.tolist(), scores_N.tolist(), strict=True):
            results.append({"image_id": image, "category_id": category, "bbox": xywh, "score": score})
        if masks:
            filled = coco_mask.frPyObjects(np.concatenate([true_N4, found_N4]), HEIGHT, WIDTH)
            shown = annotations[len(annotations) - count :] + results[-boxes:]
            for one, mask in zip(shown, filled, strict=True):
                one["segmentation"] = {"size": mask["size"], "counts": mask["counts"].decode("ascii")}
    return {
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(images)],
        "categories": [{"id": c + 1, "name": f"class {c + 1}"} for c in range(CLASSES)],
        "annotations": annotations,
    }, results


def some_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes inside the image, float64 (N, 4) as x, y, width, height: a third each small, medium and large."""
    sides_N2 = np.exp(rng.uniform(np.log(8), np.log(400), (count, 2)))
    corners_N2 = rng.random((count, 2)) * ([WIDTH, HEIGHT] - sides_N2)
    return np.concatenate([corners_N2, sides_N2], axis=1)


if __name__ == "__main__":
    main()
