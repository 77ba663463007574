"""What state each artifact of an experiment is in, told from names and sizes alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

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


def job_state(job: Job) -> str:
    """One of `STYLES`: running wins over all, then what is on disk, then what a rerun would meet."""
    if being_made(job.id):
        return "running"
    found = state(job.path)
    if found != "missing":
        return found
    if (job.work / "failed.json").exists():
        return "failed"
    return "resumable" if any(job.work.glob("checkpoint*.pt")) else "missing"


def other_code(job: Job) -> bool:
    """Whether a finished artifact was made by other code than the one that runs now."""
    try:
        made = json.loads((job.path / MANIFEST).read_text(encoding="utf-8"))["made"]
    except (OSError, ValueError, KeyError):
        return False
    return bool(made["code"]["digest"] != digest())


def print_status(plan: Plan) -> None:
    """A table of every artifact, then counts, then what to do about what is wrong."""
    states = {job.id: job_state(job) for job in plan.jobs.values()}
    rows = [
        (
            job.stage,
            job.id,
            states[job.id],
            ("other" if other_code(job) else "this") if states[job.id] == "done" else "",
            ", ".join(plan.labels[job.id]),
        )
        for job in plan.jobs.values()
    ]
    print_states(("stage", "id", "state", "code", "labels"), rows)
    counts = {name: list(states.values()).count(name) for name in STYLES}
    print("\n" + ", ".join(f"{count} {name}" for name, count in counts.items() if count))
    for job in plan.jobs.values():
        if states[job.id] == "failed":
            print(failure(plan, job))
        elif states[job.id] == "damaged":
            print(damage(job.path))


def print_states(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A table with aligned columns whose cells that begin with a state have its colour, on a terminal.

    A table of rich's own would take a millisecond a row: seconds for a sweep's thousands.
    """
    console = Console()

    def painted(text: str, style: str) -> str:
        with console.capture() as captured:
            console.print(text, style=style, end="", markup=False, highlight=False, soft_wrap=True)
        return captured.get()

    styles = {name: painted("state", style).split("state") for name, style in STYLES.items()}
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    print(painted("  ".join(f"{name:<{width}}" for name, width in zip(header, widths, strict=True)).rstrip(), "bold"))
    for row in rows:
        cells = []
        for cell, width in zip(row, widths, strict=True):
            before, after = styles.get(cell, ("", ""))
            cells.append(f"{before}{cell:<{width}}{after}")
        print("  ".join(cells).rstrip())


def failures(plan: Plan) -> list[str]:
    """A line for each job whose failure is recorded, as `failure` gives it."""
    recorded = [job for job in plan.jobs.values() if (job.work / "failed.json").exists()]
    return [failure(plan, job) for job in recorded if job_state(job) == "failed"]


def failure(plan: Plan, job: Job) -> str:
    """A failed job, why, and what tries it again."""
    record = json.loads((job.work / "failed.json").read_text(encoding="utf-8"))
    again = f"mls retry {job.id}, then the same command" if record["deterministic"] else "the same command"
    return f"{plan.name(job)} failed: {record['message']} (to try again: {again})"


def verify_plan(plan: Plan) -> None:
    """Hash every finished artifact of the plan, in ``artifacts/`` and in the store.

    Raises:
        DamagedArtifact: lists every artifact that differs, and how to mend it.
    """
    problems: list[str] = []
    here = [_verified(job.path, problems) for job in plan.jobs.values()]
    damaged = len(problems)
    print(f"{len(here) - here.count(None)} artifacts verified, {damaged} damaged, {here.count(None) - damaged} missing")
    kept = [
        found if found and _same_files(found, job.stored) else _verified(job.stored, problems)
        for job, found in zip(plan.jobs.values(), here, strict=True)
    ]
    print(f"{len(kept) - kept.count(None)} verified in the store, {store()}/, {len(problems) - damaged} damaged there")
    if problems:
        raise DamagedArtifact("\n".join(problems))


def _verified(path: Path, problems: list[str]) -> Artifact | None:
    """An artifact whose files have the right contents; None where it is missing or, as a problem says, damaged."""
    if state(path) == "missing":
        return None
    try:
        return open_artifact(path, deep=True)
    except DamagedArtifact as error:
        problems.append(str(error))
        return None


def _same_files(artifact: Artifact, stored: Path) -> bool:
    """Whether all files of an artifact are those in the store, by hard links: to read them once is enough."""
    files = [(artifact.path / name, stored / name) for name in artifact.manifest["files"]]
    return all(there.exists() and here.samefile(there) for here, there in files)


def forget_failure(job_id: str) -> None:
    """Remove ``work/<id>/failed.json``.

    Raises:
        MlsError: there is none.
    """
    file = work() / job_id / "failed.json"
    if not file.exists():
        failed = ", ".join(sorted(path.parent.name for path in work().glob("*/failed.json"))) or "none"
        raise MlsError(f"{job_id} has no recorded failure; recorded failures: {failed}")
    file.unlink()
    print(f"{job_id}: failure forgotten; run snakemake again")
