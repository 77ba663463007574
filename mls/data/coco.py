"""COCO in its official layout: ``annotations/instances_<split>.json`` and ``<split>/*.jpg``, whole or a subset.

    listing = read_listing(CocoDataset(source="coco"), Reader(Path("data/coco")))

Everything is kept, crowds (``iscrowd``) included; what contradicts itself stops with the file and
the id.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

import numpy as np

from mls.config.datasets import CocoDataset, CocoSubset
from mls.data.listing import Entry, Listing, hold_out, in_order
from mls.download.reader import Reader, unsafe
from mls.runtime.errors import MlsError

BOX_SLACK = 2.0
"""Pixels by which a box may reach over the image's edge: boxes are rounded, polygons are drawn by hand."""

KEPT = ("area", "bbox", "iscrowd", "segmentation")


def read_listing(config: CocoDataset, reader: Reader, ids: list[int] | None = None) -> Listing:
    """Read and check both annotation files.

    Classes are all categories of the train file, by ascending id. Of train, a seeded share
    (a permutation of the sorted image ids) becomes val; ``test_split`` becomes test. An image's
    annotations stay in the order of their ids. Images of a subset need not be there yet.

    Args:
        config: the dataset's entry.
        reader: reads below its root.
        ids: the images of ``subset.ids``.

    Raises:
        MlsError: names the file, the id and the value.
    """
    train, test = (_Instances(reader, split) for split in (config.train_split, config.test_split))
    for key, name in test.categories.items():
        if train.categories.get(key) != name:
            test.wrong(f"category {key} ({name!r}) is {train.categories.get(key)!r} in {train.file}")
    if config.subset:
        _choose(config.subset, ids, train, test)
    else:
        train.check_files()
        test.check_files()
    numbers = {key: i for i, key in enumerate(sorted(train.categories))}
    if len(train.images) < 2 or not test.images:
        raise MlsError(f"{reader.root}: train needs two images (one becomes val) and test one")
    chosen = hold_out(len(train.images), config.val_share, config.seed)
    entries = [
        train.entry(key, "val" if i in chosen else "train", numbers) for i, key in enumerate(sorted(train.images))
    ]
    entries += [test.entry(key, "test", numbers) for key in test.images]
    if config.unlabeled:
        unlabeled = _Images(reader, "unlabeled2017", "image_info_unlabeled2017")
        unlabeled.check_files()
        entries += [
            Entry(name, "unlabeled", [], [], (width, height)) for name, width, height in unlabeled.images.values()
        ]
    return Listing([train.categories[key] for key in numbers], True, in_order(entries))


def _choose(subset: CocoSubset, ids: list[int] | None, train: _Instances, test: _Instances) -> None:
    """Keep of both splits what a subset asks for."""
    if ids is not None:
        absent = [key for key in ids if key not in train.images and key not in test.images]
        if absent:
            raise MlsError(
                f"{subset.ids}: {len(absent)} ids are neither in {train.file} nor in {test.file}: "
                f"{', '.join(map(str, absent[:5]))}"
            )
        train.keep(set(ids))
        test.keep(set(ids))
        return
    for instances, count, stream in ((train, subset.images or 0, 0), (test, subset.test, 1)):
        there = sorted(instances.images)
        if count > len(there):
            instances.wrong(f"has {len(there):,} images, but the subset asks for {count:,}")
        order = np.random.default_rng((subset.seed, stream)).permutation(len(there))
        instances.keep({there[i] for i in order[:count]})


