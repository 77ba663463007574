"""The seven single-label sets of the paper's Table 5: what they list, with their official splits.

    listing = read_listing(ClassificationDataset(source="pets"), Reader(Path("downloads/pets")))

torchvision's classes read five of them (the set's root is their ``root``). torchvision lacks CUB-200-2011 and Indoor67,
which `mls.data.cub200` and `mls.data.indoor67` read. Rules of the five:

- **Flowers**: ``trnid``, ``valid`` and ``tstid`` of ``setid.mat``, labels from 1 in ``imagelabels.mat``; both must be
  the published files (torchvision compares their md5). The flowers' names are torchvision's: the archives have none.
- **Pets**: ``trainval.txt`` (train, less val) and ``test.txt``. The four fields of a line are image, breed from 1,
  species, and breed within its species. Classes are the 37 breeds, by number.
- **DTD**: ``train1.txt``, ``val1.txt``, ``test1.txt``, the first of ten partitions. Classes are the folders, sorted.
- **Aircraft**: ``images_variant_{train,val,test}.txt``. Classes are the 100 lines of ``variants.txt``, the finest
  of three levels (100 variants, 70 families, 30 manufacturers).
- **Cars**: ``devkit/cars_train_annos.mat`` (train, less val) and ``cars_test_annos_withlabels.mat``, labels from 1.
  Classes are those of ``devkit/cars_meta.mat``.

If a set has no val, a seeded ``val_share`` of train (a permutation of the sorted names) becomes val.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mls.config import catalog
from mls.config.datasets import ClassificationDataset
from mls.data import cub200, indoor67
from mls.data.listing import Entry, Listing, check_name, in_order, with_val
from mls.download.reader import Reader
from mls.runtime.errors import MlsError

CLASSES = {"flowers102": 102, "pets": 37, "dtd": 47, "aircraft": 100, "cars": 196, "cub200": 200, "indoor67": 67}
"""Number of classes of each set."""


class _Set(NamedTuple):
    """How torchvision reads a set."""

    name: str
    """Class in ``torchvision.datasets``."""
    splits: tuple[str, ...]
    """torchvision's names of the splits; ``trainval`` becomes train."""
    folder: str
    """Folder of ``metadata``, below the root."""
    metadata: tuple[str, ...]
    """Files that decide labels and splits."""

    @property
    def files(self) -> list[str]:
        """``metadata``, relative to the root."""
        return [f"{self.folder}/{file}" for file in self.metadata]


_THREE = ("train", "val", "test")
SETS = {
    "flowers102": _Set("Flowers102", _THREE, "flowers-102", ("imagelabels.mat", "setid.mat")),
    "pets": _Set("OxfordIIITPet", ("trainval", "test"), "oxford-iiit-pet/annotations", ("trainval.txt", "test.txt")),
    "dtd": _Set("DTD", _THREE, "dtd/dtd/labels", tuple(f"{split}1.txt" for split in _THREE)),
    "aircraft": _Set(
        "FGVCAircraft",
        _THREE,
        "fgvc-aircraft-2013b/data",
        ("variants.txt", *(f"images_variant_{split}.txt" for split in _THREE)),
    ),
    "cars": _Set(
        "StanfordCars",
        ("train", "test"),
        "stanford_cars",
        ("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"),
    ),
}
"""The sets that torchvision reads, by ``source`` key."""


def read_listing(config: ClassificationDataset, reader: Reader) -> Listing:
    """Read and check what a set lists; all files that decide labels and splits count into the digest.

    Raises:
        MlsError: files are missing or contradict each other; names the root or file, and the value.
    """
    wanted = [path for archive in catalog.needed(config) for path in archive.gives]
    wanted += SETS[config.source].files if config.source in SETS else []
    if missing := [path for path in dict.fromkeys(wanted) if not (reader.root / path).exists()]:
        hint = catalog.hint(config)
        advice = f"is this the folder that holds them? {hint[:1].upper()}{hint[1:]}".rstrip()
        raise MlsError(f"{reader.root}: no {', no '.join(missing)} below it; {advice}")
    if config.source in SETS:
        classes, entries = _read_with_torchvision(SETS[config.source], reader)
    else:
        read = cub200.read if config.source == "cub200" else indoor67.read
        classes, entries = read(reader)
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
