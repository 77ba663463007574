"""One annotation file of COCO, checked: its images, its categories and its objects.

    train = Instances(Reader(Path("data/coco")), "train2017")
    train.images[9]                             # ("train2017/000000000009.jpg", 640, 480)
    train.entry(9, "train", {1: 0, 2: 1})       # as listings have it

What is wrong is an `MlsError` that names the file, the id and the value. Objects are parsed when they are asked for.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
from pycocotools import mask as rle

from mls.data import strict_json
from mls.data.listing import BOX_SLACK, MAX_PIXELS, Entry, check_classes, overhang
from mls.data.masks import polygons, to_rle
from mls.download.reader import Reader, unsafe
from mls.runtime.errors import MlsError
from mls.runtime.progress import Bar

LARGE = 1 << 14
"""Entries, or thousands of characters, from which reading shows a bar."""
KEPT = ("area", "bbox", "iscrowd", "segmentation")
"""Fields of an annotation that the store keeps as they are."""
MAX_AREA = 1e10
"""Area in pixels above which COCO's evaluation drops an object in silence, as it does below 0."""


class Images:
    """The ``images`` of one annotation file, checked."""

    def __init__(self, reader: Reader, split: str, file: str) -> None:
        self.split, self.file = split, f"annotations/{file}.json"
        self._reader = reader
        content, _ = reader.read(self.file)
        with self._bar("read", len(content) // 1000, "kB") as bar:

            def tick(place: int) -> None:
                bar.advance(place // 1000 - bar.done, place // 1000 - bar.done)
                reader.poll()

            try:
                self._document = strict_json.Document(content, tick)
            except ValueError as error:
                self.fail(str(error))
        del content
        self.images: dict[int, tuple[str, int, int]] = {}
        """Image id -> path relative to the root, width, height."""
        self._each("images", self._add_image)
        if len({name for name, _, _ in self.images.values()}) != len(self.images):
            self.fail("two images have the same file_name")

    def check_files(self) -> None:
        """Check that every image is there."""
        for key, (name, _, _) in self.images.items():
            if not self._reader.has(name):
                self.fail(
                    f"image {key}: {name} is missing below {self._reader.root}; if the folder {self.split} there was "
                    "downloaded, remove it to have it fetched again"
                )

    def keep(self, ids: set[int]) -> None:
        """Drop all other images."""
        self.images = {key: image for key, image in self.images.items() if key in ids}

    def fail(self, what: str) -> NoReturn:
        """Raise an error that names the file."""
        raise MlsError(f"{self._reader.root / self.file}: {what}")

    def _bar(self, verb: str, total: int, unit: str) -> Bar:
        return Bar(f"{verb} {self.file}", total, unit, hidden=total < LARGE)

    def _add_image(self, key: int, _: int, item: dict[str, Any]) -> None:
        name = self._value(item, f"image {key}", "file_name", str)
        width, height = (self._value(item, f"image {key}", side, int) for side in ("width", "height"))
        if reason := unsafe(name):
            self.fail(f"image {key}: file_name {name!r} {reason}")
        if min(width, height) < 1:
            self.fail(f"image {key}: {width} x {height} is not a size")
        self.images[key] = (f"{self.split}/{name}", width, height)

    def _each(self, section: str, use: Callable[[int, int, dict[str, Any]], None]) -> None:
        """Call ``use`` with id, place in the file and content of each entry of a section."""
        places = self._document.places(section)
        if places is None:
            self.fail(f"has no list {section!r}")
        seen: set[int] = set()
        with self._bar("check", len(places), section) as bar:
            for place in places:
                item = self._document.at(place)
                key = item.get("id") if isinstance(item, dict) else None
                if type(key) is not int:
                    self.fail(f"{section}: an entry without an integer id: {_shown(item)}")
                if key in seen:
                    self.fail(f"{section}: id {key} is there twice")
                seen.add(key)
                use(key, place, item)
                bar.advance(1, 1)
                if bar.done % strict_json.TICK == 0:
                    self._reader.poll()

    def _value(self, item: dict[str, Any], where: str, name: str, kind: type) -> Any:
        value = item.get(name)
        if type(value) is not kind:
            self.fail(f"{where}: {name} is {_shown(value)}, not {'text' if kind is str else 'an integer'}")
        return value


class Instances(Images):
    """An annotation file with categories and objects, checked; objects are parsed when asked for."""

    def __init__(self, reader: Reader, split: str) -> None:
        super().__init__(reader, split, f"instances_{split}")
        self.categories: dict[int, str] = {}
        self._each("categories", self._add_category)
        check_classes((f"{reader.root / self.file}: category {key}", name) for key, name in self.categories.items())
        self._columns = [array("q") for _ in range(4)]
        self._each("annotations", self._add_annotation)
        images, ids, places, categories = map(np.array, self._columns)
        self._columns.clear()
        order = np.lexsort((ids, images))
        self._image, self._place, self._category = images[order], places[order], categories[order]

    def _add_category(self, key: int, _: int, item: dict[str, Any]) -> None:
        self.categories[key] = self._value(item, f"category {key}", "name", str)

    def _add_annotation(self, key: int, place: int, item: dict[str, Any]) -> None:
        if problem := self._problem(item):
            self.fail(f"annotation {key}: {problem}")
        values = (item["image_id"], key, place, item["category_id"])
        for column, value in zip(self._columns, values, strict=True):
            column.append(value)

    def entry(self, image: int, split: str, numbers: dict[int, int]) -> Entry:
        """Return one image as listings have it; ``numbers`` maps original category ids to class indices."""
        name, width, height = self.images[image]
        classes = sorted({numbers[key] for key in self._category[self._of(image)].tolist()})
        return Entry(name, split, classes, _Annotations(self, image, numbers), (width, height))

    def count(self, image: int) -> int:
        """Count the objects of an image."""
        part = self._of(image)
        return part.stop - part.start

    def items(self, image: int) -> list[dict[str, Any]]:
        """Return the objects of an image as the file has them, by ascending id."""
        return [self._document.at(place) for place in self._place[self._of(image)].tolist()]

    def _of(self, image: int) -> slice:
        return slice(*np.searchsorted(self._image, (image, image + 1)).tolist())

    def degenerate(self) -> Iterator[dict[str, str]]:
        """Decode the masks of all images; yield the objects without a box or mask to learn, as `Listing` says."""
        with self._bar("decode masks of", len(self.images), "images") as bar:
            for image, (name, width, height) in sorted(self.images.items()):
                for item in self.items(image):
                    if reason := self._degenerate(item, width, height):
                        yield {"name": name, "object": f"annotation {item['id']}", "reason": reason}
                bar.advance(1, 1)
                self._reader.poll()

    def _problem(self, item: dict[str, Any]) -> str | None:
        """Compare one annotation with its image, its category and itself; say what is wrong, if anything."""
        image, category, box = item.get("image_id"), item.get("category_id"), item.get("bbox")
        if type(image) is not int or image not in self.images:
            return f"image_id {_shown(image)} is not an image of this file"
        if type(category) is not int or category not in self.categories:
            return f"category_id {_shown(category)} is not a category of this file"
        if type(item.get("iscrowd")) is not int or item["iscrowd"] not in (0, 1):
            return f"iscrowd is {_shown(item.get('iscrowd'))}, not 0 or 1"
        if not _numbers([item.get("area")]):
            return f"area is {_shown(item.get('area'))}, not a number"
        if not (isinstance(box, list) and len(box) == 4 and _numbers(box)):
            return f"bbox {_shown(box)} is not four numbers"
        (x, y, w, h), (_, width, height) = box, self.images[image]
        # Official COCO has a few boxes of no width or height: they are degenerate, not wrong.
        if min(w, h) < 0 or overhang(x, y, x + w, y + h, width, height) > BOX_SLACK:
            return f"bbox {box} does not lie in image {image}, which is {width} x {height}"
        segmentation = item.get("segmentation")
        if isinstance(segmentation, dict):
            good = segmentation.get("size") == [height, width] and isinstance(segmentation.get("counts"), (list, str))
        else:
            good = isinstance(segmentation, list) and all(isinstance(p, list) and _numbers(p) for p in segmentation)
            good = good and bool(segmentation)
        if not good:
            return f"segmentation is neither a list of polygons nor an RLE of size [{height}, {width}]"
        if not 0 <= item["area"] <= MAX_AREA:
            return f"area is {item['area']}, and COCO's evaluation drops such objects{self._mend(item, width, height)}"
        return None

    def _mend(self, item: dict[str, Any], width: int, height: int) -> str:
        """Say the right area, if the mask tells."""
        mask = self._decoded(item, width, height)
        return "" if mask is None else f"; its mask covers {int(rle.area(mask)):,} px, so write that"

    def _degenerate(self, item: dict[str, Any], width: int, height: int) -> str | None:
        """Say why an object has no box or no mask to learn, if so; stop if its mask contradicts itself."""
        mask = self._decoded(item, width, height)
        if min(item["bbox"][2:]) == 0:
            return f"its box, {item['bbox']}, has no area"
        if isinstance(item["segmentation"], list) and not polygons(item["segmentation"]):
            return "its polygons have fewer than three points"
        return None if mask is None or rle.area(mask) else "its mask covers no pixel"

    def _decoded(self, item: dict[str, Any], width: int, height: int) -> Any:
        """Decode a mask; None if the image is too large, and will therefore be left out."""
        if width * height > MAX_PIXELS:
            return None
        try:
            return to_rle(item["segmentation"], width, height)
        except ValueError as error:
            self.fail(f"annotation {item['id']}: segmentation is {error}")


class _Annotations(Sequence[dict[str, Any]]):
    """The annotations of one image as listings have them: parsed again for each reader, since all take 3 GB."""

    __slots__ = ("_image", "_instances", "_numbers")

    def __init__(self, instances: Instances, image: int, numbers: dict[int, int]) -> None:
        self._instances, self._image, self._numbers = instances, image, numbers

    def __len__(self) -> int:
        return self._instances.count(self._image)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for item in self._instances.items(self._image):
            yield {"category_id": self._numbers[item["category_id"]] + 1, **{key: item[key] for key in KEPT}}

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]


def _shown(value: Any) -> str:
    """Return a value for a message, on one line and not too long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _numbers(values: list[Any]) -> bool:
    return set(map(type, values)) <= {int, float} and all(map(math.isfinite, values))
