"""The seven single-label sets of the paper's Table 5: what they list, with their official splits.

    listing = read_listing(ClassificationDataset(source="pets"), Reader(Path("downloads/pets")))

torchvision's classes read five of them (the set's root is their ``root``):

- **Flowers**: ``trnid``, ``valid`` and ``tstid`` of ``setid.mat``, labels from 1 in ``imagelabels.mat``; both must be
  the published files (torchvision compares their md5). The flowers' names are torchvision's: the archives have none.
- **Pets**: ``trainval.txt`` (train, less val) and ``test.txt``. The four fields of a line are image, breed from 1,
  species, and breed within its species. Classes are the 37 breeds, by number.
- **DTD**: ``train1.txt``, ``val1.txt``, ``test1.txt``, the first of ten partitions. Classes are the folders, sorted.
- **Aircraft**: ``images_variant_{train,val,test}.txt``. Classes are the 100 lines of ``variants.txt``, the finest
  of three levels (100 variants, 70 families, 30 manufacturers).
- **Cars**: ``devkit/cars_train_annos.mat`` (train, less val) and ``cars_test_annos_withlabels.mat``, labels from 1.
  Classes are those of ``devkit/cars_meta.mat``.

torchvision lacks the other two:

- **CUB-200-2011**: ``CUB_200_2011/{images,*.txt}``. Each line of a text file is a number, counted from 1, and a value,
  separated by a space. Files are joined by the image's number, not by line:

      classes.txt              1 001.Black_footed_Albatross
      images.txt               1 001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg     (below images/)
      image_class_labels.txt   1 1                 image, class
      train_test_split.txt     1 0                 image, 1 for train or 0 for test

- **Indoor67**: ``Images/<class>/*.jpg``, ``TrainImages.txt`` and ``TestImages.txt``. Each line of a list is one path
  below ``Images``, ``kitchen/int474.jpg``. The lists name about 80 and 20 images of each class, 6,700 of the archive's
  15,620; the others are not read. Classes are the folders that the lists name, sorted. Not every ``.jpg`` holds a JPEG.
  GIF and PNG are read by their content; BMP and damaged files are left out and listed with the reason (see
  `mls.data.decode`).

If a set has no val, a seeded ``val_share`` of train (a permutation of the sorted names) becomes val.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mls.config import catalog
from mls.config.datasets import ClassificationDataset
from mls.data.listing import Entry, Listing, check_classes, check_name, in_order, read_lines, with_val
from mls.download.reader import Reader
from mls.runtime.errors import MlsError

CLASSES = {"flowers102": 102, "pets": 37, "dtd": 47, "aircraft": 100, "cars": 196, "cub200": 200, "indoor67": 67}
"""Number of classes of each set."""
CUB = "CUB_200_2011"
"""Folder of CUB-200-2011 below the root."""


class _Set(NamedTuple):
    """How torchvision reads a set."""

    name: str
    """Class in ``torchvision.datasets``."""
    splits: tuple[str, ...]
    """torchvision's names of the splits; ``trainval`` becomes train."""
    files: tuple[str, ...]
    """Files that decide labels and splits, below the root."""


_THREE = ("train", "val", "test")
_PETS, _AIRCRAFT, _CARS = "oxford-iiit-pet/annotations", "fgvc-aircraft-2013b/data", "stanford_cars"
_CARS_FILES = ("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat")
_AIRCRAFT_FILES = ("variants.txt", *(f"images_variant_{split}.txt" for split in _THREE))
SETS = {
    "flowers102": _Set("Flowers102", _THREE, ("flowers-102/imagelabels.mat", "flowers-102/setid.mat")),
    "pets": _Set("OxfordIIITPet", ("trainval", "test"), (f"{_PETS}/trainval.txt", f"{_PETS}/test.txt")),
    "dtd": _Set("DTD", _THREE, tuple(f"dtd/dtd/labels/{split}1.txt" for split in _THREE)),
    "aircraft": _Set("FGVCAircraft", _THREE, tuple(f"{_AIRCRAFT}/{file}" for file in _AIRCRAFT_FILES)),
    "cars": _Set("StanfordCars", ("train", "test"), tuple(f"{_CARS}/{file}" for file in _CARS_FILES)),
}
"""The sets that torchvision reads, by ``source`` key."""


def read_listing(config: ClassificationDataset, reader: Reader) -> Listing:
    """Read and check what a set lists; all files that decide labels and splits count into the digest.

    Raises:
        MlsError: files are missing or contradict each other; names the root or file, and the value.
    """
    wanted = [path for archive in catalog.needed(config) for path in archive.gives]
    wanted += SETS[config.source].files if config.source in SETS else ()
    if missing := [path for path in dict.fromkeys(wanted) if not (reader.root / path).exists()]:
        hint = catalog.hint(config)
        advice = f"is this the folder that holds them? {hint[:1].upper()}{hint[1:]}".rstrip()
        raise MlsError(f"{reader.root}: no {', no '.join(missing)} below it; {advice}")
    if config.source in SETS:
        classes, entries = _read_with_torchvision(SETS[config.source], reader)
    else:
        classes, entries = _read_cub200(reader) if config.source == "cub200" else _read_indoor67(reader)
    check_classes((f"{reader.root}: class {number}", name) for number, name in enumerate(classes, 1))
    if len(classes) != CLASSES[config.source]:
        raise MlsError(
            f"{reader.root}: {len(classes)} classes are listed; {config.source} has {CLASSES[config.source]}. "
            "Is it complete? For a set of your own, use the source `folder`"
        )
    seen: dict[str, str] = {}
    for entry in entries:
        where = f"{reader.root} ({entry.split})"
        check_name(entry.name, where, entry.split, seen, reader)
        if not 0 <= entry.classes[0] < len(classes):
            raise MlsError(
                f"{where}: image {entry.name!r} has class {entry.classes[0] + 1}, counted from 1; there are "
                f"{len(classes)}"
            )
    return Listing(classes, False, with_val(in_order(entries), config, reader))


