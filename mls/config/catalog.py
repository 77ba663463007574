"""Where data sets come from: archives, mirrors, sizes, checksums, licences and image counts.

    needed(VocDataset(source="voc"))            # the archives that this entry reads
    published_digest(VocDataset(source="voc"))  # their identity, if each has a published checksum
    expected(VocDataset(source="voc"))          # {"train": 5011, "test": 4952}; train includes val

The table of sources is ``catalog.toml`` beside this module. Ids are computed from it and from ``data.lock``, without
any connection.
"""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

if TYPE_CHECKING:
    from mls.config.datasets import CocoDataset, LocalDataset, VocDataset

TABLE = ConfigDict(extra="forbid")
"""A key that no field has is an error in ``catalog.toml``."""


@dataclass(frozen=True, config=TABLE)
class Archive:
    """A file to fetch, and what it unpacks to."""

    file: str
    """Its name, unique within a source."""
    urls: tuple[str, ...] = ()
    """Mirrors, tried in order. Empty: there is no public address, and a person must fetch it."""
    size: int | None = None
    """Bytes, if known."""
    checksum: str | None = None
    """``md5:<hex>`` or ``sha256:<hex>`` as published, or None."""
    gives: tuple[str, ...] = ()
    """Paths relative to the root, files or folders, that exist once it is unpacked. It is not fetched if all exist."""
    into: str = ""
    """Folder below the root into which it is unpacked, or into which it is put if it is not an archive."""


@dataclass(frozen=True, config=TABLE)
class Source:
    """A public data set."""

    title: str
    page: str
    """Web page that describes it."""
    licence: str
    """Its licence in a few words; the page has the exact terms."""
    images: dict[str, int]
    """Official image counts by split; of COCO by its own splits, of VOC by ``<year>/<image set>``."""
    archives: tuple[Archive, ...]
    hint: str = ""
    """What to do if its host does not answer, for the error message."""


SOURCES = TypeAdapter(dict[str, Source]).validate_python(
    tomllib.loads(Path(__file__).with_name("catalog.toml").read_text(encoding="utf-8"))
)
"""By ``source`` key."""
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
    return Archive(file, gives=(f"{folder}/{file}",), into=folder)


def expected(config: LocalDataset) -> dict[str, int] | None:
    """Official image counts of the splits that a data set reads.

    Train includes val where val is held out of train. None if the counts are unknown: your own data, subsets, other VOC
    image sets and COCO splits.
    """
    published = source(config)
    counts = published.images if published else {}
    if config.source == "coco":
        splits = {"train": [config.train_split], "test": [config.test_split]}
        splits |= {"unlabeled": ["unlabeled2017"]} if config.unlabeled else {}
    elif config.source == "voc":
        splits = {"train": config.train_sets, "val": config.val_sets, "test": config.test_sets}
    else:
        splits = {split: [split] for split in counts}
    known = all(name in counts for names in splits.values() for name in names)
    if not counts or not known or getattr(config, "subset", None):
        return None
    return {split: sum(counts[name] for name in names) for split, names in splits.items() if names}


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
    return f"http://images.cocodataset.org/{path}"
