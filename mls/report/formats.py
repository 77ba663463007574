"""Print a filled table as CSV, Markdown and LaTeX.

    print(to_markdown(fill("classification", spec, metrics), "scenes"))

CSV keeps percents at full precision; Markdown and LaTeX show one decimal.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from itertools import groupby

from mls.report.tables import Filled, FilledTable

DASH = "–"  # noqa: RUF001 - an en dash, as typeset tables have it
CSV_COLUMNS = ("row", "column", "mean", "half_width", "n", "of", "over", "values")

# --------------------------------------------------------------------------------------------- CSV


def to_csv(table: FilledTable) -> str:
    """One line per cell, percents at full precision; undefined ones have empty numbers."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row, cells in table.all_cells.items():
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
    for row, cells in table.differences.items():
        lines.append([_markdown(row), *(_show(cell, sign="+") for cell in cells.values()), _repeats(cells)])
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


def _show(cell: Filled, sign: str = "") -> str:
    """The mean and its interval; with ``sign="+"``, as a difference."""
    if cell.summary is None:
        return DASH
    width = cell.summary.half_width
    text = f"{cell.summary.mean:{sign}.1f}" + ("" if width is None else f" ± {width:.1f}")
    return text + (f" ({cell.summary.n} of {cell.of})" if cell.summary.n < cell.of else "")


def _repeats(cells: Mapping[str, Filled]) -> str:
    """``3 seeds``, or task by task where tasks differ: ``linear 1, detect 3 trials``."""
    by_task = {column.split(".", 1)[0]: f"{c.of} {c.over}" if c.of > 1 else str(c.of) for column, c in cells.items()}
    if len(set(by_task.values())) == 1:
        return next(iter(by_task.values()))
    return ", ".join(f"{task} {text}" for task, text in by_task.items())


def _notes(table: FilledTable) -> Iterator[str]:
    """What a reader needs for this table, and nothing about what it does not show."""
    measured = [c for row in table.cells.values() for c in row.values()]
    cells = [c for row in table.all_cells.values() for c in row.values()]
    averaged = {c.over for c in cells if c.summary and c.summary.n > 1}
    if averaged:
        yield "±: half the width of the 95 % t-interval of the mean over n."
    if "seeds" in averaged:
        several = any(c.over == "seeds" and len(c.sources) > c.of for c in measured)
        yield "n seeds: pretrained n times" + ("; each seed counts with the mean of its trials." if several else ".")
    if "trials" in averaged:
        yield "n trials: one pretraining, the task trained n times; ± does not cover how pretrainings vary."
    if any(c.of == 1 for c in cells):
        yield "n = 1: one value, so no interval."
    if any(c.summary and c.summary.n < c.of for c in cells):
        yield "(k of n): only k of the n planned repeats gave a value."
    if any(c.summary is None for c in measured):
        yield f"{DASH}: the metric is not defined for this task."
    if table.differences:
        yield "a - b: the difference, paired by seed."
    if any(c.of == 0 for c in cells):
        yield f"{DASH}, n 0: unequally many seeds, so no pairs."
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
    if table.differences:
        body.append(r"\midrule")
    for row, cells in table.differences.items():
        plain = [escape_tex(_show(cell, sign="+")) for cell in cells.values()]
        body.append(" & ".join([escape_tex(row), *plain, escape_tex(_repeats(cells))]) + r" \\")
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
