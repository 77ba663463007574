"""PASCAL VOC in its official layout: ``VOC<year>/{Annotations,ImageSets/Main,JPEGImages}``.

    reader = Reader(devkit(Path("data/voc"), config))                # data/voc, or data/voc/VOCdevkit
    listing = read_listing(VocDataset(source="voc"), reader)         # 2007: trainval and test

An image's name carries its year: ``VOC2007/JPEGImages/000005.jpg``. Its annotations, one XML file, become
COCO's:

- **Boxes.** VOC counts pixels from 1 and includes the last one; COCO's boxes are ``[x, y, w, h]`` from 0. So
  x = xmin - 1, y = ymin - 1, w = xmax - xmin + 1, h = ymax - ymin + 1: a box over all of an image is
  ``[0, 0, width, height]``. Detectron2 reads them so (its loader takes 1 off xmin and ymin, not off xmax and
  ymax), and its evaluator adds the 1 again, since VOC's own overlap counts pixels (xmax - xmin + 1).
- **Fractions**, which files since 2011 hold here and there (``45.70000076293945``), are kept, as VOC's development
  kit and Detectron2 keep them, to hundredths of a pixel; a whole number is an integer however it is written.
- ``difficult`` and ``truncated`` (0 or 1; absent is 0) are fields of their own; ``iscrowd`` is always 0. A difficult
  object is neither to be found nor a mistake to find; that is for the one who evaluates.
- ``segmentation`` is ``[]``: there are no masks. ``part`` (heads, hands, feet) and ``pose`` are left out.

**An image's classes** are those of its objects that are not difficult. The classification benchmark knows a third
state, "only difficult ones" (0 in ``<class>_<set>.txt``), which it leaves out of that class's evaluation: these
are the classes that an image's annotations have and its labels have not.

**Sizes.** Boxes must lie within the XML's ``<size>``; a file without it stops, as in Detectron2. An image whose
pixels are of another size is left out and named, as an image that does not decode.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser

from mls.config.datasets import VocDataset
from mls.data.listing import Entry, Listing, hold_out, in_order
from mls.download.reader import Reader, unsafe
from mls.runtime.errors import MlsError

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""The official twenty, in alphabetical order."""

BOX_SLACK = 2.0
"""Pixels by which a box may reach over the image's edge, as for COCO."""

_NUMBER = re.compile(r"-?\d+(\.\d+)?")


def devkit(root: Path, config: VocDataset) -> Path:
    """Return the folder that holds ``VOC<year>``: ``root``, or ``root/VOCdevkit`` as the official archives have it.

    Names, and with them the digest, are relative to it: the same files are the same data set in both layouts.
    """
    inside = root / "VOCdevkit"
    return inside if inside.is_dir() and not is_bare(root, config) else root


def is_bare(root: Path, config: VocDataset) -> bool:
    """Whether ``root`` holds ``VOC<year>`` without the folder around it: no archive was unpacked there."""
    return any((root / f"VOC{entry.split('/')[0]}").is_dir() for entry in config.sets())


def read_listing(config: VocDataset, reader: Reader) -> Listing:
    """Read and check image sets and annotations; ``reader`` reads below `devkit`.

    Without ``val_sets``, a seeded share of train (a permutation of the sorted names) becomes val.

    Raises:
        MlsError: names the file, the line or object, and the value.
    """
    split_of: dict[str, tuple[str, str]] = {}
    """Path of an image -> its split, and the image set that lists it."""
    for split, sets in (("train", config.train_sets), ("val", config.val_sets), ("test", config.test_sets)):
        for entry in sets:
            for name in _read_set(reader, entry):
                if name in split_of:
                    before, other = split_of[name]
                    raise MlsError(
                        f"{reader.root}: image {name} is in {other} ({before}) and in {entry} ({split}); "
                        "an image may come once: choose other image sets"
                    )
                split_of[name] = (split, entry)
    entries = in_order([_Annotation(reader, name, entry).entry(split) for name, (split, entry) in split_of.items()])
    if not config.val_sets:
        train = sum(entry.split == "train" for entry in entries)  # they come first in final order
        if train < 2:
            raise MlsError(f"{reader.root}: train needs two images (one becomes val); {config.train_sets} hold one")
        chosen = hold_out(train, config.val_share, config.seed)
        entries = in_order([replace(e, split="val") if i in chosen else e for i, e in enumerate(entries)])
    return Listing(list(CLASSES), True, entries)


def _read_set(reader: Reader, entry: str) -> list[str]:
    """Paths of the images that ``<year>/<image set>`` lists."""
    year, name = entry.split("/")
    folder, file = f"VOC{year}", f"VOC{year}/ImageSets/Main/{name}.txt"
    if not (reader.root / folder).is_dir():
        years = sorted(path.name for path in reader.root.glob("VOC*") if path.is_dir())
        raise MlsError(f"{reader.root}: image set {entry}: there is no folder {folder}; {_there(years)}")
    if not reader.has(file):
        sets = {path.stem for path in (reader.root / file).parent.glob("*.txt")}
        sets -= {one for one in sets if "_" in one and one.split("_", 1)[0] in CLASSES}  # of single classes
        raise MlsError(f"{reader.root / file} is missing; {_there(sorted(sets))}")
    try:
        lines = reader.read(file)[0].decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise MlsError(f"{reader.root / file}: not text in UTF-8 ({error})") from error
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        where = f"{reader.root / file}, line {number}"
        words = line.split()
        if not words:
            continue
        if len(words) > 1:
            raise MlsError(f"{where}: {line!r} is not one image; the sets of single classes can't be used")
        if (reason := unsafe(words[0])) or "/" in words[0]:
            raise MlsError(f"{where}: image {words[0]!r} {reason or 'is a path, not a name'}")
        image = f"{folder}/JPEGImages/{words[0]}.jpg"
        if image in seen:
            raise MlsError(f"{where}: image {words[0]!r} was listed before, on line {seen[image]}")
        if not reader.has(image):
            raise MlsError(f"{where}: {image} is missing below {reader.root}")
        seen[image] = number
    if not seen:
        raise MlsError(f"{reader.root / file}: lists no image")
    return list(seen)


