"""PASCAL VOC in its official layout: ``VOC<year>/{Annotations,ImageSets/Main,JPEGImages}``.

    reader = Reader(devkit(Path("data/voc"), config))                # data/voc, or data/voc/VOCdevkit
    listing = read_listing(VocDataset(source="voc"), reader)         # 2007: trainval and test

An image's name carries its year: ``VOC2007/JPEGImages/000005.jpg``. Its annotations, one XML file, become
annotations in COCO's format:

- **Boxes.** VOC counts pixels from 1 and includes the last one; COCO's boxes are ``[x, y, w, h]`` from 0. So
  x = xmin - 1, y = ymin - 1, w = xmax - xmin + 1, h = ymax - ymin + 1: a box over the whole image is
  ``[0, 0, width, height]``. Detectron2 does the same (its loader subtracts 1 from xmin and ymin, not from xmax and
  ymax), and its evaluator adds the 1 again, since VOC's own overlap counts pixels (xmax - xmin + 1).
- **Fractions**, which some files since 2011 hold (``45.70000076293945``), are kept to hundredths of a pixel, as VOC's
  development kit and Detectron2 keep them; a whole number becomes an integer however it is written.
- ``difficult`` and ``truncated`` (0 or 1; absent is 0) are fields of their own; ``iscrowd`` is always 0. A difficult
  object counts neither as missed nor as a false positive; the evaluation sees to that.
- ``segmentation`` is ``[]``: there are no masks. ``part`` (heads, hands, feet) and ``pose`` are left out.

**An image's classes** are those of its objects that are not difficult. The classification benchmark has a third
state, "only difficult ones" (0 in ``<class>_<set>.txt``), and leaves such images out of that class's evaluation: these
are the classes that an image's annotations have and its labels lack.

**Sizes.** Boxes must lie within the XML's ``<size>``; a file without it is an error, as in Detectron2. An image with
pixels of a different size is left out and listed, like an image that does not decode.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from re import fullmatch
from typing import Any, NoReturn
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser

from mls.config.datasets import VocDataset
from mls.data.listing import BOX_SLACK, Entry, Listing, check_name, in_order, overhang, read_lines, with_val
from mls.download.reader import Reader
from mls.runtime.errors import MlsError

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""The official twenty, in alphabetical order."""


def devkit(root: Path, config: VocDataset) -> Path:
    """Return the folder that holds ``VOC<year>``: ``root``, or ``root/VOCdevkit`` as in the official archives.

    Names, and with them the digest, are relative to it: the same files are the same data set in both layouts.
    """
    inside = root / "VOCdevkit"
    return inside if inside.is_dir() and not is_bare(root, config) else root


def is_bare(root: Path, config: VocDataset) -> bool:
    """Whether ``root`` itself holds ``VOC<year>``, without ``VOCdevkit``: no archive was unpacked there."""
    return any((root / f"VOC{image_set.split('/')[0]}").is_dir() for image_set in config.sets())


def read_listing(config: VocDataset, reader: Reader) -> Listing:
    """Read and check image sets and annotations; ``reader`` reads below `devkit`.

    Without ``val_sets``, a seeded share of train (a permutation of the sorted names) becomes val.

    Raises:
        MlsError: names the file, the line or object, and the value.
    """
    entries: list[Entry] = []
    seen: dict[str, str] = {}
    for split, sets in (("train", config.train_sets), ("val", config.val_sets), ("test", config.test_sets)):
        for image_set in sets:
            images = list(_read_set(reader, image_set, split, seen))
            entries += [_Annotation(reader, image, image_set).entry(split) for image in images]
    return Listing(list(CLASSES), True, with_val(in_order(entries), config, reader))


def _read_set(reader: Reader, image_set: str, split: str, seen: dict[str, str]) -> Iterator[str]:
    """Yield the paths of the images that ``<year>/<name>`` lists."""
    year, name = image_set.split("/")
    folder, file = f"VOC{year}", f"VOC{year}/ImageSets/Main/{name}.txt"
    if not (reader.root / folder).is_dir():
        years = sorted(path.name for path in reader.root.glob("VOC*") if path.is_dir())
        raise MlsError(f"{reader.root}: image set {image_set}: there is no folder {folder}; {_there(years)}")
    if not reader.has(file):
        sets = {path.stem for path in (reader.root / file).parent.glob("*.txt")}
        sets -= {one for one in sets if "_" in one and one.split("_", 1)[0] in CLASSES}  # of single classes
        raise MlsError(f"{reader.root / file} is missing; {_there(sorted(sets))}")
    before = len(seen)
    for number, line in read_lines(reader, file):
        where = f"{reader.root / file}, line {number}"
        if len(line.split()) > 1:
            raise MlsError(f"{where}: {line!r} is not one image; the sets of single classes can't be used")
        if "/" in line:
            raise MlsError(f"{where}: image {line!r} is a path, not a name")
        image = f"{folder}/JPEGImages/{line}.jpg"
        check_name(image, where, f"{image_set} ({split}), line {number}", seen, reader)
        yield image
    if len(seen) == before:
        raise MlsError(f"{reader.root / file}: lists no image")


