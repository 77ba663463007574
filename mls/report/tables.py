"""Fill the cells of a table from the metrics of its artifacts; ``mls.report.formats`` prints it.

    table = fill_table("classification", spec, metrics)      # spec: from the plan's tables job
    print(to_markdown(table, "scenes"))

Metrics of tasks are percents, and higher is better for all of them. Those of a pretraining itself are as its log has
them, and none is best.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, NamedTuple

from mls.config.methods import LOGGED, PRETRAIN
from mls.config.paper import Beside

CONFIDENCE = 0.95
Pairs = tuple[tuple[str, str], ...]
"""(pretrain id, task id) of each value behind a cell."""


@dataclass(frozen=True)
class Summary:
    """Mean of ``n`` values; ``half_width`` of its confidence interval is None for one value."""

    mean: float
    half_width: float | None
    n: int


class BootstrapInterval(NamedTuple):
    """Bootstrap interval of one value over its test images; it does not cover how pretrainings vary."""

    low: float
    high: float
    level: float
    """0.95 for 95 %."""
    covers: str
    """``test sampling only``"""


@dataclass(frozen=True)
class Filled:
    """One cell. ``summary`` is None where the metric is not defined for this task."""

    summary: Summary | None
    over: str
    """What was averaged: ``seeds`` or ``trials``."""
    units: tuple[float | None, ...]
    """One per seed (the mean of its trials) or per trial, in the plan's order; None where there is no value."""
    sources: Pairs
    interval: BootstrapInterval | None = None
    """Only for a cell of one value."""
    implemented: bool = True
    """False for a task of the paper that this project cannot run."""

    @property
    def of(self) -> int:
        """Number of planned seeds (or trials); more than ``summary.n`` where some gave no value."""
        return len(self.units)

    @property
    def values(self) -> tuple[float, ...]:
        """The units that gave a value."""
        return tuple(unit for unit in self.units if unit is not None)


Rows = dict[str, dict[str, Filled]]
"""Row -> column (or class) -> cell."""


@dataclass(frozen=True)
class FilledTable:
    """A table with its numbers: ``cells[row][column]``."""

    name: str
    columns: list[str]
    cells: Rows
    differences: Rows
    """Rows ``<row> - <baseline>``, paired by seed; empty without a baseline."""
    paper: Beside | None
    """Numbers of the paper to print beside them."""
    remarks: Mapping[str, str] = field(default_factory=dict)
    """Row whose pretraining differs from that of most rows -> how it differs (``mls.report.protocol``)."""
    partial: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Task -> number of classes that its means are over, and of all classes; only where some are left out."""
    against: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(row, column) compared with the paper under another protocol -> how the protocol differs."""

    @property
    def all_cells(self) -> Rows:
        """Rows and differences."""
        return self.cells | self.differences

    def best(self) -> set[tuple[str, str]]:
        """(row, column) of the greatest unrounded mean in each column of a task that has at least two."""
        found = set()
        for column in (one for one in self.columns if not logged(one)):
            means = {row: s.mean for row, cells in self.cells.items() if (s := cells[column].summary)}
            if len(means) > 1:
                found |= {(row, column) for row, value in means.items() if value == max(means.values())}
        return found


def logged(column: str) -> bool:
    """Whether a column is of the pretraining's log, and so no percent. (A task of that name would hide it.)"""
    task, _, metric = column.partition(".")
    return task == PRETRAIN and metric in LOGGED


# ------------------------------------------------------------------------------------------ filling


def fill_table(name: str, spec: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]]) -> FilledTable:
    """Average the metrics of every cell.

    Args:
        name: of the table.
        spec: ``{"columns": [...], "rows": [{"label", "tasks": {task: [[pretrain id, task id], ...]}}]}``, and
            optionally ``"baseline"``, the label of a row; ``"paper"``, ``{"table", "rows": {row: row of the paper},
            "columns": {column: column of the paper}}``; and ``"not_implemented"``, additional columns.
        metrics: id of a task, or of a pretraining whose log is shown -> content of its ``metrics.json``.
    """
    lacking = {c: Filled(None, "seeds", (), (), implemented=False) for c in spec.get("not_implemented", [])}
    cells: Rows = {}
    for row in spec["rows"]:
        own = cells[row["label"]] = {}
        for column in spec["columns"]:
            task, metric = column.split(".", 1)
            pairs = distinct(row["tasks"][task])
            cell = fill_cell(pairs, {one: metrics[one].get(metric) for _, one in pairs})
            if len(pairs) == 1 and cell.summary:
                cell = replace(cell, interval=bootstrap(metrics[pairs[0][1]], metric))
            own[column] = cell
        own |= lacking
    baseline = spec.get("baseline")
    differences = {f"{row} - {baseline}": own for row, own in subtract_row(cells, baseline).items()}
    paper = None
    if beside := spec.get("paper"):  # in the table's order: the id does not cover the order of mappings
        claims, columns = (
            {key: chosen[key] for key in order if key in chosen}
            for chosen, order in ((beside.get("rows", {}), cells), (beside.get("columns", {}), spec["columns"]))
        )
        paper = Beside(beside["table"], claims, columns)
    averaged = {task for task, metric in (column.split(".", 1) for column in spec["columns"]) if metric != "top1"}
    partial = {
        task: (one["classes_in_mean"], len(one["per_class"]))
        for row in spec["rows"]
        for task in row["tasks"]
        if task in averaged
        for one in (metrics[found] for _, found in row["tasks"][task])
        if one.get("classes_in_mean", math.inf) < len(one.get("per_class", ()))
    }
    return FilledTable(name, [*spec["columns"], *lacking], cells, differences, paper, partial=partial)


