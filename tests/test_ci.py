"""The workflow of GitHub Actions runs the Makefile's commands, with no more rights and time than it needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
WORKFLOW: dict[str, Any] = YAML(typ="safe").load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
STEPS = [(job, step) for job, body in WORKFLOW["jobs"].items() for step in body["steps"]]
MADE = [target for _, step in STEPS for target in re.findall(r"\bmake ([a-z]+)", step.get("run", ""))]


def test_every_target_is_one_of_the_makefile() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(MADE) <= set(targets)
    assert {"setup", "lint", "test", "micro", "report"} <= set(MADE)


def test_paths_it_names_exist() -> None:
    named = re.findall(r"EXPERIMENT=(\S+)", " ".join(step.get("run", "") for _, step in STEPS))
    assert named and all((ROOT / path).exists() for path in named)


def test_it_may_read_only_and_ends() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert WORKFLOW["concurrency"]["cancel-in-progress"] is True
    assert all(body["timeout-minutes"] <= 90 for body in WORKFLOW["jobs"].values())
    assert not any("permissions" in body for body in WORKFLOW["jobs"].values())


@pytest.mark.parametrize("step", [step for _, step in STEPS if "uses" in step], ids=lambda step: step["uses"])
def test_actions_are_pinned_to_a_major_version(step: dict[str, Any]) -> None:
    assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])


@pytest.mark.parametrize("job", WORKFLOW["jobs"])
def test_the_environment_is_the_locked_one(job: str) -> None:
    steps = [step for of, step in STEPS if of == job]
    (python,) = [step for step in steps if step.get("uses", "").startswith("actions/setup-python@")]
    assert python["with"]["cache"] == "pip" and python["with"]["cache-dependency-path"] == "requirements.lock"
    runs = [step["run"] for step in steps if "run" in step]
    assert "make setup" in runs
