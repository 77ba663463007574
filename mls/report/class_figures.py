"""Average precision class by class: of each run, and the differences from a table's baseline.

bars = per_class_ap(params, probes)                        # (task, split) -> row -> class -> percent
apart = class_differences(params, probes | transfers)      # (table, task) -> row -> class -> difference
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mls.config.transfers import KINDS
from mls.pipeline.artifact import Artifact
from mls.report.layout import DASH
from mls.report.style import Look, error_bars, legend_below, look, panels
from mls.report.tables import Filled, Pairs, Rows, distinct, fill_cell, mean_if_complete, subtract_row

PerClass = Mapping[str, Mapping[str, float | None]]
MOST_CLASSES = 20
MOST_ROWS = 4
MOST_RUNS = 8
"""Bars side by side that an eye can still follow."""
CLASS_METRIC = {kind: entry.per_class for kind, entry in KINDS.items() if entry.per_class}
"""Kind of transfer -> which metric of a class is compared; classifiers only have AP."""


def table_tasks(params: Mapping[str, Any]) -> Iterator[tuple[str, str, Pairs]]:
    """(row, task, its pairs of artifacts) of every table of a tables job."""
    for _, table in sorted(params["tables"].items()):
        for row in table["rows"]:
            for task, pairs in row["tasks"].items():
                yield row["label"], task, distinct(pairs)


def class_values(task: Artifact) -> dict[str, float | None]:
    """Class -> percent; empty if the task has no metrics of single classes (retrieval evaluates queries)."""
    kind = task.manifest["params"]["kind"]
    per_class = {} if kind == "retrieval" else task.read_json("metrics.json").get("per_class") or {}
    return {name: one[CLASS_METRIC[kind]] if kind in CLASS_METRIC else one for name, one in per_class.items()}


def split_of(task: Artifact) -> str:
    """The split on which a task was evaluated."""
    return "test" if task.manifest["params"].get("test", True) else "val"


# --------------------------------------------------------------------------------------- each run


def per_class_ap(params: Mapping[str, Any], probes: Mapping[str, Artifact]) -> dict[tuple[str, str], PerClass]:
    """AP per class of every classifier in a table: (task, split) -> row -> class -> mean over seeds, or None.

    Tasks with more than `MOST_CLASSES` classes or `MOST_RUNS` rows are left out.
    """
    found: dict[tuple[str, str], dict[str, Mapping[str, float | None]]] = {}
    for row, task, pairs in table_tasks(params):
        read = [probes[one] for one in dict.fromkeys(one for _, one in pairs) if one in probes]
        aps = [class_values(probe) for probe in read]
        if aps and all(aps):
            means = {name: mean_if_complete(one[name] for one in aps) for name in aps[0]}
            found.setdefault((task, split_of(read[0])), {})[row] = means
    return {
        key: by_run
        for key, by_run in sorted(found.items())
        if len(by_run) <= MOST_RUNS and all(len(aps) <= MOST_CLASSES for aps in by_run.values())
    }


def draw_per_class(title: str, by_run: PerClass, runs: list[str]) -> Figure:
    """One group of bars per class, one bar per run; percent, a dash where the AP is not defined."""
    classes = list(next(iter(by_run.values())))
    group = min(max(0.5, 0.14 * len(by_run)), 15 / len(classes))  # inches
    figure, (axes,) = panels(1, 1, (1.2 + group * len(classes), 3.6), (0, 0), 5.0)
    places, width = np.arange(len(classes)), 0.84 / len(by_run)
    entries: dict[str, Any] = {}
    for i, (run, aps) in enumerate(by_run.items()):
        own, heights = look(runs.index(run)), np.array([aps[name] for name in classes], dtype=float)  # None: NaN
        centres = places + (i - (len(by_run) - 1) / 2) * width
        for x in centres[np.isnan(heights)]:
            axes.text(x, 0.5, DASH, ha="center")
        style: dict[str, Any] = {"hatch": own.hatch, "edgecolor": "white", "linewidth": 0.4}
        entries[run] = axes.bar(centres, heights, width, color=own.colour, **style)
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
    """Differences from the baseline for one task in one table."""

    what: str
    """Metric and split."""
    baseline: str
    rows: Rows
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
            cells = {
                row: {c: fill_cell(own, {one: values[one].get(c) for _, one in own}) for c in values[own[0][1]]}
                for row, own in pairs.items()
            }
            if rows := subtract_row(cells, baseline):
                first = tasks[pairs[baseline][0][1]]
                what = f"{CLASS_METRIC.get(first.manifest['params']['kind'], 'AP')}, {split_of(first)}"
                found[name, task] = Differences(what, baseline, rows)
    return found


def draw_differences(title: str, apart: Differences, runs: list[str]) -> Figure:
    """A panel per row, a bar per class, greatest difference on top; error bars: 95 % t-intervals over seeds.

    Draws at most `MOST_ROWS` rows and, in each, the `MOST_CLASSES` classes with the greatest gains and losses; a note
    in the figure says what is left out.
    """
    shown = dict(list(apart.rows.items())[:MOST_ROWS])
    classes = min(MOST_CLASSES, max(map(len, apart.rows.values())))
    figure, all_axes = panels(len(shown), min(2, len(shown)), (4.2, 0.2 * classes + 1.0), (0.2, 0.6), sharex=True)
    notes = []
    for axes, (row, own) in zip(all_axes, shown.items(), strict=True):
        notes += draw_bars(axes, own, look(runs.index(row)))
        axes.set_title(f"{row} - {apart.baseline}", fontsize=9)
        axes.tick_params(labelbottom=True)
    if left := len(apart.rows) - len(shown):
        notes.append(f"{left} more row{'s are' if left > 1 else ' is'} not drawn")
    counts = sorted({c.summary.n for own in shown.values() for c in own.values() if c.summary})
    over = " or ".join(f"{n} seeds" for n in counts if n > 1)
    notes += [f"error bars: 95 % t-interval over {over}, paired by seed"] if over else []
    notes += ["no error bar: n = 1"] if 1 in counts else []
    figure.suptitle(f"{title}: difference of {apart.what}", fontsize=10)
    figure.supxlabel("percentage points\n" + "; ".join(dict.fromkeys(notes)), fontsize=8)
    return figure


def draw_bars(axes: Axes, own: Mapping[str, Filled], style: Look) -> list[str]:
    """The classes of one row; return what a reader must know about those that are not drawn."""
    known = {name: cell.summary for name, cell in own.items() if cell.summary}
    ordered = sorted(known, key=lambda name: -known[name].mean)
    half = MOST_CLASSES // 2
    drawn = ordered if len(ordered) <= MOST_CLASSES else ordered[:half] + ordered[-half:]
    places, summaries = np.arange(len(drawn)), [known[name] for name in drawn]
    means = [s.mean for s in summaries]
    axes.barh(places, means, 0.72, color=style.colour, hatch=style.hatch, edgecolor="white", linewidth=0.4)
    error_bars(axes, range(len(drawn)), summaries, "x", ecolor="black", elinewidth=0.9, capsize=2)
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
