"""A Slurm of one's own: Debian's slurmctld, slurmd (two nodes of this machine) and munged, in a temporary folder.

    apt-get install slurmctld slurmd munge slurm-client      # as root; nothing of it need run
    python -m tests.workflow.slurm FOLDER                    # starts one, says what to set, and stops it at Ctrl-C

Each node has four "CPUs" and two "GPUs" (two terminals: Slurm wants devices); there is no accounting.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue")
CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{second}] CPUs=4 RealMemory=8000 Gres=gpu:2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """What keeps it from being started here; None where nothing does."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if absent:
        return f"no {', '.join(absent)} here (Debian: apt-get install slurmctld slurmd munge slurm-client)"
    return None if os.geteuid() == 0 else "Slurm's daemons are started by root alone"


class Slurm:
    """The daemons, from entering to leaving; ``environment`` leads Slurm's commands to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = f"{folder}/bin:{os.environ['PATH']}:/usr/sbin"
        self.environment = {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": path}

    def __enter__(self) -> Slurm:
        (self.folder / "state").mkdir(parents=True)
        ports = dict(zip(("port", "first", "second"), free_ports(3), strict=True))
        conf = CONF.format(host=socket.gethostname(), folder=self.folder, **ports)
        (self.folder / "slurm.conf").write_text(conf)
        (self.folder / "gres.conf").write_text("NodeName=n[1-2] Name=gpu File=/dev/tty[0-1]\n")
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=autodetect\n")
        key = self.folder / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        srun = self.folder / "bin" / "srun"  # the executor plugin drops SLURM_CONF before it calls srun
        srun.parent.mkdir()
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={self.folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
        srun.chmod(0o755)
        files = {name: f"--{name}-file={self.folder}/{name}" for name in ("key", "pid", "log", "seed")}
        self.call("munged", "--force", f"--socket={self.folder}/munge.socket", *files.values())
        self.call("slurmctld")
        for node in ("n1", "n2"):
            self.call("slurmd", "-N", node)
        end = time.monotonic() + 60
        while self.call("sinfo", "-h", "-t", "idle", "-o", "%D").strip() != "2":
            assert time.monotonic() < end, (self.folder / "slurmctld.log").read_text()
            time.sleep(0.5)
        return self

    def __exit__(self, *exc: object) -> None:
        for file in ("slurmd-n1.pid", "slurmd-n2.pid", "slurmctld.pid", "pid"):
            with suppress(FileNotFoundError, ProcessLookupError):
                os.kill(int((self.folder / file).read_text()), signal.SIGTERM)

    def call(self, *command: str) -> str:
        """Run one of Slurm's commands; what it prints."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout


def free_ports(count: int) -> list[int]:
    """Neighbours that nobody listens on; another process looks elsewhere first."""
    for first in range(26800 + os.getpid() % 1000, 28800, count):
        with suppress(OSError):
            for port in range(first, first + count):
                with socket.socket() as one:
                    one.bind(("127.0.0.1", port))
            return list(range(first, first + count))
    raise AssertionError("no free ports")


if __name__ == "__main__":
    with Slurm(Path(sys.argv[1]).absolute()) as slurm:
        for name, value in slurm.environment.items():
            print(f"export {name}={value}")
        with suppress(KeyboardInterrupt):
            signal.pause()
