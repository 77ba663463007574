"""Run a detector on images; score what it found as COCO does (pycocotools).

    results = predict(detector, store, store.split("test"), batch_size=16, device=device)
    metrics = score(store.ground_truth("test"), results)    # {"box_AP": 21.4, "mask_AP": 19.8, ...}

A result is an entry of COCO's results format that holds box and mask at once:
``{"image_id", "category_id", "bbox" [x, y, w, h], "score", "segmentation" {"size", "counts"}}``.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.models.detection import MaskRCNN

from mls.data.store import Store
from mls.train.interrupt import InterruptGuard
from mls.train.progress import Bar

STATISTICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""The first six numbers of `COCOeval.stats`, in its order."""
TARGETS = {"box": "bbox", "mask": "segm"}
"""What is scored -> pycocotools' word for it."""


def predict(
    detector: MaskRCNN,
    store: Store,
    rows: Sequence[int] | np.ndarray,
    *,
    batch_size: int,
    device: torch.device,
    name: str = "test",
) -> list[dict[str, Any]]:
    """Return what the detector finds in some images: COCO results, by row, then by falling score.

    At most 100 instances an image, with a score of at least 0.05 (torchvision's defaults). Masks are pasted at
    0.5. Boxes are rounded to 2 decimals (pixels), scores to 5.

    Raises:
        Interrupted: a signal came; the trained detector is in the checkpoint, so only this pass is run again.
    """
    detector.eval()
    results: list[dict[str, Any]] = []
    with torch.inference_mode(), InterruptGuard() as guard, Bar(name, len(rows)) as bar:
        for start in range(0, len(rows), batch_size):
            guard.stop_if_asked(lambda: None)
            chunk = [int(row) for row in rows[start : start + batch_size]]
            images = [store.decode(row).to(device).float() / 255 for row in chunk]
            for row, found in zip(chunk, detector(images), strict=True):
                results += to_coco(row, {key: value.cpu() for key, value in found.items()})
            bar.advance(len(chunk), count=len(chunk))
    return results


def to_coco(row: int, found: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Turn torchvision's output for one image into COCO results."""
    if not len(found["scores"]):
        return []
    xyxy_N4 = found["boxes"].double()
    xywh_N4 = torch.cat([xyxy_N4[:, :2], xyxy_N4[:, 2:] - xyxy_N4[:, :2]], dim=1)
    masks_HWN = (found["masks"][:, 0] > 0.5).numpy().astype(np.uint8).transpose(1, 2, 0)
    codes = coco_mask.encode(np.asfortranarray(masks_HWN))
    return [
        {
            "image_id": row,
            "category_id": int(label),
            "bbox": [round(value, 2) for value in box],
            "score": round(float(score), 5),
            "segmentation": {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")},
        }
        for label, box, score, code in zip(found["labels"], xywh_N4.tolist(), found["scores"], codes, strict=True)
    ]


def score(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return COCO's average precision of boxes and masks, percent.

    Args:
        ground_truth: a COCO dictionary; every annotation with ``area`` and ``iscrowd``.
        results: entries in COCO's results format, with box and mask.

    Returns:
        ``box_AP`` ... ``mask_APl``, None where the ground truth holds no instance of that kind; and
        ``per_class``: class name -> ``{"box_AP", "mask_AP"}``.
    """
    metrics: dict[str, Any] = {}
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    per_class: dict[str, dict[str, float | None]] = {name: {} for name in names.values()}
    for target, iou_type in TARGETS.items():
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            truth = make_coco(ground_truth, ground_truth["annotations"])
            evaluation = COCOeval(truth, make_coco(ground_truth, as_annotations(results, target)), iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        for statistic, value in zip(STATISTICS, evaluation.stats, strict=False):
            metrics[f"{target}_{statistic}"] = percent(value)
        # precision: IoU thresholds, recall thresholds, classes, areas (0: all), detections an image (2: 100)
        precision_TRK = evaluation.eval["precision"][:, :, :, 0, 2]
        for index, category in enumerate(evaluation.params.catIds):
            known = precision_TRK[:, :, index][precision_TRK[:, :, index] > -1]
            per_class[names[category]][f"{target}_AP"] = percent(known.mean() if known.size else -1)
    return {**metrics, "per_class": per_class}


def as_annotations(results: list[dict[str, Any]], target: str) -> list[dict[str, Any]]:
    """Give results the fields of annotations that COCOeval reads.

    Unlike ``COCO.loadRes`` this takes an empty list, and it measures a mask's size by the mask even where the
    entry also holds a box (``loadRes`` would sort masks into small, medium and large by their box).
    """
    annotations = []
    for number, result in enumerate(results, start=1):
        if target == "box":
            area = result["bbox"][2] * result["bbox"][3]
        else:
            area = float(coco_mask.area(result["segmentation"]))
        annotations.append({**result, "id": number, "area": area, "iscrowd": 0})
    return annotations


def make_coco(like: dict[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    """Return an indexed COCO object with the images and categories of ``like``.

    Annotations are copied: COCOeval writes into them.
    """
    coco = COCO()
    coco.dataset = {
        "images": like["images"],
        "categories": like["categories"],
        "annotations": [dict(annotation) for annotation in annotations],
    }
    coco.createIndex()
    return coco


def percent(value: float) -> float | None:
    """COCOeval's share as percent; its -1 (nothing to find) as None."""
    return None if value < 0 else 100 * float(value)
