"""A metric against the value of one parameter, as in the paper's Fig. 5: ``plot`` of a table.

figure = draw_sweep(table, {"key": "moco.queue_size", "x": {"D[queue_size=1024]": 1024, ...}}, "moco-v2", None)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mls.config.paper import SOURCE, Beside
from mls.report.style import PALETTE, legend_below
from mls.report.tables import Filled, FilledTable

ACROSS = 3
WIDTH = 3.4
"""Of a panel, inches."""
OCTAVES = 4
"""An axis whose greatest value is so many times the least is logarithmic."""


def draw_sweep(
    table: FilledTable, plot: Mapping[str, Any], baseline: str | None, beside: Beside | None
) -> Figure | None:
    """A panel per column: means with 95 % t-intervals, and a line at the baseline's; None if nothing was measured.

    Args:
        table: with its numbers.
        plot: ``key``, the parameter, and ``x``, row -> its value; rows that are not there are no points.
        baseline: row whose mean is a line across; None without.
        beside: the paper's table; if it is a sweep, its points are drawn too: in the panel of the column that is
            compared with them, else in a panel of their own.
    """
    compared = beside.columns if beside else {}
    alone = next(iter(beside.reported.columns)) if beside and beside.points() and not compared else None
    points = sorted(plot["x"].items(), key=lambda item: (item[1], item[0]))
    columns = [c for c in table.columns if any(table.cells[row][c].summary for row, _ in points)]
    if not columns:
        return None
    panels = len(columns) + (alone is not None)
    across = min(ACROSS, panels)
    down = -(-panels // across)
    figure = Figure(figsize=(max(WIDTH * across, 4.6), 2.7 * down + 0.6), layout="constrained")
    all_axes = figure.subplots(down, across, squeeze=False).ravel()
    entries: dict[str, Any] = {}
    for axes, column in zip(all_axes, columns, strict=False):
        drawn = [(x, cell) for row, x in points if (cell := table.cells[row][column]).summary]
        entries.setdefault("mean", draw_points(axes, drawn))
        level = table.cells[baseline][column].summary if baseline is not None else None
        if level is not None:
            line = axes.axhline(level.mean, color="0.25", linestyle="--", linewidth=0.9)
            entries.setdefault(f"{baseline}, mean", line)
        axes.set(ylabel=f"{column}, %", xlabel=plot["key"])
        theirs = beside.points(compared[column]) if beside and column in compared else {}
        if theirs:
            entries["the paper"] = draw_papers(axes, theirs)
        scale_x(axes, sorted({*(x for _, x in points), *theirs}))
    if beside and alone:
        axes = all_axes[len(columns)]
        entries["the paper"] = draw_papers(axes, beside.points(alone))
        axes.set(ylabel=f"{alone}, %", xlabel=plot["key"])
        axes.set_title(f"{SOURCE}: other data and scale", fontsize=8)
        scale_x(axes, sorted(beside.points(alone)))
    for axes in all_axes[panels:]:
        axes.remove()
    for axes in all_axes[:panels]:
        axes.grid(True, color="0.92")
    legend_below(figure, entries, bars_of(table.cells[row][c] for row, _ in points for c in columns))
    return figure


def draw_points(axes: Axes, drawn: Sequence[tuple[float, Filled]]) -> Any:
    """Points at the means, joined, with the intervals of those that have one; return the line."""
    xs, ys = [x for x, _ in drawn], [cell.summary.mean for _, cell in drawn if cell.summary]
    (line,) = axes.plot(xs, ys, "o-", color=PALETTE[0], markersize=5, linewidth=1.0)
    several = [(x, s.mean, s.half_width) for x, cell in drawn if (s := cell.summary) and s.half_width is not None]
    if several:
        x, y, widths = zip(*several, strict=True)
        axes.errorbar(x, y, yerr=widths, fmt="none", ecolor=PALETTE[0], elinewidth=1.2, capsize=3.5)
    return line


def draw_papers(axes: Axes, points: Mapping[float, float]) -> Any:
    """The paper's points, joined; return the line."""
    xs = sorted(points)
    (line,) = axes.plot(xs, [points[x] for x in xs], "s:", color=PALETTE[3], markersize=5, linewidth=1.0)
    return line


def scale_x(axes: Axes, xs: Sequence[float]) -> None:
    """Mark the values themselves on a logarithmic axis where they are far apart."""
    if min(xs) <= 0 or max(xs) / min(xs) < OCTAVES:
        axes.margins(x=0.08)
        return
    axes.set_xscale("log", base=2)
    axes.margins(x=0.08)
    labels = [f"{x:g}" if isinstance(x, float) else str(x) for x in xs]
    crowded = len(xs) * max(map(len, labels)) * 0.075 > WIDTH - 0.9
    axes.set_xticks(xs, labels, rotation=45 if crowded else 0, fontsize=8)
    axes.xaxis.set_minor_locator(NullLocator())


def bars_of(cells: Iterable[Filled]) -> str:
    """What the bars are, for the legend: of how many seeds or trials, and why a point has none."""
    shown = [cell for cell in cells if cell.summary]
    several = sorted({(cell.summary.n, cell.over) for cell in shown if cell.summary and cell.summary.n > 1})
    single = any(cell.summary and cell.summary.n == 1 for cell in shown)
    over = " or ".join(f"{n} {what}" for n, what in several)
    said = [f"bars: 95 % t-interval over {over}"] if several else []
    return "; ".join(said + ["a point without a bar: n = 1" if several else "n = 1: no error bars"] * single)
