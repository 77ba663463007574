"""Cells, Markdown, LaTeX, CSV, metrics and provenance, from tiny artifacts with chosen numbers."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from mls.pipeline.artifact import MANIFEST
from mls.report.formats import escape_tex
from mls.report.tables import fill_cell
from mls.runtime.errors import MlsError
from tests.report.support import make_tables, small_plan, write_inputs

T2 = 4.3026527299  # t(0.975, 2 degrees of freedom)


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the stage's time, and have tests of their own."""
    monkeypatch.setattr("mls.report.build_tables.draw_figures", lambda *_: [])


def cells(path: Path, table: str = "main") -> dict[tuple[str, str], str]:
    """Row label and column -> the Markdown cells as printed."""
    lines = [line for line in (path / "tables" / f"{table}.md").read_text().splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(row[0], column): row[i] for row in rows[2:] for i, column in enumerate(rows[0])}


def notes(path: Path) -> str:
    return (path / "tables" / "main.md").read_text().split("\n- ", 1)[1]


def test_one_seed_shows_only_the_value(in_tmp: Path) -> None:
    plan = small_plan()
    write_inputs(
        plan, lambda label: {"mAP": 51.234, "box_AP": 20.0} if "mls" in label else {"mAP": 30.0, "box_AP": 10.0}
    )
    path = make_tables(plan)
    shown = cells(path)
    assert shown["mls", "linear.mAP"] == "**51.2**"
    assert shown["random", "linear.mAP"] == "30.0"
    assert shown["mls", "n"] == "1"
    assert "±" not in (path / "tables" / "main.md").read_text()
    assert json.loads((path / "metrics.json").read_text())["main"]["mls"]["linear.mAP"] == {
        "mean": 51.234,
        "half_width": None,
        "n": 1,
    }


def test_three_seeds_give_a_t_interval(in_tmp: Path) -> None:
    plan = small_plan(seeds=[0, 1, 2], tables={"main": {"columns": ["linear.mAP"]}})
    values = {"linear/mls:0": 50.0, "linear/mls:1": 52.0, "linear/mls:2": 54.0}
    write_inputs(plan, lambda label: {"mAP": values.get(label, 40.0), "box_AP": 10.0})
    path = make_tables(plan)
    half_width = T2 * 2 / math.sqrt(3)  # s = 2
    numbers = json.loads((path / "metrics.json").read_text())["main"]["mls"]["linear.mAP"]
    assert numbers == {"mean": pytest.approx(52), "half_width": pytest.approx(half_width), "n": 3}
    assert cells(path)["mls", "linear.mAP"] == "**52.0 ± 5.0**"
    assert cells(path)["mls", "n"] == "3 seeds"
    with (path / "tables" / "main.csv").open(newline="") as file:
        row = next(r for r in csv.DictReader(file) if r["row"] == "mls")
    assert float(row["mean"]) == numbers["mean"] and float(row["half_width"]) == numbers["half_width"]
    assert (row["column"], row["n"], row["of"], row["over"], row["values"]) == (
        "linear.mAP",
        "3",
        "3",
        "seeds",
        "50.0;52.0;54.0",
    )


def test_trials_of_one_seed_are_called_trials(in_tmp: Path) -> None:
    plan = small_plan(transfer={"detect": {"kind": "instance", "dataset": "scenes", "trials": 3}})
    values = {"detect/mls:0": 10.0, "detect/mls:0.1": 20.0, "detect/mls:0.2": 30.0}
    write_inputs(plan, lambda label: {"mAP": 50.0, "box_AP": values.get(label, 5.0)})
    path = make_tables(plan)
    assert cells(path)["mls", "detect.box_AP"] == f"**20.0 ± {T2 * 10 / math.sqrt(3):.1f}**"
    assert cells(path)["mls", "n"] == "linear 1, detect 3 trials"
    assert "does not include the variance between pretrainings" in notes(path)


def test_trials_are_averaged_within_each_seed_first() -> None:
    pairs = (("p0", "a"), ("p0", "b"), ("p1", "c"), ("p1", "d"))
    cell = fill_cell(pairs, {"a": 10.0, "b": 30.0, "c": 40.0, "d": 40.0})
    assert cell.values == pytest.approx((20, 40))
    assert cell.summary is not None
    # two seeds: half-width t(0.975, 1) * |a - b| / 2
    assert cell.summary.half_width == pytest.approx(12.7062047362 * 10)
    assert (cell.summary.n, cell.of, cell.over) == (2, 2, "seeds")


def test_a_run_that_does_not_depend_on_the_seed_counts_once(in_tmp: Path) -> None:
    runs = {"supervised": {"method": "imagenet"}, "mls": {}}
    plan = small_plan(seeds=[0, 1, 2], runs=runs, tables={"main": {"columns": ["linear.mAP"]}})
    write_inputs(plan, lambda label: {"mAP": 60.0, "box_AP": 10.0})
    path = make_tables(plan)
    assert cells(path)["supervised", "linear.mAP"] == "**60.0**"
    assert cells(path)["supervised", "n"] == "1"
    assert cells(path)["mls", "n"] == "3 seeds"
    assert json.loads((path / "metrics.json").read_text())["main"]["supervised"]["linear.mAP"]["n"] == 1


