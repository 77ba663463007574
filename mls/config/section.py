"""The strict base class of all sections, and helpers for raw YAML and messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A block of the file: unknown keys are errors, types are strict, values never change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def values_of(section: type[BaseModel], field: str) -> tuple[Any, ...]:
    """The values that a field of type ``Literal`` may have."""
    return get_args(section.model_fields[field].annotation)


def alternatives(names: Iterable[str]) -> str:
    """``'a', 'b' or 'c'``."""
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}" if others else last


def did_you_mean(name: Any, known: Iterable[Any]) -> str:
    """End an error message with the known name most similar to a wrong one, or with all known names."""
    names = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else (f"; known: {', '.join(names)}" if names else "")


def as_mapping(value: Any) -> dict[str, Any]:
    """The value if it is a mapping, else an empty one: the schema reports the wrong type."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one: the schema reports the wrong type."""
    return value if isinstance(value, list) else []
