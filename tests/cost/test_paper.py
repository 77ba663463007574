"""The paper's experiments: every job has hours, memory and disk; what a card can't hold says what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mls.config.experiment import Execution
from mls.cost.computed import parts_of
from mls.cost.devices import read_devices
from mls.cost.estimate import Cost, estimate, totals
from mls.cost.rates import _fits
from mls.cost.seconds import GUESS, SVM, seconds_of
from mls.pipeline.plan import Plan, experiment_files, plan_file
from tests.conftest import plan_of, small

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def plans() -> list[Plan]:
    """Every paper file, in a folder without artifacts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return [plan_file(path) for path in experiment_files() if path.stem.startswith("paper-")]


def unfit(costs: list[Cost]) -> dict[str, str]:
    """What does not fit, and what is said about it."""
    return {cost.what: note for cost in costs for note in cost.notes if "does not fit" in note}


def test_shared_jobs_are_counted_once(plans: list[Plan], in_tmp: Path) -> None:
    ids = [set(plan.jobs) for plan in plans]
    shared = {one for own in ids for one in own if sum(one in other for other in ids) > 1}
    total = totals(estimate(plans))
    assert len(plans) > 3 and shared
    assert total["jobs"] == len(set().union(*ids)) < sum(map(len, ids))
    assert total["shared"] == len(shared)
    assert totals(estimate([*plans, *plans]))["hours"] == pytest.approx(total["hours"])


def test_every_job_has_hours_memory_and_disk(plans: list[Plan], in_tmp: Path) -> None:
    for device in read_devices():
        costs = estimate(plans, device)
        assert len(costs) > 200
        for cost in costs:
            nothing = cost.source == "nothing is trained"
            assert cost.hours is not None and (cost.hours > 0) != nothing, cost
            assert cost.basis in (("",) if nothing else ("measured", "published", "computed", GUESS)), cost
            assert cost.disk and cost.peak is not None and cost.download is not None, cost
            gpu = cost.stage == "features" or cost.unit not in ("", "CPU-h")
            assert cost.memory is not None and (not gpu or cost.memory > 1e9), cost
        units = set(totals(costs)["hours"])
        assert units == {"CPU-h", f"{device}-h"} if device != "cpu" else {"CPU-h"}


def test_a_job_that_does_not_fit_says_what_to_change(plans: list[Plan], in_tmp: Path) -> None:
    on_3090, on_h200 = (unfit(estimate(plans, device)) for device in ("3090", "H200"))
    byol = on_3090["byol, resnet50, 400 epochs"]
    assert byol.endswith("needs about 50 of 3090's 24 GB, of which 90% can be counted on; set execution.gpus: 4")
    fpn = on_3090["instance fpn (detectron2), resnet50, coco, 90,000 steps"]
    assert "of 3090's 24 GB" in fpn
    tuned = on_3090["finetune, resnet50, coco, 30 epochs"]
    assert tuned.endswith("set precision: bf16, which takes less")
    assert not on_h200


@pytest.mark.parametrize(("batch", "gpus", "accumulate"), [(6, 3, 3), (8, 4, 4)])
def test_advice_is_what_validation_accepts(in_tmp: Path, batch: int, gpus: int, accumulate: int) -> None:
    """Parts divide the batch, and batch norm needs two images in each."""
    files = {"datasets": {"city": {"source": "cityscapes"}}, "pretrain": {"dataset": "city"}, "probe": {}}
    task = {"kind": "semantic", "dataset": "city", "batch_size": batch, "crop": [896, 1792]}
    tables = {"main": {"columns": ["segment.mIoU"]}}
    lock = {"city": {"sha256": "0" * 64}}
    plan = plan_of(small(**files, runs={"mls": {}}, transfer={"segment": task}, tables=tables), lock)
    (said,) = [text for what, text in unfit(estimate([plan], "3090")).items() if what.startswith("semantic")]
    assert f"set execution.gpus: {gpus}, or set accumulate: {accumulate}," in said
    plan_of(
        small(**files, runs={"mls": {}}, transfer={"segment": {**task, "accumulate": accumulate}}, tables=tables), lock
    )


def test_a_card_is_not_taken_for_a_larger_one() -> None:
    unit = "NVIDIA A100-SXM4-40GB-h"
    assert _fits(unit, "A100-40GB") and not _fits(unit, "A100")
    assert _fits("NVIDIA A100-SXM4-80GB-h", "A100") and not _fits("NVIDIA H100-h", "H200")


def test_a_batch_is_divided_by_the_ranks_of_a_pretraining(plans: list[Plan], in_tmp: Path) -> None:
    files: dict[str, Any] = {
        "datasets": {"coco": {"source": "coco"}},
        "pretrain": {"dataset": "coco"},
        "runs": {"byol": {"method": "byol", "batch_size": 512, "moco": {"bn_splits": 1}}},
        "probe": {"linear": {"kind": "linear", "dataset": "coco"}},
    }
    one, eight = (plan_of(small(**files, execution={"gpus": gpus, "nodes": nodes})) for gpus, nodes in ((1, 1), (4, 2)))
    (job,) = one.stage("pretrain")
    assert parts_of(job, Execution(gpus=4, nodes=2)) == 8
    assert parts_of(one.stage("features")[0], Execution(gpus=4)) == 1
    found = [
        next(cost.memory or 0 for cost in estimate([plan], "3090") if cost.stage == "pretrain") for plan in (one, eight)
    ]
    assert found[1] < found[0] / 5
    assert [bool(unfit(estimate([plan], "3090"))) for plan in (one, eight)] == [True, False]


def test_seconds_are_those_that_were_measured(in_tmp: Path) -> None:
    coco: dict[str, Any] = {"source": "coco"}
    probe = {
        "linear": {"kind": "linear", "dataset": "coco"},
        "ranked": {"kind": "retrieval", "dataset": "coco"},
        "svm": {"kind": "svm", "dataset": "voc", "costs": [1.0, 10.0], "folds": 3},
    }
    plan = plan_of(
        small(
            datasets={"coco": coco, "voc": {"source": "voc"}},
            pretrain={"dataset": "coco"},
            runs={"mls": {}},
            probe=probe,
            tables={"main": {"columns": ["linear.mAP", "ranked.mAP", "svm.mAP"]}},
        )
    )
    found = {name: seconds_of(plan.find("probe", f"{name}/mls")[0], plan.jobs) for name in probe}
    linear, ranked, svm = (found[name] for name in probe)
    assert linear and ranked and svm
    assert (linear.basis, ranked.basis, svm.basis) == ("measured", "measured", GUESS)
    assert linear.value == pytest.approx(1729) and ranked.value == pytest.approx(294)
    fits = 2 * 2 + 1  # two costs, of each three fits on two thirds; then one on all
    assert svm.value == pytest.approx(SVM * 2048 * 20 * fits * 5011)
    data = seconds_of(plan.find("data", "coco")[0], plan.jobs)
    assert data and data.value == pytest.approx(592.8, rel=0.01) and data.basis == "measured"
