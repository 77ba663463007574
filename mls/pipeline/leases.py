"""Lease GPUs of one machine, each to one job at a time, whoever started the job.

    gpus_of(job, execution)     # 1, or execution.gpus of a training, or 0 on a CPU: Snakemake's resource `gpu`
    with leased(2):             # wait for two free devices; inside, CUDA_VISIBLE_DEVICES names them
        ...

A lease is a kernel lock on one file per device in ``$MLS_LEASES`` (by default ``/tmp/mls-devices``, shared by all users
of the machine), so a holder that is killed frees its devices at once. The devices to choose from are those in
``CUDA_VISIBLE_DEVICES``, if a person (``CUDA_VISIBLE_DEVICES=0,1 snakemake``) or Slurm has set it. Otherwise they are
all of the machine's, counted from 0 as CUDA does: a container may have only ``/dev/nvidia3``, which is its 0. Inside a
Slurm job the lock files have the job's id in their names, since every job counts its devices from 0.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mls.config.experiment import Execution
from mls.config.methods import TRAINED
from mls.config.probes import SvmProbe
from mls.pipeline.plan import Job
from mls.runtime.errors import MlsError
from mls.runtime.locks import say

VISIBLE = "CUDA_VISIBLE_DEVICES"
FOLDER = Path("/tmp/mls-devices")
"""Where the lock files are, unless $MLS_LEASES is set."""
POLL_S = 0.2
LEASE, TURN = 0, 1
"""Bytes of a device's file, locked separately: by the job that has the device, and by the first one that waits."""


def devices() -> list[str]:
    """Names of the devices that this process may lease, in CUDA's order."""
    if VISIBLE in os.environ:
        names = (name.strip() for name in os.environ[VISIBLE].split(","))
        return [name for name in names if name not in ("", "-1")]
    return [str(index) for index in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def gpus_of(job: Job, execution: Execution) -> int:
    """Number of GPUs of one machine that a job takes.

    Data, tables and SVMs take none. On ``device: cpu`` nothing does, nor with ``device: auto``
    on a machine without GPUs. ``device: cuda`` does not look at the machine: a cluster's login node may have no GPU.
    """
    if job.stage in ("data", "tables") or isinstance(job.config, SvmProbe) or execution.device == "cpu":
        return 0
    if execution.device == "auto" and not devices():
        return 0
    return execution.gpus if trains_together(job) else 1


def trains_together(job: Job) -> bool:
    """Whether several processes can share the job."""
    return job.stage == "transfer" or (job.stage == "pretrain" and job.config.method in TRAINED)


@contextmanager
def leased(count: int) -> Iterator[None]:
    """Hold ``count`` devices; inside, ``CUDA_VISIBLE_DEVICES`` names them for this process and its children.

    Enter it before CUDA is initialised, which reads the variable once. On a machine without known devices, a job for
    one device runs without a lease, and torch then says what there is.

    Raises:
        MlsError: there are fewer devices than ``count``, or the lock files can't be used.
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
        os.environ[VISIBLE] = ",".join(_take(count, known, _open_files(known, held)))
        try:
            yield
        finally:
            if before is None:
                del os.environ[VISIBLE]
            else:
                os.environ[VISIBLE] = before


def _take(count: int, known: list[str], files: dict[str, int]) -> list[str]:
    """Lock ``count`` of the known devices; wait until enough are free.

    A job first takes its turn at every device it could use, always in the same order. This prevents deadlock: no job
    holds half of what it needs while another holds the other half. It is also fair: a job that needs several devices
    is not overtaken by those that need one. A job that waits for one device does not delay jobs for other devices.
    """
    for name in sorted(files):
        if not _try_lock(files[name], TURN):
            say(f"waiting for a job that waits for device {name} too")
            fcntl.lockf(files[name], fcntl.LOCK_EX, 1, TURN)
    taken: list[str] = []
    reported = False
    while True:
        for name in files:
            if len(taken) < count and name not in taken and _try_lock(files[name], LEASE):
                taken.append(name)
        if len(taken) == count:
            break
        if not reported:
            say(f"waiting for {count - len(taken)} of the devices {', '.join(known)}")
            reported = True
        time.sleep(POLL_S)
    for file in files.values():
        fcntl.lockf(file, fcntl.LOCK_UN, 1, TURN)
    return sorted(taken, key=known.index)


def _try_lock(file: int, byte: int) -> bool:
    """Lock one byte of a file, if it is free.

    This is ``lockf``, not ``flock`` as in `mls.runtime.locks`: forked workers do not inherit it, so a killed holder
    frees its device even while its workers live on. No library for file locks offers that.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _open_files(names: list[str], held: ExitStack) -> dict[str, int]:
    """Open the lock file of each device, for all users of the machine; the stack closes them.

    Raises:
        MlsError: they can't be opened, or their folder is a symbolic link, which anybody could put into /tmp.
    """
    named = os.environ.get("MLS_LEASES")
    path = Path(named).resolve() if named else FOLDER  # a link that the user chose is followed
    job, node = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURMD_NODENAME", "")
    prefix = f"slurm-{job}-{node}-" if job else ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.mkdir()
            path.chmod(0o1777)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        held.callback(os.close, folder)
        fcntl.flock(folder, fcntl.LOCK_SH)  # systemd-tmpfiles does not clean up a locked folder in /tmp
        files = {}
        for name in names:
            file = f"{prefix}{name.replace('/', '_')}.lock"
            try:  # without O_CREAT, which Linux refuses for another user's file in a folder like /tmp
                files[name] = os.open(file, os.O_RDWR | os.O_NOFOLLOW, dir_fd=folder)
            except FileNotFoundError:
                files[name] = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, dir_fd=folder)
                os.fchmod(files[name], 0o666)  # whatever the umask
            held.callback(os.close, files[name])
    except OSError as error:
        raise MlsError(f"can't lease a device: {error}; set MLS_LEASES to a folder that can be written") from error
    return files
