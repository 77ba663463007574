"""What a source lists before images are opened: names, splits, classes and annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mls.data.image_store import SPLITS


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
    """All that a source lists, from its small files alone."""

    classes: list[str]
    multi_label: bool
    entries: list[Entry]
    """In final order; see `in_order`."""
    values: Mapping[int, int] | None = None
    """Class index, or `mls.data.image_store.IGNORE`, of each value that a label file may hold. An image that has such a
    file has the classes that are to be seen in it."""


def in_order(entries: Sequence[Entry]) -> list[Entry]:
    """Sort by split (train, val, test, unlabeled), then by name."""
    return sorted(entries, key=lambda entry: (SPLITS.index(entry.split), entry.name))


def hold_out(count: int, share: float, seed: int) -> set[int]:
    """Choose which of ``count`` train images become val: a seeded draw of ``share`` of them.

    At least one becomes val and, from two images on, at least one stays.
    """
    wanted = min(max(1, round(share * count)), max(1, count - 1))
    return set(np.random.default_rng(seed).permutation(count)[:wanted].tolist())
