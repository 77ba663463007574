"""Run one training as several processes: torchrun on the leased GPUs; on several nodes of a Slurm job, by srun.

    mls pretrain mls        # with execution.gpus 4: four ranks, each of which is `mls pretrain mls` too
                            # with execution.nodes 2: srun starts this command on both nodes, and each starts its ranks

This process starts the ranks, passes signals on and waits. The first rank does what a single process would: it takes
the lock, writes the artifact and records a failure. Ranks die with this process, which holds their devices' leases.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import types
from collections.abc import Sequence
from contextlib import suppress

import psutil

from mls.config.experiment import Execution
from mls.pipeline.leases import trains_together
from mls.pipeline.plan import Job
from mls.pipeline.runner import forget_passing_failure
from mls.runtime.errors import EXIT_INTERRUPTED, Interrupted, MlsError
from mls.runtime.ranks import number
from mls.runtime.signals import InterruptGuard

PR_SET_PDEATHSIG = 1
"""An option of Linux's prctl(2)."""
TORCHRUN_WAITS_S = 30
"""Time between torchrun's SIGTERM to the remaining ranks and its SIGKILL."""


def wants_ranks(job: Job, execution: Execution, gpus: int) -> bool:
    """Whether a job that has ``gpus`` devices of this machine needs more than one process."""
    return trains_together(job) and (gpus > 1 or execution.nodes > 1)


def awaits_srun(job: Job, execution: Execution) -> bool:
    """Whether srun has yet to start this command on every node; this process then takes no GPU."""
    several = trains_together(job) and execution.nodes > 1
    return several and os.environ.get("SLURM_STEP_NUM_NODES") != str(execution.nodes)


def launch(command: Sequence[str], job: Job, execution: Execution, gpus: int) -> None:
    """Run a stage command as ranks, and wait for them.

    Args:
        command: what follows ``python -m``.
        job: the pretraining or transfer.
        execution: says how many nodes.
        gpus: leased devices of this machine, one for each rank; 0 means one rank on the CPU.

    Raises:
        Interrupted: the ranks saved, were killed, or left no failure record; the same command resumes.
        MlsError: a rank failed; it has printed why.
    """
    on_nodes = srun(command, execution) if awaits_srun(job, execution) else None
    # A node's process leaves this file for the process that called srun, which sees only srun's exit code.
    mark = job.work / "rank-killed"
    if on_nodes:
        mark.unlink(missing_ok=True)
    with _PassingOn() as guard:
        if on_nodes:
            codes = {subprocess.run(on_nodes, check=False).returncode} - {0}
            killed = mark.exists()
        else:
            failures = _torchrun(torchrun(command, execution, gpus))
            codes, killed = {code for code, _ in failures}, was_killed(failures)
    if not codes:
        return
    if killed:
        # The surviving ranks have recorded a failure: that the killed one left. On other nodes they may do so even
        # after this process has removed the record, so the process that called srun removes it again.
        forget_passing_failure(job)
        if on_nodes:
            mark.unlink()
        elif execution.nodes > 1:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
    if (killed or guard.asked or EXIT_INTERRUPTED in codes) and not job.failure.exists():
        how = "a rank was killed (out of memory?)" if killed else "its ranks were stopped by a signal"
        raise Interrupted(f"{how}; run the same command to go on")
    raise MlsError(f"its ranks failed (exit codes {', '.join(map(str, sorted(codes)))}), see above")


def srun(command: Sequence[str], execution: Execution) -> list[str]:
    """The command line that starts a stage command once on every node of this Slurm job.

    Raises:
        MlsError: this is not a Slurm job, or srun can't start anything on its first node.
    """
    if "SLURM_JOB_ID" not in os.environ:
        raise MlsError(
            f"execution.nodes is {execution.nodes}, which needs a Slurm job; "
            "use snakemake --workflow-profile profiles/slurm, or set it to 1"
        )
    # The ranks meet on the job's first node. This process may run elsewhere: `salloc` leaves it on the login node.
    asked = ["srun", "--nodes=1", "--ntasks=1", "--ntasks-per-node=1", "--relative=0", "hostname"]
    done = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode or not done.stdout.split():
        raise MlsError(f"{' '.join(asked)} failed with exit code {done.returncode}, see above")
    nodes, first = str(execution.nodes), done.stdout.split()[-1]
    each = ["--nodes", nodes, "--ntasks", nodes, "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--cpu-bind=none"]
    return ["srun", *each, f"--export=ALL,MASTER_ADDR={first}", sys.executable, "-m", *command]


def torchrun(command: Sequence[str], execution: Execution, gpus: int) -> list[str]:
    """torchrun's arguments for the ranks of this machine.

    On several nodes they are static, not elastic: ranks are numbered by node, so each keeps its part of the batch.
    """
    if execution.nodes == 1:
        where = ["--standalone"]
    else:
        step = 16 * number("SLURM_JOB_ID") + number("SLURM_STEP_ID", least=0)
        port = 20000 + step % 10000  # below the ports that Linux assigns to clients
        where = ["--nnodes", str(execution.nodes), "--node-rank", str(number("SLURM_NODEID", least=0))]
        where += ["--master-addr", os.environ["MASTER_ADDR"], "--master-port", str(port)]
    return [*where, "--nproc-per-node", str(max(1, gpus)), "-m", *command]


def was_killed(failures: Sequence[tuple[int, int]]) -> bool:
    """Whether a rank was killed from outside before any failed by itself.

    torchrun kills ranks too, 30 s after one has failed: those that wait for it in a collective and ignore SIGTERM.

    Args:
        failures: exit code and time (s) of each failed rank.
    """
    first = min((when for _, when in failures), default=0)
    return any(code == -signal.SIGKILL and when < first + TORCHRUN_WAITS_S / 2 for code, when in failures)


def _torchrun(arguments: list[str]) -> list[tuple[int, int]]:
    """Run torchrun in this process; return the exit code and time (s) of each failed rank."""
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # else it kills its ranks 30 s after a signal, saved or not
    from torch.distributed import DistError, run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.run(run.parse_args(arguments))
    except ChildFailedError as error:
        return [(failure.exitcode, failure.timestamp) for failure in error.failures.values()]
    except DistError as error:
        raise MlsError(f"torchrun's processes could not connect: {error}") from error
    except SignalException:  # before 2.9, torch handles signals itself
        return [(EXIT_INTERRUPTED, 0)]
    return []


class _PassingOn(InterruptGuard):
    """Within the block, each signal to stop also goes to the children, as SIGTERM, so that they save."""

    def handle(self, number: int, frame: types.FrameType | None) -> None:
        self.asked = signal.Signals(number)
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGTERM)


def die_with_torchrun() -> None:
    """Ask the kernel to kill this rank when its parent dies, because the parent holds the lease of its device."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
