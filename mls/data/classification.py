"""The seven single-label sets of the paper's Table 5: what they list, with their official splits.

    listing = read_listing(ClassificationDataset(source="pets"), Reader(Path("downloads/pets")))

Five are read by torchvision's classes (a set's root is what they take as ``root``), CUB-200-2011 and Indoor67, which
torchvision has not, by `mls.data.cub200` and `mls.data.indoor67`. Rules of the five:

- **Flowers**: ``trnid``, ``valid`` and ``tstid`` of ``setid.mat``, labels from 1 in ``imagelabels.mat``; both must be
  the published files (torchvision compares their md5). The flowers' names are torchvision's: the archives have none.
- **Pets**: ``trainval.txt`` (train, less val) and ``test.txt``, of four fields a line: image, breed from 1, species,
  breed within its species. Classes are the 37 breeds, by number.
- **DTD**: ``train1.txt``, ``val1.txt``, ``test1.txt``, the first of ten partitions. Classes are the folders, sorted.
- **Aircraft**: ``images_variant_{train,val,test}.txt``. Classes are the 100 lines of ``variants.txt``, the finest
  of three levels (100 variants, 70 families, 30 manufacturers).
- **Cars**: ``devkit/cars_train_annos.mat`` (train, less val) and ``cars_test_annos_withlabels.mat``, labels from 1.
  Classes are those of ``devkit/cars_meta.mat``.

Where a set has no val, a seeded ``val_share`` of train (a permutation of the sorted names) becomes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mls.config import catalog
from mls.config.datasets import ClassificationDataset
from mls.data import cub200, indoor67
from mls.data.listing import Entry, Listing, hold_out, in_order
from mls.download.reader import Reader, unsafe
from mls.runtime.errors import MlsError

CLASSES = {"flowers102": 102, "pets": 37, "dtd": 47, "aircraft": 100, "cars": 196, "cub200": 200, "indoor67": 67}
"""How many a set has."""


@dataclass(frozen=True)
class _Set:
    """How torchvision has it."""

    name: str
    """Of the class in ``torchvision.datasets``."""
    splits: dict[str, str]
    """Its splits -> ours."""
    metadata: tuple[str, ...]
    """Files below the root that decide labels and splits."""


_THREE = {"train": "train", "val": "val", "test": "test"}
_AIRCRAFT = "fgvc-aircraft-2013b/data"
SETS = {
    "flowers102": _Set("Flowers102", _THREE, ("flowers-102/imagelabels.mat", "flowers-102/setid.mat")),
    "pets": _Set(
        "OxfordIIITPet",
        {"trainval": "train", "test": "test"},
        ("oxford-iiit-pet/annotations/trainval.txt", "oxford-iiit-pet/annotations/test.txt"),
    ),
    "dtd": _Set("DTD", _THREE, tuple(f"dtd/dtd/labels/{split}1.txt" for split in _THREE)),
    "aircraft": _Set(
        "FGVCAircraft",
        _THREE,
        (f"{_AIRCRAFT}/variants.txt", *(f"{_AIRCRAFT}/images_variant_{split}.txt" for split in _THREE)),
    ),
    "cars": _Set(
        "StanfordCars",
        {"train": "train", "test": "test"},
        (
            "stanford_cars/devkit/cars_meta.mat",
            "stanford_cars/devkit/cars_train_annos.mat",
            "stanford_cars/cars_test_annos_withlabels.mat",
        ),
    ),
}
"""The five, by ``source`` key."""


def read_listing(config: ClassificationDataset, reader: Reader) -> Listing:
    """Read and check what a set lists; all files that decide labels and splits count into the digest.

    Raises:
        MlsError: files are missing, or say what can't be: names the root or file, and the value.
    """
    wanted = [path for archive in catalog.needed(config) for path in archive.gives]
    wanted += SETS[config.source].metadata if config.source in SETS else ()
    if missing := [path for path in dict.fromkeys(wanted) if not (reader.root / path).exists()]:
        raise MlsError(f"{reader.root}: no {', no '.join(missing)} below it; {_advice(config)}")
    if config.source == "cub200":
        classes, entries = cub200.read(reader)
    elif config.source == "indoor67":
        classes, entries = indoor67.read(reader)
    else:
        classes, entries = _through_torchvision(SETS[config.source], reader)
    if len(classes) != CLASSES[config.source]:
        raise MlsError(
            f"{reader.root}: {len(classes)} classes are listed; {config.source} has {CLASSES[config.source]}. "
            "Is it complete? A set of one's own is read by the source `folder`"
        )
    _check(classes, entries, reader)
    return Listing(classes, False, _with_val(in_order(entries), config, reader))


def _advice(config: ClassificationDataset) -> str:
    text = catalog.hint(config)
    return f"is this the folder that holds them? {text[:1].upper()}{text[1:]}".rstrip()


def _through_torchvision(one: _Set, reader: Reader) -> tuple[list[str], list[Entry]]:
    """Classes and images as torchvision's class has them; images are not opened."""
    import torchvision.datasets  # imports torch: not before it is needed

    for name in one.metadata:
        reader.read(name)
    classes: list[str] = []
    entries: list[Entry] = []
    for theirs, ours in one.splits.items():
        try:
            dataset = getattr(torchvision.datasets, one.name)(reader.root, split=theirs, download=False)
            found = [(_relative(path, reader.root), int(label)) for path, label in _pairs(dataset)]
            names = [str(name) for name in dataset.classes]
        except Exception as error:  # what a damaged .mat or text file can raise has no end
            raise MlsError(
                f"{reader.root}: torchvision's {one.name} can't read its split {theirs!r} "
                f"({type(error).__name__}: {error}). One of {', '.join(one.metadata)} is not the published file"
            ) from error
        if classes and names != classes:
            raise MlsError(
                f"{reader.root}: the classes of {theirs!r} are not those of {next(iter(one.splits))!r}: "
                f"{', '.join(sorted(set(names) ^ set(classes))) or 'their order differs'}"
            )
        classes = names
        entries += [Entry(name, ours, [label], []) for name, label in found]
    return classes, entries


