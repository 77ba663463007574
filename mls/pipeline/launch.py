"""One pretraining on several GPUs: torchrun with leased devices; on several machines of a Slurm job, by srun.

    mls pretrain mls        # with execution.gpus 4: four ranks of it, which are `mls pretrain mls` too
                            # with execution.nodes 2: srun starts this very command on both, and each starts its ranks

This process starts the ranks, passes on signals and waits; the first rank does what a single process would: lock,
artifact, failure record. Ranks die with it, so that no device is used whose lease is free.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import psutil

from mls.config.experiment import Execution
from mls.pipeline.leases import trains_together
from mls.pipeline.plan import Job
from mls.pipeline.runner import forget_passing_failure
from mls.runtime.errors import EXIT_INTERRUPTED, Interrupted, MlsError
from mls.runtime.signals import SIGNALS

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl."""
TORCHRUN_WAITS_S = 30
"""Between its SIGTERM to the ranks that are left, and its SIGKILL."""


def wants_ranks(job: Job, execution: Execution, gpus: int) -> bool:
    """Whether a job that has so many GPUs of this machine is more than this process's."""
    return trains_together(job) and (gpus > 1 or execution.nodes > 1)


def awaits_srun(job: Job, execution: Execution) -> bool:
    """Whether this command has yet to be started on every node; until then it takes no GPU."""
    wanted = trains_together(job) and execution.nodes > 1
    return wanted and os.environ.get("SLURM_STEP_NUM_NODES") != str(execution.nodes)


def launch(command: Sequence[str], job: Job, execution: Execution, gpus: int) -> None:
    """Run a stage command (what follows ``python -m``) as ranks, and wait.

    Args:
        gpus: of this machine, leased, a rank on each; on 0 there is one rank on the CPU.

    Raises:
        Interrupted: they saved, were killed, or left no failure behind; the same command goes on.
        MlsError: a rank failed; it has said why.
    """
    on_nodes = srun(command, execution) if awaits_srun(job, execution) else None
    mark = job.work / "rank-killed"
    if on_nodes:
        mark.unlink(missing_ok=True)
    with _passing_on_signals() as asked:
        if on_nodes:
            codes = {subprocess.run(on_nodes, check=False).returncode} - {0}
            killed = mark.exists()
        else:
            failures = _torchrun(torchrun(command, execution, gpus))
            codes, killed = {code for code, _ in failures}, was_killed(failures)
    if not codes:
        return
    if killed:  # the ranks that lived on have recorded that one is gone, those of other nodes even after this
        forget_passing_failure(job)
        if on_nodes:
            mark.unlink()
        elif execution.nodes > 1:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
    if (killed or asked or EXIT_INTERRUPTED in codes) and not (job.work / "failed.json").exists():
        how = "a rank was killed (out of memory?)" if killed else "its ranks were stopped by a signal"
        raise Interrupted(f"{how}; run the same command to go on")
    raise MlsError(f"its ranks failed (exit codes {', '.join(map(str, sorted(codes)))}), see above")


def srun(command: Sequence[str], execution: Execution) -> list[str]:
    """The command line that starts a stage command once on every node of this Slurm job.

    Raises:
        MlsError: this is no Slurm job.
    """
    if "SLURM_JOB_ID" not in os.environ:
        raise MlsError(
            f"execution.nodes is {execution.nodes}, which needs a Slurm job; "
            "use snakemake --workflow-profile profiles/slurm, or set it to 1"
        )
    nodes = str(execution.nodes)
    each = ["--nodes", nodes, "--ntasks", nodes, "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--cpu-bind=none"]
    return ["srun", *each, f"--export=ALL,MASTER_ADDR={first_node()}", sys.executable, "-m", *command]


def first_node() -> str:
    """Host name of the Slurm job's first node, which need not be where this process runs: `salloc` on a login node.

    Raises:
        MlsError: srun can't start anything there.
    """
    asked = ["srun", "--nodes=1", "--ntasks=1", "--ntasks-per-node=1", "--relative=0", "hostname"]
    done = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode or not done.stdout.split():
        raise MlsError(f"{' '.join(asked)} failed with exit code {done.returncode}, see above")
    return done.stdout.split()[-1]


def torchrun(command: Sequence[str], execution: Execution, gpus: int) -> list[str]:
    """torchrun's arguments for the ranks of this machine; ranks are numbered by node, so that each has its part."""
    if execution.nodes == 1:
        where = ["--standalone"]
    else:
        of_step = 16 * int(os.environ["SLURM_JOB_ID"]) + int(os.environ["SLURM_STEP_ID"])
        port = 20000 + of_step % 10000  # below those that Linux gives away
        where = ["--nnodes", str(execution.nodes), "--node-rank", os.environ["SLURM_NODEID"]]
        where += ["--master-addr", os.environ["MASTER_ADDR"], "--master-port", str(port)]
    return [*where, "--nproc-per-node", str(max(1, gpus)), "-m", *command]


def was_killed(failures: Sequence[tuple[int, int]]) -> bool:
    """Whether a rank was killed before any failed by itself.

    torchrun too kills ranks, 30 s after another has failed: those that wait for it and hear no signal.

    Args:
        failures: exit codes, and when (s).
    """
    first = min((when for _, when in failures), default=0)
    return any(code == -signal.SIGKILL and when < first + TORCHRUN_WAITS_S / 2 for code, when in failures)


def _torchrun(arguments: list[str]) -> list[tuple[int, int]]:
    """Run it in this process; of the ranks that failed the exit codes, and when (s)."""
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # else it kills its ranks 30 s after a signal, saved or not
    from torch.distributed import DistError, run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.run(run.parse_args(arguments))
    except ChildFailedError as error:
        return [(failure.exitcode, failure.timestamp) for failure in error.failures.values()]
    except DistError as error:
        raise MlsError(f"torchrun's processes could not meet: {error}") from error
    except SignalException:  # torch before 2.9 has a handler of its own
        return [(EXIT_INTERRUPTED, 0)]
    return []


@contextmanager
def _passing_on_signals() -> Iterator[list[int]]:
    """Within the block a signal to stop is the children's, who save; the list tells which came."""
    asked: list[int] = []

    def pass_on(number: int, frame: types.FrameType | None) -> None:
        asked.append(number)
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def die_with_torchrun() -> None:
    """Ask the kernel to kill this rank when its parent dies: the parent holds the leases of its device."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
