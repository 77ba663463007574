"""Sweeps with the real Snakemake: a run that fails beside others, and planning that opens nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from mls.experiment.load import load
from mls.experiment.plan import Plan, make_plan
from tests.conftest import SMALL
from tests.workflow.clone import Clone, new_clone

pytestmark = pytest.mark.xdist_group("sweeps")


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """Of one run, one task and a few pictures."""
    (tmp_path / "clone").mkdir()
    clone = new_clone(tmp_path / "clone")
    with (clone.path / "params.yaml").open("w") as file:
        YAML().dump({**SMALL, "runs": {"mls": {}}}, file)
    clone.commit("a small experiment")
    return clone


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


def test_planning_opens_no_artifact(clone: Clone) -> None:
    """Of artifacts whose files hold nothing, all is made: only that they exist was looked at."""
    plan = plan_of_clone(clone)
    for job in plan.jobs.values():
        (clone.path / job.path).mkdir(parents=True)
        (clone.path / job.path / "artifact.json").touch()
    assert clone.planned() == {"publish": 1}