@pytest.mark.parametrize("missing", [{}, {"mAP": None}, {"mAP": math.nan}])
def test_an_undefined_metric_is_a_dash_and_no_number(in_tmp: Path, missing: dict[str, Any]) -> None:
    plan = small_plan()
    write_inputs(plan, lambda label: {"box_AP": 10.0} | (missing if "random" in label else {"mAP": 50.0}))
    path = make_tables(plan)
    assert cells(path)["random", "linear.mAP"] == "–"  # noqa: RUF001
    assert cells(path)["mls", "linear.mAP"] == "50.0"  # the only value of its column: nothing to be best of
    assert "linear.mAP" not in json.loads((path / "metrics.json").read_text())["main"]["random"]
    assert "random & --" in (path / "tables" / "main.tex").read_text()


def test_a_mean_over_fewer_seeds_than_planned_says_so(in_tmp: Path) -> None:
    plan = small_plan(seeds=[0, 1, 2], tables={"main": {"columns": ["linear.mAP"]}})
    write_inputs(plan, lambda label: {"mAP": None if label == "linear/mls:1" else 50.0, "box_AP": 10.0})
    path = make_tables(plan)
    assert cells(path)["mls", "linear.mAP"] == "**50.0 ± 0.0 (2 of 3)**"
    assert cells(path)["mls", "n"] == "3 seeds"
    assert "(k of n)" in notes(path)


def test_best_is_decided_before_rounding(in_tmp: Path) -> None:
    plan = small_plan(
        tables={"main": {"columns": ["linear.mAP"]}, "alone": {"rows": ["mls"], "columns": ["linear.mAP"]}}
    )
    write_inputs(plan, lambda label: {"mAP": 50.001 if "random" in label else 50.002, "box_AP": 10.0})
    path = make_tables(plan)
    assert cells(path)["random", "linear.mAP"] == "50.0"
    assert cells(path)["mls", "linear.mAP"] == "**50.0**"
    assert cells(path, "alone")["mls", "linear.mAP"] == "50.0"
    tex = (path / "tables" / "main.tex").read_text()
    assert r"mls & \textbf{50.0} & 1 \\" in tex
    assert r"\textbf" not in (path / "tables" / "alone.tex").read_text()


def test_markdown_is_aligned(in_tmp: Path) -> None:
    plan = small_plan(sweep={"mls": {"mls.topk": [1, 20]}}, seeds=[0, 1])
    write_inputs(plan, lambda label: {"mAP": 100.0 if label.endswith("1") else 4.0, "box_AP": 10.0})
    table = [
        line for line in (make_tables(plan) / "tables" / "main.md").read_text().splitlines() if line.startswith("|")
    ]
    assert len({len(line) for line in table}) == 1
    assert len(table) == 2 + len(plan.loaded.runs)


def test_latex_is_ascii_and_escaped(in_tmp: Path) -> None:
    assert escape_tex("a_b & 5 % #1 {x} ~^\\ ±é") == (
        r"a\_b \& 5 \% \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} $\pm$\textbackslash{}xe9"
    )
    plan = small_plan(runs={"my_run": {}, "other": {"method": "moco"}}, seeds=[0, 1])
    write_inputs(plan, lambda label: {"mAP": 50.0, "box_AP": 10.0})
    tex = (make_tables(plan) / "tables" / "main.tex").read_bytes().decode("ascii")
    assert r"my\_run & \textbf{50.0 $\pm$ 0.0}" in tex
    assert r"box\_AP" in tex
    assert "95 \\% t-interval" in tex
    body = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert [line.replace(r"\&", "").count("&") for line in body] == [3] * 4  # tasks, metrics, two runs


def test_provenance_names_every_artifact(in_tmp: Path) -> None:
    plan = small_plan(seeds=[0, 1])
    write_inputs(plan, lambda label: {"mAP": 50.0, "box_AP": 10.0})
    found = json.loads((make_tables(plan) / "provenance.json").read_text())
    assert {i for ids in found["artifacts"].values() for i in ids} == set(plan.jobs)
    assert found["artifacts"]["tables"] == [plan.tables.id]
    cell = found["cells"]["main"]["mls"]["detect.box_AP"]
    assert cell == {
        plan.find("pretrain", f"mls:{s}")[0].id: [plan.find("transfer", f"detect/mls:{s}")[0].id] for s in (0, 1)
    }


def test_a_number_from_another_backbone_is_not_printed(in_tmp: Path) -> None:
    plan = small_plan()
    write_inputs(plan, lambda label: {"mAP": 50.0, "box_AP": 10.0})
    manifest = plan.find("probe", "linear/mls:0")[0].path / MANIFEST
    content = json.loads(manifest.read_text())
    content["inputs"]["pretrain"] = "0123456789"
    manifest.write_text(json.dumps(content))
    with pytest.raises(MlsError, match=r"row 'mls', task 'linear'.*0123456789"):
        make_tables(plan)
    assert not plan.tables.path.exists()
