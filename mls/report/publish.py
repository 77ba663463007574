"""Publish tables and figures to ``results/<experiment>/``, which is committed and read by people.

    mls publish -e params.yaml

The folder is a view of one tables artifact: ``.published-<id>`` says of which. It is built aside and
swapped in by renames, so that a marker only ever stands in a complete folder, whatever is killed when.
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
FILES = ("metrics.json", "provenance.json", "curves.csv")
FOLDERS = ("tables", "figures")


def marker(plan: Plan, results: Path = RESULTS) -> Path:
    """The file whose presence says that the plan's tables are published."""
    return results / plan.loaded.experiment.experiment / f".published-{plan.tables.id}"


def publish(plan: Plan, results: Path = RESULTS) -> Path:
    """Make ``results/<experiment>/`` a copy of the plan's tables artifact; return the folder.

    What was in the folder before, other markers included, is gone afterwards. Between the two
    renames the folder is absent for an instant; a publisher killed there leaves the old folder
    aside, and the next one removes it and puts the new one in place.

    Raises:
        DamagedArtifact: the tables artifact is missing or was changed.
    """
    artifact = open_artifact(plan.tables.path, deep=True)
    name = plan.loaded.experiment.experiment
    target = results / name
    aside, before = (results / f".{name}.{os.getpid()}{end}" for end in (".tmp", ".before.tmp"))
    results.mkdir(parents=True, exist_ok=True)
    with locked(ARTIFACTS / f".publish-{name}.lock", f"results of {name}"):
        sweep(results, name)
        fill(aside, artifact, marker(plan).name, f"{name} {plan.tables.id}\n")
        if target.exists():
            target.rename(before)
        aside.rename(target)
        sync(results)
        sweep(results, name)
    return target


def fill(aside: Path, artifact: Artifact, marker_name: str, line: str) -> None:
    """Copy what is published, make it durable, then write the marker."""
    for file in sorted(artifact.manifest["files"]):
        if file in FILES or file.split("/", 1)[0] in FOLDERS:
            (aside / file).parent.mkdir(parents=True, exist_ok=True)
            write_synced(aside / file, artifact.file(file).read_bytes())
    for folder in (*(aside / name for name in FOLDERS), aside):
        if folder.is_dir():
            sync(folder)
    write_synced(aside / marker_name, line.encode())
    sync(aside)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file that is on the disk when this returns."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sweep(results: Path, name: str) -> None:
    """Remove what publishers of this experiment left aside; the lock says that none is alive.

    Markers go first: a folder that is half removed must not look published.
    """
    for left in sorted(results.iterdir()):
        if re.fullmatch(rf"\.{re.escape(name)}\.\d+(\.before)?\.tmp", left.name):
            for old in left.glob(".published-*"):
                old.unlink()
            shutil.rmtree(left)


def show(plan: Plan, results: Path = RESULTS) -> str:
    """The Markdown of all tables of the plan's tables artifact, and where the files are.

    Raises:
        DamagedArtifact: the tables artifact is missing or damaged.
    """
    artifact = open_artifact(plan.tables.path)
    experiment = plan.loaded.experiment
    tables = [artifact.file(f"tables/{name}.md").read_text(encoding="utf-8") for name in experiment.tables]
    return "\n".join([*tables, f"Tables and figures: {results / experiment.experiment}/"])
