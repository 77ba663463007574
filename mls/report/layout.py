"""A filled table as headers, lines and notes, for whatever prints it.

    layout = lay_out(fill_table("classification", spec, metrics))

Percents have one decimal. Numbers of the paper stand to the right of the measured ones: its columns as they are or,
where the experiment says which measured column corresponds to which of them, each followed by the difference. Rows
that only the paper has are called ``<row> [paper]``. A letter in brackets marks what must not be compared without
reading its note.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Literal

from mls.config.paper import SOURCE, Beside, Number
from mls.report.tables import Filled, FilledTable, logged

DASH = "–"  # noqa: RUF001 - an en dash, as typeset tables have it
LACKING = "not implemented"
PAPER, DIFFERENCE = "paper", "ours - paper"
"""Groups of the columns to the right of ``n``."""
Kind = Literal["measured", "difference", "paper"]
REASONS: dict[Kind, str] = {
    "measured": "pretrained differently from most rows",
    "difference": "of two unlike pretrainings",
    "paper": "the protocol differs from the paper's",
}
"""Where a mark stands (at a row, at a difference of rows, at a difference from the paper) -> what it warns of."""
Marks = dict[tuple[Kind, str], str]
"""(key of `REASONS`, how the two differ) -> the letter of the mark."""


@dataclass(frozen=True)
class Shown:
    """One cell as text."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    label: str
    """As printed, with its mark."""
    row: str
    """Row of `FilledTable`, or of the paper."""
    kind: Kind
    cells: list[Shown]
    """Those to the right of the label."""


@dataclass(frozen=True)
class Layout:
    """A whole table."""

    header: list[tuple[str, str]]
    """(group, name) of every column, starting with the labels': a task and its metric, or `PAPER` and its column."""
    lines: list[Line]
    notes: list[str]


def lay_out(table: FilledTable) -> Layout:
    """The lines of a table: measured rows, rows that only the paper has, differences from the baseline."""
    best, marks = table.best(), _marks(table)

    def line(row: str, kind: Kind) -> Line:
        cells, sign = table.all_cells[row], "+" if kind == "difference" else ""
        shown = [
            Shown(_cell_text(cell, sign, 3 if logged(column) else 1), (row, column) in best)
            for column, cell in cells.items()
        ]
        beside = _beside(table, row, table.paper.of(row) if table.paper else {}, marks)
        label = row + _mark(marks, kind, table.remarks.get(row))
        return Line(label, row, kind, [*shown, Shown(_repeats(cells)), *map(Shown, beside)])

    lines = [line(row, "measured") for row in table.cells]
    for row, numbers in table.paper.further.items() if table.paper else ():
        texts = [DASH] * (len(table.columns) + 1) + _beside(table, row, numbers, marks)
        lines.append(Line(row, row, "paper", list(map(Shown, texts))))
    lines += [line(row, "difference") for row in table.differences]
    tasks = ((task, metric) for task, metric in (column.split(".", 1) for column in table.columns))
    header = [("", "run"), *tasks, ("", "n"), *_paper_columns(table)]
    remarks = (f"({letter}): {REASONS[kind]}: {text}." for (kind, text), letter in marks.items())
    return Layout(header, lines, [*_notes(table), *remarks])


def units(table: FilledTable) -> str:
    """What the numbers are: ``percent``, unless they are of pretrainings' logs."""
    own = {logged(column) for column in table.columns}
    return "percent" if own <= {False} else "as logged" if own == {True} else "percent; of pretrain, as logged"


