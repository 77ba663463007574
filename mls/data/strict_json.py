"""JSON from elsewhere, read strictly: what Python's reader would take in silence, or die of, is one error.

raw = parse(content)        # dict, list, ...; ValueError says what is wrong
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

DIGITS = 18
"""Most digits of an integer: it then fits into 64 bits, and a calculation with it into a float."""


def parse(content: bytes) -> Any:
    """Parse JSON in UTF-8, UTF-16 or UTF-32.

    Raises:
        ValueError: it is not JSON, repeats a key in one object (of which the last would win), nests too deeply, or
            holds NaN, Infinity or an integer of more than `DIGITS` digits.
    """
    try:
        return json.loads(content, object_pairs_hook=_object, parse_int=_integer, parse_constant=_constant)
    except RecursionError:
        raise ValueError("not valid JSON (it is nested too deeply)") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not valid JSON (not text in UTF-8: {error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error})") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice[:40]!r} is there twice in one object, which has {', '.join(map(repr, keys[:9]))}")
    return found


def _integer(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"holds {text[:12]}..., a number of {len(text.lstrip('-'))} digits; {DIGITS} are allowed")
    return int(text)


def _constant(text: str) -> NoReturn:
    raise ValueError(f"holds {text}, not a number")
