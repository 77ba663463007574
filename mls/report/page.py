"""HTML pages of tables that sort and filter, each complete in one file: no network, no other file.

    write_page(Path("provenance.html"), "Provenance", "Where the numbers come from.", [sheet])

Everything is escaped by the template: labels and paths may hold any character.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

ENVIRONMENT = Environment(
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
    """What stands above it; neighbours of one group share it."""
    number: bool = False
    """Aligned to the right, and sorted by `Value.key` instead of by text."""


@dataclass(frozen=True)
class Value:
    """One cell of a sheet."""

    text: str
    key: float | None = None
    """What a column of numbers is sorted by; without it the cell comes last."""
    below: str = ""
    """A second, smaller line."""
    title: str = ""
    """Shown while the mouse rests on it."""
    link: str = ""
    """Name of the rows, on the same page, that a click shows."""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """One line of a sheet."""

    values: list[Value]
    kind: str = ""
    """CSS class."""
    name: str = ""
    """What `Value.link` refers to; several rows may share it."""


@dataclass(frozen=True)
class Sheet:
    """A table on a page."""

    title: str
    columns: list[Column]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    dense: bool = False
    """Smaller, for many columns."""

    def groups(self) -> list[tuple[str, int]]:
        """What stands above the columns, with how many columns each spans; empty where no column has a group."""
        found: list[tuple[str, int]] = []
        for column in self.columns:
            if found and found[-1][0] == column.group:
                found[-1] = (column.group, found[-1][1] + 1)
            else:
                found.append((column.group, 1))
        return found if any(group for group, _ in found) else []


def write_page(path: Path, title: str, lead: str, sheets: Sequence[Sheet]) -> None:
    """Write a page of sheets; ``lead`` is the sentence under its title."""
    text = ENVIRONMENT.get_template("page.html").render(title=title, lead=lead, sheets=sheets)
    path.write_text(text, encoding="utf-8")


def spent(seconds: float) -> str:
    """A time as a person says it: ``0.15 s``, ``42 s``, ``3 min 05 s``, ``2 h 14 min``."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
