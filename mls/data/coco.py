"""COCO in its official layout: ``annotations/instances_<split>.json`` and ``<split>/*.jpg``, whole or a subset.

    listing = read_listing(CocoDataset(source="coco"), Reader(Path("data/coco")))

Every object is kept, crowds (``iscrowd``) included. A file that contradicts itself is an error that names the file and
the id; for that, the mask of every object of the chosen images is decoded once. Objects of no area, of which official
COCO holds a few, are no contradiction: they are listed as degenerate.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

from pycocotools import mask as rle

from mls.config.datasets import CocoDataset, CocoSubset
from mls.data import strict_json
from mls.data.listing import BOX_SLACK, MAX_PIXELS, Entry, Listing, check_classes, overhang, with_val
from mls.data.masks import polygons, to_rle
from mls.download.reader import Reader, unsafe
from mls.pipeline.plan import read_ids
from mls.runtime import streams
from mls.runtime.errors import MlsError

KEPT = ("area", "bbox", "iscrowd", "segmentation")
"""Fields of an annotation that the store keeps as they are."""
MAX_AREA = 1e10
"""Area in pixels above which COCO's evaluation drops an object in silence, as it does below 0."""


def read_listing(config: CocoDataset, reader: Reader) -> Listing:
    """Read and check both annotation files.

    Classes are all categories of the train file, by ascending id. A seeded share of train (a permutation of the sorted
    image ids) becomes val; ``test_split`` becomes test. An image's annotations stay in the order of their ids. Images
    of a subset need not be there yet.

    Raises:
        MlsError: names the file, the id and the value.
    """
    train, test = (_Instances(reader, split) for split in (config.train_split, config.test_split))
    for key, name in test.categories.items():
        if train.categories.get(key) != name:
            test.fail(f"category {key} ({name!r}) is {train.categories.get(key)!r} in {train.file}")
    if config.subset:
        _choose(config.subset, train, test)
    else:
        train.check_files()
        test.check_files()
    numbers = {key: i for i, key in enumerate(sorted(train.categories))}
    entries = [train.entry(key, "train", numbers) for key in sorted(train.images)]
    entries += [test.entry(key, "test", numbers) for key in test.images]
    if config.unlabeled:
        unlabeled = _Images(reader, "unlabeled2017", "image_info_unlabeled2017")
        unlabeled.check_files()
        entries += [Entry(name, "unlabeled", [], [], (w, h)) for name, w, h in unlabeled.images.values()]
    classes = [train.categories[key] for key in numbers]
    return Listing(classes, True, with_val(entries, config, reader), degenerate=train.degenerate + test.degenerate)


def _choose(subset: CocoSubset, train: _Instances, test: _Instances) -> None:
    """Keep only the images of a subset."""
    if subset.ids is not None:
        ids = read_ids(subset.ids)
        if absent := [key for key in ids if key not in train.images and key not in test.images]:
            raise MlsError(
                f"{subset.ids}: {len(absent)} ids are neither in {train.file} nor in {test.file}: "
                f"{', '.join(map(str, absent[:5]))}"
            )
        train.keep(set(ids))
        test.keep(set(ids))
        return
    for instances, count, part in ((train, subset.images or 0, 0), (test, subset.test, 1)):
        there = sorted(instances.images)
        if count > len(there):
            instances.fail(f"has {len(there):,} images, but the subset asks for {count:,}")
        order = streams.subset(subset.seed, part).permutation(len(there))
        instances.keep({there[i] for i in order[:count]})


class _Images:
    """The ``images`` of one annotation file, checked."""

    def __init__(self, reader: Reader, split: str, file: str) -> None:
        self.split, self.file = split, f"annotations/{file}.json"
        self._reader = reader
        content, _ = reader.read(self.file)
        try:
            self._raw = strict_json.parse(content)
        except ValueError as error:
            self.fail(str(error))
        if not isinstance(self._raw, dict):
            self.fail("must hold a mapping with images, annotations and categories")
        self.images: dict[int, tuple[str, int, int]] = {}
        """Image id -> path relative to the root, width, height."""
        for key, item in self._by_id("images").items():
            name = self._value(item, f"image {key}", "file_name", str)
            width, height = (self._value(item, f"image {key}", side, int) for side in ("width", "height"))
            if reason := unsafe(name):
                self.fail(f"image {key}: file_name {name!r} {reason}")
            if min(width, height) < 1:
                self.fail(f"image {key}: {width} x {height} is not a size")
            self.images[key] = (f"{split}/{name}", width, height)
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

    def _by_id(self, section: str) -> dict[int, dict[str, Any]]:
        items = self._raw.get(section)
        if not isinstance(items, list):
            self.fail(f"has no list {section!r}")
        found: dict[int, dict[str, Any]] = {}
        for item in items:
            key = item.get("id") if isinstance(item, dict) else None
            if type(key) is not int:
                self.fail(f"{section}: an entry without an integer id: {_shown(item)}")
            if key in found:
                self.fail(f"{section}: id {key} is there twice")
            found[key] = item
        return found

    def _value(self, item: dict[str, Any], where: str, name: str, kind: type) -> Any:
        value = item.get(name)
        if type(value) is not kind:
            self.fail(f"{where}: {name} is {_shown(value)}, not {'text' if kind is str else 'an integer'}")
        return value


class _Instances(_Images):
    """An annotation file with categories and objects, checked."""

    def __init__(self, reader: Reader, split: str) -> None:
        super().__init__(reader, split, f"instances_{split}")
        self.categories: dict[int, str] = {
            key: self._value(item, f"category {key}", "name", str) for key, item in self._by_id("categories").items()
        }
        check_classes((f"{reader.root / self.file}: category {key}", name) for key, name in self.categories.items())
        self.degenerate: list[dict[str, str]] = []
        """As in `Listing`, of the images that `entry` was called with."""
        self._annotations: dict[int, list[dict[str, Any]]] = {key: [] for key in self.images}
        for key, item in sorted(self._by_id("annotations").items()):
            if problem := self._problem(item):
                self.fail(f"annotation {key}: {problem}")
            self._annotations[item["image_id"]].append(item)
        self._raw = {}  # the largest file holds 860,000 annotations: free what is not kept

    def entry(self, image: int, split: str, numbers: dict[int, int]) -> Entry:
        """Return one image as listings have it; ``numbers`` maps original category ids to class indices."""
        name, width, height = self.images[image]
        items = self._annotations[image]
        for item in items:
            if reason := self._degenerate(item, width, height):
                self.degenerate.append({"name": name, "object": f"annotation {item['id']}", "reason": reason})
        annotations = [{"category_id": numbers[a["category_id"]] + 1, **{key: a[key] for key in KEPT}} for a in items]
        classes = sorted({numbers[a["category_id"]] for a in items})
        return Entry(name, split, classes, annotations, (width, height))

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


def _shown(value: Any) -> str:
    """Return a value for a message, on one line and not too long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _numbers(values: list[Any]) -> bool:
    return all(type(value) in (int, float) and math.isfinite(value) for value in values)
