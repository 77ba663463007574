"""What a source lists before images are opened: names, splits, classes and annotations.

Also what the readers of several sources share: text lists, checks of names and boxes, and the val split.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unicodedata import is_normalized

from mls.config.datasets import LocalDataset
from mls.data.image_store import SPLITS
from mls.download.reader import Reader, unsafe
from mls.runtime import streams
from mls.runtime.errors import MlsError

BOX_SLACK = 2.0
"""Pixels by which a box may reach over the image's edge: boxes are rounded, polygons are drawn by hand."""
MAX_PIXELS = 2**26
"""Largest picture that is read, 8192 x 8192: 192 MiB when decoded."""

BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
"""Characters that show nothing, although Python calls them printable."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One image that a source lists."""

    name: str
    """Path relative to the source's root, with forward slashes."""
    split: str
    classes: list[int]
    """Sorted class indices."""
    annotations: Sequence[dict[str, Any]]
    """As in `mls.data.writer.Record`; COCO's are parsed when they are asked for."""
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
    find_degenerate: Callable[[], Sequence[Mapping[str, str]]] = tuple
    """Decode the mask of every object; return ``{"name", "object", "reason"}`` of each that has no box or mask to
    learn: its image, what names it in the source, and why. The store keeps these objects; what needs boxes or masks
    leaves them out. An `MlsError` names a mask that contradicts itself."""


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


def check_classes(named: Iterable[tuple[str, str]]) -> None:
    """Check the class names of a source: two that look alike must not be two classes, and each fits on one line.

    Args:
        named: where the source has each name, which begins the error, and the name.

    Raises:
        MlsError: a name is blank, has space around it, is not in Unicode's form NFC, holds a line break or another
            control or invisible character, or was there before.
    """
    seen: dict[str, str] = {}
    for where, name in named:
        problem = ""
        if not name.strip():
            problem = "is blank"
        elif name != name.strip():
            problem = "has space around it; remove it"
        elif odd := next((c for c in name if not c.isprintable() or BLANK.match(c)), None):
            problem = f"holds U+{ord(odd):04X}, which can't be seen; remove it"
        elif not is_normalized("NFC", name):
            problem = "is not in Unicode's form NFC, so an equal name may be written in another way; convert it"
        elif name in seen:
            problem = f"was there before ({seen[name]}); one of them needs another name"
        if problem:
            raise MlsError(f"{where}: class name {name[:80]!a} {problem}")
        seen[name] = where.rpartition(": ")[2]


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
