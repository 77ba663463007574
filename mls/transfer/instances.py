"""The instances that detectors are trained on, and the masks of instances.

instances = training_instances(store, "train", masks=True)      # row -> annotations in COCO's format
mask_HW = decode_mask(instances[row][0]["segmentation"], height, width)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mls.config.transfers import TrainOn
from mls.data.image_store import ImageStore
from mls.data.masks import Segmentation, polygons
from mls.runtime.errors import MlsError


def training_instances(store: ImageStore, splits: TrainOn, masks: bool) -> dict[int, list[dict[str, Any]]]:
    """Return the annotations of each image with instances, by row, ascending.

    As in Detectron2's default, crowd regions are left out (evaluation ignores detections in them), and so are
    boxes of no area, instances whose mask covers no pixel if masks are needed, and images in which no instance
    remains. VOC's difficult objects are trained on.

    Raises:
        MlsError: no instance is left.
    """
    found: dict[int, list[dict[str, Any]]] = {}
    for annotation in store.ground_truth(*splits.split("+"))["annotations"]:
        if annotation["iscrowd"] or min(annotation["bbox"][2:]) <= 0:
            continue
        if not masks or _covers(annotation["segmentation"], *store.size(annotation["image_id"])):
            found.setdefault(annotation["image_id"], []).append(annotation)
    if not found:
        raise MlsError(
            f"split {splits!r} of this dataset holds no instances{' with masks' if masks else ''}; "
            f"the task {'instance' if masks else 'detection'!r} needs boxes{' and masks' if masks else ''}"
        )
    return dict(sorted(found.items()))


def has_mask(segmentation: Segmentation) -> bool:
    """Return whether there is a mask to decode."""
    return isinstance(segmentation, dict) or bool(polygons(segmentation))


def _covers(segmentation: Segmentation, width: int, height: int) -> bool:
    """Return whether a mask covers a pixel."""
    return has_mask(segmentation) and bool(coco_mask.area(run_lengths(segmentation, height, width)))


def run_lengths(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """Return the compressed run-length code of a segmentation."""
    code: dict[str, Any]
    if isinstance(segmentation, list):
        code = coco_mask.merge(coco_mask.frPyObjects(polygons(segmentation), height, width))
    else:
        compressed = not isinstance(segmentation["counts"], list)
        code = segmentation if compressed else coco_mask.frPyObjects(segmentation, height, width)
    return code


def decode_mask(segmentation: Segmentation, height: int, width: int) -> np.ndarray:
    """Return the mask of a segmentation, uint8 (H, W) of 0 and 1."""
    return coco_mask.decode(run_lengths(segmentation, height, width))


def as_json(code: dict[str, Any]) -> dict[str, Any]:
    """Return pycocotools' run-length code as JSON holds it: counts are text."""
    return {"size": code["size"], "counts": code["counts"].decode("ascii")}