def distinct(pairs: list[list[str]]) -> Pairs:
    """(pretrain id, task id) of a row, once each: runs that do not depend on the seed are repeated in the plan."""
    return tuple(dict.fromkeys((pretrain, one) for pretrain, one in pairs))


def bootstrap(metrics: Mapping[str, Any], metric: str) -> BootstrapInterval | None:
    """The interval in a task's ``metrics.json``; only probes give any, and not for all metrics."""
    found = metrics.get("interval") or {}
    ends = found.get(metric)
    return BootstrapInterval(ends[0], ends[1], found["level"], found["covers"]) if ends else None


def fill_cell(pairs: Pairs, found: Mapping[str, float | None]) -> Filled:
    """Average over trials, then over seeds; with one seed, over its trials.

    A seed with a missing trial is left out completely: the mean of its other trials is not comparable with the mean
    of another seed.

    Args:
        pairs: distinct (pretrain id, task id); runs that do not depend on the seed appear once.
        found: task id -> value; None or a non-finite number where the metric is not defined.
    """
    trials: dict[str, list[float | None]] = {}
    for pretrain, task in pairs:
        value = found[task]
        trials.setdefault(pretrain, []).append(value if value is not None and math.isfinite(value) else None)
    if len(trials) > 1:
        return summarised_cell("seeds", tuple(map(mean_if_complete, trials.values())), pairs)
    (units,) = trials.values()
    return summarised_cell("trials" if len(units) > 1 else "seeds", tuple(units), pairs)


def mean_if_complete(units: Iterable[float | None]) -> float | None:
    """The mean, or None if a value is missing."""
    values = list(units)
    return None if None in values else fmean([v for v in values if v is not None])


def mean_with_interval(values: Sequence[float]) -> Summary:
    """Mean of at least one value, and half the width of its two-sided 95 % t-interval.

    The half-width is ``t(0.975, n - 1) * s / sqrt(n)``, where s is the sample standard deviation (n - 1 in the
    denominator). Sums are rounded only once, so the order of the values does not matter.
    """
    n, mean = len(values), fmean(values)
    if n < 2:
        return Summary(mean, None, n)
    from scipy.stats import t  # here, because importing it takes a second and planning never needs it

    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    return Summary(mean, float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * deviation / math.sqrt(n), n)


def summarised_cell(over: str, units: tuple[float | None, ...], sources: Pairs) -> Filled:
    """A cell with the mean and the interval of the units that gave a value."""
    values = [unit for unit in units if unit is not None]
    return Filled(mean_with_interval(values) if values else None, over, units, sources)


def subtract_row(cells: Rows, baseline: str | None) -> Rows:
    """Every other row minus the row ``baseline``; nothing without a baseline."""
    return {
        row: {key: subtract(cell, cells[baseline][key]) for key, cell in own.items()}
        for row, own in cells.items()
        if baseline is not None and row != baseline
    }


def subtract(cell: Filled, baseline: Filled) -> Filled:
    """Difference of two cells, seed by seed, so that what a seed does to both cancels out.

    A seed without a value in either cell is left out. Cells with different numbers of seeds (given weights have one)
    cannot be paired: their difference has no units.
    """
    if not cell.implemented:
        return cell
    ours, theirs = by_seed(cell), by_seed(baseline)
    pairs = zip(ours, theirs, strict=True) if len(ours) == len(theirs) else ()
    units = tuple(None if a is None or b is None else a - b for a, b in pairs)
    return summarised_cell("seeds", units, cell.sources + baseline.sources)


def by_seed(cell: Filled) -> tuple[float | None, ...]:
    """A cell's units; for one seed with several trials, their mean."""
    return cell.units if cell.over == "seeds" else (mean_if_complete(cell.units),)


def to_metrics(table: FilledTable) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """``{row: {column: {"mean", "half_width", "n"}}}``, for ``dvc metrics``: only what was measured.

    A cell with a bootstrap interval also has its ends, ``low`` and ``high``; undefined cells are left out.
    """
    return {
        row: {
            column: {"mean": c.summary.mean, "half_width": c.summary.half_width, "n": c.summary.n}
            | ({"low": c.interval.low, "high": c.interval.high} if c.interval else {})
            for column, c in cells.items()
            if c.summary
        }
        for row, cells in table.all_cells.items()
    }
