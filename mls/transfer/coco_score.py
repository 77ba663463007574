"""Average precision of detections as COCO defines it, one class at a time.

    metrics = coco_metrics(store.ground_truth("test"), results, ("box", "mask"))   # {"box_AP": 21.4, "mask_AP": ...}

A result is an entry of COCO's results format, which may hold both a box and a mask:
``{"image_id", "category_id", "bbox" [x, y, w, h], "score", "segmentation" {"size", "counts"}}``.

Two engines compute the same numbers: faster-coco-eval, in C++, and pycocotools, the reference. They differ only in
that pycocotools adds 2.2e-16 to the denominators of precisions. COCO scores each class by itself, so only one class is
held in their format at a time, which keeps memory small.

Shape legend: T IoU thresholds, R recall thresholds, K classes, A areas, M limits of detections per image.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO as FasterCOCO
from faster_coco_eval import COCOeval_faster
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mls.config.transfers import Engine
from mls.runtime.progress import Bar
from mls.transfer.instances import has_mask, run_lengths

Sizes = Mapping[int, tuple[int, int]]
"""Height and width of each image, pixels."""
TARGETS = {"box": "bbox", "mask": "segm"}
"""Scored target -> COCOeval's word for it."""
MOST = 2
"""Index along M of at most 100 detections per image, with which precision is reported."""
LARGE = 1 << 15
"""Results from which scoring shows a bar."""
STATISTICS = {
    "AP": (slice(None), 0),
    "AP50": (slice(0, 1), 0),
    "AP75": (slice(5, 6), 0),
    "APs": (slice(None), 1),
    "APm": (slice(None), 2),
    "APl": (slice(None), 3),
}
"""Metric -> its thresholds along T (0.50, 0.55 ... 0.95) and its area along A: all, small, medium or large objects."""


class IgnoreDifficult:
    """Makes an evaluation ignore VOC's ``difficult`` objects too: neither finding nor missing one counts.

    Unlike a crowd, such an object can be found only once; a second detection of it is a false positive.
    """

    cocoGt: Any

    def _prepare(self) -> None:
        """Set ``ignore``, after the evaluation has set it for crowds and before it reads it."""
        super()._prepare()  # type: ignore[misc]
        for truth in self.cocoGt.anns.values():
            truth["ignore"] = int(bool(truth["ignore"]) or bool(truth.get("difficult", 0)))


class ReferenceEval(IgnoreDifficult, COCOeval):  # type: ignore[misc]
    """pycocotools' evaluation."""


class FasterEval(IgnoreDifficult, COCOeval_faster):  # type: ignore[misc]
    """faster-coco-eval's evaluation, on one thread: it would start up to eight for masks."""

    def __init__(self, truth: FasterCOCO, found: FasterCOCO, target: str) -> None:
        """Compare ``found`` with ``truth``; ``target`` is ``bbox`` or ``segm``."""
        super().__init__(truth, found, target, rle_iou_max_workers=1, boundary_cpu_count=1)


ENGINES: dict[Engine, tuple[Any, Any]] = {
    "faster-coco-eval": (FasterCOCO, FasterEval),
    "pycocotools": (COCO, ReferenceEval),
}
"""Engine -> its class of annotations and its evaluation of them."""


def coco_metrics(
    truth: dict[str, Any],
    results: list[dict[str, Any]],
    targets: Sequence[str],
    engine: Engine = "faster-coco-eval",
) -> dict[str, Any]:
    """Return COCO's average precision, percent.

    Args:
        truth: a COCO dictionary; every annotation has ``area`` and ``iscrowd``.
        results: entries in COCO's results format that hold the scored targets.
        targets: keys of `TARGETS`.
        engine: computes them.

    Returns:
        ``box_AP`` ... ``mask_APl``, None where the ground truth holds no instance of that kind; and
        ``per_class``: class name -> ``{"box_AP", "mask_AP"}``.
    """
    metrics: dict[str, Any] = {}
    names = {category["id"]: category["name"] for category in truth["categories"]}
    per_class: dict[str, dict[str, float | None]] = {name: {} for name in names.values()}
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    true, found = by_class(truth["annotations"], sizes), by_class(results, sizes)
    with Bar("score", len(targets) * len(names), unit="classes", hidden=len(results) < LARGE) as bar:
        for target in targets:
            classes = []
            for one in names:
                classes.append(evaluate_class(one, true[one], found[one], sizes, target, engine)["precision"])
                bar.advance(1, 1)
            precision_TRKA = np.concatenate(classes, axis=2)[..., MOST]
            for statistic, (thresholds, area) in STATISTICS.items():
                metrics[f"{target}_{statistic}"] = percent(precision_TRKA[thresholds, :, :, area])
            for index, name in enumerate(names.values()):
                per_class[name][f"{target}_AP"] = percent(precision_TRKA[:, :, index, 0])
    return {**metrics, "per_class": per_class}


