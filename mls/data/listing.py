"""What a source lists before images are opened: names, splits, classes and annotations.

Also what the readers of several sources share: text lists, checks of names and boxes, and the val split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mls.config.datasets import LocalDataset
from mls.data.image_store import SPLITS
from mls.download.reader import Reader, unsafe
from mls.runtime import streams
from mls.runtime.errors import MlsError

BOX_SLACK = 2.0
"""Pixels by which a box may reach over the image's edge: boxes are rounded, polygons are drawn by hand."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One image that a source lists."""

    name: str
    """Path relative to the source's root, with forward slashes."""
    split: str
    classes: list[int]
    """Sorted class indices."""
    annotations: list[dict[str, Any]]
    """As in `mls.data.writer.Record`."""
    size: tuple[int, int] | None = None
    """Width and height that the source claims, pixels; its annotations are in these coordinates."""
    mask: str | None = None
    """Path of the file that labels each pixel, relative to the root: an 8-bit grey PNG; see `Listing.values`."""


@dataclass(frozen=True)
class Listing:
    """Everything that a source lists, from its small files only."""

    classes: list[str]
    multi_label: bool
    entries: list[Entry]
    """In final order; see `in_order`."""
    values: Mapping[int, int] | None = None
    """Pixel value in a label file -> class index, or `mls.data.image_store.IGNORE`. An image with a label file has the
    classes that the file shows."""


def in_order(entries: Sequence[Entry]) -> list[Entry]:
    """Sort by split (train, val, test, unlabeled), then by name."""
    return sorted(entries, key=lambda entry: (SPLITS.index(entry.split), entry.name))


def hold_out(count: int, share: float, seed: int) -> set[int]:
    """Choose which of ``count`` train images become val: a seeded draw of ``share`` of them.

    At least one becomes val and, from two images on, at least one stays.
    """
    wanted = min(max(1, round(share * count)), max(1, count - 1))
    return set(streams.held_out(seed).permutation(count)[:wanted].tolist())


def with_val(entries: Sequence[Entry], config: LocalDataset, reader: Reader) -> list[Entry]:
    """Return the entries in final order; if none is val, a seeded ``val_share`` of train becomes val.

    The draw counts the train images in the order given here, and the split is part of the id: each source must keep
    its order (sorted names, COCO's sorted image ids).

    Raises:
        MlsError: train or test has too few images.
    """
    train = [i for i, entry in enumerate(entries) if entry.split == "train"]
    counts = Counter(entry.split for entry in entries)
    if len(train) < (1 if counts["val"] else 2) or not counts["test"]:
        raise MlsError(
            f"{reader.root}: train needs two images (one becomes val, unless val has its own) and test one; "
            f"there are {dict(counts)}"
        )
    if not counts["val"]:
        chosen = {train[i] for i in hold_out(len(train), config.val_share, config.seed)}
        entries = [replace(entry, split="val") if i in chosen else entry for i, entry in enumerate(entries)]
    return in_order(entries)


def read_lines(reader: Reader, file: str) -> Iterator[tuple[int, str]]:
    """Yield (line number, stripped text) of each line that is not blank.

    Raises:
        MlsError: the file can't be read, or is not UTF-8.
    """
    try:
        lines = reader.read(file)[0].decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise MlsError(f"{reader.root / file}: not text in UTF-8 ({error})") from error
    for number, line in enumerate(lines, 1):
        if text := line.strip():
            yield number, text


def check_name(name: str, where: str, place: str, seen: dict[str, str], reader: Reader) -> None:
    """Check that a listed image lies below the root, is there, and is listed for the first time.

    Args:
        name: its path below the root.
        where: begins each error.
        place: short form of ``where``, for an error about a repetition; kept in memory for every image.
        seen: name -> place of the images so far; this one is added.
        reader: of the source.

    Raises:
        MlsError: says which of these is wrong.
    """
    if reason := unsafe(name):
        raise MlsError(f"{where}: image {name!r} {reason}")
    if name in seen:
        raise MlsError(f"{where}: image {name!r} was listed before, in {seen[name]}; an image may be listed only once")
    if not reader.has(name):
        raise MlsError(f"{where}: image {name!r} is missing below {reader.root}; is the data set complete?")
    seen[name] = place


def overhang(x1: float, y1: float, x2: float, y2: float, width: float, height: float) -> float:
    """Pixels by which a box reaches over the edge of an image of this size; 0 or less if it lies inside."""
    return max(-x1, -y1, x2 - width, y2 - height)
