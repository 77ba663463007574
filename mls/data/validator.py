"""Validate annotations and masks one by one: does one contradict its image, its class or itself?

    found = Findings()
    validator = Validator(ImageStore(path), found)
    validator.add({"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 0, "segmentation": []})
    found.listed()     # [Finding("objects without a mask", contradicts=False, count=1, ...)]

`validate_masks` does the same for masks of whole images, which say the class of each pixel.

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
from mls.data.masks import polygons, to_rle
from mls.runtime.errors import MlsError
from mls.runtime.progress import Bar

SLACK = 2.0
"""Pixels by which a mask's own box may differ from the box."""
EXAMPLES = 3
"""Places that a finding names."""
Counts = NDArray[np.int64]


@dataclass
class Finding:
    """One kind of defect that was found at least once."""

    what: str
    contradicts: bool
    count: int = 0
    worst: float | None = None
    """Pixels, if the defect has a size."""
    examples: list[str] = field(default_factory=list)
    """Where the first few are."""


class Findings:
    """All defects by kind."""

    def __init__(self) -> None:
        self._kinds: dict[str, Finding] = {}

    def contradiction(self, what: str, where: str, pixels: float | None = None) -> None:
        """Count a defect that no correct data set has."""
        self._count(self._kinds.setdefault(what, Finding(what, True)), where, pixels)

    def note(self, what: str, where: str, pixels: float | None = None) -> None:
        """Count a defect that correct data sets may have."""
        self._count(self._kinds.setdefault(what, Finding(what, False)), where, pixels)

    def _count(self, finding: Finding, where: str, pixels: float | None) -> None:
        finding.count += 1
        if pixels is not None:
            finding.worst = max(finding.worst or 0.0, pixels)
        if len(finding.examples) < EXAMPLES:
            finding.examples.append(where)

    def listed(self) -> list[Finding]:
        """Return the findings, contradictions first, otherwise in the order in which they were found."""
        return sorted(self._kinds.values(), key=lambda finding: not finding.contradicts)


class Validator:
    """Count and validate annotations one by one."""

    def __init__(self, store: ImageStore, found: Findings) -> None:
        self._store, self._found = store, found
        self.keys = array("q")
        """Image * classes + class, of each annotation."""
        self._easy = array("q")
        """The same without difficult ones, which are not labels."""
        self.crowds = 0
        self.difficult: int | None = None
        """None if annotations have no such field."""

    def add_image(self, item: dict[str, Any]) -> None:
        """Compare the size that the annotations claim for an image with its pixels'."""
        row, size = item["id"], (item["width"], item["height"])
        if not 0 <= row < len(self._store):
            self._stray(f"image {row}")
        elif size != self._store.size(row):
            self._other_size(f"{self._store.name(row)}: annotated as {size[0]} x {size[1]} px")

    def add(self, item: dict[str, Any]) -> None:
        """Validate one annotation."""
        store, found = self._store, self._found
        row, number = item["image_id"], item["category_id"] - 1
        if not (0 <= row < len(store) and 0 <= number < len(store.classes)):
            self._stray(f"annotation {item['id']}: image {row}, class {number}")
            return
        where = f"annotation {item['id']} ({store.classes[number]}) of {store.name(row)}"
        key = row * len(store.classes) + number
        self.keys.append(key)
        self.crowds += bool(item["iscrowd"])
        if "difficult" in item:
            self.difficult = (self.difficult or 0) + bool(item["difficult"])
        if not item.get("difficult"):
            self._easy.append(key)
        x, y, w, h = item["bbox"]
        over = overhang(x, y, x + w, y + h, *store.size(row))
        if over > BOX_SLACK:
            found.contradiction(f"boxes reaching over the image's edge by more than {BOX_SLACK:g} px", where, over)
        elif over > 0:
            found.note(f"boxes reaching over the image's edge by {BOX_SLACK:g} px or less", where, over)
        if min(w, h) <= 0:
            found.note("boxes of no width or height", where)
        if item["segmentation"]:
            self._add_mask(item["segmentation"], item["bbox"], store.size(row), where)
        else:
            found.note("objects without a mask", where)

    def _add_mask(self, segmentation: Any, box: list[float], size: tuple[int, int], where: str) -> None:
        if isinstance(segmentation, dict) and segmentation["size"] != [size[1], size[0]]:
            self._other_size(f"{where}: mask of {segmentation['size'][1]} x {segmentation['size'][0]} px")
            return
        try:
            mask = to_rle(segmentation, *size)
        except ValueError as error:
            self._found.contradiction("masks that can't be decoded", f"{where}: {error}")
            return
        if isinstance(segmentation, list) and not polygons(segmentation):
            self._found.note("objects whose polygons have fewer than three points", where)
            return
        if not rle.area(mask):
            self._found.note("objects whose mask covers no pixel", where)
            return
        (x, y, w, h), (left, top, width, height) = box, rle.toBbox(mask).tolist()
        right, bottom = left + width, top + height
        off = max(abs(left - x), abs(top - y), abs(right - x - w), abs(bottom - y - h))
        if max(left, x) > min(right, x + w) or max(top, y) > min(bottom, y + h):
            self._found.contradiction("masks that do not meet their box", where, off)
        elif off > SLACK:
            self._found.note(f"masks that differ from their box by more than {SLACK:g} px", where, off)

    def _stray(self, where: str) -> None:
        self._found.contradiction("annotations of an image or class that is not there", where)

    def _other_size(self, where: str) -> None:
        self._found.contradiction("images whose annotations are for another size", where)

    def compare_labels(self, labels_NC: NDArray[np.bool_]) -> None:
        """Compare the images' classes with those of their annotations, if there are any; call it after the last."""
        if self.keys:
            of_annotations_NC = np.zeros_like(labels_NC)
            of_annotations_NC.flat[np.array(self._easy, dtype=np.int64)] = True
            for row in np.flatnonzero((of_annotations_NC != labels_NC).any(axis=1)).tolist():
                what = "images whose classes are not those of their annotations"
                self._found.contradiction(what, self._store.name(row))


def validate_masks(store: ImageStore, found: Findings, label: str) -> tuple[int, float]:
    """Validate the masks of whole images (the class of each pixel), one at a time; shows progress.

    Returns:
        The number of masks that could be read, and the share of their pixels that belongs to no class.
    """
    readable, pixels_K = 0, np.zeros(256, dtype=np.int64)
    with Bar(label, len(store.mask_rows)) as bar:
        for row in store.mask_rows.tolist():
            bar.advance(1, 1)
            name = store.name(row)
            try:
                mask_HW = store.mask(row)
            except MlsError:
                found.contradiction("masks of images that can't be decoded", name)
                continue
            shown_K = np.bincount(mask_HW.numpy().reshape(-1), minlength=256)
            readable, pixels_K = readable + 1, pixels_K + shown_K
            if mask_HW.shape != store.size(row)[::-1]:
                what = "masks of another size than their image"
                found.contradiction(what, f"{name}: {mask_HW.shape[1]} x {mask_HW.shape[0]} px")
            shown = set(np.flatnonzero(shown_K).tolist()) - {IGNORE}
            if max(shown, default=0) >= len(store.classes):
                found.contradiction("masks of images with a class that is not there", f"{name}: {max(shown)}")
            elif not shown <= set(np.flatnonzero(store.labels([row])).tolist()):
                found.contradiction("masks of images with a class that the image's labels lack", name)
    return readable, float(pixels_K[IGNORE] / max(1, pixels_K.sum()))
