"""Where data sets come from: archives, mirrors, sizes, checksums, licences and image counts.

    needed(VocDataset(source="voc"))            # the archives that this entry reads
    published_digest(VocDataset(source="voc"))  # their identity, if each has a published checksum
    expected(VocDataset(source="voc"))          # {"train": 5011, "test": 4952}; train includes val

Ids are computed from this module and ``data.lock``, so it opens no file and no connection. The table of archives is in
`mls.config.catalog_entries`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from mls.config.catalog_entries import COCO_HOST, SOURCES, Archive, Source

if TYPE_CHECKING:
    from mls.config.datasets import CocoDataset, LocalDataset, VocDataset

__all__ = ["Archive", "Source", "expected", "hint", "image_url", "needed", "published_digest", "source"]

COCO_COUNTS = {"train2017": 118_287, "val2017": 5_000, "unlabeled2017": 123_403}
"""https://cocodataset.org/#download"""
VOC_COUNTS = {
    "2007/train": 2_501,
    "2007/val": 2_510,
    "2007/trainval": 5_011,
    "2007/test": 4_952,
    "2012/train": 5_717,
    "2012/val": 5_823,
    "2012/trainval": 11_540,
}
"""Lines of ``ImageSets/Main/<set>.txt``. (VOC's own table has 11,530 for 2012: it counts images with an object.)"""
COUNTS = {
    "cityscapes": {"train": 2_975, "test": 500},  # test is the official val
    "flowers102": {"train": 1_020, "val": 1_020, "test": 6_149},
    "pets": {"train": 3_680, "test": 3_669},
    "dtd": {"train": 1_880, "val": 1_880, "test": 1_880},
    "aircraft": {"train": 3_334, "val": 3_333, "test": 3_333},
    "cars": {"train": 8_144, "test": 8_041},
    "cub200": {"train": 5_994, "test": 5_794},
    "indoor67": {"train": 5_360, "test": 1_340},
}
"""Official image counts of the other sources, by split."""
PUBLISHED = "archives:"
"""Prefix of a digest made from published checksums; other digests come from ``data.lock``."""


def needed(config: LocalDataset) -> tuple[Archive, ...]:
    """List the archives that a data set reads; none if `SOURCES` does not have its source.

    Your own VOC image sets and COCO splits are in no archive. They are listed as files without address and checksum, so
    that ``data.lock`` identifies such a data set.
    """
    published = source(config)
    archives = published.archives if published else ()
    if config.source == "coco":
        return _coco(config, {archive.file: archive for archive in archives})
    if config.source == "voc":
        return _voc(config, {path: archive for archive in archives for path in archive.gives})
    return archives


def _coco(config: CocoDataset, archives: dict[str, Archive]) -> tuple[Archive, ...]:
    splits = (config.train_split, config.test_split)
    own = [split for split in splits if f"{split}.zip" not in archives]
    found = ["annotations_trainval2017.zip"] if len(own) < len(splits) else []
    if not config.subset:
        found += [f"{split}.zip" for split in splits if split not in own]
    if config.unlabeled:
        found += ["image_info_unlabeled2017.zip", "unlabeled2017.zip"]
    return (*(archives[file] for file in found), *(_own(f"instances_{split}.json", "annotations") for split in own))


def _voc(config: VocDataset, archives: dict[str, Archive]) -> tuple[Archive, ...]:
    found: dict[Archive, None] = {}  # an ordered set: several image sets come from one archive
    for entry in config.sets():
        year, name = entry.split("/")
        folder = f"VOCdevkit/VOC{year}/ImageSets/Main"
        packed = "trainval" if name in ("train", "val") else name
        found[archives.get(f"{folder}/{packed}.txt") or _own(f"{name}.txt", folder)] = None
    return tuple(found)


def _own(file: str, folder: str) -> Archive:
    return Archive(file, urls=(), size=None, checksum=None, gives=(f"{folder}/{file}",), into=folder)


def expected(config: LocalDataset) -> dict[str, int] | None:
    """Official image counts of the splits that a data set reads.

    Train includes val where val is held out of train. None if the counts are unknown: your own data, subsets, other VOC
    image sets and COCO splits.
    """
    if config.source == "coco":
        splits = {"train": [config.train_split], "test": [config.test_split]}
        splits |= {"unlabeled": ["unlabeled2017"]} if config.unlabeled else {}
        return None if config.subset else _sums(splits, COCO_COUNTS)
    if config.source == "voc":
        splits = {"train": config.train_sets, "val": config.val_sets, "test": config.test_sets}
        return _sums({split: sets for split, sets in splits.items() if sets}, VOC_COUNTS)
    counts = COUNTS.get(config.source)
    return dict(counts) if counts else None


def _sums(splits: dict[str, list[str]], counts: dict[str, int]) -> dict[str, int] | None:
    if any(name not in counts for names in splits.values() for name in names):
        return None
    return {split: sum(counts[name] for name in names) for split, names in splits.items()}


def published_digest(config: LocalDataset) -> str | None:
    """Identify a data set by its archives' checksums; None if anything that it reads has no published checksum."""
    archives = needed(config)
    subset = getattr(config, "subset", None)  # single images have no published checksums
    if not archives or subset or any(archive.checksum is None for archive in archives):
        return None
    lines = sorted(f"{archive.file} {archive.checksum}\n" for archive in archives)
    return PUBLISHED + hashlib.sha256("".join(lines).encode()).hexdigest()


def source(config: LocalDataset) -> Source | None:
    """The public data set that an entry reads, with all its archives; None for your own data."""
    return SOURCES.get(config.source)


def hint(config: LocalDataset) -> str:
    """What a person can do if the files can't be fetched, for an error message; may be empty."""
    found = source(config)
    return found.hint if found else ""


def image_url(path: str) -> str:
    """The address of one COCO image, such as ``train2017/000000000009.jpg``."""
    return f"{COCO_HOST}/{path}"