def _there(names: list[str]) -> str:
    return f"there are: {', '.join(names)}" if names else "there is none; is the data set complete?"


class _NoDoctype(TreeBuilder):
    """Refuses document type declarations, and with them entities: VOC has none, and they can grow without end."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError(f"it declares a document type ({name}), which VOC's files do not and which can hide a bomb")


class _Annotation:
    """One XML file, checked."""

    def __init__(self, reader: Reader, image: str, entry: str) -> None:
        self.image = image
        stem = Path(image).stem
        self.file = f"{image.split('/')[0]}/Annotations/{stem}.xml"
        self._reader = reader
        if not reader.has(self.file):
            self.wrong(f"is missing, and {entry} lists its image (the test annotations of 2008 on are not public)")
        parser = XMLParser(target=_NoDoctype())
        try:
            parser.feed(reader.read(self.file)[0])
            root: Element = parser.close()
        except (ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
            self.wrong(f"not an annotation file: {error}")
        if root.tag != "annotation":
            self.wrong(f"holds <{root.tag}>, not <annotation>")
        filename = root.find("filename")
        if filename is not None and (filename.text or "").strip() not in (stem, f"{stem}.jpg"):
            self.wrong(f"filename is {filename.text!r}: this is the annotation of another image")
        size = self._one(root, "size", "")
        self.width, self.height = (self._whole(size, side) for side in ("width", "height"))
        self.annotations = [self._object(item, i) for i, item in enumerate(root.findall("object"), 1)]

    def entry(self, split: str) -> Entry:
        """The image in the store's terms."""
        classes = sorted({a["category_id"] - 1 for a in self.annotations if not a["difficult"]})
        return Entry(self.image, split, classes, self.annotations, (self.width, self.height))

    def wrong(self, what: str) -> NoReturn:
        raise MlsError(f"{self._reader.root / self.file}: {what}")

    def _object(self, item: Element, number: int) -> dict[str, Any]:
        where = f"object {number}: "
        name = self._text(item, "name", where)
        if name not in CLASSES:
            self.wrong(f"{where}class {name!r} is none of {', '.join(CLASSES)}")
        where = f"object {number} ({name}): "
        flags = {flag: self._flag(item, flag, where) for flag in ("difficult", "truncated")}
        box = self._one(item, "bndbox", where)
        xmin, ymin, xmax, ymax = (self._coordinate(box, side, where) for side in ("xmin", "ymin", "xmax", "ymax"))
        if xmax < xmin or ymax < ymin:
            self.wrong(f"{where}the box from ({xmin}, {ymin}) to ({xmax}, {ymax}) ends before it begins")
        outside = min(xmin, ymin) < 1 - BOX_SLACK or xmax > self.width + BOX_SLACK or ymax > self.height + BOX_SLACK
        if outside:
            self.wrong(
                f"{where}the box from ({xmin}, {ymin}) to ({xmax}, {ymax}) does not lie in the image, "
                f"which is {self.width} x {self.height}"
            )
        x, y, w, h = (_rounded(v) for v in (xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1))
        placed = {"category_id": CLASSES.index(name) + 1, "bbox": [x, y, w, h], "area": _rounded(w * h)}
        return {**placed, "iscrowd": 0, "segmentation": [], **flags}

    def _one(self, parent: Element, tag: str, where: str) -> Element:
        """The one child of this name; those of deeper elements (a part's box) are not looked at."""
        found = parent.findall(tag)
        if len(found) != 1:
            self.wrong(f"{where}has {'no' if not found else len(found)} <{tag}>")
        return found[0]

    def _text(self, parent: Element, tag: str, where: str) -> str:
        return (self._one(parent, tag, where).text or "").strip()

    def _whole(self, size: Element, side: str) -> int:
        text = self._text(size, side, "size: ")
        if not re.fullmatch(r"[1-9][0-9]*", text):
            self.wrong(f"size: {side} is {text!r}, not a count of pixels")
        return int(text)

    def _flag(self, item: Element, tag: str, where: str) -> int:
        text = "0" if item.find(tag) is None else self._text(item, tag, where)
        if text not in ("0", "1"):
            self.wrong(f"{where}{tag} is {text!r}, not 0 or 1")
        return int(text)

    def _coordinate(self, box: Element, side: str, where: str) -> float:
        text = self._text(box, side, where)
        if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
            self.wrong(f"{where}{side} is {text!r}, not a number")
        return _rounded(float(text))


def _rounded(value: float) -> float:
    """To hundredths; a whole number as int."""
    value = round(value, 2)
    return int(value) if value == int(value) else value
