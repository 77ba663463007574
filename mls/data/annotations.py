"""A store's ``annotations.json``: one annotation a line, in the order of rows, so an image's are found by bisection.

    annotations = Annotations(Path("artifacts/data/3f2a91c4d0/annotations.json"))
    annotations.of(7)                           # those of row 7; COCO's other 860,000 are not parsed
    for annotation in annotations.between(0, 5000): ...

`mls.data.writer` writes the file. Lines are parsed when they are asked for, and nothing is kept.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from mls.runtime.errors import MlsError

HEAD = b'{"annotations": [\n'
END = b'\n],\n"categories": '
_IMAGE = re.compile(rb'[^\n]*?"image_id": (\d+)')


class Annotations:
    """The annotations of one store, by row."""

    def __init__(self, file: Path) -> None:
        """Take the file's path; it is mapped on first use."""
        self._file = file

    def of(self, row: int) -> list[dict[str, Any]]:
        """Return the annotations of one image, in the file's order.

        Raises:
            MlsError: the file is not as the store writes it.
        """
        return list(self.between(row, row + 1))

    def between(self, first: int, last: int) -> Iterator[dict[str, Any]]:
        """Yield the annotations of the rows from ``first`` up to, but not including, ``last``, in the file's order.

        Raises:
            MlsError: the file is not as the store writes it.
        """
        place, end = self._find(first), self._find(last)
        while place < end:
            line_end = self._text.find(b"\n", place)
            try:
                yield json.loads(self._text[place:line_end].rstrip(b","))
            except ValueError:
                self._fail(place)
            place = line_end + 1

    def _find(self, row: int) -> int:
        """Return where the first annotation of this row, or of a later one, begins; the end if there is none."""
        low, high = self._bounds
        while low < high:
            middle = self._text.rfind(b"\n", low, (low + high) // 2) + 1 or low
            found = _IMAGE.match(self._text, middle)
            if found is None:
                self._fail(middle)
            if int(found[1]) < row:
                low = self._text.find(b"\n", found.end()) + 1
            else:
                high = middle
        return low

    @cached_property
    def _text(self) -> mmap.mmap:
        with self._file.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @cached_property
    def _bounds(self) -> tuple[int, int]:
        """Where the first annotation begins, and where the line after the last one does."""
        end = self._text.rfind(END)
        if self._text[: len(HEAD)] != HEAD or end < 0:
            self._fail(0)
        return len(HEAD), max(end + 1, len(HEAD))

    def _fail(self, place: int) -> NoReturn:
        raise MlsError(
            f"{self._file} is damaged: byte {place} is not the beginning of what a store writes; remove the artifact "
            "and make it again"
        )
