"""Average precision class by class: of each run, and the differences from a table's baseline.

bars = per_class_ap(params, probes)                        # (task, split) -> row -> class -> percent
apart = class_differences(params, probes | transfers)      # (table, task) -> row -> class -> difference
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mls.config.transfers import KINDS
from mls.pipeline.artifact import Artifact
from mls.report.layout import DASH
from mls.report.statistics import mean
from mls.report.style import Look, legend_below, look
from mls.report.tables import Filled, fill_cell, subtract

PerClass = dict[str, dict[str, float]]
MOST_CLASSES = 20
MOST_ROWS = 4
MOST_RUNS = 8
"""Bars side by side that an eye can still follow."""
METRIC = {kind: entry.per_class for kind, entry in KINDS.items() if entry.per_class}
"""Kind of transfer -> which of its metrics of a class is compared; classifiers have AP alone."""


def split_of(task: Artifact) -> str:
    """Which split a task's metrics are of."""
    return "test" if task.manifest["params"].get("test", True) else "val"


# --------------------------------------------------------------------------------------- each run


def per_class_ap(params: Mapping[str, Any], probes: Mapping[str, Artifact]) -> dict[tuple[str, str], PerClass]:
    """AP per class of every classifier in a table: (task, split) -> row -> class -> mean over seeds, or NaN.

    Retrieval judges queries, not classes: it is left out.
    """
    found: dict[tuple[str, str], PerClass] = {}
    for _, table in sorted(params["tables"].items()):
        for row in table["rows"]:
            for task, pairs in row["tasks"].items():
                read = [probes[one] for one in dict.fromkeys(one for _, one in pairs) if one in probes]
                aps = [
                    p.read_json("metrics.json").get("per_class")
                    for p in read
                    if p.manifest["params"]["kind"] != "retrieval"
                ]
                if aps and all(aps):
                    found.setdefault((task, split_of(read[0])), {})[row["label"]] = {
                        name: math.nan if any(one[name] is None for one in aps) else mean([one[name] for one in aps])
                        for name in aps[0]
                    }
    return dict(sorted(found.items()))


def draw_per_class(title: str, by_run: Mapping[str, Mapping[str, float]], runs: list[str]) -> Figure:
    """One group of bars per class, one bar per run; percent, a dash where the AP is not defined."""
    classes = list(next(iter(by_run.values())))
    group = min(max(0.5, 0.14 * len(by_run)), 15 / len(classes))  # inches
    figure = Figure(figsize=(max(5.0, 1.2 + group * len(classes)), 3.6), layout="constrained")
    axes = figure.subplots()
    places, width = np.arange(len(classes)), 0.84 / len(by_run)
    entries: dict[str, Any] = {}
    for i, (run, aps) in enumerate(by_run.items()):
        own = look(runs.index(run))
        centres = places + (i - (len(by_run) - 1) / 2) * width
        for x in centres[[math.isnan(aps[name]) for name in classes]]:
            axes.text(x, 0.5, DASH, ha="center")
        entries[run] = axes.bar(
            centres,
            [aps[name] for name in classes],
            width,
            color=own.colour,
            hatch=own.hatch,
            edgecolor="white",
            linewidth=0.4,
        )
    crowded = max(map(len, classes)) * 0.09 > group
    axes.set_xticks(places, classes, rotation=40 if crowded else 0, ha="right" if crowded else "center")
    axes.set(title=f"{title}: AP per class", ylabel="AP, %", ylim=(0, 100), xlim=(-0.6, len(classes) - 0.4))
    axes.tick_params(axis="x", length=0)
    axes.grid(True, axis="y", color="0.9")
    legend_below(figure, entries)
    return figure


# ------------------------------------------------------------------------------------- differences


@dataclass(frozen=True)
class Differences:
    """Of one task in one table."""

    what: str
    """Metric and split."""
    baseline: str
    rows: dict[str, dict[str, Filled]]
    """Row -> class -> its metric minus the baseline's, paired by seed, in percentage points."""


