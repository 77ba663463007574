"""What state each artifact of an experiment is in, told from names and sizes alone."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mls.errors import DamagedArtifact, MlsError
from mls.experiment.artifact import SEAL, open_artifact, state
from mls.experiment.plan import WORK, Job, Plan
from mls.experiment.provenance import digest
from mls.experiment.stage import is_locked

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
    if is_locked(job.work / "lock"):
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
            console.print(_damage(job.path), markup=False)


def _damage(path: Path) -> str:
    try:
        open_artifact(path)
    except DamagedArtifact as error:
        return str(error)
    return ""


def verify_plan(plan: Plan) -> None:
    """Hash every finished artifact of the plan.

    Raises:
        DamagedArtifact: lists every artifact that differs, and how to mend it.
    """
    checked, problems = 0, []
    for job in plan.jobs.values():
        if state(job.path) == "missing":
            continue
        try:
            open_artifact(job.path, deep=True)
            checked += 1
        except DamagedArtifact as error:
            problems.append(str(error))
    print(f"{checked} artifacts verified, {len(problems)} damaged, {len(plan.jobs) - checked - len(problems)} missing")
    if problems:
        raise DamagedArtifact("\n".join(problems))


def forget_failure(job_id: str) -> None:
    """Remove ``work/<id>/failed.json``.

    Raises:
        MlsError: there is none.
    """
    file = WORK / job_id / "failed.json"
    if not file.exists():
        failed = ", ".join(sorted(path.parent.name for path in WORK.glob("*/failed.json"))) or "none"
        raise MlsError(f"{job_id} has no recorded failure; recorded failures: {failed}")
    file.unlink()
    print(f"{job_id}: failure forgotten; run snakemake again")