def by_class(entries: Sequence[dict[str, Any]], sizes: Sizes) -> dict[int, list[dict[str, Any]]]:
    """Return the entries of each class, in their order; those of images that are not scored are left out."""
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        if entry["image_id"] in sizes:
            found[entry["category_id"]].append(entry)
    return found


def evaluate_class(
    category: int,
    true: list[dict[str, Any]],
    found: list[dict[str, Any]],
    sizes: Sizes,
    target: str,
    engine: Engine,
) -> dict[str, Any]:
    """Return COCO's evaluation of one class.

    Args:
        category: its id.
        true: its annotations.
        found: its results.
        sizes: of all images; those that hold none of either change nothing.
        target: key of `TARGETS`.
        engine: computes it.

    Returns:
        ``precision`` (T, R, 1, A, M), ``recall`` (T, 1, A, M) and ``scores``, as `COCOeval.accumulate` does; -1 where
        there is nothing to find.
    """
    make_index, evaluation_of = ENGINES[engine]
    images = [
        {"id": row, "height": sizes[row][0], "width": sizes[row][1]}
        for row in sorted({entry["image_id"] for entry in (*true, *found)})
    ]

    def indexed(entries: list[dict[str, Any]]) -> Any:
        coco = make_index()
        coco.dataset = {"images": images, "categories": [{"id": category}], "annotations": entries}
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth, predictions = indexed(as_truth(true, sizes, target)), indexed(as_found(found, target))
        evaluation = evaluation_of(truth, predictions, TARGETS[target])
        evaluation.evaluate()
        evaluation.accumulate()
    evaluated: dict[str, Any] = evaluation.eval
    return evaluated


def as_truth(annotations: list[dict[str, Any]], sizes: Sizes, target: str) -> list[dict[str, Any]]:
    """Return annotations with the fields that COCOeval reads, which writes into them.

    Masks become compressed run lengths. Annotations without a mask are left out of them, and so are polygons of fewer
    than three points, which pycocotools would take for boxes.
    """
    kept = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "difficult")
    return [
        {key: one[key] for key in kept if key in one}
        | ({} if target == "box" else {"segmentation": run_lengths(one["segmentation"], *sizes[one["image_id"]])})
        for one in annotations
        if target == "box" or has_mask(one["segmentation"])
    ]


def as_found(results: list[dict[str, Any]], target: str) -> list[dict[str, Any]]:
    """Return results with the fields that COCOeval reads of annotations.

    Unlike ``COCO.loadRes``, this takes an empty list, and it measures a mask by its pixels even if the entry also holds
    a box (``loadRes`` would sort masks into small, medium and large by their boxes).
    """
    if target == "box":
        shapes = [{"bbox": one["bbox"], "area": one["bbox"][2] * one["bbox"][3]} for one in results]
    else:  # one call each: pycocotools 2.0.11 fails on lists of more than 255 masks
        codes = [one["segmentation"] for one in results]
        shapes = [{"segmentation": code, "area": float(coco_mask.area(code))} for code in codes]
    return [
        {"id": number, "iscrowd": 0, **{key: one[key] for key in ("image_id", "category_id", "score")}, **shape}
        for number, (one, shape) in enumerate(zip(results, shapes, strict=True), start=1)
    ]


def percent(precision: np.ndarray) -> float | None:
    """Return the mean of those that are known, percent; None if there are none (COCOeval says -1)."""
    known = precision[precision > -1]
    return 100 * float(known.mean()) if known.size else None
