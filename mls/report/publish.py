"""Publish tables and figures to ``results/<experiment>/``, which is committed and read by people.

    mls publish -e params.yaml

The folder shows one tables artifact; ``.published-<id>`` says which. It is built in a staging folder and swapped in by
renames, so that a marker is always in a complete folder, even if a publisher is killed.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from mls.pipeline.artifact import Artifact, open_artifact
from mls.pipeline.plan import ARTIFACTS, Plan
from mls.runtime.files import sync
from mls.runtime.locks import locked

RESULTS = Path("results")
PUBLISHED = ("metrics.json", "provenance.json", "curves.csv", "tables", "figures")
"""Files and folders of a tables artifact that are published."""


def marker(plan: Plan) -> Path:
    """The file whose existence says that the plan's tables are published."""
    return RESULTS / plan.loaded.experiment.experiment / f".published-{plan.tables.id}"


def publish_tables(plan: Plan) -> Path:
    """Make ``results/<experiment>/`` a copy of the plan's tables artifact; return the folder.

    Everything that was in the folder, including other markers, is removed. Between the two renames the folder is
    absent for an instant; a publisher killed there leaves the old folder under another name, and the next publisher
    removes it.

    Raises:
        DamagedArtifact: the tables artifact is missing or was changed.
    """
    artifact = open_artifact(plan.tables.path, deep=True)
    name = plan.loaded.experiment.experiment
    target = RESULTS / name
    staging, before = (RESULTS / f".{name}.{os.getpid()}{end}" for end in (".tmp", ".before.tmp"))
    RESULTS.mkdir(parents=True, exist_ok=True)
    with locked(ARTIFACTS / f".publish-{name}.lock", f"results of {name}"):
        remove_leftovers(name)
        copy_published(staging, artifact)
        (staging / marker(plan).name).write_text(f"{name} {plan.tables.id}\n", encoding="utf-8")
        sync(staging / marker(plan).name)
        sync(staging)
        if target.exists():
            target.rename(before)
        staging.rename(target)
        sync(RESULTS)
        remove_leftovers(name)
    return target


def copy_published(staging: Path, artifact: Artifact) -> None:
    """Copy what is published, durably: the marker, written later, must not reach the disk first."""
    for file in sorted(artifact.manifest["files"]):
        if file.split("/", 1)[0] in PUBLISHED:
            (staging / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.file(file), staging / file)
            sync(staging / file)
    for folder in (*filter(Path.is_dir, staging.iterdir()), staging):
        sync(folder)


def remove_leftovers(name: str) -> None:
    """Remove what killed publishers of this experiment left; the caller's lock says that no other one is alive.

    Markers go first: a folder that is half removed must not look published.
    """
    for left in sorted(RESULTS.iterdir()):
        if re.fullmatch(rf"\.{re.escape(name)}\.\d+(\.before)?\.tmp", left.name):
            for old in left.glob(".published-*"):
                old.unlink()
            shutil.rmtree(left)


def show_tables(plan: Plan) -> str:
    """The Markdown of all tables of the plan's tables artifact, and where the files are.

    Raises:
        DamagedArtifact: the tables artifact is missing or damaged.
    """
    artifact = open_artifact(plan.tables.path)
    experiment = plan.loaded.experiment
    tables = [artifact.file(f"tables/{name}.md").read_text(encoding="utf-8") for name in experiment.tables]
    return "\n".join([*tables, f"Tables and figures: {RESULTS / experiment.experiment}/"])
