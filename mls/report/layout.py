"""A filled table as headers, lines and notes, for whatever prints it.

    layout = lay_out(fill("classification", spec, metrics), "scenes")

One decimal, percent. Numbers of the paper stand to the right of what was measured: its columns as they are, or, where
the experiment says which measured column is which of them, each followed by the difference. Rows that the paper has
alone are called ``<row> [paper]``. A letter in brackets marks what must not be compared without its note.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Literal

from mls.config.paper import SOURCE, Beside, Number
from mls.report.tables import Filled, FilledTable

DASH = "–"  # noqa: RUF001 - an en dash, as typeset tables have it
LACKING = "not implemented"
PAPER, DIFFERENCE = "paper", "ours - paper"
"""Groups of the columns to the right of ``n``."""


@dataclass(frozen=True)
class Shown:
    """One cell as text."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Line:
    """One line; ``cells`` are those right of the label."""

    label: str
    """As it is printed, with its mark."""
    row: str
    """Of `FilledTable`, or of the paper."""
    kind: Literal["measured", "difference", "paper"]
    cells: list[Shown]


@dataclass(frozen=True)
class Layout:
    """A whole table."""

    title: str
    experiment: str
    header: list[tuple[str, str]]
    """(group, name) of every column, the labels' first; a task and its metric, or `PAPER` and its column."""
    lines: list[Line]
    notes: list[str]


def lay_out(table: FilledTable, experiment: str) -> Layout:
    """The lines of a table: measured, of the paper alone, differences from the baseline."""
    best, marks = table.best(), _marks(table)
    header = [("", "run"), *((task, name) for task, name in (column.split(".", 1) for column in table.columns))]
    header += [("", "n"), *_paper_columns(table)]
    lines = []
    for row, cells in table.cells.items():
        shown = [Shown(_show(cell), (row, column) in best) for column, cell in cells.items()]
        label = row + _mark(marks, "row", table.remarks.get(row))
        lines.append(
            Line(label, row, "measured", [*shown, *map(Shown, (_repeats(cells), *_beside(table, row, marks)))])
        )
    for row, numbers in table.paper.further.items() if table.paper else ():
        texts = [DASH] * (len(table.columns) + 1) + [
            _reported(numbers.get(column)) if group == PAPER else DASH for group, column in _paper_columns(table)
        ]
        lines.append(Line(row, row, "paper", list(map(Shown, texts))))
    for row, cells in table.differences.items():
        texts = [*(_show(cell, sign="+") for cell in cells.values()), _repeats(cells), *_beside(table, row, marks)]
        label = row + _mark(marks, "difference", table.remarks.get(row))
        lines.append(Line(label, row, "difference", list(map(Shown, texts))))
    said = (f"({at}): {WHY[why]}: {text}." for (why, text), at in marks.items())
    return Layout(table.name, experiment, header, lines, [*_notes(table), *said])


WHY = {
    "row": "pretrained otherwise than most rows",
    "difference": "of two unlike pretrainings",
    "paper": "another protocol than the paper's",
}
"""What a mark is about."""
Marks = dict[tuple[str, str], str]
"""(key of `WHY`, in what it differs) -> the letter of the mark."""


