"""Fill the cells of a table from the metrics of its artifacts; ``mls.report.formats`` prints it.

    table = fill("classification", spec, metrics)      # spec: from the plan's tables job
    print(to_markdown(table, "scenes"))

Metrics are percents, and higher is better for every one of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from mls.config.paper import Beside
from mls.report.statistics import Summary, mean, summarise


class Interval(NamedTuple):
    """Bootstrap interval of one value over the images it was judged by; it does not cover how pretrainings vary."""

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
    """One per seed (the mean of its trials) or per trial, in the plan's order; None for one that gave no value."""
    sources: tuple[tuple[str, str], ...]
    """The (pretrain id, task id) pairs behind the number."""
    interval: Interval | None = None
    """Of a cell of one value whose task has one."""
    implemented: bool = True
    """False: of a task of the paper that nothing here runs."""

    @property
    def of(self) -> int:
        """How many seeds (or trials) the plan has; more than ``summary.n`` where some gave no value."""
        return len(self.units)

    @property
    def values(self) -> tuple[float, ...]:
        """The units that gave one."""
        return tuple(unit for unit in self.units if unit is not None)


@dataclass(frozen=True)
class FilledTable:
    """A table with its numbers: ``cells[row][column]``."""

    name: str
    columns: list[str]
    cells: dict[str, dict[str, Filled]]
    differences: dict[str, dict[str, Filled]]
    """Rows ``<row> - <baseline>``, paired by seed; none without a baseline."""
    paper: Beside | None
    """Numbers of the paper to print beside them."""
    remarks: Mapping[str, str] = field(default_factory=dict)
    """Rows whose pretraining is not that of most rows -> in what it differs (``mls.report.protocol``)."""
    against: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(row, column) that are compared with the paper, but are of another protocol -> in what it differs."""

    @property
    def all_cells(self) -> dict[str, dict[str, Filled]]:
        """Rows and differences."""
        return self.cells | self.differences

    def best(self) -> set[tuple[str, str]]:
        """(row, column) of the greatest unrounded mean of each column that has at least two."""
        found = set()
        for column in self.columns:
            means = {row: s.mean for row, cells in self.cells.items() if (s := cells[column].summary)}
            if len(means) > 1:
                found |= {(row, column) for row, value in means.items() if value == max(means.values())}
        return found


# ------------------------------------------------------------------------------------------ filling


def fill(name: str, spec: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]]) -> FilledTable:
    """Average the metrics of every cell.

    Args:
        name: of the table.
        spec: ``{"columns": [...], "rows": [{"label", "tasks": {task: [[pretrain id, task id], ...]}}]}``, and
            ``"baseline"``, the label of a row, ``"paper"``, ``{"table", "rows": {row: row of the paper}, "columns":
            {column: column of the paper}}``, and ``"not_implemented"``, further columns, where there are any.
        metrics: task id -> content of its ``metrics.json``.
    """
    cells: dict[str, dict[str, Filled]] = {}
    lacking = {c: Filled(None, "seeds", (), (), implemented=False) for c in spec.get("not_implemented", [])}
    for row in spec["rows"]:
        cells[row["label"]] = {}
        for column in spec["columns"]:
            task, metric = column.split(".", 1)
            pairs = tuple(dict.fromkeys((pretrain, one) for pretrain, one in row["tasks"][task]))
            cell = fill_cell(pairs, {one: metrics[one].get(metric) for _, one in pairs})
            if len(pairs) == 1 and cell.summary:
                cell = replace(cell, interval=bootstrap(metrics[pairs[0][1]], metric))
            cells[row["label"]][column] = cell
        cells[row["label"]] |= lacking
    baseline = spec.get("baseline")
    differences = {
        f"{row} - {baseline}": {
            column: subtract(cell, cells[baseline][column]) if cell.implemented else cell
            for column, cell in own.items()
        }
        for row, own in cells.items()
        if baseline is not None and row != baseline
    }
    paper = None
    if beside := spec.get("paper"):  # in the table's order: that of mappings is no part of the tables' id
        rows, columns = beside.get("rows", {}), beside.get("columns", {})
        paper = Beside(
            beside["table"],
            {row: rows[row] for row in cells if row in rows},
            {column: columns[column] for column in spec["columns"] if column in columns},
        )
    return FilledTable(name, [*spec["columns"], *lacking], cells, differences, paper)


def bootstrap(metrics: Mapping[str, Any], metric: str) -> Interval | None:
    """The interval that a task gives for one of its metrics; only probes give any, and not for all metrics."""
    found = metrics.get("interval") or {}
    ends = found.get(metric)
    return Interval(ends[0], ends[1], found["level"], found["covers"]) if ends else None


def fill_cell(pairs: tuple[tuple[str, str], ...], found: Mapping[str, float | None]) -> Filled:
    """Average over trials, then over seeds; with one seed, over its trials.

    A seed of which any trial gave no value is left out whole: the mean of its other trials would
    not be comparable with the mean of another seed's.

    Args:
        pairs: distinct (pretrain id, task id); runs that do not depend on the seed appear once.
        found: task id -> value; None or a non-finite number where the metric is not defined.
    """
    trials: dict[str, list[float | None]] = {}
    for pretrain, task in pairs:
        value = found[task]
        trials.setdefault(pretrain, []).append(value if value is not None and math.isfinite(value) else None)
    if len(trials) > 1:
        over = "seeds"
        units = [mean([v for v in t if v is not None]) if None not in t else None for t in trials.values()]
    else:
        units = next(iter(trials.values()))
        over = "trials" if len(units) > 1 else "seeds"
    return summarised(over, tuple(units), pairs)


def summarised(over: str, units: tuple[float | None, ...], sources: tuple[tuple[str, str], ...]) -> Filled:
    """A cell with the mean and interval of what its units gave."""
    values = [unit for unit in units if unit is not None]
    return Filled(summarise(values) if values else None, over, units, sources)


def subtract(cell: Filled, baseline: Filled) -> Filled:
    """Difference of two cells, seed by seed, so that what a seed does to both cancels out.

    A seed that lacks a value in either is left out. Cells of unequally many seeds (weights that were given have one)
    have no pairs: their difference has no units.
    """
    ours, theirs = by_seed(cell), by_seed(baseline)
    pairs = zip(ours, theirs, strict=True) if len(ours) == len(theirs) else ()
    units = tuple(None if a is None or b is None else a - b for a, b in pairs)
    return summarised("seeds", units, cell.sources + baseline.sources)


def by_seed(cell: Filled) -> tuple[float | None, ...]:
    """A cell's units; of one seed with several trials, their mean."""
    if cell.over == "seeds":
        return cell.units
    return (mean(cell.values) if None not in cell.units else None,)


def to_metrics(table: FilledTable) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """``{row: {column: {"mean", "half_width", "n"}}}``, for ``dvc metrics``: what was measured, and that alone.

    A cell that has an interval of its one value has its ends too, ``low`` and ``high``; undefined cells are left out.
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
