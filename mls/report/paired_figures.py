"""Every row of a table less its baseline, seed by seed.

figure = draw_pairs(table)     # None with fewer than three seeds
"""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from mls.report.style import PALETTE, error_bars, legend_below, panels
from mls.report.tables import Filled, FilledTable, logged

LEAST_PAIRS = 3
"""Two points say no more than the table does."""


def draw_pairs(table: FilledTable) -> Figure | None:
    """A panel per column, a line per row: the difference from the baseline of each seed, their mean and its t-interval.

    Differences are in percentage points. Cells with fewer than `LEAST_PAIRS` of them stay empty; None if all do.
    """
    shown = {
        column: paired
        for column in table.columns
        if not logged(column)
        and (paired := {row: own[column] for row, own in table.differences.items() if is_paired(own[column])})
    }
    rows = [row for row in table.differences if any(row in cells for cells in shown.values())]
    if not rows:
        return None
    across = min(3, len(shown))
    figure, all_axes = panels(len(shown), across, (3.2, 0.36 * len(rows) + 0.9), (0.8, 0.5), 4.6, sharey=True)
    entries: dict[str, Any] = {}
    for axes, (column, cells) in zip(all_axes, shown.items(), strict=True):
        axes.axvline(0, color="0.25", linestyle="--", linewidth=0.9)
        places = [rows.index(row) for row in cells]
        summaries = [cell.summary for cell in cells.values() if cell.summary]
        error_bars(axes, places, summaries, "x", color="0.2", capsize=3, linewidth=1.2)
        for place, cell in zip(places, cells.values(), strict=True):
            above = [place - 0.22] * len(cell.values)
            (entries["one seed"],) = axes.plot(cell.values, above, "o", color=PALETTE[0], markersize=4, alpha=0.7)
        means = [summary.mean for summary in summaries]
        (entries["mean, 95 % t-interval"],) = axes.plot(means, places, "D", color="0.2", markersize=4)
        axes.set(title=column, xlabel="difference, points", ylim=(len(rows) - 0.5, -0.6))
        axes.set_yticks(range(len(rows)), rows)
        axes.grid(True, axis="x", color="0.9")
    legend_below(figure, entries)
    return figure


def is_paired(cell: Filled) -> bool:
    """Whether enough seeds have a difference."""
    return len(cell.values) >= LEAST_PAIRS
