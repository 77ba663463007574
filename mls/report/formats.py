"""Print a filled table as CSV, Markdown and LaTeX.

    print(to_markdown(fill("classification", spec, metrics), "scenes"))

CSV keeps percents at full precision; Markdown and LaTeX show one decimal. Numbers of the paper stand to the right of
what was measured, in columns called ``paper: <column>``; rows that it has alone are called ``<row> [paper]``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

from mls.report.paper import SOURCE, Beside, Number
from mls.report.tables import Filled, FilledTable

DASH = "–"  # noqa: RUF001 - an en dash, as typeset tables have it
CSV_COLUMNS = ("row", "column", "mean", "half_width", "n", "of", "over", "values", "low", "high", "source")
MEASURED, PAPER, DOUBTFUL, LACKING = "measured", "paper", "paper?", "not implemented"
"""What ``source`` may be; ``paper?``: printed so in the paper, but implausible; the last is printed in the cell."""

# --------------------------------------------------------------------------------------------- CSV


def to_csv(table: FilledTable) -> str:
    """One line per cell, percents at full precision; undefined ones have empty numbers.

    ``low`` and ``high`` are there for a cell of one value that has an interval. After the measured cells come those of
    the paper, with ``mean`` and ``source`` alone; what it does not report has no line.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for row, cells in table.all_cells.items():
        for column, c in cells.items():
            line = {"row": row, "column": column, "n": 0, "of": c.of, "over": c.over}
            line["source"] = MEASURED if c.implemented else LACKING
            line["values"] = ";".join(map(repr, c.values))
            if c.summary:
                line |= {"mean": repr(c.summary.mean), "half_width": _exact(c.summary.half_width), "n": c.summary.n}
            if c.interval:
                line |= {"low": repr(c.interval.low), "high": repr(c.interval.high)}
            writer.writerow(line)
    if table.paper:
        beside = {row: table.paper.of(row) for row in table.cells}
        for row, numbers in (beside | table.paper.further).items():
            for column, number in numbers.items():
                line = {"row": row, "column": f"paper: {column}", "mean": repr(number.percent)}
                writer.writerow(line | {"source": DOUBTFUL if number.doubtful else PAPER})
    return text.getvalue()


def _exact(number: float | None) -> str:
    return "" if number is None else repr(number)


# ---------------------------------------------------------------------------------------- Markdown


def to_markdown(table: FilledTable, experiment: str) -> str:
    """A heading, an aligned pipe table and notes on what ± and n mean."""
    best = table.best()
    lines = [["run", *table.columns, "n", *(f"paper: {column}" for column in _paper_columns(table))]]
    for row, cells in table.cells.items():
        marked = [f"**{t}**" if (row, c) in best else t for c, t in ((c, _show(cell)) for c, cell in cells.items())]
        lines.append([_markdown(row), *marked, _repeats(cells), *_beside(table, row)])
    for row, shown in _further(table):
        lines.append([_markdown(row), *shown])
    for row, cells in table.differences.items():
        plain = [_show(cell, sign="+") for cell in cells.values()]
        lines.append([_markdown(row), *plain, _repeats(cells), *_beside(table, row)])
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


def _paper_columns(table: FilledTable) -> list[str]:
    return list(table.paper.reported.columns) if table.paper else []


def _reported(columns: Iterable[str], numbers: Mapping[str, Number]) -> list[str]:
    """The paper's numbers, ``?`` behind implausible ones."""
    found = (numbers.get(column) for column in columns)
    return [f"{number.percent:.1f}{'?' * number.doubtful}" if number else DASH for number in found]


def _beside(table: FilledTable, row: str) -> list[str]:
    """The paper's cells of a measured row; none in a table without the paper."""
    return _reported(_paper_columns(table), table.paper.of(row)) if table.paper else []


def _further(table: FilledTable) -> Iterator[tuple[str, list[str]]]:
    """The rows that only the paper has: label, and all cells after it."""
    for row, numbers in table.paper.further.items() if table.paper else ():
        yield row, [DASH] * (len(table.columns) + 1) + _reported(_paper_columns(table), numbers)


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
    """Where the paper's numbers come from, and why they are no comparison."""
    reported = paper.reported
    by_metric: dict[str, list[str]] = {}
    for column, metric in reported.columns.items():
        by_metric.setdefault(metric, []).append(column)
    metrics = "; ".join(f"{metric} of {', '.join(columns)}" for metric, columns in by_metric.items())
    yield (
        f"paper: numbers of the paper ({SOURCE}, Table {paper.table}; {reported.pretraining}), not measured here: "
        f"other data, model and scale, unless this experiment has the paper's. {metrics}."
    )
    yield f"{DASH} beside them: not reported, or not measured."
    if any(number.doubtful for cells in reported.rows.values() for number in cells.values()):
        yield f"?: printed so in the paper, but implausible: {reported.doubt}."


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
    """A floating booktabs table, one header row for tasks and one for metrics, ready for ``\\input``.

    The paper's columns are a group of their own, behind ``n``.
    """
    best = table.best()
    groups = [("", ["run"])]
    for task, columns in groupby(table.columns, lambda column: column.split(".", 1)[0]):
        groups.append((escape_tex(task), [escape_tex(column.split(".", 1)[1]) for column in columns]))
    groups.append(("", ["$n$"]))
    if table.paper:
        header = escape_tex(f"paper ({table.paper.reported.setting})")
        groups.append((header, [escape_tex(column) for column in _paper_columns(table)]))
    tops, rules, at = [], [], 1
    for top, names in groups:
        tops.append(rf"\multicolumn{{{len(names)}}}{{c}}{{{top}}}" if top else "")
        rules += [rf"\cmidrule(lr){{{at}-{at + len(names) - 1}}}"] if top else []
        at += len(names)
    body = []
    for row, cells in table.cells.items():
        shown = [(column, escape_tex(_show(cell))) for column, cell in cells.items()]
        marked = [rf"\textbf{{{t}}}" if (row, column) in best else t for column, t in shown]
        body.append(_tex_line([escape_tex(row), *marked, *map(escape_tex, (_repeats(cells), *_beside(table, row)))]))
    if further := list(_further(table)):
        body.append(r"\midrule")
    body += [_tex_line(map(escape_tex, (row, *shown))) for row, shown in further]
    if table.differences:
        body.append(r"\midrule")
    for row, cells in table.differences.items():
        plain = (_show(cell, sign="+") for cell in cells.values())
        body.append(_tex_line(map(escape_tex, (row, *plain, _repeats(cells), *_beside(table, row)))))
    caption = escape_tex(" ".join([f"{table.name} (experiment {experiment}), percent.", *_notes(table)]))
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}l{'r' * len(_paper_columns(table))}}}",
            r"\toprule",
            _tex_line(tops),
            " ".join(rules),
            _tex_line(name for _, names in groups for name in names),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _tex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"
