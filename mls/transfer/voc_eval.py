"""VOC's own average precision, by Detectron2's evaluator, which reads VOC's files.

    metrics = voc_score(store, store.ground_truth("test"), results)     # voc_AP, voc_AP50, voc_AP75

The evaluator reads XML, so a view of the store in VOC's layout is written into a temporary folder for it: pixels
counted from 1, the last one included. Its AP is the mean over IoU 0.50 to 0.95 (Table 4's), each by VOC's rule: at 11
points for 2007, the area under the curve for other years; objects marked difficult count neither way. The evaluator
rounds scores to 3 decimals and boxes to 1, in every VOC number that Detectron2 prints.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import tempfile
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ElementTree, SubElement

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, Instances
from torchvision.ops import box_convert

from mls.data.image_store import ImageStore

VIEW, SET = "mls-voc-view", "test"
"""Names of the view and of its one image set."""


def year_of(store: ImageStore, truth: dict[str, Any]) -> int:
    """Return 2007, whose rule has 11 points, if all images are of that year; else 2012."""
    return 2007 if all(store.name(image["id"]).startswith("VOC2007/") for image in truth["images"]) else 2012


def write_view(truth: dict[str, Any], folder: Path) -> None:
    """Write ``Annotations/<row>.xml`` and ``ImageSets/Main/test.txt``: what the evaluator reads of VOC's layout.

    Args:
        truth: a COCO dictionary; annotations with ``difficult``.
        folder: exists and is empty.
    """
    names = {category["id"]: category["name"] for category in truth["categories"]}
    roots = {image["id"]: Element("annotation") for image in truth["images"]}
    for annotation in truth["annotations"]:
        item = SubElement(roots[annotation["image_id"]], "object")
        box = SubElement(item, "bndbox")
        x, y, w, h = annotation["bbox"]
        for parent, tag, value in (
            (item, "name", names[annotation["category_id"]]),
            (item, "pose", "Unspecified"),
            (item, "truncated", annotation.get("truncated", 0)),
            (item, "difficult", annotation["difficult"]),
            (box, "xmin", round(x + 1)),  # the evaluator reads integers
            (box, "ymin", round(y + 1)),
            (box, "xmax", round(x + w)),
            (box, "ymax", round(y + h)),
        ):
            SubElement(parent, tag).text = str(value)
    annotations, sets = folder / "Annotations", folder / "ImageSets" / "Main"
    annotations.mkdir()
    sets.mkdir(parents=True)
    for row, root in roots.items():
        ElementTree(root).write(annotations / f"{row}.xml")
    (sets / f"{SET}.txt").write_text("".join(f"{row}\n" for row in roots), encoding="ascii")


def voc_score(store: ImageStore, truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float]:
    """Return ``voc_AP``, ``voc_AP50`` and ``voc_AP75``, percent, of boxes.

    Classes without an object in the test images (a subset's; VOC has all) have no average precision and are left
    out of the mean, in which the evaluator would count them as 0.

    Args:
        store: the data artifact.
        truth: its test annotations.
        results: COCO results.
    """
    present = sorted({a["category_id"] for a in truth["annotations"] if not a["difficult"]})
    names = {category["id"]: category["name"] for category in truth["categories"]}
    scored = [result for result in results if result["category_id"] in present]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        write_view(truth, Path(folder))
        classes = [names[one] for one in present]
        MetadataCatalog.get(VIEW).set(dirname=folder, split=SET, year=year_of(store, truth), thing_classes=classes)
        try:
            evaluator = PascalVOCDetectionEvaluator(VIEW)
            evaluator.reset()
            for row, found in itertools.groupby(scored, key=lambda result: result["image_id"]):
                evaluator.process([{"image_id": str(row)}], [{"instances": as_instances([*found], present)}])
            metrics = evaluator.evaluate()["bbox"]
        finally:
            MetadataCatalog.remove(VIEW)  # a name can be set only once
    return {f"voc_{name}": float(metrics[name]) for name in ("AP", "AP50", "AP75")}


def as_instances(results: list[dict[str, Any]], present: list[int]) -> Instances:
    """Turn results of one image into a detector's output; a class's number is its place in ``present``."""
    found = Instances((0, 0))  # the evaluator does not ask for the image's size
    xywh_N4 = torch.tensor([result["bbox"] for result in results], dtype=torch.float64).view(-1, 4)
    found.pred_boxes = Boxes(box_convert(xywh_N4, "xywh", "xyxy"))
    found.scores = torch.tensor([result["score"] for result in results], dtype=torch.float64)
    found.pred_classes = torch.tensor([present.index(result["category_id"]) for result in results], dtype=torch.int64)
    return found