class _Images:
    """The ``images`` of one annotation file, checked."""

    def __init__(self, reader: Reader, split: str, file: str) -> None:
        self.split, self.file = split, f"annotations/{file}.json"
        self._reader = reader
        content, _ = reader.read(self.file)
        try:
            raw = json.loads(content, parse_constant=lambda text: self.wrong(f"holds {text}, which is no number"))
        except ValueError as error:
            self.wrong(f"not valid JSON ({error})")
        if not isinstance(raw, dict):
            self.wrong("must hold a mapping with images, annotations and categories")
        self._raw = raw
        self.images: dict[int, tuple[str, int, int]] = {}
        """Image id -> path relative to the root, width, height."""
        for key, item in self._by_id(raw, "images").items():
            name = self._value(item, "image", key, "file_name", str)
            width, height = (self._value(item, "image", key, side, int) for side in ("width", "height"))
            if reason := unsafe(name):
                self.wrong(f"image {key}: file_name {name!r} {reason}")
            if min(width, height) < 1:
                self.wrong(f"image {key}: {width} x {height} is no size")
            self.images[key] = (f"{split}/{name}", width, height)
        if len({name for name, _, _ in self.images.values()}) != len(self.images):
            self.wrong("two images have the same file_name")

    def check_files(self) -> None:
        """Is every image there?"""
        for key, (name, _, _) in self.images.items():
            if not self._reader.has(name):
                self.wrong(
                    f"image {key}: {name} is missing below {self._reader.root}; if the folder {self.split} there was "
                    "downloaded, remove it to have it fetched again"
                )

    def keep(self, ids: set[int]) -> None:
        """Forget all other images."""
        self.images = {key: image for key, image in self.images.items() if key in ids}

    def wrong(self, what: str) -> NoReturn:
        raise MlsError(f"{self._reader.root / self.file}: {what}")

    def _by_id(self, raw: dict[str, Any], section: str) -> dict[int, dict[str, Any]]:
        items = raw.get(section)
        if not isinstance(items, list):
            self.wrong(f"has no list {section!r}")
        found: dict[int, dict[str, Any]] = {}
        for item in items:
            key = item.get("id") if isinstance(item, dict) else None
            if type(key) is not int:
                self.wrong(f"{section}: an entry without an integer id: {str(item)[:80]}")
            if key in found:
                self.wrong(f"{section}: id {key} is there twice")
            found[key] = item
        return found

    def _value(self, item: dict[str, Any], what: str, key: int, name: str, kind: type) -> Any:
        value = item.get(name)
        if type(value) is not kind:
            self.wrong(f"{what} {key}: {name} is {value!r}, not {'text' if kind is str else 'an integer'}")
        return value


class _Instances(_Images):
    """An annotation file with categories and objects, checked."""

    def __init__(self, reader: Reader, split: str) -> None:
        super().__init__(reader, split, f"instances_{split}")
        self.categories: dict[int, str] = {
            key: self._value(item, "category", key, "name", str)
            for key, item in self._by_id(self._raw, "categories").items()
        }
        self._annotations: dict[int, list[dict[str, Any]]] = {key: [] for key in self.images}
        for key, item in sorted(self._by_id(self._raw, "annotations").items()):
            self._check(key, item)
            self._annotations[item["image_id"]].append(item)
        self._raw = {}

    def entry(self, image: int, split: str, numbers: dict[int, int]) -> Entry:
        """One image in the store's terms; ``numbers`` gives class indices by original category id."""
        name, width, height = self.images[image]
        items = self._annotations[image]
        annotations = [{"category_id": numbers[a["category_id"]] + 1, **{key: a[key] for key in KEPT}} for a in items]
        classes = sorted({numbers[a["category_id"]] for a in items})
        return Entry(name, split, classes, annotations, (width, height))

    def _check(self, key: int, item: dict[str, Any]) -> None:
        """Check one annotation against its image, its category and itself."""
        image, category = item.get("image_id"), item.get("category_id")
        if type(image) is not int or image not in self.images:
            self.wrong(f"annotation {key}: image_id {image!r} is no image of this file")
        if type(category) is not int or category not in self.categories:
            self.wrong(f"annotation {key}: category_id {category!r} is no category of this file")
        if item.get("iscrowd") not in (0, 1):
            self.wrong(f"annotation {key}: iscrowd is {item.get('iscrowd')!r}, not 0 or 1")
        if not _numbers([item.get("area")]):
            self.wrong(f"annotation {key}: area is {item.get('area')!r}, not a number")
        box, (_, width, height) = item.get("bbox"), self.images[image]
        if not (isinstance(box, list) and len(box) == 4 and _numbers(box)):
            self.wrong(f"annotation {key}: bbox {box!r} is not four numbers")
        x, y, w, h = box
        # Official COCO has a few boxes of no width or height; the tasks that read them leave them out.
        inside = x >= -BOX_SLACK and y >= -BOX_SLACK and x + w <= width + BOX_SLACK and y + h <= height + BOX_SLACK
        if min(w, h) < 0 or not inside:
            self.wrong(f"annotation {key}: bbox {box} does not lie in image {image}, which is {width} x {height}")
        segmentation = item.get("segmentation")
        if isinstance(segmentation, dict):
            good = segmentation.get("size") == [height, width] and isinstance(segmentation.get("counts"), (list, str))
        else:
            good = isinstance(segmentation, list) and all(isinstance(p, list) and _numbers(p) for p in segmentation)
            good = good and bool(segmentation)
        if not good:
            self.wrong(
                f"annotation {key}: segmentation is neither a list of polygons nor an RLE of size [{height}, {width}]"
            )


def _numbers(values: list[Any]) -> bool:
    return all(type(value) in (int, float) and math.isfinite(value) for value in values)
