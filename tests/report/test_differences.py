"""Differences from a baseline row: paired by seed, printed everywhere, absent where nothing can be paired."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from mls.report.tables import fill_cell, subtract
from tests.report.support import make_tables, small_plan, write_inputs

T2 = 4.3026527299  # t(0.975, 2 degrees of freedom)
RUNS = {"random": {"method": "none"}, "moco-v2": {"method": "moco"}, "mls": {}}
TABLE = {"main": {"columns": ["linear.mAP"], "baseline": "moco-v2"}}


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mls.report.build_tables.draw_figures", lambda *_: [])


def made(values: dict[str, float | None], **changes: Any) -> Path:
    plan = small_plan(**{"seeds": [0, 1, 2], "runs": RUNS, "tables": TABLE} | changes)
    write_inputs(plan, lambda label: {"mAP": values.get(label, 40.0), "box_AP": 1.0})
    return make_tables(plan)


SEEDS = {"linear/moco-v2:0": 50.0, "linear/moco-v2:1": 60.0, "linear/moco-v2:2": 70.0}
BETTER = {"linear/mls:0": 51.0, "linear/mls:1": 62.0, "linear/mls:2": 73.0}


def test_seeds_that_differ_much_cancel_out(in_tmp: Path) -> None:
    path = made({**SEEDS, **BETTER})
    half_width = T2 * 1 / math.sqrt(3)  # differences 1, 2, 3
    numbers = json.loads((path / "metrics.json").read_text())["main"]
    assert numbers["mls - moco-v2"]["linear.mAP"] == {
        "mean": pytest.approx(2),
        "half_width": pytest.approx(half_width, rel=1e-6),
        "n": 3,
    }
    assert numbers["mls"]["linear.mAP"]["half_width"] > 20, "unpaired, the seeds would hide it"
    text = (path / "tables" / "main.md").read_text()
    shown = [" ".join(line.split()) for line in text.splitlines()]
    assert f"| mls - moco-v2 | +2.0 ± {half_width:.1f} | 3 seeds |" in shown
    assert any(line.startswith("| random - moco-v2 | -20.0 ±") for line in shown)
    assert "paired by seed" in text and "of its trials" not in text
    assert "moco-v2 - moco-v2" not in text and text.count("**") == 2, "a difference is never the best"
    with (path / "tables" / "main.csv").open(newline="") as file:
        row = next(r for r in csv.DictReader(file) if r["row"] == "mls - moco-v2")
    assert (row["values"], row["n"], row["over"]) == ("1.0;2.0;3.0", "3", "seeds")
    tex = (path / "tables" / "main.tex").read_text()
    assert rf"mls - moco-v2 & +2.0 $\pm$ {half_width:.1f} & 3 seeds" in tex


def test_a_seed_without_a_value_is_no_pair(in_tmp: Path) -> None:
    text = (made({**SEEDS, **BETTER, "linear/moco-v2:1": None}) / "tables" / "main.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| mls - moco-v2")]
    assert f"+2.0 ± {12.7062047362 * math.sqrt(2) / math.sqrt(2):.1f} (2 of 3)" in row  # differences 1 and 3


def test_one_seed_has_a_difference_without_interval(in_tmp: Path) -> None:
    text = (made({**SEEDS, **BETTER}, seeds=[0]) / "tables" / "main.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| mls - moco-v2")]
    assert "+1.0" in row and "±" not in row


def test_without_a_baseline_nothing_is_subtracted(in_tmp: Path) -> None:
    text = (made({}, tables={"main": {"columns": ["linear.mAP"]}}) / "tables" / "main.md").read_text()
    assert " - " not in text.split("\n- ")[0] and "paired" not in text


def test_different_numbers_of_seeds_give_no_difference() -> None:
    seeds = fill_cell((("p0", "a"), ("p1", "b")), {"a": 1.0, "b": 2.0})
    given = fill_cell((("w", "c"),), {"c": 1.0})
    assert subtract(seeds, given).units == (), "two seeds against one"
    assert subtract(seeds, seeds).units == (0.0, 0.0)


def test_trials_of_one_seed_are_one_pair_of_means() -> None:
    trials = fill_cell((("w", "c"), ("w", "d")), {"c": 1.0, "d": 2.0})
    one = fill_cell((("v", "e"),), {"e": 1.0})
    found = subtract(trials, one)
    assert found.units == (0.5,) and found.summary is not None and found.summary.half_width is None
    lacking = fill_cell((("w", "c"), ("w", "d")), {"c": 1.0, "d": None})
    assert subtract(lacking, one).units == (None,)


def test_different_numbers_of_seeds_are_explained(in_tmp: Path) -> None:
    path = made({**SEEDS}, runs=RUNS | {"given": {"method": "imagenet"}})
    text = (path / "tables" / "main.md").read_text()
    assert "| given - moco-v2 | – | 0 |" in [" ".join(line.split()) for line in text.splitlines()]  # noqa: RUF001
    assert "unequally many seeds, so no pairs" in text
    assert "not defined" not in text


def test_differences_are_traced_to_all_they_come_from(in_tmp: Path) -> None:
    found = json.loads((made({**SEEDS, **BETTER}) / "provenance.json").read_text())["cells"]["main"]
    both = found["mls"]["linear.mAP"] | found["moco-v2"]["linear.mAP"]
    assert found["mls - moco-v2"]["linear.mAP"] == both and len(both) == 6


def test_differences_name_what_they_come_from() -> None:
    a, b = (fill_cell(((p, p.upper()),), {p.upper(): 1.0}) for p in "ab")
    assert subtract(a, b).sources == (("a", "A"), ("b", "B"))
