# What every rule shares: the plan of the experiment file, inputs by id, resources, the lock.
#
# Ids and paths come from the experiment file (mls.pipeline.plan): a changed param means another path, and a file that
# exists is never out of date. There is no configfile: Snakemake would merge several, and one experiment's rows would
# leak into another. Only mls.config reads the file.

import os
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path

from snakemake.utils import min_version

min_version("9.0")

sys.path.insert(0, os.getcwd())  # each clone runs its own code

from mls.runtime.errors import MlsError
from mls.pipeline.leases import devices, gpus_of, trains_together
from mls.config.identity import STAGES
from mls.runtime.locks import locked
from mls.pipeline.plan import ARTIFACTS
from mls.pipeline.status import failures
from mls.pipeline.artifact_store import plan_here

EXPERIMENT = str(config.get("experiment", "params.yaml"))
try:
    PLAN = plan_here(Path(EXPERIMENT))  # what the store has is linked, not made again
except MlsError as error:
    raise WorkflowError(str(error))

EXPERIMENT_NAME = PLAN.loaded.experiment.experiment

# DVC expects the folder of every phase, even of one that makes nothing.
for stage in STAGES:
    (ARTIFACTS / stage).mkdir(parents=True, exist_ok=True)

EXECUTION = PLAN.loaded.experiment.execution
MLS = f"env MLS_PLAIN=1 {shlex.quote(sys.executable)} -m mls"

# As many jobs as there are devices, unless a profile or --resources says how many.
if devices() and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", len(devices()))


HELD = ExitStack()


# One Snakemake an experiment at a time: a killed `dvc repro` leaves its Snakemake running, and two
# would delete one another's outputs. The kernel frees the lock on any death; -n takes none.
onstart:
    HELD.enter_context(
        locked(
            ARTIFACTS / f".snakemake-{EXPERIMENT_NAME}.lock",
            f"experiment {EXPERIMENT_NAME}",
        )
    )


# Other runs went on (keep-going), so what failed may be far above in the log.
onerror:
    failed = failures(PLAN)
    heading = (
        f"{len(failed)} of {len(PLAN.jobs)} jobs failed:"
        if failed
        else "no failure is recorded: jobs were stopped, killed or not begun; run the same again"
    )
    print("\n  ".join([heading, *failed]), file=sys.stderr)


MANIFESTS = {job.id: f"{job.path}/artifact.json" for job in PLAN.jobs.values()}


def manifests(stage):
    """Every artifact of one stage."""
    return [MANIFESTS[job.id] for job in PLAN.stage(stage)]


def inputs_of(stage):
    """Input function: the artifacts that job `id` of a stage reads.

    They are ancient(): `dvc checkout` gives files new times, and times decide nothing here. An artifact that is there
    needs no input that is not: Snakemake would make it again, ancient or not, where something else needs that input.
    """

    def inputs(wildcards):
        job = PLAN.jobs.get(wildcards.id)
        if job is None or job.stage != stage:
            raise WorkflowError(
                f"{EXPERIMENT} plans no {stage} {wildcards.id}; it has changed since this run began"
            )
        paths = [MANIFESTS[upstream.id] for upstream in PLAN.inputs(job)]
        if os.path.exists(MANIFESTS[job.id]):
            return [path for path in paths if os.path.exists(path)]
        return paths

    return ancient(inputs)


def gpu(wildcards):
    """GPUs of a job; leased by the stage itself."""
    job = PLAN.jobs.get(wildcards.id)
    return 0 if job is None else gpus_of(job, EXECUTION)


def attempt(wildcards, attempt):
    """From the second on, a failure that is on record is final."""
    return attempt


def name_of(wildcards):
    """What a person calls the job, for Snakemake's log."""
    return PLAN.name(PLAN.jobs[wildcards.id])


def stage_command(stage):
    """Shell command of a stage's job.

    `exec`: signals reach the stage itself. What it says on stderr goes to the terminal and to its log; `tee` ignores
    signals and ends with the stage, so that the last lines of a stopped one are kept.
    """
    return (
        "exec {MLS} "
        + stage
        + " {wildcards.id} --experiment {EXPERIMENT:q} --attempt {resources.attempt}"
        " 2> >(trap '' HUP INT TERM USR1; exec tee -a {log:q} >&2)"
    )


wildcard_constraints:
    id="[0-9a-f]{10}",


report: "../report/workflow.rst"


localrules:
    all,
    pages,
    publish,