def _read_with_torchvision(one: _Set, reader: Reader) -> tuple[list[str], list[Entry]]:
    """Return classes and images as torchvision's class lists them; images are not opened."""
    import torchvision.datasets  # imports torch, which takes seconds: only if it is needed

    for file in one.files:
        reader.read(file)
    classes: list[str] = []
    entries: list[Entry] = []
    for split in one.splits:
        try:
            dataset = getattr(torchvision.datasets, one.name)(reader.root, split=split, download=False)
            found = [(_relative(path, reader.root), int(label)) for path, label in _pairs(dataset)]
            names = [str(name) for name in dataset.classes]
        except Exception as error:  # a damaged .mat or text file can raise almost anything
            raise MlsError(
                f"{reader.root}: torchvision's {one.name} can't read its split {split!r} "
                f"({type(error).__name__}: {error}). One of {', '.join(one.files)} is not the published file"
            ) from error
        if classes and names != classes:
            raise MlsError(
                f"{reader.root}: the classes of {split!r} are not those of {one.splits[0]!r}: "
                f"{', '.join(sorted(set(names) ^ set(classes))) or 'their order differs'}"
            )
        classes = names
        entries += [Entry(name, "train" if split == "trainval" else split, [label], []) for name, label in found]
    return classes, entries


def _pairs(dataset: Any) -> Sequence[tuple[str | Path, Any]]:
    """Return path and label of each image, from the three forms in which torchvision's classes keep them."""
    if hasattr(dataset, "_samples"):
        return dataset._samples
    paths = dataset._images if hasattr(dataset, "_images") else dataset._image_files
    return list(zip(paths, dataset._labels, strict=True))


def _relative(path: str | Path, root: Path) -> str:
    """Return a path below the root; any other path stays as it is, and `check_name` rejects it."""
    path = Path(path)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _read_cub200(reader: Reader) -> tuple[list[str], list[Entry]]:
    """Return the classes, by number, and all images, as train or test."""
    classes, images = (_numbered(reader, file) for file in ("classes.txt", "images.txt"))
    indices = {str(key): i for i, key in enumerate(sorted(classes))}
    label_of = _values(reader, "image_class_labels.txt", images, indices, "a number of classes.txt")
    split_of = _values(reader, "train_test_split.txt", images, {"0": "test", "1": "train"}, "0 or 1")
    entries = [Entry(f"{CUB}/images/{path}", split_of[i], [label_of[i]], []) for i, path in images.items()]
    return [classes[key] for key in sorted(classes)], entries


def _values(reader: Reader, file: str, images: dict[int, str], meaning: dict[str, Any], allowed: str) -> dict[int, Any]:
    """Return image number -> meaning of its value in one of CUB's files."""
    path, values = reader.root / CUB / file, _numbered(reader, file)
    if odd := sorted(values.keys() ^ images.keys()):
        raise MlsError(f"{path}: image {odd[0]} is missing in {'images.txt' if odd[0] in values else file}")
    for key, value in values.items():
        if value not in meaning:
            raise MlsError(f"{path}: image {key} has {value!r}, not {allowed}")
    return {key: meaning[value] for key, value in values.items()}


def _numbered(reader: Reader, file: str) -> dict[int, str]:
    """Return number -> value of each line of one of CUB's files."""
    found: dict[int, str] = {}
    for number, line in read_lines(reader, f"{CUB}/{file}"):
        where = f"{reader.root / CUB / file}, line {number}"
        key, _, value = line.partition(" ")
        if not (key.isascii() and key.isdigit()) or not value:
            raise MlsError(f"{where}: {line!r} is not a number and a value")
        if int(key) in found:
            raise MlsError(f"{where}: number {key} was listed before")
        found[int(key)] = value
    return found


def _read_indoor67(reader: Reader) -> tuple[list[str], list[Entry]]:
    """Return the classes and all listed images, as train or test."""
    listed: list[tuple[str, str]] = []
    for split, file in (("train", "TrainImages.txt"), ("test", "TestImages.txt")):
        for number, path in read_lines(reader, file):
            if path.count("/") != 1:
                raise MlsError(f"{reader.root / file}, line {number}: {path!r} is not <class>/<image>")
            listed.append((path, split))
    classes = sorted({path.split("/")[0] for path, _ in listed})
    numbers = {name: i for i, name in enumerate(classes)}
    return classes, [Entry(f"Images/{path}", split, [numbers[path.split("/")[0]]], []) for path, split in listed]
