"""Parse YAML that people or tools wrote, and refuse what no experiment holds before anything walks through it.

Anchors let a small file stand for billions of values, or contain itself; numbers may have more digits than Python
prints; strings may hold what no file name, table or terminal takes.
"""

from __future__ import annotations

import unicodedata
from collections import deque
from collections.abc import Iterator
from typing import Any

from ruamel.yaml import YAML

MOST_BYTES = 300_000
"""Of a file; a hundred times the largest experiment here."""
MOST_LETTERS = 1_000_000
"""Of all values together, counting what anchors repeat."""
DEEPEST = 32
"""Levels of nesting; experiments have about five."""
UNPRINTABLE = ("Cc", "Cs")
"""Unicode categories of control characters (line breaks, NUL) and of half surrogates."""


def parse(text: str) -> dict[str, Any]:
    """Return the mapping that YAML text holds. YAML 1.2: ``1e-4`` is a number, and duplicate keys are errors.

    Raises:
        ValueError: says in one line what is wrong.
    """
    if (size := len(text.encode(errors="surrogatepass"))) > MOST_BYTES:
        raise ValueError(f"has {size:,} bytes; at most {MOST_BYTES:,} are read")
    try:
        raw = YAML(typ="safe", pure=True).load(text)
    except RecursionError:
        raise ValueError(f"nested too deep; at most {DEEPEST} levels are read") from None
    except (
        Exception
    ) as error:  # on odd input ruamel raises not only YAMLError: int(), dates, tags have errors of theirs
        raise ValueError(f"not valid YAML: {' '.join(str(error).split()) or type(error).__name__}") from error
    if not isinstance(raw, dict):
        raise ValueError("must hold a mapping of keys to values")
    if problem := next(unusable(raw), None):
        raise ValueError(problem)
    return raw


def unusable(raw: Any) -> Iterator[str]:
    """Yield a line for each value that nothing can use, level by level; stop where the whole is too large or deep."""
    letters, queue = 0, deque([("", raw)])
    while queue:
        where, value = queue.popleft()
        letters += len(value) + 1 if isinstance(value, str | bytes) else 8
        if letters > MOST_LETTERS:
            yield f"holds more than {MOST_LETTERS:,} letters, counting what anchors repeat"
            return
        if where.count("\0") > DEEPEST:
            yield f"{_place(where)[:80]}: nested too deep; at most {DEEPEST} levels are read"
            return
        if isinstance(value, dict):
            queue.extend((f"{where}\0{_text(key)}", child) for key, child in value.items())
            queue.extend((f"{where}\0{_text(key)}", key) for key in value)
        elif isinstance(value, list | set | tuple):
            queue.extend((f"{where}\0{index}", child) for index, child in enumerate(value))
        elif isinstance(value, int) and not -(2**63) <= value < 2**64:
            yield f"{_place(where)}: a number of {value.bit_length()} bits; at most 64 fit"
        elif isinstance(value, str) and (odd := [c for c in value if unicodedata.category(c) in UNPRINTABLE]):
            yield f"{_place(where)}: holds the character U+{ord(odd[0]):04X}, which can't be printed"


def _text(key: Any) -> str:
    """A key as part of a place, short and printable."""
    return ascii(key)[1:-1][:40] if isinstance(key, str) else type(key).__name__


def _place(where: str) -> str:
    return where.removeprefix("\0").replace("\0", ".")
