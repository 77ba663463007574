"""Print a filled table as CSV, Markdown and LaTeX.

    print(to_markdown(fill_table("classification", spec, metrics), "scenes"))

CSV keeps percents at full precision. ``mls.report.layout`` decides what the other formats show.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import pandas as pd

from mls.report.layout import DASH, LACKING, PAPER, lay_out, units
from mls.report.tables import FilledTable
from mls.runtime.markdown import pipe_table

CSV_COLUMNS = ("row", "column", "mean", "half_width", "n", "of", "over", "values", "low", "high", "source", "protocol")

# --------------------------------------------------------------------------------------------- CSV


def to_csv(table: FilledTable) -> str:
    """One line per cell, percents at full precision; undefined cells have empty numbers.

    A cell of one value with a bootstrap interval has ``low`` and ``high``. After the measured cells come the paper's,
    with only ``mean`` and ``source``, and the differences from them; what the paper does not report has no line.
    ``source`` is ``measured``, ``not implemented``, ``paper``, ``paper?`` (printed so, but implausible), ``paper,
    decoded`` (read from the vectors of a figure) or ``difference`` (ours minus the paper's). ``protocol`` says how a
    row's pretraining differs from that of most rows, or a comparison from the paper's protocol.
    """
    # objects: in a column of floats, integers next to empty cells would become floats
    lines = pd.DataFrame([*_measured_lines(table), *_paper_lines(table)], columns=CSV_COLUMNS, dtype=object)
    return lines.to_csv(index=False, lineterminator="\n")


def _measured_lines(table: FilledTable) -> Iterator[dict[str, Any]]:
    for row, cells in table.all_cells.items():
        for column, c in cells.items():
            line = {"row": row, "column": column, "n": 0, "of": c.of, "over": c.over}
            line |= {"source": "measured" if c.implemented else LACKING, "protocol": table.remarks.get(row, "")}
            line |= {"values": ";".join(map(repr, c.values))} | (vars(c.summary) if c.summary else {})
            yield line | ({"low": c.interval.low, "high": c.interval.high} if c.interval else {})


def _paper_lines(table: FilledTable) -> Iterator[dict[str, Any]]:
    if table.paper is None:
        return
    beside = {row: table.paper.of(row) for row in table.cells}
    for row, numbers in (beside | table.paper.further).items():
        for column, number in numbers.items():
            source = "paper?" if number.doubt else "paper, decoded" if number.decoded else PAPER
            yield {"row": row, "column": f"paper: {column}", "mean": number.percent, "source": source}
    for row, numbers in beside.items():
        for column, theirs in table.paper.columns.items():
            if theirs in numbers and (summary := table.cells[row][column].summary):
                line = {"row": row, "column": f"{column} - paper: {theirs}", "source": "difference"}
                line["protocol"] = table.against.get((row, column), "")
                yield line | {"mean": summary.mean - numbers[theirs].percent}


# ---------------------------------------------------------------------------------------- Markdown


def to_markdown(table: FilledTable, experiment: str) -> str:
    """A heading, an aligned pipe table and notes on what ± and n mean."""
    layout = lay_out(table)
    rows = [[f"{group}: {name}" if PAPER in group else f"{group}.{name}".lstrip(".") for group, name in layout.header]]
    for line in layout.lines:
        label = line.label.replace("|", "\\|").replace("*", "\\*")  # swept values may hold any character
        rows.append([label, *(f"**{c.text}**" if c.best else c.text for c in line.cells)])
    notes = [f"- {note}" for note in layout.notes]
    head = [f"### {table.name}", "", f"Experiment `{experiment}`, {units(table)}.", ""]
    return "\n".join([*head, *pipe_table(rows), "", *notes]) + "\n"


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
"""Characters that LaTeX would read as a command or typeset as something else."""


def escape_tex(text: str) -> str:
    """Plain text as ASCII LaTeX source; other characters become their code (``\\u00e9``)."""
    out = "".join(TEX.get(c, c) for c in text)
    return "".join(c if c.isascii() else TEX["\\"] + c.encode("ascii", "backslashreplace").decode()[1:] for c in out)


def to_latex(table: FilledTable, experiment: str) -> str:
    """A floating booktabs table, one header row for tasks and one for metrics, ready for ``\\input``.

    The paper's columns are groups of their own, to the right of ``n``.
    """
    layout = lay_out(table)
    tops, rules, at = [], [], 1
    for group, columns in groupby(layout.header, lambda column: column[0]):
        span = len(list(columns))
        if group:
            number = f" ({table.paper.reported.title.split(':')[0]})" if group == PAPER and table.paper else ""
            tops.append(rf"\multicolumn{{{span}}}{{c}}{{{escape_tex(group + number)}}}")
            rules.append(rf"\cmidrule(lr){{{at}-{at + span - 1}}}")
        else:
            tops += [""] * span
        at += span
    names = ["$n$" if column == ("", "n") else escape_tex(column[1]) for column in layout.header]
    body = []
    for _, same_kind in groupby(layout.lines, lambda line: line.kind):
        body.append(r"\midrule")
        for line in same_kind:
            cells = (rf"\textbf{{{escape_tex(c.text)}}}" if c.best else escape_tex(c.text) for c in line.cells)
            body.append(_tex_line([escape_tex(line.label), *cells]))
    caption = escape_tex(" ".join([f"{table.name} (experiment {experiment}), {units(table)}.", *layout.notes]))
    beside = len(layout.header) - len(table.columns) - 2
    top = [r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"]
    top += [rf"\label{{tab:{table.name}}}", rf"\begin{{tabular}}{{l{'r' * len(table.columns)}l{'r' * beside}}}"]
    head = [r"\toprule", _tex_line(tops), " ".join(rules), _tex_line(names)]
    return "\n".join([*top, *head, *body, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _tex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"
