"""Fill the cells of a table from the metrics of its artifacts, and print it as CSV, Markdown and LaTeX.

    table = fill("classification", spec, metrics)      # spec: from the plan's tables job
    print(to_markdown(table, "scenes"))

Metrics are percents, and higher is better for every one of them. CSV keeps them at full precision;
Markdown and LaTeX show one decimal.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from mls.report.statistics import Summary, mean, summarise

DASH = "–"  # noqa: RUF001 - an en dash, as typeset tables have it
CSV_COLUMNS = ("row", "column", "mean", "half_width", "n", "of", "over", "values")


@dataclass(frozen=True)
class Filled:
    """One cell. ``summary`` is None where the metric is not defined for this task."""

    summary: Summary | None
    of: int
    """How many seeds (or trials) the plan has; more than ``summary.n`` where some gave no value."""
    over: str
    """What was averaged: ``seeds`` or ``trials``."""
    values: tuple[float, ...]
    """One per seed (the mean of its trials) or per trial, in the plan's order."""
    sources: tuple[tuple[str, str], ...]
    """The (pretrain id, task id) pairs behind the number."""


@dataclass(frozen=True)
class FilledTable:
    """A table with its numbers: ``cells[row][column]``."""

    name: str
    columns: list[str]
    cells: dict[str, dict[str, Filled]]

    def best(self) -> set[tuple[str, str]]:
        """(row, column) of the greatest unrounded mean of each column that has at least two."""
        found = set()
        for column in self.columns:
            means = {row: s.mean for row, cells in self.cells.items() if (s := cells[column].summary)}
            if len(means) > 1:
                found |= {(row, column) for row, value in means.items() if value == max(means.values())}
        return found


# ------------------------------------------------------------------------------------------ filling


def fill(name: str, spec: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]]) -> FilledTable:
    """Average the metrics of every cell.

    Args:
        name: of the table.
        spec: ``{"columns": [...], "rows": [{"label", "tasks": {task: [[pretrain id, task id], ...]}}]}``.
        metrics: task id -> content of its ``metrics.json``.
    """
    cells: dict[str, dict[str, Filled]] = {}
    for row in spec["rows"]:
        cells[row["label"]] = {}
        for column in spec["columns"]:
            task, metric = column.split(".", 1)
            pairs = tuple(dict.fromkeys((pretrain, one) for pretrain, one in row["tasks"][task]))
            cells[row["label"]][column] = fill_cell(pairs, {one: metrics[one].get(metric) for _, one in pairs})
    return FilledTable(name, list(spec["columns"]), cells)


def fill_cell(pairs: tuple[tuple[str, str], ...], found: Mapping[str, float | None]) -> Filled:
    """Average over trials, then over seeds; with one seed, over its trials.

    A seed of which any trial gave no value is left out whole: the mean of its other trials would
    not be comparable with the mean of another seed's.

    Args:
        pairs: distinct (pretrain id, task id); runs that do not depend on the seed appear once.
        found: task id -> value; None or a non-finite number where the metric is not defined.
    """
    trials: dict[str, list[float | None]] = {}
    for pretrain, task in pairs:
        value = found[task]
        trials.setdefault(pretrain, []).append(value if value is not None and math.isfinite(value) else None)
    if len(trials) > 1:
        over = "seeds"
        units = [mean([v for v in t if v is not None]) if None not in t else None for t in trials.values()]
    else:
        units = next(iter(trials.values()))
        over = "trials" if len(units) > 1 else "seeds"
    values = tuple(v for v in units if v is not None)
    return Filled(summarise(values) if values else None, len(units), over, values, pairs)


def to_metrics(table: FilledTable) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """``{row: {column: {"mean", "half_width", "n"}}}``, undefined cells left out, for ``dvc metrics``."""
    return {
        row: {
            column: {"mean": c.summary.mean, "half_width": c.summary.half_width, "n": c.summary.n}
            for column, c in cells.items()
            if c.summary
        }
        for row, cells in table.cells.items()
    }


# --------------------------------------------------------------------------------------------- CSV


