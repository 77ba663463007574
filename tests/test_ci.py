"""The workflow of GitHub Actions runs the Makefile's commands, with no more rights and time than it needs."""

from __future__ import annotations

import re
import subprocess
import tomllib
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
    assert {"setup", "lint", "test", "docs", "micro", "report"} <= set(MADE)


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


def test_pre_commit_runs_the_linters_of_make_lint_at_their_pinned_versions() -> None:
    config = YAML(typ="safe").load((ROOT / ".pre-commit-config.yaml").read_text())
    dev = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    pinned = dict(package.split("==") for package in dev if "==" in package)
    found = {}
    for repo in config["repos"]:
        for hook in repo["hooks"]:
            name, version = hook["id"], repo.get("rev", "").removeprefix("v")
            if repo["repo"] == "local":  # uses what is installed; its name states the version
                assert (hook["language"], hook["pass_filenames"]) == ("system", False)
                name, version = hook["name"].split()
            found[name] = version
    assert found.pop("check-added-large-files")
    assert found.pop("ruff-format") == found["ruff"]
    assert found == {name: pinned[name] for name in ("ruff", "snakefmt", "mypy", "import-linter")}


def test_the_largest_committed_file_passes_pre_commit() -> None:
    (limit,) = re.findall(r"--maxkb=(\d+)", (ROOT / ".pre-commit-config.yaml").read_text())
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    assert max((ROOT / file).stat().st_size for file in files if (ROOT / file).is_file()) <= int(limit) * 1024
