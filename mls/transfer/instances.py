"""The instances that detectors are trained on, and the masks of instances.

instances = TrainingInstances(store, "train", masks=True)      # row -> annotations in COCO's format
mask_HW = decode_mask(instances[row][0]["segmentation"], height, width)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mls.config.transfers import TrainOn
from mls.data.image_store import ImageStore
from mls.data.masks import Segmentation, polygons
from mls.runtime.errors import MlsError
from mls.runtime.progress import Bar

LARGE = 1 << 14
"""Images from which indexing shows a bar."""


class TrainingInstances(Mapping[int, list[dict[str, Any]]]):
    """The annotations of each image with instances, by row, ascending.

    As in Detectron2's default, crowd regions are left out (evaluation ignores detections in them), and so are
    boxes of no area, instances whose mask covers no pixel if masks are needed, and images in which no instance
    remains. VOC's difficult objects are trained on. An image's are parsed when asked for: those of COCO take 3 GB.
    """

    def __init__(self, store: ImageStore, splits: TrainOn, masks: bool) -> None:
        """Find the images with instances.

        Raises:
            MlsError: no instance is left.
        """
        self._store, self._masks = store, masks
        self._rows: dict[int, None] = {}
        with Bar(f"index {splits}", len(store), hidden=len(store) < LARGE) as bar:
            for annotation in store.annotations_of(*splits.split("+")):
                row = annotation["image_id"]
                if row not in self._rows and self._learned(annotation):
                    self._rows[row] = None
                    bar.advance(row - bar.done, row - bar.done)
        if not self._rows:
            raise MlsError(
                f"split {splits!r} of this dataset holds no instances{' with masks' if masks else ''}; "
                f"the task {'instance' if masks else 'detection'!r} needs boxes{' and masks' if masks else ''}"
            )

    def __getitem__(self, row: int) -> list[dict[str, Any]]:
        """Return an image's instances in COCO's format."""
        if row not in self._rows:
            raise KeyError(row)
        return [annotation for annotation in self._store.annotations(row) if self._learned(annotation)]

    def __iter__(self) -> Iterator[int]:
        """Iterate over the rows, ascending."""
        return iter(self._rows)

    def __len__(self) -> int:
        """Count the images."""
        return len(self._rows)

    def _learned(self, annotation: dict[str, Any]) -> bool:
        if annotation["iscrowd"] or min(annotation["bbox"][2:]) <= 0:
            return False
        return not self._masks or _covers(annotation["segmentation"], *self._store.size(annotation["image_id"]))


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
