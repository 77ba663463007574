"""Protocols in words: what differs is said, what is the paper's own is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mls.experiment.plan import Plan, plan_file
from mls.report.paper import Beside
from mls.report.protocol import PAPER_TASKS, against_paper, remarks
from mls.report.stage import filled
from tests.report.support import small_plan

ROOT = Path(__file__).parents[2]
PAPERS = ("table1", "table2", "table3", "table4", "table5", "ablations")


def compared(plan: Plan) -> dict[tuple[str, str, str], str]:
    """(table, row, column) -> in what a comparison is of another protocol, of every one in an experiment."""
    experiment, runs = plan.loaded.experiment, plan.loaded.runs
    found = {}
    for name, table in experiment.tables.items():
        if table.paper:
            beside = Beside(table.paper.table, table.paper.rows, table.paper.columns)
            for row in beside.claims:
                for column in beside.columns:
                    found[name, row, column] = against_paper(experiment, runs[row], beside, row, column)
    return found


def test_the_papers_experiments_follow_its_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found: dict[Any, str] = {}
    for name in PAPERS:
        found |= {
            (name, *place): text for place, text in compared(plan_file(Path(f"experiments/paper-{name}.yaml"))).items()
        }
    assert len({place[0] for place in found}) == len(PAPERS)
    assert not any(found.values()), {place: text for place, text in found.items() if text}


def test_small_experiments_do_not() -> None:
    paper = {"table": "1", "rows": {"mls": "MLS, 400 epochs", "random": "MoCo-v2"}, "columns": {"detect.box_AP": "APb"}}
    plan = small_plan(tables={"main": {"columns": ["detect.box_AP"], "paper": paper}})
    found = compared(plan)
    assert found["main", "mls", "detect.box_AP"] == (
        "scenes, train 4, val 2, test 2, size 32 instead of coco; "
        "task on scenes, train 4, val 2, test 2, size 32 instead of coco; backend torchvision instead of detectron2"
    )
    assert found["main", "random", "detect.box_AP"].startswith("task on "), "random weights have no schedule"
    metrics = {job.id: {"box_AP": 10.0} for job in plan.stage("transfer")}
    (table,) = filled(plan, metrics)
    assert set(table.against) == {("mls", "detect.box_AP"), ("random", "detect.box_AP")}


def test_rows_of_another_schedule_resolution_or_subset_are_named() -> None:
    data = {
        "scenes": {"source": "scenes", "train": 64, "val": 8, "test": 8, "size": 32},
        "fewer": {"source": "scenes", "train": 32, "val": 8, "test": 8, "size": 32},
    }
    runs: dict[str, dict[str, Any]] = {
        "random": {"method": "none"},
        "moco-v2": {"method": "moco"},
        "mls": {},
        "longer": {"epochs": 800},
        "smaller": {"augment": {"crop": 32}},
        "fewer": {"dataset": "fewer"},
        "deep": {"backbone": {"name": "resnet101"}},
    }
    plan = small_plan(datasets=data, runs=runs)
    said = remarks(plan.loaded.experiment, plan.loaded.runs, list(runs))
    assert said == {
        "longer": "800 epochs instead of 400 epochs",
        "smaller": "32-px views instead of 224-px views",
        "fewer": "scenes, train 32, val 8, test 8, size 32 instead of scenes, train 64, val 8, test 8, size 32",
        "deep": "resnet101, imagenet stem instead of resnet50, imagenet stem",
    }


def test_every_table_of_transfers_has_a_protocol() -> None:
    assert set(PAPER_TASKS) == {"1", "2", "3", "4", "6", "7", "8", "5a", "5b"}
