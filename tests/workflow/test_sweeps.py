"""Sweeps with the real Snakemake and the real DVC: failures on the way, and the same points as DVC's experiments."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mls.config.load import load
from mls.pipeline.plan import Plan, make_plan
from tests.conftest import SMALL
from tests.workflow.clone import Clone, new_clone


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """A clone with one run, one task and a few pictures, under the name that its dvc.yaml shows."""
    (tmp_path / "clone").mkdir()
    clone = new_clone(tmp_path / "clone")
    with (clone.path / "params.yaml").open("w") as file:
        YAML().dump({**SMALL, "experiment": "micro", "runs": {"mls": {}}}, file)
    clone.commit("a small experiment")
    return clone


def numbers(clone: Clone) -> dict[str, Any]:
    """Row -> its published mAP."""
    metrics = json.loads((clone.path / "results" / "micro" / "metrics.json").read_text())
    return {row: cells["linear.mAP"] for row, cells in metrics["main"].items()}


def ids(clone: Clone, run: str) -> dict[str, str]:
    """Stage -> id of the artifacts of a run."""
    plan = plan_of_clone(clone)
    named = {job.id: [label.rsplit("/", 1)[-1] for label in plan.labels[job.id]] for job in plan.jobs.values()}
    return {job.stage: job.id for job in plan.jobs.values() if f"{run}:0" in named[job.id]}


def plan_of_clone(clone: Clone) -> Plan:
    """The plan of its params.yaml."""
    return make_plan(load(clone.path / "params.yaml"), {})


def test_a_failing_run_stops_no_other_and_is_listed_at_the_end(clone: Clone) -> None:
    clone.edit(sweep={"mls": [{"optimizer.lr": 0.02}, {"optimizer.lr": 1e30}]}, execution__max_nonfinite=0)
    wild = ids(clone, "mls[lr=1e+30]")["pretrain"]
    for attempt in ("first", "second"):
        text = clone.run("snakemake", ok=False)
        listed = re.search(r"(\d+) of \d+ jobs failed:\n(.*)", text)
        assert listed and listed[1] == "1", text
        assert f"pretrain mls[lr=1e+30]:0 [{wild}] failed: step " in listed[2] and "is not finite" in listed[2]
        assert f"(to try again: mls retry {wild}, then the same command)" in listed[2]
        assert ("failed before, same inputs and code" in text) == (attempt == "second"), (
            "the second attempt spends no time on it"
        )
        shown = {line.split()[0]: line.split()[1:] for line in clone.run("mls", "sweep", "show").splitlines() if line}
        assert shown["0.02"][:2] == ["done", "done"] and shown["0.02"][-3:] == ["1", "of", "1"]
        assert shown["1e+30"] == ["failed", "missing", "0", "of", "1"]
    clone.run("mls", "retry", wild)
    clone.edit(execution__max_nonfinite=1000)
    assert "failed" not in clone.run("mls", "status")


def test_queued_experiments_are_the_points_of_a_sweep(clone: Clone, tmp_path: Path) -> None:
    """The same ids, bytes and numbers, shown, compared and applied by DVC."""
    swept = clone.clone(tmp_path / "swept")
    swept.edit(sweep={"mls": {"mls.topk": [2, 5]}})
    swept.run("snakemake")
    points = {"two": "mls[topk=2]", "five": "mls[topk=5]"}
    expected = {name: numbers(swept)[point] for name, point in points.items()}
    assert expected["two"] != expected["five"]

    clone.run("dvc", "repro")  # leaves artifacts of other params, which no experiment may reuse
    clone.commit("a finished run")
    for name, topk in {"two": 2, "five": 5}.items():
        clone.run("dvc", "exp", "run", "-q", "--queue", "-n", name, "-S", f"pretrain.mls.topk={topk}")
    clone.run("dvc", "exp", "run", "--run-all")
    shown = [
        exp for entry in json.loads(clone.run("dvc", "exp", "show", "--json")) for exp in entry["experiments"] or []
    ]
    assert {exp["name"] for exp in shown} == {"two", "five"}
    for exp in shown:
        (revision,) = exp["revs"]
        metrics = revision["data"]["metrics"]["results/micro/metrics.json"]["data"]
        assert metrics["main"]["mls"]["linear.mAP"]["mean"] == expected[exp["name"]]["mean"]
    changed = json.loads(clone.run("dvc", "exp", "diff", "two", "five", "--json"))
    mean = changed["metrics"]["results/micro/metrics.json"]["main.mls.linear.mAP.mean"]
    assert (mean["old"], mean["new"]) == (expected["two"]["mean"], expected["five"]["mean"])
    for name, point in points.items():
        clone.run("dvc", "exp", "apply", name)
        assert numbers(clone) == {"mls": expected[name]}
        assert clone.planned() == {"publish": 1}, "DVC experiments keep no new git file, such as the marker"
        mine, theirs = ids(clone, "mls"), ids(swept, point)
        assert mine == theirs and set(mine) == {"pretrain", "features", "probe"}
        made, same = clone.digests(), swept.digests()
        for stage, job_id in mine.items():
            files = {file for file in made if file.startswith(f"{stage}/{job_id}/")}
            assert files and all(made[file] == same[file] for file in files)


def test_planning_opens_no_artifact(clone: Clone) -> None:
    """Empty artifact.json files count as made: planning only looks at whether they exist."""
    plan = plan_of_clone(clone)
    for job in plan.jobs.values():
        (clone.path / job.path).mkdir(parents=True)
        (clone.path / job.path / "artifact.json").touch()
    assert clone.planned() == {"publish": 1}
