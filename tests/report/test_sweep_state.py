"""What `mls sweep show` tells of points that are done, under way, failed or not begun."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mls.pipeline.artifact_store import building
from mls.pipeline.plan import Plan
from mls.report.sweep_state import print_sweeps
from mls.runtime.errors import MlsError
from mls.runtime.locks import locked
from tests.report.support import small_plan

POINTS = [{"mls.topk": 5, "mls.weight": 0.5}, {"mls.topk": 9}, {"mls.topk": 7, "mls.weight": 0.25}]


@pytest.fixture
def plan(in_tmp: Path) -> Plan:
    """The first point is done; of the second a seed is, and the other trains; the third has failed once."""
    plan = small_plan(seeds=[0, 1], runs={"mls": {}}, sweep={"mls": POINTS})
    values = {"mls[topk=5,weight=0.5]:0": 40.0, "mls[topk=5,weight=0.5]:1": 41.0, "mls[topk=9]:0": 50.25}
    for label, value in values.items():
        for stage, name in (("pretrain", label), ("probe", f"linear/{label}")):
            (job,) = plan.find(stage, name)
            with building(job) as out:
                (out / "metrics.json").write_text(json.dumps({"mAP": value, "val": {}}))
    return plan


def shown(plan: Plan, capsys: pytest.CaptureFixture[str], metric: str | None = None) -> list[list[str]]:
    """Cells of the printed lines, which stand at least two spaces apart."""
    print_sweeps(plan, metric)
    lines = capsys.readouterr().out.splitlines()
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines if line]


def test_prints_states_and_means(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    (training,) = plan.find("pretrain", "mls[topk=9]:1")
    failed, stopped = (plan.find("pretrain", f"mls[topk=7,weight=0.25]:{seed}")[0] for seed in (0, 1))
    for job in (training, failed, stopped):
        job.work.mkdir(parents=True)
    (failed.work / "failed.json").write_text("{}")
    (stopped.work / "checkpoint-000000005.pt").touch()
    with locked(training.work / "lock", "training"):
        found = shown(plan, capsys)
    assert found == [
        ["mls: 3 points; seeds 0, 1"],
        ["mls.topk", "mls.weight", "pretrain", "linear", "linear.mAP", "n"],
        ["5", "0.5", "done", "done", "40.5", "2 of 2"],
        ["9", "1 done, 1 running", "1 done, 1 missing", "50.2", "1 of 2"],
        ["7", "0.25", "1 failed, 1 resumable", "missing", "0 of 2"],
    ]


def test_a_probe_that_waits_for_features_shows_their_state(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    for job in plan.find("features", "linear/mls[topk=7,weight=0.25]"):
        job.work.mkdir(parents=True)
        (job.work / "failed.json").write_text("{}")
    assert shown(plan, capsys)[-1] == ["7", "0.25", "missing", "failed", "0 of 2"]


def test_a_task_that_has_not_run_shows_no_mean(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(plan, capsys, "detect.box_AP")[2] == ["5", "0.5", "done", "missing", "0 of 2"]


@pytest.mark.parametrize(
    ("metric", "problem"),
    [
        ("linaer.mAP", "is not <task>.<metric>; did you mean 'linear'"),
        ("linear", "is not <task>.<metric>"),
        ("linear.mAPP", "linear gives no 'mAPP'; did you mean 'mAP'"),
    ],
)
def test_a_wrong_metric_is_named(plan: Plan, metric: str, problem: str) -> None:
    with pytest.raises(MlsError, match=problem):
        print_sweeps(plan, metric)


def test_without_a_sweep_there_is_nothing_to_show() -> None:
    with pytest.raises(MlsError, match="has no sweep"):
        print_sweeps(small_plan())
