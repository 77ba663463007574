"""What a stage command does with its jobs: import the stage, lease GPUs, run each job in this process or as ranks."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from mls.config.experiment import Execution
from mls.pipeline.artifact_store import being_made, restore
from mls.pipeline.launch import awaits_srun, die_with_torchrun, launch, wants_ranks
from mls.pipeline.leases import gpus_of, leased
from mls.pipeline.plan import Job, Plan
from mls.pipeline.runner import forget_passing_failure, run_stage
from mls.runtime.errors import MlsError
from mls.runtime.ranks import ranks

STAGE_MODULES = {
    "data": "mls.data.build_store",
    "pretrain": "mls.train.pretrain",
    "features": "mls.probe.features",
    "probe": "mls.probe.run_probe",
    "transfer": "mls.transfer.run_transfer",
    "tables": "mls.report.build_tables",
}
"""The module with each stage's ``run(context)``; imported when the stage runs, so that planning stays fast."""


def make(stage: str, plan: Plan, jobs: Sequence[Job], experiment: Path, attempt: int) -> None:
    """Make artifacts of one stage.

    Args:
        stage: the jobs' stage.
        plan: the jobs' plan.
        jobs: the artifacts to make, in this order.
        experiment: the plan's file, for the ranks.
        attempt: number of this try, see `run_stage`.

    Raises:
        MlsError: a job failed.
        Interrupted: the same command resumes.
    """
    if attempt == 1 and ranks().world == 1:
        # Before anything else: this attempt may be stopped while it waits, and the next one would take an old failure
        # as its own.
        for job in jobs:
            forget_passing_failure(job)
    execution = plan.loaded.experiment.execution
    function = importlib.import_module(STAGE_MODULES[stage]).run
    while True:
        # Wait here, without a GPU, for other processes that make one of the artifacts.
        missing = [] if ranks().world > 1 else [job for job in jobs if not restore(plan, job)]
        gpus = {job.id: 0 if awaits_srun(job, execution) else gpus_of(job, execution) for job in missing}
        with leased(max(gpus.values(), default=0)), _joined_ranks(stage, execution):
            if any(gpus[job.id] and being_made(job.id) for job in missing):
                continue  # another process began while this one waited for a GPU: give it back, and wait without it
            for job in jobs:
                if job in missing and wants_ranks(job, execution, gpus[job.id]):
                    command = ["mls", stage, job.id, "-e", str(experiment), "--attempt", str(attempt)]
                    launch(command, job, execution, gpus[job.id])
                else:
                    run_stage(plan, job, function, attempt)
        return


def _joined_ranks(stage: str, execution: Execution) -> AbstractContextManager[None]:
    """Join the other ranks, if torchrun started several."""
    if ranks().world == 1:
        return nullcontext()
    if stage not in ("pretrain", "transfer"):
        raise MlsError(f"torchrun started several processes, but only pretrain and transfer can use them, not {stage}")
    from mls.runtime.collectives import process_group  # it imports torch, which planning does without

    die_with_torchrun()
    return process_group(execution.join_timeout)
