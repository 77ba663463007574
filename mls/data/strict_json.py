"""JSON from elsewhere, read strictly: what Python's reader would take in silence, or die of, is one error.

raw = parse(content)                        # dict, list, ...; ValueError says what is wrong
document = Document(content)                # the same of one large object, whose arrays are not held
for place in document.places("annotations"):
    document.at(place)                      # parsed now
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

DIGITS = 18
"""Most digits of an integer: it then fits into 64 bits, and a calculation with it into a float."""
TICK = 1000
"""Elements between two calls of a document's ``tick``."""


def parse(content: bytes) -> Any:
    """Parse JSON in UTF-8, UTF-16 or UTF-32.

    Raises:
        ValueError: it is not JSON, repeats a key in one object (of which the last would win), nests too deeply, or
            holds NaN, Infinity or an integer of more than `DIGITS` digits.
    """
    try:
        return json.loads(content, **HOOKS)
    except RecursionError:
        raise ValueError("not valid JSON (it is nested too deeply)") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not valid JSON (not text in UTF-8: {error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error})") from error


class Document:
    """A JSON object of which one element at a time is in memory; COCO's 860,000 annotations would take 3 GB.

    All of it is checked at once, as `parse` does; only where each element begins is kept, and the text.
    """

    def __init__(self, content: bytes, tick: Callable[[int], None] = lambda place: None) -> None:
        """Check a whole file.

        Args:
            content: as in `parse`.
            tick: called with the number of characters read, now and then.

        Raises:
            ValueError: as `parse`; or it is not an object.
        """
        self._scan = json.JSONDecoder(**HOOKS).raw_decode
        self._tick = tick
        self._members: dict[str, array[int] | None] = {}
        try:
            self._text = content.decode(json.detect_encoding(content), "surrogatepass")
            if self._skip(self._each(self._after("{", self._skip(0)), "}", self._member)) != len(self._text):
                raise ValueError("there is something after the end")
        except (ValueError, IndexError, RecursionError) as error:
            if isinstance(parse(content), dict):  # it says what is wrong, and where
                raise ValueError(f"not valid JSON ({error})") from error
            raise ValueError("must be one object, in {}") from None

    def places(self, key: str) -> Sequence[int] | None:
        """Return where the elements of an array begin; None if there is no such array."""
        return self._members.get(key)

    def at(self, place: int) -> Any:
        """Parse the element that begins at a place."""
        return self._scan(self._text, place)[0]

    def _each(self, place: int, close: str, read: Callable[[int], int]) -> int:
        """Read what commas separate, up to a bracket; return the place after that."""
        place = self._skip(place)
        if self._text[place] == close:
            return place + 1
        while True:
            place = self._skip(read(place))
            if self._text[place] == close:
                return place + 1
            place = self._skip(self._after(",", place))

    def _member(self, place: int) -> int:
        key, place = self._scan(self._text, place)
        if not isinstance(key, str) or key in self._members:
            raise ValueError(f"key {key!r}")
        place = self._skip(self._after(":", self._skip(place)))
        if self._text[place] != "[":
            self._members[key] = None
            return int(self._scan(self._text, place)[1])
        found = self._members[key] = array("q")

        def element(place: int) -> int:
            found.append(place)
            if len(found) % TICK == 0:
                self._tick(place)
            return int(self._scan(self._text, place)[1])

        return self._each(place + 1, "]", element)

    def _skip(self, place: int) -> int:
        return SPACE.match(self._text, place).end()  # type: ignore[union-attr]  # it matches no characters, too

    def _after(self, character: str, place: int) -> int:
        if self._text[place] != character:
            raise ValueError(f"no {character} at character {place}")
        return place + 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice[:40]!r} is there twice in one object, which has {', '.join(map(repr, keys[:9]))}")
    return found


def _integer(text: str) -> int:
    digits = len(text.lstrip("-"))
    if digits > DIGITS:
        raise ValueError(f"holds {text[:12]}..., a number of {digits} digits; {DIGITS} are allowed")
    return int(text)


def _constant(text: str) -> NoReturn:
    raise ValueError(f"holds {text}, not a number")


HOOKS: dict[str, Any] = {"object_pairs_hook": _object, "parse_int": _integer, "parse_constant": _constant}
SPACE = re.compile(r"[ \t\n\r]*")
