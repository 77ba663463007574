"""Annotations judged one by one: where an annotation contradicts its image, its class or itself.

    judge = Judge(classes=["cat"], names=["a.jpg"], sizes_N2=np.array([[640, 480]]))
    judge.add({"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 0, "segmentation": []})
    judge.findings()     # [Finding("objects without a mask", contradicts=False, count=1, ...), ...]

What contradicts and what is only worth a note is listed in ``mls.data.check``.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from mls.data.coco import BOX_SLACK

SLACK = 2.0
"""Pixels by which a mask's own box may differ from the box, and size of a box that may well have an empty mask."""
EXAMPLES = 3
"""Places that a finding names."""
Counts = NDArray[np.int64]


@dataclass
class Finding:
    """One kind of defect."""

    what: str
    contradicts: bool
    count: int = 0
    worst: float | None = None
    """Pixels, where the defect has a size."""
    examples: list[str] = field(default_factory=list)
    """Where the first few are."""

    def add(self, where: str, pixels: float | None = None) -> None:
        """Count one more."""
        self.count += 1
        if pixels is not None:
            self.worst = max(self.worst or 0.0, pixels)
        if len(self.examples) < EXAMPLES:
            self.examples.append(where)


class Judge:
    """Annotations, counted and judged one by one."""

    def __init__(self, classes: list[str], names: list[str], sizes_N2: Counts) -> None:
        self._classes, self._names, self._sizes = classes, names, sizes_N2
        self.row = 0
        """Image of the annotation that came last."""
        self.keys = array("q")
        """Image * classes + class, of each annotation."""
        self._easy = array("q")
        """The same without difficult ones, which are no labels."""
        self.crowds = 0
        self.difficult: int | None = None
        self._stray = Finding("annotations of an image or class that is not there", True)
        self._other_size = Finding("images whose annotations are for another size", True)
        self._far_outside = Finding(f"boxes reaching over the image's edge by more than {BOX_SLACK:g} px", True)
        self._undecodable = Finding("masks that can't be decoded", True)
        self._empty = Finding(f"masks that decode to nothing, of boxes larger than {SLACK:g} px both ways", True)
        self._apart = Finding("masks that do not meet their box", True)
        self._outside = Finding(f"boxes reaching over the image's edge by {BOX_SLACK:g} px or less", False)
        self._flat = Finding("boxes of no width or height", False)
        self._tiny = Finding(f"masks that decode to nothing, of boxes of {SLACK:g} px or less one way", False)
        self._differing = Finding(f"masks that differ from their box by more than {SLACK:g} px", False)
        self._maskless = Finding("objects without a mask", False)

    def findings(self) -> list[Finding]:
        """All kinds, found or not."""
        return [value for value in vars(self).values() if isinstance(value, Finding)]

    def add_image(self, item: dict[str, Any]) -> None:
        """Compare the size that annotations claim for an image with its pixels'."""
        row, size = item["id"], [item["width"], item["height"]]
        if not 0 <= row < len(self._names):
            self._stray.add(f"image {row}")
        elif size != self._sizes[row].tolist():
            self._other_size.add(f"{self._names[row]}: annotated as {size[0]} x {size[1]} px")

    def add(self, item: dict[str, Any]) -> None:
        """Judge one annotation."""
        self.row, number = item["image_id"], item["category_id"] - 1
        if not (0 <= self.row < len(self._names) and 0 <= number < len(self._classes)):
            self._stray.add(f"annotation {item['id']}: image {self.row}, class {number}")
            return
        where = f"annotation {item['id']} ({self._classes[number]}) of {self._names[self.row]}"
        key = self.row * len(self._classes) + number
        self.keys.append(key)
        self.crowds += bool(item["iscrowd"])
        if "difficult" in item:
            self.difficult = (self.difficult or 0) + bool(item["difficult"])
        if not item.get("difficult"):
            self._easy.append(key)
        x, y, w, h = item["bbox"]
        width, height = (int(side) for side in self._sizes[self.row])
        over = max(-x, -y, x + w - width, y + h - height)
        if over > 0:
            (self._far_outside if over > BOX_SLACK else self._outside).add(where, over)
        if min(w, h) <= 0:
            self._flat.add(where)
        if not item["segmentation"]:
            self._maskless.add(where)
        else:
            self._judge_mask(item["segmentation"], (x, y, w, h), (width, height), where)

    def _judge_mask(
        self, segmentation: Any, box: tuple[float, float, float, float], size: tuple[int, int], where: str
    ) -> None:
        if isinstance(segmentation, dict) and segmentation["size"] != [size[1], size[0]]:
            self._other_size.add(f"{where}: mask of {segmentation['size'][1]} x {segmentation['size'][0]} px")
            return
        mask = encode(segmentation, *size)
        if mask is None:
            self._undecodable.add(where)
            return
        x, y, w, h = box
        if not rle.area(mask):
            (self._empty if min(w, h) > SLACK else self._tiny).add(where)
            return
        left, top, width, height = (float(value) for value in rle.toBbox(mask))
        right, bottom = left + width, top + height
        off = max(abs(left - x), abs(top - y), abs(right - x - w), abs(bottom - y - h))
        if right > size[0] or bottom > size[1]:
            self._undecodable.add(where)
        elif max(left, x) > min(right, x + w) or max(top, y) > min(bottom, y + h):
            self._apart.add(where, off)
        elif off > SLACK:
            self._differing.add(where, off)

    def against_labels(self, key_M: Counts) -> Finding:
        """Compare the images' classes (``key_M``: image * classes + class) with those of their annotations."""
        finding = Finding("images whose classes are not those of their annotations", True)
        if len(self.keys):
            rows = np.setxor1d(np.unique(np.array(self._easy, dtype=np.int64)), key_M) // len(self._classes)
            for row in np.unique(rows):
                finding.add(self._names[row])
        return finding


def encode(segmentation: Any, width: int, height: int) -> Any:
    """Turn polygons or an RLE, of an image of this size, into one compressed RLE; None where it is neither."""
    try:
        if isinstance(segmentation, list):
            if any(len(polygon) < 6 or len(polygon) % 2 for polygon in segmentation):
                return None
            return rle.merge(rle.frPyObjects(segmentation, height, width))
        if isinstance(segmentation["counts"], list):
            if sum(segmentation["counts"]) != width * height or min(segmentation["counts"]) < 0:
                return None
            return rle.frPyObjects(segmentation, height, width)
        return {"size": [height, width], "counts": segmentation["counts"].encode("ascii")}
    except (TypeError, ValueError, OverflowError):
        return None
