"""The instances that detectors are trained on, by image.

instances = Instances(store, "train", masks=True)
instances.rows, instances.of(row)       # annotations in COCO's format
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mls.config.transfers import TrainOn
from mls.data.image_store import ImageStore
from mls.runtime.errors import MlsError


class Instances:
    """Annotations by image.

    As in Detectron2's default, crowd regions are left out (evaluation ignores detections in them), and so are
    instances without a mask if masks are needed, and images in which no instance remains. VOC's difficult objects
    are trained on.
    """

    def __init__(self, store: ImageStore, splits: TrainOn, masks: bool) -> None:
        """Index some splits; no image is read yet.

        Raises:
            MlsError: no instance is left.
        """
        self._of: dict[int, list[dict[str, Any]]] = {}
        for annotation in store.ground_truth(*splits.split("+"))["annotations"]:
            if annotation["iscrowd"] or min(annotation["bbox"][2:]) <= 0:
                continue
            if not masks or has_mask(annotation["segmentation"]):
                self._of.setdefault(annotation["image_id"], []).append(annotation)
        self.rows = sorted(self._of)
        if not self.rows:
            raise MlsError(
                f"split {splits!r} of this dataset holds no instances{' with masks' if masks else ''}; "
                f"the task {'instance' if masks else 'detection'!r} needs boxes{' and masks' if masks else ''}"
            )

    def __len__(self) -> int:
        """Number of images with instances."""
        return len(self.rows)

    def of(self, row: int) -> list[dict[str, Any]]:
        """Return the annotations of an image, one of `rows`."""
        return self._of[row]


def has_mask(segmentation: list[list[float]] | dict[str, Any]) -> bool:
    """Return whether there is a mask to decode: a polygon needs three points (others are dropped, as in Detectron2)."""
    return isinstance(segmentation, dict) or any(len(polygon) >= 6 for polygon in segmentation)


def decode_mask(segmentation: list[list[float]] | dict[str, Any], height: int, width: int) -> np.ndarray:
    """Turn COCO's polygons or run-length code (counts as a list or compressed) into uint8 (H, W) of 0 and 1."""
    if isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        segmentation = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(segmentation)
