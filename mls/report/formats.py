"""Print a filled table as CSV, Markdown and LaTeX.

    print(to_markdown(fill("classification", spec, metrics), "scenes"))

CSV keeps percents at full precision. What the others show, and how, is in ``mls.report.layout``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from itertools import groupby

from mls.report.layout import DASH, LACKING, PAPER, Layout, Line, lay_out
from mls.report.tables import FilledTable

CSV_COLUMNS = ("row", "column", "mean", "half_width", "n", "of", "over", "values", "low", "high", "source", "protocol")
MEASURED, DOUBTFUL, DECODED, DIFFERENCE = "measured", "paper?", "paper, decoded", "difference"
"""What ``source`` may be, beside ``paper`` and ``not implemented``; ``paper?``: printed so in the paper, but
implausible; decoded: read from a figure's vectors; difference: ours - the paper's."""

# --------------------------------------------------------------------------------------------- CSV


def to_csv(table: FilledTable) -> str:
    """One line per cell, percents at full precision; undefined ones have empty numbers.

    ``low`` and ``high`` are there for a cell of one value that has an interval. After the measured cells come those of
    the paper, with ``mean`` and ``source`` alone, and the differences from them; what it does not report has no line.
    ``protocol`` says in what a row's pretraining differs from most rows', or a comparison from the paper's protocol.
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
            writer.writerow(line | {"protocol": table.remarks.get(row, "")})
    if table.paper:
        beside = {row: table.paper.of(row) for row in table.cells}
        for row, numbers in (beside | table.paper.further).items():
            for column, number in numbers.items():
                source = DOUBTFUL if number.doubt else DECODED if number.decoded else PAPER
                line = {"row": row, "column": f"paper: {column}", "mean": repr(number.percent)}
                writer.writerow(line | {"source": source})
        for row, numbers in beside.items():
            for column, theirs in table.paper.columns.items():
                if theirs in numbers and (summary := table.cells[row][column].summary):
                    line = {"row": row, "column": f"{column} - paper: {theirs}", "source": DIFFERENCE}
                    line["mean"] = repr(summary.mean - numbers[theirs].percent)
                    writer.writerow(line | {"protocol": table.against.get((row, column), "")})
    return text.getvalue()


def _exact(number: float | None) -> str:
    return "" if number is None else repr(number)


# ---------------------------------------------------------------------------------------- Markdown


def to_markdown(table: FilledTable, experiment: str) -> str:
    """A heading, an aligned pipe table and notes on what ± and n mean."""
    layout = lay_out(table, experiment)
    lines = [[_flat(group, name) for group, name in layout.header]]
    for line in layout.lines:
        lines.append([_markdown(line.label), *(f"**{c.text}**" if c.best else c.text for c in line.cells)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [f"### {layout.title}", "", f"Experiment `{layout.experiment}`, percent.", "", _pipes(lines[0], widths)]
    text.append("|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|")
    text += [_pipes(line, widths) for line in lines[1:]]
    text += ["", *(f"- {note}" for note in layout.notes)]
    return "\n".join(text) + "\n"


def _flat(group: str, name: str) -> str:
    """A column's name in one line: ``linear.mAP``, ``paper: VOC07``."""
    return f"{group}: {name}" if PAPER in group else f"{group}.{name}".lstrip(".")


def _pipes(line: list[str], widths: list[int]) -> str:
    first, rest = line[0].ljust(widths[0]), [text.rjust(w) for text, w in zip(line[1:], widths[1:], strict=True)]
    return "| " + " | ".join([first, *rest]) + " |"


def _markdown(label: str) -> str:
    """Swept values may hold any character; these two would break the table."""
    return label.replace("|", "\\|").replace("*", "\\*")


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

    The paper's columns are groups of their own, behind ``n``.
    """
    layout = lay_out(table, experiment)
    tops, rules, at = [], [], 1
    for group, columns in groupby(layout.header, lambda column: column[0]):
        span = len(list(columns))
        tops.append(rf"\multicolumn{{{span}}}{{c}}{{{escape_tex(_group(group, table))}}}" if group else "")
        tops += [""] * (span - 1) if not group else []
        rules += [rf"\cmidrule(lr){{{at}-{at + span - 1}}}"] if group else []
        at += span
    names = ["$n$" if column == ("", "n") else escape_tex(column[1]) for column in layout.header]
    beside = len(layout.header) - len(table.columns) - 2
    caption = escape_tex(" ".join([f"{layout.title} (experiment {experiment}), percent.", *layout.notes]))
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}l{'r' * beside}}}",
            r"\toprule",
            _tex_line(tops),
            " ".join(rules),
            _tex_line(names),
            *_tex_body(layout),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _group(group: str, table: FilledTable) -> str:
    return f"{group} ({table.paper.reported.title.split(':')[0]})" if group == PAPER and table.paper else group


def _tex_body(layout: Layout) -> Iterable[str]:
    """The lines, a rule before each kind of them."""
    for _, lines in groupby(layout.lines, lambda line: line.kind):
        yield r"\midrule"
        yield from map(_tex_row, lines)


def _tex_row(line: Line) -> str:
    cells = (rf"\textbf{{{escape_tex(c.text)}}}" if c.best else escape_tex(c.text) for c in line.cells)
    return _tex_line([escape_tex(line.label), *cells])


def _tex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"
