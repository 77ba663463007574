"""Validate annotations and masks one by one: does one contradict its image, its class or itself?

    validator = Validator(classes=["cat"], names=["a.jpg"], sizes_N2=np.array([[640, 480]]))
    validator.add({"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 0, "segmentation": []})
    validator.findings()     # [Finding("objects without a mask", contradicts=False, count=1, ...), ...]

`MaskValidator` does the same for masks of whole images, which say the class of each pixel.

``mls.data.check`` lists which findings are contradictions and which are only notes.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from mls.data.image_store import IGNORE, ImageStore
from mls.data.listing import BOX_SLACK, overhang
from mls.runtime.errors import MlsError

SLACK = 2.0
"""Pixels by which a mask's own box may differ from the box; also the size up to which a box may have an empty mask."""
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
    """Pixels, if the defect has a size."""
    examples: list[str] = field(default_factory=list)
    """Where the first few are."""

    def add(self, where: str, pixels: float | None = None) -> None:
        """Count one more."""
        self.count += 1
        if pixels is not None:
            self.worst = max(self.worst or 0.0, pixels)
        if len(self.examples) < EXAMPLES:
            self.examples.append(where)


class _Findings:
    """Findings are attributes; reports show them in the order of their definition."""

    def findings(self) -> list[Finding]:
        """Return all kinds, whether found or not."""
        return [value for value in vars(self).values() if isinstance(value, Finding)]


class Validator(_Findings):
    """Count and validate annotations one by one."""

    def __init__(self, classes: list[str], names: list[str], sizes_N2: Counts) -> None:
        self._classes, self._names, self._sizes = classes, names, sizes_N2
        self.keys = array("q")
        """Image * classes + class, of each annotation."""
        self._easy = array("q")
        """The same without difficult ones, which are not labels."""
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

    def add_image(self, item: dict[str, Any]) -> None:
        """Compare the size that the annotations claim for an image with its pixels'."""
        row, size = item["id"], [item["width"], item["height"]]
        if not 0 <= row < len(self._names):
            self._stray.add(f"image {row}")
        elif size != self._sizes[row].tolist():
            self._other_size.add(f"{self._names[row]}: annotated as {size[0]} x {size[1]} px")

    def add(self, item: dict[str, Any]) -> None:
        """Validate one annotation."""
        row, number = item["image_id"], item["category_id"] - 1
        if not (0 <= row < len(self._names) and 0 <= number < len(self._classes)):
            self._stray.add(f"annotation {item['id']}: image {row}, class {number}")
            return
        where = f"annotation {item['id']} ({self._classes[number]}) of {self._names[row]}"
        key = row * len(self._classes) + number
        self.keys.append(key)
        self.crowds += bool(item["iscrowd"])
        if "difficult" in item:
            self.difficult = (self.difficult or 0) + bool(item["difficult"])
        if not item.get("difficult"):
            self._easy.append(key)
        x, y, w, h = item["bbox"]
        width, height = (int(side) for side in self._sizes[row])
        over = overhang(x, y, x + w, y + h, width, height)
        if over > 0:
            (self._far_outside if over > BOX_SLACK else self._outside).add(where, over)
        if min(w, h) <= 0:
            self._flat.add(where)
        if item["segmentation"]:
            self._add_mask(item["segmentation"], item["bbox"], (width, height), where)
        else:
            self._maskless.add(where)

    def _add_mask(self, segmentation: Any, box: list[float], size: tuple[int, int], where: str) -> None:
        if isinstance(segmentation, dict) and segmentation["size"] != [size[1], size[0]]:
            self._other_size.add(f"{where}: mask of {segmentation['size'][1]} x {segmentation['size'][0]} px")
            return
        mask = to_rle(segmentation, *size)
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
        if self.keys:
            rows = np.setxor1d(np.unique(np.array(self._easy, dtype=np.int64)), key_M) // len(self._classes)
            for row in np.unique(rows):
                finding.add(self._names[row])
        return finding


class MaskValidator(_Findings):
    """Count and validate masks of whole images (the class of each pixel) one by one."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self.count = 0
        """Masks that could be read."""
        self._pixels_K = np.zeros(256, dtype=np.int64)
        """Pixels of each value, over all masks."""
        self._stray = Finding("masks of an image that is not there", True)
        self._damaged = Finding("masks of images that can't be decoded", True)
        self._other_size = Finding("masks of another size than their image", True)
        self._unknown = Finding("masks of images with a class that is not there", True)
        self._unlisted = Finding("masks of images with a class that the image's labels lack", True)

    @property
    def ignored(self) -> float:
        """Share of all pixels that belong to no class."""
        return float(self._pixels_K[IGNORE] / max(1, self._pixels_K.sum()))

    def add(self, row: int) -> None:
        """Validate the mask of one image."""
        if not 0 <= row < len(self._store):
            self._stray.add(f"image {row}")
            return
        name = self._store.name(row)
        try:
            mask_HW = self._store.mask(row)
        except MlsError:
            self._damaged.add(name)
            return
        self.count += 1
        pixels_K = np.bincount(mask_HW.numpy().reshape(-1), minlength=256)
        self._pixels_K += pixels_K
        if mask_HW.shape != self._store.size(row)[::-1]:
            self._other_size.add(f"{name}: {mask_HW.shape[1]} x {mask_HW.shape[0]} px")
        shown = set(np.flatnonzero(pixels_K).tolist()) - {IGNORE}
        if max(shown, default=0) >= len(self._store.classes):
            self._unknown.add(f"{name}: {max(shown)}")
        elif not shown <= set(np.flatnonzero(self._store.labels([row])[0]).tolist()):
            self._unlisted.add(name)


def to_rle(segmentation: Any, width: int, height: int) -> Any:
    """Turn the polygons or the RLE of an object into one compressed RLE; None if it is neither.

    The lengths are checked here because pycocotools trusts them: with a wrong RLE it reads memory beyond the mask.
    """
    try:
        if isinstance(segmentation, list):
            if any(len(polygon) < 6 or len(polygon) % 2 for polygon in segmentation):
                return None
            return rle.merge(rle.frPyObjects(segmentation, height, width))
        counts = segmentation["counts"]
        runs = counts if isinstance(counts, list) else run_lengths(counts)
        if sum(runs) != width * height or min(runs) < 0:
            return None
        if isinstance(counts, list):
            return rle.frPyObjects(segmentation, height, width)
        return {"size": [height, width], "counts": counts.encode("ascii")}
    except (TypeError, ValueError, OverflowError):
        return None


def run_lengths(counts: str) -> list[int]:
    """Decode COCO's compressed ``counts`` into the lengths of the runs, zeros first (as pycocotools' rleFrString).

    Raises:
        ValueError: the text ends within a number, or holds a character that no number has.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        six = ord(character) - 48
        if not 0 <= six < 64:
            raise ValueError(f"{character!r} is not part of a number")
        value |= (six & 31) << shift
        shift += 5
        if not six & 32:  # the last five bits of a number; their highest is its sign
            value -= (six & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))  # from the fourth run on: a difference
            value = shift = 0
    if shift:
        raise ValueError("ends within a number")
    return runs
