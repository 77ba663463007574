"""Protocols in words: what differs is said, what is the paper's own is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mls.config.paper import Beside
from mls.cost.estimate import estimate
from mls.pipeline.plan import Plan, plan_file
from mls.report.build_tables import fill_tables
from mls.report.protocol import PAPER_TASKS, against_paper, pretraining_remarks
from tests.report.support import small_plan

ROOT = Path(__file__).parents[2]
HELD_OUT = "pretrained on COCO's train images less 4 %"
NEARLY_ALL = "pretrained on COCO's train images less 0.1 %"
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
    assert set(found.values()) == {"", NEARLY_ALL}
    assert {"detect.box_AP", "detect-2fc.box_AP"} <= {place[3] for place in found}, "both heads may be the paper's"
    trained = {place[2] for place, text in found.items() if text}
    assert {"mls", "moco-v2", "densecl", "byol", "k[topk=40]"} <= trained and not trained & {"random", "supervised"}


def beside(table: str, row: str, claimed: str, column: str = "detect.box_AP", theirs: str = "APb") -> Beside:
    return Beside(table, {row: claimed}, {column: theirs})


@pytest.mark.parametrize(
    ("run", "table", "claimed", "said"),
    [
        ({}, "1", "MLS, 400 epochs", ""),
        ({"optimizer": {"lr": 0.03}}, "1", "MLS, 400 epochs", "optimizer.lr 0.03 instead of 0.3"),
        (
            {"mls": {"topk": 5, "centre": True}},
            "2",
            "MLS",
            "mls.topk 5 instead of 20; mls.centre True instead of False",
        ),
        ({"moco": {"queue_size": 64}}, "7", "both", "moco.queue_size 64 instead of 4096"),
        ({"mls": {"topk": 5}}, "8", "5", ""),
        ({"mls": {"topk": 5}}, "8", "20", "mls.topk 5 instead of 20"),
        ({"mls": {"weight": 2.0}}, "5b", "2.0", ""),
        ({"mls": {"terms": "knn"}}, "6", "+kNN", ""),
        ({"mls": {"terms": "knn"}}, "6", "+BCE", "mls.terms knn instead of bce"),
        ({"method": "moco"}, "6", "Baseline", ""),
        ({"method": "moco", "moco": {"momentum": 0.999}}, "6", "Baseline", "moco.momentum 0.999 instead of 0.995"),
        ({"method": "moco", "moco": {"momentum": 0.999}, "epochs": 800}, "1", "MoCo-v2", ""),
    ],
)
def test_what_the_paper_states_of_a_row_is_compared(run: dict[str, Any], table: str, claimed: str, said: str) -> None:
    transfer = {"kind": "instance", "backend": "detectron2", "dataset": "coco"}
    plan = small_plan(
        datasets={"coco": {"source": "coco"}},
        pretrain={"dataset": "coco"},
        runs={"one": run},
        probe={},
        transfer={"detect": transfer | ({"architecture": "c4"} if table == "2" else {})},
        tables={"main": {"columns": ["detect.box_AP"]}},
    )
    found = against_paper(
        plan.loaded.experiment, plan.loaded.runs["one"], beside(table, "one", claimed), "one", "detect.box_AP"
    )
    assert found == "; ".join(text for text in (HELD_OUT, said) if text)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ({}, ""),
        ({"box_head": "2fc", "head_norm": "none"}, ""),
        ({"box_head": "2fc"}, "box_head 2fc instead of 4conv1fc"),
        ({"box_head": "2fc", "head_norm": "none", "fpn_norm": "none"}, "fpn_norm none instead of SyncBN"),
        (
            {"head_norm": "none", "iterations": 180_000},
            "iterations 180000 instead of 90000; head_norm none instead of SyncBN",
        ),
    ],
)
def test_either_box_head_may_be_the_papers(head: dict[str, Any], said: str) -> None:
    plan = small_plan(
        datasets={"coco": {"source": "coco", "val_share": 0.25}},
        pretrain={"dataset": "coco"},
        runs={"mls": {}},
        probe={},
        transfer={"detect": {"kind": "instance", "backend": "detectron2", "dataset": "coco", **head}},
        tables={"main": {"columns": ["detect.box_AP"]}},
    )
    given = beside("1", "mls", "MLS, 400 epochs")
    found = against_paper(plan.loaded.experiment, plan.loaded.runs["mls"], given, "mls", "detect.box_AP")
    assert found == "; ".join(text for text in ("pretrained on COCO's train images less 25 %", said) if text)


@pytest.mark.parametrize(
    ("head", "column", "said"),
    [
        ("psp", "PSPNet mIoU", ""),
        ("psa", "PSANet aAcc", ""),
        ("psp", "PSANet mIoU", "head psp instead of psa"),
        ("psa", "PSPNet mAcc", "head psa instead of psp"),
    ],
)
def test_a_column_of_table_3_has_its_own_head(head: str, column: str, said: str) -> None:
    plan = small_plan(
        datasets={"coco": {"source": "coco", "val_share": 0.25}, "cityscapes": {"source": "cityscapes"}},
        pretrain={"dataset": "coco"},
        runs={"mls": {}},
        probe={},
        transfer={"city": {"kind": "semantic", "dataset": "cityscapes", "head": head}},
        tables={"main": {"columns": ["city.mIoU"]}},
    )
    given = beside("3", "mls", "MLS", "city.mIoU", column)
    found = against_paper(plan.loaded.experiment, plan.loaded.runs["mls"], given, "mls", "city.mIoU")
    assert found == "; ".join(text for text in ("pretrained on COCO's train images less 25 %", said) if text)


def test_the_second_heads_hours_are_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plans = {name: plan_file(Path(f"experiments/paper-{name}.yaml")) for name in ("table1", "ablations", "peers")}
    heads = {job.id for plan in plans.values() for job in plan.stage("transfer") if job.config.box_head == "2fc"}
    hours = {cost.id: cost.hours or 0 for cost in estimate(list(plans.values())) if cost.id in heads}
    each = [round(sum(hours[key] for key in plan.jobs if key in heads)) for plan in plans.values()]
    page = " ".join((ROOT / "docs" / "protocols.md").read_text().split())
    assert f"adds {len(heads)} trainings, about {round(sum(hours.values())):,} A100 hours in all" in page
    assert "{} for Table 1, {} for Tables 6 to 8 and Figure 5, {} for the peers".format(*each) in page


def test_another_method_or_data_set_than_the_papers_is_named() -> None:
    plan = small_plan(
        datasets={"coco": {"source": "coco"}, "voc": {"source": "voc"}, "pets": {"source": "pets", "short_side": 64}},
        pretrain={"dataset": "coco", "epochs": 800},
        runs={"random": {"method": "none"}, "mls": {}, "sup": {"method": "imagenet"}},
        probe={"tuned": {"kind": "finetune", "dataset": "pets", "epochs": 120}},
        transfer={"voc": {"kind": "detection", "backend": "detectron2", "dataset": "voc", "architecture": "c4"}},
        tables={"main": {"columns": ["tuned.top1"]}},
    )

    def said(run: str, table: str, claimed: str, column: str, theirs: str) -> str:
        given = beside(table, run, claimed, column, theirs)
        return against_paper(plan.loaded.experiment, plan.loaded.runs[run], given, run, column)

    assert said("random", "4", "BYOL", "voc.voc_AP", "AP").startswith("method none instead of byol; ")
    assert said("sup", "4", "SwAV", "voc.voc_AP", "AP").startswith("method imagenet instead of SwAV; ")
    assert "task on voc instead of voc, train_sets ['2007/trainval', '2012/trainval']" in said(
        "mls", "4", "MLS", "voc.voc_AP", "AP"
    )
    assert said("sup", "5", "Supervised", "tuned.top1", "CUB200") == "task on pets, short_side 64 instead of cub200"
    assert said("sup", "5", "Supervised", "tuned.top1", "Pets") == "task on pets, short_side 64 instead of pets"


def test_small_experiments_do_not_follow_the_papers_protocols() -> None:
    paper = {"table": "2", "rows": {"mls": "MLS", "random": "Random"}, "columns": {"detect.box_AP": "APb"}}
    plan = small_plan(tables={"main": {"columns": ["detect.box_AP"], "paper": paper}})
    found = compared(plan)
    assert found["main", "mls", "detect.box_AP"] == (
        "scenes, train 4, val 2, test 2, size 32 instead of coco; "
        "task on scenes, train 4, val 2, test 2, size 32 instead of coco; backend torchvision instead of detectron2"
    )
    assert found["main", "random", "detect.box_AP"].startswith("task on "), "random weights have no schedule"
    metrics: dict[str, Any] = {job.id: {"box_AP": 10.0} for job in plan.stage("transfer")}
    (table,) = fill_tables(plan, metrics)
    assert set(table.against) == {("mls", "detect.box_AP"), ("random", "detect.box_AP")}
    one = plan.stage("transfer")[0].id
    (table,) = fill_tables(plan, metrics | {one: {"box_AP": None}})
    assert len(table.against) == 1, "nothing is said of a number that is not there"


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
    said = pretraining_remarks(plan.loaded.experiment, plan.loaded.runs, list(runs))
    assert said == {
        "longer": "800 epochs instead of 400 epochs",
        "smaller": "32-px views instead of 224-px views",
        "fewer": "scenes, train 32, val 8, test 8, size 32 instead of scenes, train 64, val 8, test 8, size 32",
        "deep": "resnet101, imagenet stem instead of resnet50, imagenet stem",
    }
    with_baseline = pretraining_remarks(plan.loaded.experiment, plan.loaded.runs, list(runs), "longer")
    assert with_baseline["mls - longer"] == "400 epochs instead of 800 epochs"
    assert "longer - longer" not in with_baseline and "random - longer" not in with_baseline


def test_every_table_of_transfers_has_a_protocol() -> None:
    assert set(PAPER_TASKS) == {"1", "2", "3", "4", "6", "7", "8", "5a", "5b"}