def _marks(table: FilledTable) -> Marks:
    """A letter for everything that has to be said of a row's pretraining or of a comparison with the paper."""
    told = [("difference" if row in table.differences else "row", text) for row, text in table.remarks.items()]
    told += [("paper", text) for text in table.against.values()]
    return {what: ascii_lowercase[i % 26] * (i // 26 + 1) for i, what in enumerate(dict.fromkeys(told))}


def _mark(marks: Marks, why: str, text: str | None) -> str:
    """`` (a)``, or nothing where there is nothing to say."""
    return f" ({marks[why, text]})" if text else ""


def _show(cell: Filled, sign: str = "") -> str:
    """The mean and its interval, ± of several values or [] of one; with ``sign="+"``, as a difference."""
    if cell.summary is None:
        return DASH if cell.implemented else LACKING
    width = cell.summary.half_width
    text = f"{cell.summary.mean:{sign}.1f}" + ("" if width is None else f" ± {width:.1f}")
    text += f" [{cell.interval.low:.1f}, {cell.interval.high:.1f}]" if cell.interval else ""
    return text + (f" ({cell.summary.n} of {cell.of})" if cell.summary.n < cell.of else "")


def _repeats(cells: Mapping[str, Filled]) -> str:
    """``3 seeds``, or task by task where tasks differ: ``linear 1, detect 3 trials``."""
    by_task = {
        column.split(".", 1)[0]: f"{c.of} {c.over}" if c.of > 1 else str(c.of)
        for column, c in cells.items()
        if c.implemented
    }
    if len(set(by_task.values())) == 1:
        return next(iter(by_task.values()))
    return ", ".join(f"{task} {text}" for task, text in by_task.items())


def _paper_columns(table: FilledTable) -> list[tuple[str, str]]:
    """(group, column of the paper) of what stands to the right: those that are compared first."""
    if table.paper is None:
        return []
    compared = table.paper.columns.values()
    others = [column for column in table.paper.reported.columns if column not in compared]
    return [(group, column) for column in compared for group in (PAPER, DIFFERENCE)] + [
        (PAPER, column) for column in others
    ]


def _reported(number: Number | None) -> str:
    """A number of the paper, ``?`` behind an implausible one."""
    return f"{number.percent:.1f}{'?' if number.doubt else ''}" if number else DASH


def _beside(table: FilledTable, row: str, marks: Marks) -> list[str]:
    """The paper's cells of a measured row, and what ours is more; none in a table without the paper."""
    if table.paper is None:
        return []
    numbers, ours = table.paper.of(row), {theirs: column for column, theirs in table.paper.columns.items()}
    texts = []
    for group, column in _paper_columns(table):
        number = numbers.get(column)
        if group == PAPER or number is None:
            texts.append(_reported(number))
            continue
        summary = table.cells[row][ours[column]].summary
        mark = _mark(marks, "paper", table.against.get((row, ours[column])))
        texts.append(f"{summary.mean - number.percent:+.1f}{'?' if number.doubt else ''}{mark}" if summary else DASH)
    return texts


def _notes(table: FilledTable) -> Iterator[str]:
    """What a reader needs for this table, and nothing about what it does not show."""
    measured = [c for row in table.cells.values() for c in row.values() if c.implemented]
    cells = [c for row in table.all_cells.values() for c in row.values() if c.implemented]
    sampled = sorted({(c.interval.level, c.interval.covers) for c in measured if c.interval})
    averaged = {c.over for c in cells if c.summary and c.summary.n > 1}
    if averaged:
        yield "±: half the width of the 95 % t-interval of the mean over n."
    if "seeds" in averaged:
        several = any(c.over == "seeds" and len(c.sources) > c.of for c in measured)
        yield "n seeds: pretrained n times" + ("; each seed counts with the mean of its trials." if several else ".")
    if "trials" in averaged:
        yield "n trials: one pretraining, the task trained n times; ± does not cover how pretrainings vary."
    if any(c.of == 1 for c in cells):
        yield "n = 1: one value, so no interval." if not sampled else "n = 1: one value, so no ±."
    for level, covers in sampled:
        yield f"[low, high]: {100 * level:g} % bootstrap interval over the images: {covers}, not how pretrainings vary."
    if any(c.interval and c.summary and not c.interval.low <= c.summary.mean <= c.interval.high for c in cells):
        yield "Where an interval leaves out its own value: average precision of few positives comes out too high."
    if any(c.summary and c.summary.n < c.of for c in cells):
        yield "(k of n): only k of the n planned repeats gave a value."
    if any(c.summary is None for c in measured):
        yield f"{DASH}: the metric is not defined for this task."
    if any(not c.implemented for row in table.cells.values() for c in row.values()):
        yield f"{LACKING}: the paper's table has it, and nothing here computes it."
    if table.differences:
        yield "a - b: the difference, paired by seed."
    if any(c.of == 0 for c in cells):
        yield f"{DASH}, n 0: unequally many seeds, so no pairs."
    if table.best():
        yield "Bold: best of the column, before rounding."
    if table.paper:
        yield from _paper_notes(table.paper)


def _paper_notes(paper: Beside) -> Iterator[str]:
    """Where the paper's numbers come from, and what can be compared with them."""
    reported, shown = paper.reported, list(paper.shown)
    yield (
        f"paper: numbers of the paper ({SOURCE}, {reported.title}; {reported.pretraining}), not measured here"
        + ("." if paper.columns else ": other data, model and scale, unless this experiment has the paper's.")
        + f" {reported.metrics}."
    )
    if paper.columns:
        yield f"{DIFFERENCE}: the difference of the means."
    if paper.points() and any(not row.endswith(f"={theirs}]") for row, theirs in paper.claims.items()):
        yield f"Row here: row of the paper. {'; '.join(f'{row}: {theirs}' for row, theirs in paper.claims.items())}."
    if any(number.decoded for number in shown):
        yield "The paper's numbers here are read from the vectors of its figure."
    yield f"{DASH} beside them: not reported, or not measured."
    if doubts := dict.fromkeys(number.doubt for number in shown if number.doubt):
        yield f"?: printed so in the paper, but implausible: {'; '.join(doubts)}."
