"""HTML pages of tables that sort and filter, each in one file that needs neither the network nor other files.

    write_page(Path("provenance.html"), "Provenance", "Where the numbers come from.", [sheet])

The template escapes everything: labels and paths may hold any character.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Column:
    """A column of a sheet."""

    name: str
    group: str = ""
    """Heading above it, shared by neighbours of one group."""
    number: bool = False
    """Aligned to the right, and sorted by `Value.key` instead of by text."""


@dataclass(frozen=True)
class Value:
    """One cell of a sheet."""

    text: str
    key: float | None = None
    """Sorts a column of numbers; cells without it come last."""
    below: str = ""
    """A second, smaller line."""
    title: str = ""
    """Shown while the mouse rests on it."""
    link: str = ""
    """Name of the rows, on the same page, that a click shows."""
    best: bool = False


@dataclass(frozen=True)
class SheetRow:
    """One line of a sheet."""

    values: list[Value]
    kind: str = ""
    """CSS class."""
    name: str = ""
    """Target of `Value.link`; several rows may share it."""


@dataclass(frozen=True)
class Sheet:
    """A table on a page."""

    title: str
    columns: list[Column]
    rows: list[SheetRow]
    notes: list[str] = field(default_factory=list)
    dense: bool = False
    """Smaller, for many columns."""

    def groups(self) -> list[tuple[str, int]]:
        """Headings above the columns, with the number of columns that each spans; empty if no column has a group."""
        found = [(group, len(list(own))) for group, own in groupby(self.columns, lambda column: column.group)]
        return found if any(group for group, _ in found) else []


def write_page(path: Path, title: str, lead: str, sheets: Sequence[Sheet]) -> None:
    """Write a page of sheets; ``lead`` is the sentence under its title."""
    render("page.html", path, title=title, lead=lead, sheets=sheets)


def render(template: str, path: Path, **content: Any) -> None:
    """Write a page from one of the templates; a variable that is not given is an error."""
    path.write_text(TEMPLATES.get_template(template).render(**content), encoding="utf-8")


def spent(seconds: float) -> str:
    """A readable time: ``0.15 s``, ``42 s``, ``3 min 05 s``, ``2 h 14 min``."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
