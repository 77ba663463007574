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
    """Of one run, one task and a few pictures; it has the name that the clone's dvc.yaml shows."""
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
    """Stage -> id of what belongs to a run."""
    plan = plan_of_clone(clone)
    named = {job.id: [label.rsplit("/", 1)[-1] for label in plan.labels[job.id]] for job in plan.jobs.values()}
    return {job.stage: job.id for job in plan.jobs.values() if f"{run}:0" in named[job.id]}


def plan_of_clone(clone: Clone) -> Plan:
    """Of its params.yaml."""
    return make_plan(load(clone.path / "params.yaml"), {})


def test_a_run_that_fails_stops_no_other_and_is_listed_at_the_end(clone: Clone) -> None:
    clone.edit(sweep={"mls": [{"optimizer.lr": 0.02}, {"optimizer.lr": 1e30}]}, execution__max_nonfinite=0)
    wild = ids(clone, "mls[lr=1e+30]")["pretrain"]
    for attempt in ("first", "second"):
        text = clone.run("snakemake", ok=False)
        said = re.search(r"(\d+) of \d+ jobs failed:\n(.*)", text)
        assert said and said[1] == "1", text
        assert f"pretrain mls[lr=1e+30]:0 [{wild}] failed: step " in said[2] and "is not finite" in said[2]
        assert f"(to try again: mls retry {wild}, then the same command)" in said[2]
        assert ("failed before, same inputs and code" in text) == (attempt == "second"), "no time is spent twice"
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

    clone.run("dvc", "repro")  # artifacts of other params are there, which no experiment may take for its own
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
        assert clone.planned() == {"publish": 1}, "no experiment of DVC keeps a new file of git's, such as the marker"
        mine, theirs = ids(clone, "mls"), ids(swept, point)
        assert mine == theirs and set(mine) == {"pretrain", "features", "probe"}
        made, same = clone.digests(), swept.digests()
        for stage, job_id in mine.items():
            files = {file for file in made if file.startswith(f"{stage}/{job_id}/")}
            assert files and all(made[file] == same[file] for file in files)


def test_planning_opens_no_artifact(clone: Clone) -> None:
    """Of artifacts whose files hold nothing, all is made: only that they exist was looked at."""
    plan = plan_of_clone(clone)
    for job in plan.jobs.values():
        (clone.path / job.path).mkdir(parents=True)
        (clone.path / job.path / "artifact.json").touch()
    assert clone.planned() == {"publish": 1}
