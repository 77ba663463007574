"""What a stage command does with its jobs: which code makes them, on which GPUs, in how many processes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from mls.pipeline.artifact_store import being_made, restore
from mls.pipeline.launch import awaits_srun, die_with_torchrun, launch, wants_ranks
from mls.pipeline.leases import gpus_of, leased
from mls.pipeline.plan import Job, Plan
from mls.pipeline.runner import forget_passing_failure, run_stage
from mls.runtime.errors import MlsError
from mls.runtime.ranks import has_ranks

STAGE_MODULES = {
    "data": "mls.data.build_store",
    "pretrain": "mls.train.pretrain",
    "features": "mls.probe.extract_features",
    "probe": "mls.probe.run_probe",
    "transfer": "mls.transfer.run_transfer",
    "tables": "mls.report.build_tables",
}
"""Where each stage's ``run(context)`` is; imported when it runs, so that planning stays fast."""


def make(stage: str, plan: Plan, jobs: Sequence[Job], experiment: Path, attempt: int) -> None:
    """Make artifacts of one stage, in this process or in ranks that it starts.

    Args:
        stage: the jobs' own.
        experiment: file of the plan, for the ranks.
        attempt: of a scheduler, see `run_stage`.

    Raises:
        MlsError: one of them failed.
        Interrupted: the same command goes on.
    """
    if attempt == 1 and not has_ranks():
        for job in jobs:
            forget_passing_failure(job)  # at once: this attempt may be stopped while it waits
    execution = plan.loaded.experiment.execution
    function = importlib.import_module(STAGE_MODULES[stage]).run
    while True:
        # Whoever makes one of them elsewhere is waited for here, where no GPU is held.
        missing = [] if has_ranks() else [job for job in jobs if not restore(plan, job)]
        gpus = {job.id: 0 if awaits_srun(job, execution) else gpus_of(job, execution) for job in missing}
        with leased(max(gpus.values(), default=0)), ranks(stage):
            if any(gpus[job.id] and being_made(job.id) for job in missing):
                continue  # somebody began while this process waited for a GPU
            for job in jobs:
                if job in missing and wants_ranks(job, execution, gpus[job.id]):
                    command = ["mls", stage, job.id, "-e", str(experiment), "--attempt", str(attempt)]
                    launch(command, job, execution, gpus[job.id])
                else:
                    run_stage(plan, job, function, attempt)
        return


def ranks(stage: str) -> AbstractContextManager[None]:
    """Join the other processes where torchrun started several."""
    if not has_ranks():
        return nullcontext()
    if stage != "pretrain":
        raise MlsError(f"torchrun started several processes, but only pretrain can use them, not {stage}")
    from mls.runtime.collectives import process_group  # torch, which planning does without

    die_with_torchrun()
    return process_group()
