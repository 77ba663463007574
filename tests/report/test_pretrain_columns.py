"""Columns of the pretraining's own log: for tables of sets without labels."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from mls.report.build_tables import fill_tables
from mls.report.pages import build_pages
from mls.report.sweep_figures import draw_sweep
from mls.report.sweep_state import print_sweeps
from mls.runtime.errors import MlsError
from tests.conftest import plan_of, small
from tests.report.support import make_tables, small_plan, write_inputs

TABLES = {"main": {"columns": ["linear.mAP", "pretrain.info_nce"], "baseline": "random"}}


def test_a_column_of_the_log_is_no_percent_and_nothing_in_it_is_best(in_tmp: Path) -> None:
    plan = small_plan(tables=TABLES)
    write_inputs(plan, lambda label: {"mAP": 51.234 if "mls" in label else 30.0, "box_AP": 1.0})
    path = make_tables(plan)
    text = (path / "tables" / "main.md").read_text()
    assert "Experiment `tiny`, percent; of pretrain, as logged." in text
    lines = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:4]]
        for line in text.splitlines()
        if "|" in line
    }
    assert lines["random"] == ["30.0", "–"]  # noqa: RUF001 - as tables have it
    assert lines["mls"] == ["**51.2**", "4.150"]
    assert "does not say whose features are better" in text
    (cell,) = (
        row
        for row in csv.DictReader((path / "tables" / "main.csv").open())
        if row["column"] == "pretrain.info_nce" and row["row"] == "mls"
    )
    assert (cell["mean"], cell["source"]) == ("4.15049", "measured")
    sources = json.loads((path / "provenance.json").read_text())["cells"]["main"]["mls"]["pretrain.info_nce"]
    (job,) = plan.find("pretrain", "mls")
    assert sources == {job.id: [job.id]}
    assert "4.150" in (build_pages(plan) / "tables" / "main.html").read_text()


def test_a_table_of_logs_alone_needs_no_task(in_tmp: Path) -> None:
    plan = small_plan(tables={"main": {"columns": ["pretrain.alignment"]}}, probe={}, transfer={}, seeds=[0, 1])
    write_inputs(plan, lambda label: {})
    path = make_tables(plan)
    text = (path / "tables" / "main.md").read_text()
    assert "Experiment `tiny`, as logged." in text and "0.250 ± 0.000" in text and "Bold" not in text
    assert r"(experiment tiny), as logged." in (path / "tables" / "main.tex").read_text()


def test_a_sweep_shows_the_log(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = small_plan(tables={"main": {"columns": ["pretrain.queue_mean"]}}, sweep={"mls": {"mls.topk": [3, 4]}})
    write_inputs(plan, lambda label: {"mAP": 1.0, "box_AP": 1.0})
    print_sweeps(plan)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[2] == ["3", "done", "done", "0.500", "1", "of", "1"]


def test_the_figure_of_a_sweep_names_no_percents() -> None:
    table = {"main": {"columns": ["linear.mAP", "pretrain.info_nce"], "rows": ["mls[topk=3]", "mls[topk=4]"]}}
    table["main"]["plot"] = "mls.topk"  # type: ignore[assignment]
    plan = small_plan(tables=table, sweep={"mls": {"mls.topk": [3, 4]}})
    metrics = {job.id: {"mAP": 50.0, "info_nce": 4.0} for job in (*plan.stage("probe"), *plan.stage("pretrain"))}
    figure = draw_sweep(fill_tables(plan, metrics)[0], plan.tables.params["tables"]["main"]["plot"], None)
    assert figure and [axes.get_ylabel() for axes in figure.axes] == ["linear.mAP, %", "pretrain.info_nce"]


def test_other_names_are_refused() -> None:
    with pytest.raises(MlsError, match=r"'pretrain\.loss': pretrain gives info_nce, alignment, uniformity, queue_mean"):
        plan_of(small(tables={"main": {"columns": ["pretrain.loss"]}}))


def test_a_task_named_pretrain_keeps_its_columns(in_tmp: Path) -> None:
    probes = {"pretrain": {"kind": "linear", "dataset": "scenes"}}
    plan = small_plan(tables={"main": {"columns": ["pretrain.mAP"]}}, probe=probes)
    write_inputs(plan, lambda label: {"mAP": 51.234, "box_AP": 1.0})
    text = (make_tables(plan) / "tables" / "main.md").read_text()
    assert "51.2" in text and "Experiment `tiny`, percent." in text
