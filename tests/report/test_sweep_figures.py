"""A parameter's sweep: which rows are points, where they stand, and when they have bars."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from mls.config.load import ExperimentError
from mls.pipeline.plan import Plan
from mls.report.build_tables import fill_tables
from mls.report.sweep_figures import draw_sweep
from tests.report.support import make_tables, small_plan, write_inputs

ROWS = ["moco-v2", *(f"k[topk={k}]" for k in (1, 5, 20, 40))]


def plan_of_sweep(**table: Any) -> Plan:
    """MoCo-v2 and four values of k, two seeds unless said otherwise."""
    seeds = table.pop("seeds", [0, 1])
    return small_plan(
        seeds=seeds,
        runs={"moco-v2": {"method": "moco"}, "k": {}},
        sweep={"k": {"mls.topk": [1, 5, 20, 40]}},
        transfer={"detect": {"kind": "instance", "dataset": "scenes"}},
        tables={"t8": {"rows": ROWS, "columns": ["linear.mAP"], "baseline": "moco-v2", "plot": "mls.topk"} | table},
    )


def drawn(plan: Plan) -> Figure:
    """The sweep of a plan; the mean of row i is 50 + i, of two seeds 49.5 + i and 50.5 + i."""
    metrics = {}
    for job in [*plan.stage("probe"), *plan.stage("transfer")]:
        row, seed = plan.labels[job.id][0].split("/")[1].rsplit(":", 1)
        row = "k[topk=20]" if row == "k" else row
        value = 50.0 + ROWS.index(row) + (int(seed) - 0.5) * (len(plan.loaded.experiment.seeds) > 1)
        metrics[job.id] = {"mAP": value, "box_AP": value}
    (table,) = fill_tables(plan, metrics)
    spec = plan.tables.params["tables"]["t8"]
    figure = draw_sweep(table, spec["plot"], spec.get("baseline"))
    assert figure
    return figure


def test_points_are_the_rows_that_read_the_key() -> None:
    plan = plan_of_sweep()
    assert plan.tables.params["tables"]["t8"]["plot"] == {
        "key": "mls.topk",
        "x": {"k[topk=1]": 1, "k[topk=5]": 5, "k[topk=20]": 20, "k[topk=40]": 40},
    }
    (axes,) = drawn(plan).axes
    points, baseline = axes.lines[0], axes.lines[-1]
    assert np.asarray(points.get_xdata()).tolist() == [1, 5, 20, 40]
    assert np.asarray(points.get_ydata()).tolist() == [
        51.0,
        52.0,
        53.0,
        54.0,
    ]
    assert set(np.asarray(baseline.get_ydata()).tolist()) == {50.0}, "a line across"
    assert axes.get_xscale() == "log" and [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "5", "20", "40"]


@pytest.mark.parametrize(("seeds", "bars"), [([0, 1], 1), ([0], 0)])
def test_error_bars_are_those_of_several_seeds(seeds: list[int], bars: int) -> None:
    figure = drawn(plan_of_sweep(seeds=seeds))
    found = [c for c in figure.axes[0].containers if isinstance(c, ErrorbarContainer)]
    assert len(found) == bars
    said = " ".join(text.get_text() for text in figure.findobj(match=lambda one: hasattr(one, "get_text")))  # type: ignore[attr-defined]
    assert ("95 % t-interval over 2 seeds" in said) == bool(bars) and ("n = 1" in said) == (not bars)


def test_the_papers_curve_has_a_panel_of_its_own() -> None:
    paper = {"table": "8", "rows": {"k[topk=1]": "1"}}
    ours, theirs = drawn(plan_of_sweep(paper=paper)).axes
    assert np.asarray(theirs.lines[0].get_xdata()).tolist() == [1, 5, 20, 40]
    assert np.asarray(theirs.lines[0].get_ydata()).tolist() == [39.7, 40.0, 40.1, 39.2], "Table 8"
    assert ours.get_ylim() != theirs.get_ylim()


def test_a_column_that_is_compared_has_the_papers_points_in_its_panel() -> None:
    paper = {"table": "8", "rows": {"k[topk=1]": "1"}, "columns": {"detect.box_AP": "APb"}}
    linear, detect = drawn(plan_of_sweep(columns=["linear.mAP", "detect.box_AP"], paper=paper)).axes
    dotted = [[line for line in axes.lines if line.get_linestyle() == ":"] for axes in (linear, detect)]
    assert [len(lines) for lines in dotted] == [0, 1]
    assert np.asarray(dotted[1][0].get_ydata()).tolist() == [39.7, 40.0, 40.1, 39.2], "Table 8"


def test_the_tables_stage_draws_the_sweep(in_tmp: Any) -> None:
    plan = plan_of_sweep()
    write_inputs(plan, lambda label: {"mAP": 50.0})
    assert {"sweep-t8.png", "sweep-t8.pdf"} <= {path.name for path in (make_tables(plan) / "figures").iterdir()}


def test_without_plot_ids_are_as_before() -> None:
    assert "plot" not in plan_of_sweep(plot=None).tables.params["tables"]["t8"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"plot": "mls.topkk"}, "tables.t8.plot: 'mls.topkk' is not a key of pretrain; did you mean 'mls.topk'?"),
        ({"plot": "method"}, "tables.t8.plot: row 'k[topk=1]' has method = 'mls'; plot a key whose value is a number"),
        ({"rows": [*ROWS, "k"]}, "both have mls.topk = 20; leave one of them out of tables.t8.rows"),
        ({"rows": ["moco-v2", "k"]}, "needs at least two rows whose method reads mls.topk; found: k"),
    ],
)
def test_unplottable_tables_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ExperimentError) as error:
        plan_of_sweep(**table)
    assert message in str(error.value)