def _there(names: list[str]) -> str:
    return f"there are: {', '.join(names)}" if names else "there is none; is the data set complete?"


class _NoDoctype(TreeBuilder):
    """Refuse document type declarations, and with them entities: VOC has none, and they can expand without end."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError(
            f"it declares a document type ({name}), which VOC's files do not have and which can hide a bomb"
        )


class _Annotation:
    """One XML file, checked."""

    def __init__(self, reader: Reader, image: str, image_set: str) -> None:
        self.image = image
        stem = Path(image).stem
        file = f"{image.split('/')[0]}/Annotations/{stem}.xml"
        self._path = reader.root / file
        if not reader.has(file):
            self._fail(f"is missing, and {image_set} lists its image (the test annotations of 2008 on are not public)")
        parser = XMLParser(target=_NoDoctype())
        try:
            parser.feed(reader.read(file)[0])
            root: Element = parser.close()
        except (ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
            self._fail(f"not an annotation file: {error}")
        if root.tag != "annotation":
            self._fail(f"holds <{root.tag}>, not <annotation>")
        filename = root.find("filename")
        if filename is not None and (filename.text or "").strip() not in (stem, f"{stem}.jpg"):
            self._fail(f"filename is {(filename.text or '')[:80]!r}: this is the annotation of another image")
        size = self._child(root, "size", "")
        self.width, self.height = (
            int(self._text(size, side, "size: ", "[1-9][0-9]{0,8}", "a number of pixels"))
            for side in ("width", "height")
        )
        self.annotations = [self._object(item, i) for i, item in enumerate(root.findall("object"), 1)]

    def entry(self, split: str) -> Entry:
        """Return the image as listings have it."""
        classes = sorted({a["category_id"] - 1 for a in self.annotations if not a["difficult"]})
        return Entry(self.image, split, classes, self.annotations, (self.width, self.height))

    def _object(self, item: Element, number: int) -> dict[str, Any]:
        name = self._text(item, "name", f"object {number}: ", "|".join(CLASSES), f"one of {', '.join(CLASSES)}")
        where = f"object {number} ({name}): "
        flags = {
            flag: int(self._text(item, flag, where, "[01]", "0 or 1")) if item.find(flag) is not None else 0
            for flag in ("difficult", "truncated")
        }
        bounds = self._child(item, "bndbox", where)
        xmin, ymin, xmax, ymax = (
            _rounded(float(self._text(bounds, side, where, r"-?[0-9]{1,9}(\.[0-9]+)?", "a number")))
            for side in ("xmin", "ymin", "xmax", "ymax")
        )
        box = f"{where}the box from ({xmin}, {ymin}) to ({xmax}, {ymax})"
        if xmax < xmin or ymax < ymin:
            self._fail(f"{box} ends before it begins")
        if overhang(xmin - 1, ymin - 1, xmax, ymax, self.width, self.height) > BOX_SLACK:
            self._fail(f"{box} does not lie in the image, which is {self.width} x {self.height}")
        x, y, w, h = (_rounded(v) for v in (xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1))
        placed = {"category_id": CLASSES.index(name) + 1, "bbox": [x, y, w, h], "area": _rounded(w * h)}
        return {**placed, "iscrowd": 0, "segmentation": [], **flags}

    def _child(self, parent: Element, tag: str, where: str) -> Element:
        """Return the only child of this name; a deeper element (a part's box) may have the name too."""
        found = parent.findall(tag)
        if len(found) != 1:
            self._fail(f"{where}has {'no' if not found else len(found)} <{tag}>")
        return found[0]

    def _text(self, parent: Element, tag: str, where: str, pattern: str, allowed: str) -> str:
        """Return the text of the only child of this name, which must match a pattern."""
        text = (self._child(parent, tag, where).text or "").strip()
        if not fullmatch(pattern, text):
            self._fail(f"{where}{tag} is {text[:80]!r}, not {allowed}")
        return text

    def _fail(self, what: str) -> NoReturn:
        raise MlsError(f"{self._path}: {what}")


def _rounded(value: float) -> float:
    """Round to hundredths; a whole number becomes an int, as annotations.json shows the difference."""
    value = round(value, 2)
    return int(value) if value == int(value) else value
