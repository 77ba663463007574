"""Differences from a baseline, seed by seed: what is drawn, and when nothing is."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

from mls.report.build_tables import fill_tables
from mls.report.paired_figures import draw_pairs
from mls.report.tables import FilledTable
from tests.report.support import make_tables, small_plan, write_inputs

T2 = 4.3026527299  # t(0.975, 2 degrees of freedom)
RUNS = {"random": {"method": "none"}, "moco-v2": {"method": "moco"}, "mls": {}}
TABLE = {"columns": ["linear.mAP", "detect.box_AP"], "baseline": "moco-v2"}
BASE, MLS = [50.0, 60.0, 70.0], [51.0, 62.0, 73.0]


def table_of(mls: list[float | None], **changes: object) -> FilledTable:
    """Three seeds of MoCo-v2 and MLS, by linear probe; box AP of MLS has no value, random is 40."""
    plan = small_plan(seeds=list(range(len(mls))), runs=RUNS, tables={"main": TABLE | changes})
    metrics: dict[str, dict[str, float | None]] = {}
    for job in [*plan.stage("probe"), *plan.stage("transfer")]:
        row, _, seed = plan.labels[job.id][0].split("/")[1].partition(":")
        by_row: dict[str, list[float | None]] = {"random": [40.0] * 3, "moco-v2": [*BASE], "mls": mls}
        metrics[job.id] = {"mAP": by_row[row][int(seed or 0)], "box_AP": None if row == "mls" else 1.0}
    (table,) = fill_tables(plan, metrics)
    return table


def test_each_seed_the_mean_and_its_interval_are_drawn() -> None:
    figure = draw_pairs(table_of([*MLS]))
    assert figure
    linear, detect = figure.axes
    assert [axes.get_title() for axes in figure.axes] == TABLE["columns"]
    assert [text.get_text() for text in linear.get_yticklabels()] == ["random - moco-v2", "mls - moco-v2"]
    points = {tuple(np.asarray(line.get_xdata()).tolist()) for line in linear.lines}
    assert {(-10.0, -20.0, -30.0), (1.0, 2.0, 3.0), (-20.0, 2.0)} <= points
    (bars,) = (one for one in linear.containers if isinstance(one, ErrorbarContainer))
    (segments,) = bars.lines[2]
    low, high = np.asarray(segments.get_segments())[1, :, 0]
    assert (low, high) == pytest.approx((2 - T2 / math.sqrt(3), 2 + T2 / math.sqrt(3)))
    assert (0.0, 0.0, 0.0) in {tuple(np.asarray(line.get_xdata()).tolist()) for line in detect.lines}
    assert (0.0,) in {tuple(np.asarray(line.get_xdata()).tolist()) for line in detect.lines}  # random's mean alone


@pytest.mark.parametrize("mls", [[51.0, 62.0], [51.0]])
def test_fewer_than_three_seeds_are_not_drawn(mls: list[float | None]) -> None:
    assert draw_pairs(table_of(mls)) is None


def test_a_seed_without_a_value_is_left_out() -> None:
    figure = draw_pairs(table_of([51.0, 62.0, None]))
    assert figure and [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["random - moco-v2"]


def test_without_a_baseline_nothing_is_drawn() -> None:
    assert draw_pairs(table_of([*MLS], baseline=None)) is None


def test_tables_write_the_figure(in_tmp: Path) -> None:
    plan = small_plan(seeds=[0, 1, 2], runs=RUNS, tables={"main": TABLE})
    write_inputs(plan, lambda label: {"mAP": 40.0 + len(label), "box_AP": 1.0})
    assert {"pairs-main.png", "pairs-main.pdf"} <= {path.name for path in (make_tables(plan) / "figures").iterdir()}