def to_csv(table: FilledTable) -> str:
    """One line per cell, percents at full precision; undefined ones have empty numbers."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row, cells in table.cells.items():
        for column, c in cells.items():
            s = c.summary
            numbers = [repr(s.mean), "" if s.half_width is None else repr(s.half_width), s.n] if s else ["", "", 0]
            writer.writerow([row, column, *numbers, c.of, c.over, ";".join(map(repr, c.values))])
    return text.getvalue()


# ---------------------------------------------------------------------------------------- Markdown


def to_markdown(table: FilledTable, experiment: str) -> str:
    """A heading, an aligned pipe table and notes on what ± and n mean."""
    best = table.best()
    lines = [["run", *table.columns, "n"]]
    for row, cells in table.cells.items():
        marked = [f"**{t}**" if (row, c) in best else t for c, t in ((c, _show(cell)) for c, cell in cells.items())]
        lines.append([_markdown(row), *marked, _repeats(cells)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [f"### {table.name}", "", f"Experiment `{experiment}`, percent.", "", _pipes(lines[0], widths)]
    text.append("|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|")
    text += [_pipes(line, widths) for line in lines[1:]]
    text += ["", *(f"- {note}" for note in _notes(table))]
    return "\n".join(text) + "\n"


def _pipes(line: list[str], widths: list[int]) -> str:
    first, rest = line[0].ljust(widths[0]), [text.rjust(w) for text, w in zip(line[1:], widths[1:], strict=True)]
    return "| " + " | ".join([first, *rest]) + " |"


def _markdown(label: str) -> str:
    """Swept values may hold any character; these two would break the table."""
    return label.replace("|", "\\|").replace("*", "\\*")


def _show(cell: Filled) -> str:
    if cell.summary is None:
        return DASH
    width = cell.summary.half_width
    text = f"{cell.summary.mean:.1f}" + ("" if width is None else f" ± {width:.1f}")
    return text + (f" ({cell.summary.n} of {cell.of})" if cell.summary.n < cell.of else "")


def _repeats(cells: Mapping[str, Filled]) -> str:
    """``3 seeds``, or task by task where tasks differ: ``linear 1, detect 3 trials``."""
    by_task = {column.split(".", 1)[0]: f"{c.of} {c.over}" if c.of > 1 else "1" for column, c in cells.items()}
    if len(set(by_task.values())) == 1:
        return next(iter(by_task.values()))
    return ", ".join(f"{task} {text}" for task, text in by_task.items())


def _notes(table: FilledTable) -> Iterator[str]:
    """What a reader needs for this table, and nothing about what it does not show."""
    cells = [c for row in table.cells.values() for c in row.values()]
    averaged = {c.over for c in cells if c.summary and c.summary.n > 1}
    if averaged:
        yield "±: half the width of the 95 % t-interval of the mean over n."
    if "seeds" in averaged:
        several = any(c.over == "seeds" and len(c.sources) > c.of for c in cells)
        yield "n seeds: pretrained n times" + ("; each seed counts with the mean of its trials." if several else ".")
    if "trials" in averaged:
        yield "n trials: one pretraining, the task trained n times; ± does not cover how pretrainings vary."
    if any(c.of == 1 for c in cells):
        yield "n = 1: one value, so no interval."
    if any(c.summary and c.summary.n < c.of for c in cells):
        yield "(k of n): only k of the n planned repeats gave a value."
    if any(c.summary is None for c in cells):
        yield f"{DASH}: the metric is not defined for this task."
    if table.best():
        yield "Bold: best of the column, before rounding."


# ------------------------------------------------------------------------------------------- LaTeX

TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    DASH: "--",
}
"""What LaTeX would read as a command, or set as something else."""


def escape_tex(text: str) -> str:
    """Plain text as LaTeX source, ASCII alone (other characters as their code, ``\\u00e9``)."""
    out = "".join(TEX.get(c, c) for c in text)
    return "".join(c if c.isascii() else TEX["\\"] + c.encode("ascii", "backslashreplace").decode()[1:] for c in out)


def to_latex(table: FilledTable, experiment: str) -> str:
    """A floating booktabs table, one header row for tasks and one for metrics, ready for ``\\input``."""
    best = table.best()
    groups = [
        (task, [c.split(".", 1)[1] for c in g]) for task, g in groupby(table.columns, lambda c: c.split(".", 1)[0])
    ]
    header, rules, at = [""], [], 2
    for task, names in groups:
        header.append(rf"\multicolumn{{{len(names)}}}{{c}}{{{escape_tex(task)}}}")
        rules.append(rf"\cmidrule(lr){{{at}-{at + len(names) - 1}}}")
        at += len(names)
    lines = [" & ".join([*header, ""]), " & ".join(["run", *(escape_tex(n) for _, g in groups for n in g), "$n$"])]
    body = []
    for row, cells in table.cells.items():
        shown = [(column, escape_tex(_show(cell))) for column, cell in cells.items()]
        marked = [rf"\textbf{{{t}}}" if (row, column) in best else t for column, t in shown]
        body.append(" & ".join([escape_tex(row), *marked, escape_tex(_repeats(cells))]) + r" \\")
    caption = escape_tex(" ".join([f"{table.name} (experiment {experiment}), percent.", *_notes(table)]))
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}l}}",
            r"\toprule",
            lines[0] + r" \\",
            " ".join(rules),
            lines[1] + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
