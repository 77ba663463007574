"""A metric against the value of one parameter, as in the paper's Fig. 5: ``plot`` of a table.

figure = draw_sweep(table, {"key": "moco.queue_size", "x": {"D[queue_size=1024]": 1024, ...}}, "moco-v2")
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mls.config.paper import SOURCE
from mls.report.style import PALETTE, error_bars, legend_below, panels
from mls.report.tables import Filled, FilledTable, logged

PANEL_WIDTH = 3.4
"""Inches."""
OCTAVES = 4
"""The axis is logarithmic if the greatest value is at least this many times the least."""


def draw_sweep(table: FilledTable, plot: Mapping[str, Any], baseline: str | None) -> Figure | None:
    """A panel per column: means with 95 % t-intervals, and the baseline's mean as a line; None if nothing was measured.

    Args:
        table: with its numbers. If it stands beside a sweep of the paper, the paper's points are drawn too: in the
            panel of the column that is compared with them, otherwise in their own panel.
        plot: ``key``, the parameter, and ``x``, row -> its value; other rows are not plotted.
        baseline: row whose mean is drawn as a horizontal line; None without.
    """
    paper = table.paper
    compared = {column: paper.points(theirs) for column, theirs in paper.columns.items()} if paper else {}
    apart = paper.points() if paper and not paper.columns else {}
    points = sorted(plot["x"].items(), key=lambda item: (item[1], item[0]))
    columns = [c for c in table.columns if any(table.cells[row][c].summary for row, _ in points)]
    if not columns:
        return None
    count = len(columns) + bool(apart)
    figure, all_axes = panels(count, min(3, count), (PANEL_WIDTH, 2.7), (0, 0.6), 4.6)
    entries: dict[str, Any] = {}
    for axes, column in zip(all_axes, columns, strict=False):
        drawn = [(x, cell) for row, x in points if (cell := table.cells[row][column]).summary]
        entries.setdefault("mean", draw_points(axes, drawn))
        if baseline is not None and (level := table.cells[baseline][column].summary):
            line = axes.axhline(level.mean, color="0.25", linestyle="--", linewidth=0.9)
            entries.setdefault(f"{baseline}, mean", line)
        if theirs := compared.get(column, {}):
            entries["the paper"] = draw_paper_points(axes, theirs)
        finish_panel(axes, column, plot["key"], {*(x for _, x in points), *theirs})
    if paper and apart:
        entries["the paper"] = draw_paper_points(all_axes[-1], apart)
        all_axes[-1].set_title(f"{SOURCE}: other data and scale", fontsize=8)
        finish_panel(all_axes[-1], next(iter(paper.reported.columns)), plot["key"], apart)
    legend_below(figure, entries, explain_bars(table.cells[row][c] for row, _ in points for c in columns))
    return figure


def draw_points(axes: Axes, drawn: Sequence[tuple[float, Filled]]) -> Any:
    """Points at the means, joined, with their intervals; return the line."""
    xs, summaries = [x for x, _ in drawn], [cell.summary for _, cell in drawn if cell.summary]
    (line,) = axes.plot(xs, [s.mean for s in summaries], "o-", color=PALETTE[0], markersize=5, linewidth=1.0)
    error_bars(axes, xs, summaries, "y", ecolor=PALETTE[0], elinewidth=1.2, capsize=3.5)
    return line


def draw_paper_points(axes: Axes, points: Mapping[float, float]) -> Any:
    """The paper's points, joined; return the line."""
    xs = sorted(points)
    (line,) = axes.plot(xs, [points[x] for x in xs], "s:", color=PALETTE[3], markersize=5, linewidth=1.0)
    return line


def finish_panel(axes: Axes, column: str, key: str, values: Iterable[float]) -> None:
    """Name the axes; if the values are far apart, make the x axis logarithmic with a tick at each value."""
    xs = sorted(values)
    axes.set(ylabel=column if logged(column) else f"{column}, %", xlabel=key)
    axes.margins(x=0.08)
    if min(xs) > 0 and max(xs) / min(xs) >= OCTAVES:
        axes.set_xscale("log", base=2)
        labels = [f"{x:g}" if isinstance(x, float) else str(x) for x in xs]
        crowded = len(xs) * max(map(len, labels)) * 0.075 > PANEL_WIDTH - 0.9
        axes.set_xticks(xs, labels, rotation=45 if crowded else 0, fontsize=8)
        axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(True, color="0.92")


def explain_bars(cells: Iterable[Filled]) -> str:
    """What the bars are, for the legend: over how many seeds or trials, and why a point has none."""
    counts = {(cell.summary.n, cell.over) for cell in cells if cell.summary}
    several = " or ".join(f"{n} {what}" for n, what in sorted(counts) if n > 1)
    notes = [f"bars: 95 % t-interval over {several}"] if several else []
    if any(n == 1 for n, _ in counts):
        notes.append("a point without a bar: n = 1" if several else "n = 1: no error bars")
    return "; ".join(notes)
