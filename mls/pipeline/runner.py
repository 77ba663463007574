"""Run one stage once: lock, adopt what is complete, refuse what is known to fail, build, seal.

Exit codes of a stage command: 0 done, 75 interrupted after saving, 1 failed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mls.config.experiment import Execution
from mls.pipeline.artifact import Artifact, open_artifact
from mls.pipeline.artifact_store import building, claimed, restore, reuse
from mls.pipeline.plan import Job, Plan, payload
from mls.pipeline.provenance import digest
from mls.runtime.errors import DamagedArtifact, DeterministicError, Interrupted, MlsError
from mls.runtime.files import explain_full_disk, write_atomic
from mls.runtime.locks import say
from mls.runtime.ranks import RANK, WORLD


@dataclass(frozen=True)
class Context:
    """What a stage function gets: its job, opened inputs, where to write, how to run."""

    job: Job
    label: str
    """What a person calls the job, for logs."""
    out: Path
    """Fresh folder that becomes the artifact."""
    work: Path
    """Folder for resumable state; survives a kill."""
    execution: Execution
    inputs: dict[str, Artifact]
    """Artifacts by role; several of one role are ``<role>/<id>``."""
    plan: Plan

    def log(self, message: str) -> None:
        """One plain line on stderr that says which job speaks; of several ranks the first speaks for all."""
        if RANK == 0:
            say(f"[{self.job.stage} {self.label}] {message}")


StageFunction = Callable[[Context], None]


def run_stage(plan: Plan, job: Job, function: StageFunction, attempt: int = 1) -> None:
    """Make one artifact, unless it is there.

    Args:
        attempt: of a scheduler that starts again what has not ended well. From the second on, a failure that is
            recorded is final: only what was interrupted or killed, which leaves no record, goes on.

    Raises:
        MlsError: the stage failed; a deterministic failure is recorded and met again at once.
        Interrupted: state is saved in ``work/<id>/``; the same command goes on.
    """
    if RANK > 0:
        follow_stage(plan, job, function)
        return
    with explain_full_disk(job.work), claimed(job, plan.name(job)):
        try:
            inputs = None if reuse(job) else ready(plan, job, attempt)
        except BaseException:
            broadcast_go(go=False)  # else the other ranks would wait, and bury this error under their own
            raise
        broadcast_go(go=inputs is not None)
        if inputs is None:
            forget_state(job)
            say(f"{plan.name(job)}: is there")
            return
        try:
            with building(job) as out:
                function(context_of(plan, job, out, inputs))
                resolved = {**payload(job), "derived": read_derived(out)}
                write_atomic(out / "params.json", json.dumps(resolved, indent=1, sort_keys=True) + "\n")
        except Interrupted:
            raise
        except Exception as error:
            record_failure(job, error)
            raise
        forget_state(job)


def ready(plan: Plan, job: Job, attempt: int = 1) -> dict[str, Artifact]:
    """Open the inputs of a job that is to be made, and forget a failure that other code had."""
    refuse_known_failure(job, attempt)
    (job.work / "failed.json").unlink(missing_ok=True)
    return open_inputs(plan, job)


def forget_passing_failure(job: Job) -> None:
    """Remove a recorded failure that need not repeat itself, so that no later attempt takes it as final."""
    if not _record(job).get("deterministic"):
        (job.work / "failed.json").unlink(missing_ok=True)


def forget_state(job: Job) -> None:
    """Remove what the finished artifact makes needless; what could not be read stays for a person to look at."""
    for leftover in [*job.work.glob("checkpoint*.pt"), *job.work.glob(".*.tmp"), job.work / "failed.json"]:
        leftover.unlink(missing_ok=True)


def follow_stage(plan: Plan, job: Job, function: StageFunction) -> None:
    """A further rank's part: take part in the work if rank 0 does it; the lock and the artifact are rank 0's."""
    if not broadcast_go(go=True):
        return
    nowhere = job.work / f"rank-{RANK}-writes-nothing"
    try:
        function(context_of(plan, job, nowhere, open_inputs(plan, job)))
    except Interrupted:
        raise
    except Exception as error:
        record_failure(job, error)
        raise


def broadcast_go(*, go: bool) -> bool:
    """Rank 0's decision, on every rank."""
    if WORLD == 1:
        return go
    from mls.runtime.collectives import broadcast  # torch takes seconds to import; one process does without it

    return broadcast(go)


def context_of(plan: Plan, job: Job, out: Path, inputs: dict[str, Artifact]) -> Context:
    """What the stage function gets."""
    return Context(job, plan.labels[job.id][0], out, job.work, plan.loaded.experiment.execution, inputs, plan)


def read_derived(out: Path) -> dict[str, object]:
    """Values a stage derived from its params (steps, scaled sizes): ``derived.json``, folded into ``params.json``."""
    file = out / "derived.json"
    if not file.exists():
        return {}
    values: dict[str, object] = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    return values


def open_inputs(plan: Plan, job: Job) -> dict[str, Artifact]:
    """Open (and check) every artifact the job reads; those that the store lacks enter it.

    A second Snakemake may just have deleted an input's seal, to run a job that will find it complete;
    it is adopted here as that job would.
    """
    opened = {}
    for role, value in job.inputs.items():
        for one in [value] if isinstance(value, str) else value:
            upstream = plan.jobs[one]
            try:
                restore(plan, upstream)
                artifact = open_artifact(upstream.path)
            except DamagedArtifact as error:
                raise MlsError(f"{plan.name(job)} needs {plan.name(upstream)}: {error}") from error
            opened[role if isinstance(value, str) else f"{role}/{one}"] = artifact
    return opened


def record_failure(job: Job, error: Exception) -> None:
    """Write ``work/<id>/failed.json``; on a full disk that may fail too, which must not hide the error.

    Of several ranks the first to fail says why; the others only see it leave.
    """
    if WORLD > 1 and (job.work / "failed.json").exists():
        return
    deterministic = isinstance(error, DeterministicError)
    message = str(error) if isinstance(error, MlsError) else f"{type(error).__name__}: {error}"
    record = {"message": message, "deterministic": deterministic, "code": digest()} | (
        {"rank": RANK} if WORLD > 1 else {}
    )
    with suppress(OSError):
        write_atomic(job.work / "failed.json", json.dumps(record, indent=1) + "\n")


def refuse_known_failure(job: Job, attempt: int = 1) -> None:
    """Stop at once where the same code has already failed on the same inputs, or in the attempt before."""
    record = _record(job)
    final = record.get("deterministic") or attempt > 1
    if final and record.get("code") == digest():
        raise MlsError(f"{record['message']} (failed before, same inputs and code; to try again: mls retry {job.id})")


def _record(job: Job) -> dict[str, Any]:
    """The failure on record; empty where there is none, or none that can be read."""
    try:
        record = json.loads((job.work / "failed.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
