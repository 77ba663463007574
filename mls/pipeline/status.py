"""The state of each artifact of an experiment, from file names and sizes; verification reads the contents too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style

from mls.pipeline.artifact import MANIFEST, Artifact, damage, open_artifact, state
from mls.pipeline.artifact_store import being_made
from mls.pipeline.plan import Job, Plan
from mls.pipeline.provenance import digest
from mls.runtime.errors import DamagedArtifact, MlsError
from mls.runtime.paths import store, work

STYLES = {
    "done": "green",
    "running": "cyan",
    "resumable": "yellow",
    "failed": "red",
    "damaged": "bold red",
    "missing": "dim",
}
"""Every state, and how it is shown on a terminal."""


def job_state(job: Job) -> str:
    """A key of `STYLES`: ``running`` if a process makes it, else what is on disk, else what a rerun would meet."""
    if being_made(job.id):
        return "running"
    found = state(job.path)
    if found != "missing":
        return found
    if job.failure.exists():
        return "failed"
    return "resumable" if any(job.work.glob("checkpoint*.pt")) else "missing"


def other_code(job: Job) -> bool:
    """Whether a finished artifact was made by other code than this."""
    try:
        made = json.loads((job.path / MANIFEST).read_text(encoding="utf-8"))["made"]
    except (OSError, ValueError, KeyError):
        return False
    return bool(made["code"]["digest"] != digest())


def print_status(plan: Plan) -> None:
    """Print a table of all artifacts, the number in each state, and what to do about failed and damaged ones."""
    states = {job.id: job_state(job) for job in plan.jobs.values()}
    rows = []
    for job in plan.jobs.values():
        code = ("other" if other_code(job) else "this") if states[job.id] == "done" else ""
        rows.append((job.stage, job.id, states[job.id], code, ", ".join(plan.labels[job.id])))
    print_states(("stage", "id", "state", "code", "labels"), rows)
    counts = {name: list(states.values()).count(name) for name in STYLES}
    print("\n" + ", ".join(f"{count} {name}" for name, count in counts.items() if count))
    if others := [code for *_, code, _ in rows].count("other"):
        print(
            f"{others} made by other code than this: if yours gives other results, raise a version (docs/extending.md)"
        )
    for job in plan.jobs.values():
        if states[job.id] == "failed":
            print(_failure(plan, job))
        elif states[job.id] == "damaged":
            print(damage(job.path))


def print_states(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table with aligned columns; on a terminal, a cell that is a state has its colour.

    rich's own table takes about a millisecond a row, which is seconds for a sweep with thousands of rows.
    """
    console = Console()
    colours = ColorSystem.STANDARD if console.color_system and not console.no_color else None
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        line = ""
        for cell, width in zip(row, widths, strict=True):
            style = "bold" if row is header else STYLES.get(cell, "")
            line += Style.parse(style).render(cell, color_system=colours) + " " * (width - len(cell) + 2)
        print(line.rstrip())


def failures(plan: Plan) -> list[str]:
    """A line for each failed job: why it failed, and how to try again."""
    recorded = [job for job in plan.jobs.values() if job.failure.exists()]
    return [_failure(plan, job) for job in recorded if job_state(job) == "failed"]


def _failure(plan: Plan, job: Job) -> str:
    record = json.loads(job.failure.read_text(encoding="utf-8"))
    again = f"mls retry {job.id}, then the same command" if record["deterministic"] else "the same command"
    return f"{plan.name(job)} failed: {record['message']} (to try again: {again})"


def verify_plan(plan: Plan) -> None:
    """Compare every file of every finished artifact, in ``artifacts/`` and in the store, with its sha256.

    Raises:
        DamagedArtifact: lists every damaged artifact, and how to repair it.
    """
    problems: list[str] = []
    here = {job.id: _verified(job.path, problems) for job in plan.jobs.values()}
    whole, damaged = sum(found is not None for found in here.values()), len(problems)
    print(f"{whole} artifacts verified, {damaged} damaged, {len(here) - whole - damaged} missing")
    kept = 0
    for job in plan.jobs.values():
        found = here[job.id]
        kept += bool((found and _same_files(found, job.stored)) or _verified(job.stored, problems))
    print(f"{kept} verified in the store, {store()}/, {len(problems) - damaged} damaged there")
    if problems:
        raise DamagedArtifact("\n".join(problems))


def _verified(path: Path, problems: list[str]) -> Artifact | None:
    """Open an artifact with its contents verified; None if it is missing or, with a line in ``problems``, damaged."""
    if state(path) == "missing":
        return None
    try:
        return open_artifact(path, deep=True)
    except DamagedArtifact as error:
        problems.append(str(error))
        return None


def _same_files(artifact: Artifact, stored: Path) -> bool:
    """Whether all files of an artifact are hard links into the store, so that reading them once is enough."""
    files = [(artifact.path / name, stored / name) for name in artifact.manifest["files"]]
    return all(there.exists() and here.samefile(there) for here, there in files)


def forget_failure(job_id: str) -> None:
    """Remove ``work/<id>/failed.json``, so that the next run tries again.

    Raises:
        MlsError: there is no such file; lists the recorded failures.
    """
    file = work() / job_id / "failed.json"
    if not file.exists():
        failed = ", ".join(sorted(path.parent.name for path in work().glob("*/failed.json"))) or "none"
        raise MlsError(f"{job_id} has no recorded failure; recorded failures: {failed}")
    file.unlink()
    print(f"{job_id}: failure forgotten; run snakemake again")
