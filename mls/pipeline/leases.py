"""GPUs of one machine, each for one job at a time, whoever starts it.

    gpus_of(job, execution)     # 1, or execution.gpus of a pretraining; 0 on a CPU: Snakemake's resource `gpu`
    with leased(2):             # waits for two devices that nobody holds; CUDA_VISIBLE_DEVICES is then those two
        ...

A lease is a kernel lock on one file per device in ``$MLS_LEASES`` (default ``/tmp/mls-devices``, which all users of
the machine share), so a holder that is killed frees its devices at once. Leased are those of ``CUDA_VISIBLE_DEVICES``
where it is set: by a person who keeps some for other things (``CUDA_VISIBLE_DEVICES=0,1 snakemake``), by Slurm, or by
a test (any names will do where there are no GPUs); otherwise all of the machine, counted from 0 as CUDA does (a
container may have ``/dev/nvidia3`` alone, which is its 0). Within a Slurm job the names are that job's own, since each
counts its devices from 0.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mls.config.experiment import Execution
from mls.config.methods import TRAINED
from mls.config.probes import Features
from mls.pipeline.plan import Job
from mls.runtime.errors import MlsError

VISIBLE = "CUDA_VISIBLE_DEVICES"
FOLDER = Path("/tmp/mls-devices")
"""Where lock files are, unless $MLS_LEASES says otherwise."""
POLL_S = 0.2


def devices() -> list[str]:
    """Names of the devices that this process may lease, in CUDA's order; none where none is known."""
    if VISIBLE in os.environ:
        names = (name.strip() for name in os.environ[VISIBLE].split(","))
        return [name for name in names if name not in ("", "-1")]
    return [str(index) for index in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def gpus_of(job: Job, execution: Execution) -> int:
    """How many GPUs of a machine the job takes.

    None for data, tables and probes of frozen features, on ``device: cpu``, and, with ``device: auto``, on a machine
    without any. ``device: cuda`` takes them unseen: a cluster's login node need not have one.
    """
    frozen = job.stage == "probe" and isinstance(job.config, Features)
    if job.stage in ("data", "tables") or frozen or execution.device == "cpu":
        return 0
    if execution.device == "auto" and not devices():
        return 0
    return execution.gpus if trains_together(job) else 1


def trains_together(job: Job) -> bool:
    """Whether several processes can share the job."""
    return job.stage == "pretrain" and job.config.method in TRAINED


@contextmanager
def leased(count: int) -> Iterator[None]:
    """Hold so many devices; within the block ``CUDA_VISIBLE_DEVICES`` names them, for this process and its children.

    Enter it before CUDA is initialised, which reads the variable once. Where no device is known nothing is leased:
    torch then says whether there is one.

    Raises:
        MlsError: more than there are.
    """
    known = devices()
    if count == 0 or (count == 1 and not known):
        yield
        return
    if count > len(known):
        has = f"{len(known)} ({', '.join(known)})" if known else "none"
        raise MlsError(
            f"{count} GPUs are asked for at once (execution.gpus), but this machine offers {has}; "
            f"lower it, or set {VISIBLE} to those it has"
        )
    before = os.environ.get(VISIBLE)
    with ExitStack() as held:
        os.environ[VISIBLE] = ",".join(_take(count, known, held))
        try:
            yield
        finally:
            if before is None:
                del os.environ[VISIBLE]
            else:
                os.environ[VISIBLE] = before


def _take(count: int, known: list[str], held: ExitStack) -> list[str]:
    """Lock so many of the known devices, and put their release on a stack.

    Who may want a device queues for it, in the same order everywhere: so nobody holds half of what he needs while
    another holds the other half, a job that needs many is not passed over by those that need one, and who waits for a
    device that is taken keeps nobody from others.
    """
    folder = _folder(held)
    job, node = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURMD_NODENAME", "")
    prefix = f"slurm-{job}-{node}-" if job else ""
    files = {name: _open(folder, f"{prefix}{name.replace('/', '_')}.lock", held) for name in known}
    with ExitStack() as queue:
        for name in sorted(set(known)):
            turn = _open(folder, f"{prefix}{name.replace('/', '_')}.queue", queue)
            if not _lock(turn, wait=False):
                print(f"waiting for whoever waits for device {name} too", file=sys.stderr, flush=True)
                _lock(turn, wait=True)
        taken: list[str] = []
        told = False
        while True:
            for name in known:
                if len(taken) < count and name not in taken and _lock(files[name], wait=False):
                    taken.append(name)
            if len(taken) == count:
                return sorted(taken, key=known.index)
            if not told:
                print(
                    f"waiting for {count - len(taken)} of the devices {', '.join(known)}", file=sys.stderr, flush=True
                )
                told = True
            time.sleep(POLL_S)


def _folder(held: ExitStack) -> int:
    """A descriptor of the folder of lock files, in which all users of the machine may make some.

    Raises:
        MlsError: it can't be used, or is a symbolic link, as anybody can put one into /tmp.
    """
    named = os.environ.get("MLS_LEASES")
    path = Path(os.path.realpath(named)) if named else FOLDER
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        before = os.umask(0)  # so that it has its mode from the first moment
        try:
            path.mkdir(0o1777)
        except FileExistsError:
            pass
        finally:
            os.umask(before)
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise _unusable(error) from error
    held.callback(os.close, handle)
    fcntl.flock(handle, fcntl.LOCK_SH)  # what ages /tmp (systemd-tmpfiles) spares what is locked so
    return handle


def _open(folder: int, name: str, held: ExitStack) -> int:
    """A lock file's descriptor, closed with the stack; other users of the machine can lock it too.

    Raises:
        MlsError: it can't be opened.
    """
    try:
        try:  # first as it is: Linux refuses O_CREAT on another user's file in a folder like this
            handle = os.open(name, os.O_RDWR | os.O_NOFOLLOW, dir_fd=folder)
        except FileNotFoundError:
            handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666, dir_fd=folder)
            os.fchmod(handle, 0o666)
    except OSError as error:
        raise _unusable(error) from error
    held.callback(os.close, handle)
    return handle


def _unusable(error: OSError) -> MlsError:
    return MlsError(f"can't lease a device: {error}; set MLS_LEASES to a folder that can be written")


def _lock(handle: int, *, wait: bool) -> bool:
    """Take a lock that is this process's alone: unlike ``flock``'s, its forked workers do not keep it alive."""
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        return False
    return True