def class_differences(params: Mapping[str, Any], tasks: Mapping[str, Artifact]) -> dict[tuple[str, str], Differences]:
    """How each row of a table with a baseline differs from it, class by class: (table, task) -> differences.

    Args:
        params: of the tables job.
        tasks: opened probes and transfers by id; those without metrics of single classes are left out.
    """
    found = {}
    for name, table in sorted(params["tables"].items()):
        baseline = table.get("baseline")
        for task in table["rows"][0]["tasks"] if baseline is not None else ():
            pairs = {row["label"]: distinct(row["tasks"][task]) for row in table["rows"]}
            values = {one: class_values(tasks[one]) for own in pairs.values() for _, one in own if one in tasks}
            if not values or not all(values.values()):
                continue
            first = tasks[pairs[baseline][0][1]]
            cells = {
                row: {c: fill_cell(own, {one: values[one].get(c) for _, one in own}) for c in values[own[0][1]]}
                for row, own in pairs.items()
            }
            rows = {
                row: {c: subtract(cell, cells[baseline][c]) for c, cell in own.items()}
                for row, own in cells.items()
                if row != baseline
            }
            if rows:
                what = METRIC.get(first.manifest["params"]["kind"], "AP")
                found[name, task] = Differences(f"{what}, {split_of(first)}", baseline, rows)
    return found


def distinct(pairs: list[list[str]]) -> tuple[tuple[str, str], ...]:
    """(pretrain id, task id) of a row: runs that do not depend on the seed appear once."""
    return tuple(dict.fromkeys((pretrain, one) for pretrain, one in pairs))


def class_values(task: Artifact) -> dict[str, float | None]:
    """Class -> percent; nothing of a task that does not judge single classes (retrieval judges queries)."""
    kind = task.manifest["params"]["kind"]
    per_class = {} if kind == "retrieval" else task.read_json("metrics.json").get("per_class") or {}
    return {name: one[METRIC[kind]] if kind in METRIC else one for name, one in per_class.items()}


def draw_differences(title: str, apart: Differences, runs: list[str]) -> Figure:
    """A panel per row, a bar per class, greatest difference on top; error bars: 95 % t-intervals over seeds.

    At most `MOST_ROWS` rows and, of each, the `MOST_CLASSES` classes with the greatest gains and losses; what is left
    out is told in the figure.
    """
    shown = list(apart.rows)[:MOST_ROWS]
    across = min(2, len(shown))
    down = -(-len(shown) // across)
    classes = min(MOST_CLASSES, max(len(own) for own in apart.rows.values()))
    figure = Figure(figsize=(4.2 * across + 0.2, (0.2 * classes + 1.0) * down + 0.6), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharex=True)
    notes = []
    for axes, row in zip(grid.ravel(), shown, strict=False):
        notes += draw_bars(axes, apart.rows[row], look(runs.index(row)))
        axes.set_title(f"{row} - {apart.baseline}", fontsize=9)
        axes.tick_params(labelbottom=True)
    for axes in grid.ravel()[len(shown) :]:
        axes.remove()
    if left := len(apart.rows) - len(shown):
        notes.append(f"{left} more row{'s are' if left > 1 else ' is'} not drawn")
    of = sorted({c.summary.n for row in shown for c in apart.rows[row].values() if c.summary})
    over = " or ".join(f"{n} seeds" for n in of if n > 1)
    notes += [f"error bars: 95 % t-interval over {over}, paired by seed"] if over else []
    notes += ["no error bar: n = 1"] if 1 in of else []
    figure.suptitle(f"{title}: difference of {apart.what}", fontsize=10)
    figure.supxlabel("percentage points\n" + "; ".join(dict.fromkeys(notes)), fontsize=8)
    return figure


def draw_bars(axes: Axes, own: Mapping[str, Filled], style: Look) -> list[str]:
    """The classes of one row; return what a reader has to know of those that are not drawn."""
    known = [(c.summary.mean, -i, name) for i, (name, c) in enumerate(own.items()) if c.summary]
    ordered = [name for _, _, name in sorted(known, reverse=True)]
    half = MOST_CLASSES // 2
    drawn = ordered if len(ordered) <= MOST_CLASSES else ordered[:half] + ordered[-half:]
    summaries = [summary for name in drawn if (summary := own[name].summary)]
    places = np.arange(len(drawn))
    means = [s.mean for s in summaries]
    axes.barh(places, means, 0.72, color=style.colour, hatch=style.hatch, edgecolor="white", linewidth=0.4)
    bars = [(y, s.mean, s.half_width) for y, s in enumerate(summaries) if s.half_width is not None]
    if bars:
        y, x, widths = zip(*bars, strict=True)
        axes.errorbar(x, y, xerr=widths, fmt="none", ecolor="black", elinewidth=0.9, capsize=2)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(places, drawn, fontsize=8)
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x", color="0.9")
    notes = []
    if left := len(ordered) - len(drawn):
        axes.axhline(half - 0.5, color="0.4", linestyle=":", linewidth=0.9)
        notes.append(f"dotted line: {left} classes between are not drawn")
    if undefined := len(own) - len(ordered):
        notes.append(f"{undefined} class{'es' if undefined > 1 else ''} without a value in both")
    return notes