def _pairs(dataset: Any) -> Sequence[tuple[str | Path, Any]]:
    """Path and label of each image: what these classes hold has three forms."""
    if hasattr(dataset, "_samples"):
        return dataset._samples
    paths = dataset._images if hasattr(dataset, "_images") else dataset._image_files
    return list(zip(paths, dataset._labels, strict=True))


def _relative(path: str | Path, root: Path) -> str:
    """Below the root, or as it is, for `unsafe` to refuse."""
    path = Path(path)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _check(classes: list[str], entries: list[Entry], reader: Reader) -> None:
    seen: dict[str, str] = {}
    for entry in entries:
        (label,) = entry.classes
        if reason := unsafe(entry.name):
            raise MlsError(f"{reader.root}: image {entry.name!r} ({entry.split}) {reason}")
        if not 0 <= label < len(classes):
            raise MlsError(
                f"{reader.root}: image {entry.name} ({entry.split}) has class {label + 1}, counted from 1; there are "
                f"{len(classes)}"
            )
        if before := seen.get(entry.name):
            where = f"twice in {before}" if before == entry.split else f"in {before} and in {entry.split}"
            raise MlsError(f"{reader.root}: image {entry.name} is listed {where}")
        if not reader.has(entry.name):
            raise MlsError(f"{reader.root}: image {entry.name} ({entry.split}) is missing; is the data set complete?")
        seen[entry.name] = entry.split


def _with_val(entries: list[Entry], config: ClassificationDataset, reader: Reader) -> list[Entry]:
    """Return the entries, which are in final order, with a val split."""
    train = sum(entry.split == "train" for entry in entries)  # they come first
    has_val = any(entry.split == "val" for entry in entries)
    if train < (1 if has_val else 2) or not any(entry.split == "test" for entry in entries):
        raise MlsError(f"{reader.root}: train needs two images (one becomes val, where there is none) and test one")
    if has_val:
        return entries
    chosen = hold_out(train, config.val_share, config.seed)
    return in_order([replace(entry, split="val") if i in chosen else entry for i, entry in enumerate(entries)])
