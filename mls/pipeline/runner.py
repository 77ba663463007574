"""Run one stage once: lock, reuse, refuse a known failure, build in staging, write the manifest, rename.

    run_stage(plan, job, function)      # `function` fills context.out; afterwards job.path is a finished artifact

Exit codes of a stage command: 0 done, 75 interrupted after saving, 1 failed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mls.config.experiment import Execution
from mls.pipeline.artifact import Artifact, open_artifact
from mls.pipeline.artifact_store import building, claimed, restore, reuse
from mls.pipeline.plan import Job, Plan, payload
from mls.pipeline.provenance import digest
from mls.runtime.errors import DamagedArtifact, DeterministicError, MlsError
from mls.runtime.files import explain_full_disk, write_atomic
from mls.runtime.locks import say
from mls.runtime.ranks import ranks


@dataclass(frozen=True)
class Context:
    """What a stage function gets: its job, its opened inputs, where to write and how to run."""

    job: Job
    label: str
    """The job's name in logs."""
    out: Path
    """Staging folder, empty at first, that becomes the artifact."""
    work: Path
    """Folder for resumable state; it survives a kill."""
    execution: Execution
    inputs: dict[str, Artifact]
    """Artifacts by role; if a role has several, their keys are ``<role>/<id>``."""
    plan: Plan

    def log(self, message: str) -> None:
        """Print one line with the job's name to stderr; only rank 0 prints."""
        if ranks().rank == 0:
            say(f"[{self.job.stage} {self.label}] {message}")


StageFunction = Callable[[Context], None]


def run_stage(plan: Plan, job: Job, function: StageFunction, attempt: int = 1) -> None:
    """Make one artifact, unless it exists.

    Args:
        plan: the job's plan.
        job: the artifact to make.
        function: fills the artifact's folder.
        attempt: number of this try, counted by a scheduler that restarts failed jobs. From the second on, any recorded
            failure is final. A job that was interrupted or killed leaves no record, and goes on.

    Raises:
        MlsError: the stage failed, or has failed before in a way that would repeat.
        Interrupted: the state is saved in ``work/<id>/``; the same command resumes.
    """
    if ranks().rank > 0:
        _follow(plan, job, function)
        return
    # The lock comes first, so that everything below describes a state that no other process changes.
    with explain_full_disk(job.work), claimed(job, plan.name(job)):
        try:
            # Look for the artifact after the lock: another process may have made it while this one waited.
            exists = reuse(job)
            if not exists:
                refuse_known_failure(job, attempt)
                job.failure.unlink(missing_ok=True)  # it was met by other code, or does not have to repeat
            inputs = {} if exists else open_inputs(plan, job)
        except BaseException:
            _broadcast_go(False)  # the other ranks wait for this decision; their timeout would bury the error
            raise
        _broadcast_go(not exists)
        if exists:
            say(f"{plan.name(job)}: is there")
        else:
            # `building` writes the manifest last and renames the folder into place, so a kill leaves no half artifact.
            with _recording_failure(job), building(job) as out:
                function(_context(plan, job, out, inputs))
                resolved = {**payload(job), "derived": _pop_derived(out)}
                write_atomic(out / "params.json", json.dumps(resolved, indent=1, sort_keys=True) + "\n")
        # Only now, when the artifact is on disk, is the state to resume from not needed. Checkpoints that could not be
        # read (*.unreadable) stay, for a person to look at.
        for leftover in [*job.work.glob("checkpoint*.pt"), *job.work.glob(".*.tmp"), job.failure]:
            leftover.unlink(missing_ok=True)


def _follow(plan: Plan, job: Job, function: StageFunction) -> None:
    """Take part as a rank other than rank 0, which holds the lock and writes the artifact."""
    if _broadcast_go(True):
        nowhere = job.work / f"rank-{ranks().rank}-writes-nothing"
        with _recording_failure(job):
            function(_context(plan, job, nowhere, open_inputs(plan, job)))


def _broadcast_go(go: bool) -> bool:
    """Rank 0's decision whether to make the artifact, on every rank."""
    if ranks().world == 1:
        return go
    from mls.runtime.collectives import broadcast  # it imports torch, which takes seconds; one process does not need it

    return broadcast(go)


def _context(plan: Plan, job: Job, out: Path, inputs: dict[str, Artifact]) -> Context:
    return Context(job, plan.labels[job.id][0], out, job.work, plan.loaded.experiment.execution, inputs, plan)


def _pop_derived(out: Path) -> dict[str, object]:
    """Values that a stage derived from its params (steps, scaled sizes), moved from ``derived.json`` to params.json."""
    file = out / "derived.json"
    if not file.exists():
        return {}
    values: dict[str, object] = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    return values


def open_inputs(plan: Plan, job: Job) -> dict[str, Artifact]:
    """Open and check the artifacts that a job reads, by role; those that the store lacks enter it.

    `restore` comes before opening, because a second Snakemake may just have deleted an input's manifest, in order to
    run a job that will find it complete.

    Raises:
        MlsError: an input is missing or damaged.
    """
    opened = {}
    for role, upstream in plan.roles(job).items():
        try:
            restore(plan, upstream)
            opened[role] = open_artifact(upstream.path)
        except DamagedArtifact as error:
            raise MlsError(f"{plan.name(job)} needs {plan.name(upstream)}: {error}") from error
    return opened


@contextmanager
def _recording_failure(job: Job) -> Iterator[None]:
    """Write ``work/<id>/failed.json`` if the block fails. An interruption is not a failure."""
    try:
        yield
    except Exception as error:
        # With several ranks, the first to fail says why; the others only notice that it has left.
        if ranks().world == 1 or not job.failure.exists():
            message = str(error) if isinstance(error, MlsError) else f"{type(error).__name__}: {error}"
            record = {"message": message, "deterministic": isinstance(error, DeterministicError), "code": digest()}
            if ranks().world > 1:
                record["rank"] = ranks().rank
            with suppress(OSError):  # on a full disk this fails too, which must not hide the error
                write_atomic(job.failure, json.dumps(record, indent=1) + "\n")
        raise


def refuse_known_failure(job: Job, attempt: int = 1) -> None:
    """Stop at once if the same code has failed on the same inputs and would fail again.

    Raises:
        MlsError: says how it failed, and how to try again.
    """
    record = _failure_record(job)
    final = record.get("deterministic") or attempt > 1
    if final and record.get("code") == digest():
        raise MlsError(f"{record['message']} (failed before, same inputs and code; to try again: mls retry {job.id})")


def forget_passing_failure(job: Job) -> None:
    """Remove the record of a failure that may not repeat, so that no later attempt takes it as final."""
    if not _failure_record(job).get("deterministic"):
        job.failure.unlink(missing_ok=True)


def _failure_record(job: Job) -> dict[str, Any]:
    """The recorded failure; empty if there is none or it can't be read."""
    try:
        record = json.loads(job.failure.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
