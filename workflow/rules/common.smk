# What every rule shares: the plan of the experiment file, inputs by id, resources, the lock.
#
# Ids and paths come from the experiment file (mls.pipeline.plan): a changed param gives another path, so a file that
# exists is never out of date. Only mls.config reads the file. It is not a configfile, because Snakemake merges several
# configfiles, and one experiment's rows would leak into another.

import os
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path

from snakemake.utils import min_version

min_version("9.0")

sys.path.insert(0, os.getcwd())  # each clone runs its own code

from mls.runtime.errors import Interrupted, MlsError
from mls.pipeline.leases import devices, gpus_of, trains_together
from mls.config.identity import STAGES
from mls.runtime.locks import locked
from mls.pipeline.plan import ARTIFACTS
from mls.pipeline.status import failures
from mls.pipeline.artifact_store import plan_here

EXPERIMENT = str(config.get("experiment", "params.yaml"))
try:
    PLAN = plan_here(Path(EXPERIMENT))  # links what the store has
except (Interrupted, MlsError) as error:
    raise WorkflowError(str(error))

EXPERIMENT_NAME = PLAN.loaded.experiment.experiment

# DVC expects the folder of every stage, even of one that makes nothing.
for stage in STAGES:
    (ARTIFACTS / stage).mkdir(parents=True, exist_ok=True)

EXECUTION = PLAN.loaded.experiment.execution
MLS = f"env MLS_PLAIN=1 {shlex.quote(sys.executable)} -m mls"

# As many GPU jobs at once as there are devices, unless a profile or --resources says otherwise.
if devices() and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", len(devices()))


HELD = ExitStack()


# One Snakemake per experiment at a time: a killed `dvc repro` leaves its Snakemake running, and two would delete each
# other's outputs. The kernel frees the lock when the holder dies; -n takes no lock.
onstart:
    try:
        HELD.enter_context(
            locked(
                ARTIFACTS / f".snakemake-{EXPERIMENT_NAME}.lock",
                f"experiment {EXPERIMENT_NAME}",
            )
        )
    except (Interrupted, MlsError) as error:
        raise WorkflowError(str(error))


# Other jobs went on (keep-going), so the failed ones may be far above in the log.
onerror:
    failed = failures(PLAN)
    heading = (
        f"{len(failed)} of {len(PLAN.jobs)} jobs failed:"
        if failed
        else "no failure is recorded: jobs were stopped, killed or not started; run the same command again"
    )
    print("\n  ".join([heading, *failed]), file=sys.stderr)


MANIFESTS = {job.id: f"{job.path}/artifact.json" for job in PLAN.jobs.values()}


def manifests(stage):
    """Manifests of every artifact of one stage."""
    return [MANIFESTS[job.id] for job in PLAN.stage(stage)]


def inputs_of(stage):
    """Input function: manifests of the artifacts that job `id` of a stage reads.

    They are ancient(), because `dvc checkout` gives files new times. A finished artifact has no missing inputs: if
    another job needed a missing input, Snakemake would make the finished artifact again after it, ancient or not.
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
    """Number of GPUs of a job; the stage itself leases them."""
    job = PLAN.jobs.get(wildcards.id)
    return 0 if job is None else gpus_of(job, EXECUTION)


# On several nodes a training calls srun itself: `mpi` keeps the executor plugin from doing so. `gres` is GPUs per node.
NODES = {}
if EXECUTION.nodes > 1:
    NODES = {"nodes": EXECUTION.nodes, "tasks": EXECUTION.nodes, "mpi": "srun"}
    if EXECUTION.device == "cuda" or (EXECUTION.device == "auto" and devices()):
        NODES |= {"gres": f"gpu:{EXECUTION.gpus}", "tasks_per_gpu": 0}


def training_threads(wildcards):
    """Number of cores of a training on each node: those of all its ranks."""
    together = trains_together(PLAN.jobs[wildcards.id])
    return EXECUTION.threads * max(1, gpu(wildcards) if together else 1)


def attempt(wildcards, attempt):
    """Number of the try; from the second on, a recorded failure is final."""
    return attempt


def name_of(wildcards):
    """The job's name in Snakemake's log."""
    return PLAN.name(PLAN.jobs[wildcards.id])


def stage_command(stage):
    """Shell command of a stage's job.

    `exec` replaces the shell by the stage, so signals reach the stage and the exit code is its own. Its stderr goes to
    the terminal and to its log. `tee` ignores signals and ends when the stage does, so the log has the last lines of a
    stopped stage too. Snakemake removes the log when the job starts again: it is always that of the last try.
    """
    return (
        "exec {MLS} "
        + stage
        + " {wildcards.id} --experiment {EXPERIMENT:q} --attempt {resources.attempt}"
        " 2> >(trap '' HUP INT TERM USR1; exec tee {log:q} >&2)"
    )


wildcard_constraints:
    id="[0-9a-f]{10}",


report: "../report/workflow.rst"


localrules:
    all,
    pages,
    publish,
