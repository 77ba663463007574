"""What state each artifact of an experiment is in, told from names and sizes alone."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mls.errors import DamagedArtifact, MlsError
from mls.experiment.artifact import SEAL, Artifact, damage, open_artifact, state
from mls.experiment.places import store, work
from mls.experiment.plan import Job, Plan
from mls.experiment.provenance import digest
from mls.experiment.store import being_made

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
        made = json.loads((job.path / SEAL).read_text(encoding="utf-8"))["made"]
    except (OSError, ValueError, KeyError):
        return False
    return bool(made["code"]["digest"] != digest())


def print_status(plan: Plan) -> None:
    """A table of every artifact, then counts, then what to do about what is wrong."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("stage", "id", "state", "code", "labels"):
        table.add_column(column, no_wrap=column != "labels")
    states = {job.id: job_state(job) for job in plan.jobs.values()}
    for job in plan.jobs.values():
        found = states[job.id]
        made_by = ("other" if other_code(job) else "this") if found == "done" else ""
        labels = ", ".join(plan.labels[job.id])
        table.add_row(job.stage, job.id, f"[{STYLES[found]}]{found}[/]", made_by, labels.replace("[", r"\["))
    console = Console(soft_wrap=True)
    console.print(table)
    counts = {name: list(states.values()).count(name) for name in STYLES}
    console.print("\n" + ", ".join(f"{count} {name}" for name, count in counts.items() if count))
    for job in plan.jobs.values():
        if states[job.id] == "failed":
            record = json.loads((job.work / "failed.json").read_text(encoding="utf-8"))
            console.print(f"{plan.name(job)} failed: {record['message']} (try again: mls retry {job.id})", markup=False)
        elif states[job.id] == "damaged":
            console.print(damage(job.path), markup=False)


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
    files = [(artifact.path / name, stored / name) for name in artifact.seal["files"]]
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
