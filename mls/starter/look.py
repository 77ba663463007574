"""What a folder of pictures holds, as far as an experiment file must know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from PIL import Image

from mls.config.datasets import DATASETS, LocalDataset, VocDataset
from mls.data import folder, sources
from mls.data.listing import Entry
from mls.data.voc import devkit
from mls.runtime.errors import MlsError

SAMPLE = 200
"""Images whose headers are read for their sizes, evenly spaced."""
VOC_SETS = (
    {"train_sets": ["2007/trainval"], "test_sets": ["2007/test"]},
    {"train_sets": ["2012/train"], "test_sets": ["2012/val"]},  # the labels of its test are not public
)
"""Image sets to look for, in this order."""


@dataclass(frozen=True)
class Pictures:
    """A data set that was looked at."""

    section: Mapping[str, object]
    """Its entry in an experiment file."""
    config: LocalDataset
    root: Path
    counts: Mapping[str, int]
    """Split -> images."""
    classes: int
    multi_label: bool
    side: int
    """Median of the shorter sides, pixels."""
    samples: list[Path]
    """Some of its images."""

    @property
    def train(self) -> int:
        """Images to pretrain on."""
        return self.counts["train"]

    @property
    def labelled(self) -> bool:
        """Whether probes can use it."""
        return bool(self.classes)


def entry_of(kind: str, root: Path) -> dict[str, object]:
    """Return the entry of a data set: its source, root and splits.

    Args:
        kind: ``folder``, ``coco`` or ``voc``.
        root: absolute.

    Raises:
        MlsError: it is no folder, or not in this layout.
    """
    if not root.is_dir():
        raise MlsError(f"{root} is not a folder")
    entry: dict[str, object] = {"source": kind, "root": str(root)}
    if kind == "folder" and not (root / folder.FILE).exists():
        return {**entry, "labels": False}
    if kind == "coco":
        return entry | _coco_splits(root)
    if kind == "voc":
        return entry | _voc_sets(root)
    return entry


def _coco_splits(root: Path) -> dict[str, object]:
    names = sorted(file.stem.removeprefix("instances_") for file in (root / "annotations").glob("instances_*.json"))
    if {"train2017", "val2017"} <= {*names}:
        return {}
    train, test = ([name for name in names if part in name] for part in ("train", "val"))
    if len(train) != 1 or len(test) != 1:
        raise MlsError(
            f"{root / 'annotations'}: needs instances_<split>.json of one split with 'train' and of one with 'val' in "
            f"its name; there are: {', '.join(names) or 'none'}"
        )
    return {"train_split": train[0], "test_split": test[0]}


def _voc_sets(root: Path) -> dict[str, object]:
    for sets in VOC_SETS:
        wanted = (name.split("/") for names in sets.values() for name in names)
        kit = devkit(root, VocDataset.model_validate({"source": "voc", **sets}))
        if all((kit / f"VOC{year}" / "ImageSets" / "Main" / f"{name}.txt").is_file() for year, name in wanted):
            return {} if sets is VOC_SETS[0] else dict(sets)
    raise MlsError(f"{root}: holds neither VOC2007 with its trainval and test, nor VOC2012 with its train and val")


def look(name: str, entry: Mapping[str, object]) -> Pictures:
    """Read and check what a data set lists, and the sizes of some images.

    Raises:
        MlsError: as its listing; or none of the images can be opened.
    """
    config: LocalDataset = DATASETS[str(entry["source"])].model_validate(dict(entry))  # type: ignore[assignment]
    reader = sources.open_reader([name], config)
    listing = sources.read_listing(config, reader)
    train = [one for one in listing.entries if one.split == "train"]
    paths = [reader.root / one.name for one in train[:: max(1, len(train) // SAMPLE)]]
    sizes = list(_sizes(train, paths))
    if not sizes:
        raise MlsError(f"{reader.root}: none of {len(paths)} images can be opened")
    return Pictures(
        entry,
        config,
        reader.root,
        Counter(one.split for one in listing.entries),
        len(listing.classes),
        listing.multi_label,
        round(median(map(min, sizes))),
        paths,
    )


def _sizes(entries: list[Entry], paths: list[Path]) -> Iterator[tuple[int, int]]:
    if all(one.size for one in entries):
        yield from (one.size for one in entries if one.size)
        return
    for path in paths:
        try:
            with Image.open(path) as image:
                yield image.size
        except Exception:  # PIL's readers raise many kinds
            continue  # the data stage names it, and decides