def _marks(table: FilledTable) -> Marks:
    """A letter for each remark about a row's pretraining or a comparison with the paper."""
    remarks: list[tuple[Kind, str]] = [
        ("difference" if row in table.differences else "measured", text) for row, text in table.remarks.items()
    ]
    remarks += [("paper", text) for text in table.against.values()]
    return {remark: ascii_lowercase[i % 26] * (i // 26 + 1) for i, remark in enumerate(dict.fromkeys(remarks))}


def _mark(marks: Marks, kind: Kind, text: str | None) -> str:
    """`` (a)``, or nothing if there is no remark."""
    return f" ({marks[kind, text]})" if text else ""


def _cell_text(cell: Filled, sign: str, digits: int) -> str:
    """The mean and its interval, ± for several values or [] for one; with ``sign="+"``, as a difference."""
    if cell.summary is None:
        return DASH if cell.implemented else LACKING
    width = cell.summary.half_width
    text = f"{cell.summary.mean:{sign}.{digits}f}" + ("" if width is None else f" ± {width:.{digits}f}")
    text += f" [{cell.interval.low:.1f}, {cell.interval.high:.1f}]" if cell.interval else ""
    return text + (f" ({cell.summary.n} of {cell.of})" if cell.summary.n < cell.of else "")


def _repeats(cells: Mapping[str, Filled]) -> str:
    """``3 seeds``, or by task if tasks differ: ``linear 1, detect 3 trials``."""
    by_task = {
        column.split(".", 1)[0]: f"{c.of} {c.over}" if c.of > 1 else str(c.of)
        for column, c in cells.items()
        if c.implemented
    }
    texts = set(by_task.values())
    return texts.pop() if len(texts) == 1 else ", ".join(f"{task} {text}" for task, text in by_task.items())


def _paper_columns(table: FilledTable) -> list[tuple[str, str]]:
    """(group, column of the paper) to the right of ``n``; the compared ones come first."""
    if table.paper is None:
        return []
    compared = table.paper.columns.values()
    others = [(PAPER, column) for column in table.paper.reported.columns if column not in compared]
    return [(group, column) for column in compared for group in (PAPER, DIFFERENCE)] + others


def _beside(table: FilledTable, row: str, numbers: Mapping[str, Number], marks: Marks) -> list[str]:
    """The paper's cells of a row, and ours minus the paper's; empty in a table without the paper."""
    ours = {theirs: column for column, theirs in table.paper.columns.items()} if table.paper else {}
    texts = []
    for group, column in _paper_columns(table):
        number = numbers.get(column)
        text = f"{number.percent:.1f}" if number else DASH
        if group == DIFFERENCE:
            summary = table.cells[row][ours[column]].summary if row in table.cells else None
            text = f"{summary.mean - number.percent:+.1f}" if number and summary else DASH
        if number and text != DASH:
            text += "?" if number.doubt else ""  # the printed number is implausible
            text += _mark(marks, "paper", table.against.get((row, ours[column]))) if group == DIFFERENCE else ""
        texts.append(text)
    return texts


def _notes(table: FilledTable) -> Iterator[str]:
    """What a reader must know to read this table; nothing about what it does not show."""
    measured = [c for row in table.cells.values() for c in row.values() if c.implemented]
    cells = [c for row in table.all_cells.values() for c in row.values() if c.implemented]
    sampled = sorted({(c.interval.level, c.interval.covers) for c in measured if c.interval})
    averaged = {c.over for c in cells if c.summary and c.summary.n > 1}
    if averaged:
        yield "±: half the width of the 95 % t-interval of the mean over n."
    if "seeds" in averaged:
        several = any(c.over == "seeds" and len(c.sources) > c.of for c in measured)
        yield "n seeds: n pretrainings" + ("; each seed counts with the mean of its trials." if several else ".")
    if "trials" in averaged:
        yield (
            "n trials: one pretraining, the task trained n times; ± does not include the variance between pretrainings."
        )
    if any(c.of == 1 for c in cells):
        yield "n = 1: one value, so no interval." if not sampled else "n = 1: one value, so no ±."
    for level, covers in sampled:
        yield (
            f"[low, high]: {100 * level:g} % bootstrap interval over the images: {covers}, without the variance "
            "between pretrainings."
        )
    for counts in sorted(set(table.partial.values())):
        tasks = ", ".join(task for task, own in table.partial.items() if own == counts)
        yield (
            f"{tasks}: means over {counts[0]} of {counts[1]} classes; of the others, training or evaluation "
            "has only positive or only negative images."
        )
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
    if any(map(logged, table.columns)):
        yield (
            "pretrain: the last row of the training's log. It compares runs of one loss and one dictionary, and "
            "does not say whose features are better."
        )
    if table.best():
        yield "Bold: best of the column, before rounding."
    if table.paper:
        yield from _paper_notes(table.paper)


def _paper_notes(paper: Beside) -> Iterator[str]:
    """Where the paper's numbers come from, and what may be compared with them."""
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
