"""execution.gpus: `mls pretrain` starts torchrun on leased devices (gloo on a CPU; the devices exist only by name)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

import mls.data.build_store
from mls.config.experiment import Execution
from mls.pipeline import launch
from mls.pipeline.artifact import VOLATILE, open_artifact
from mls.pipeline.plan import Job, Plan, plan_file
from mls.pipeline.runner import run_stage
from mls.pipeline.status import job_state
from mls.runtime.errors import Interrupted, MlsError
from mls.runtime.locks import is_locked
from tests.conftest import SMALL, plan_of, small
from tests.runtime.support import BROKEN_DECODER

ROOT = Path(__file__).parents[2]
DETECT = {"kind": "instance", "dataset": "scenes"}
COMMAND = ["mls", "pretrain", "0123456789", "-e", "params.yaml", "--attempt", "1"]


@pytest.fixture
def environment(in_tmp: Path) -> dict[str, str]:
    """Two devices that exist only by name."""
    return {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "a,b",
        "MLS_LEASES": str(in_tmp / "leases"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture
def plan(in_tmp: Path) -> Plan:
    """A run that is long enough to be stopped; its data are made."""
    raw: dict[str, Any] = small(
        pretrain={**SMALL["pretrain"], "epochs": 60},
        execution={**SMALL["execution"], "gpus": 2, "checkpoint_every": 50},
    )
    with Path("small.yaml").open("w") as file:
        YAML().dump(raw, file)
    plan = plan_file(Path("small.yaml"))
    run_stage(plan, plan.stage("data")[0], mls.data.build_store.run)
    return plan


def start(environment: dict[str, str], *launcher: str, attempt: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", *launcher, "mls", "pretrain", "mls", "-e", "small.yaml"]
    command += ["--attempt", str(attempt)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(environment: dict[str, str], *launcher: str) -> str:
    running = start(environment, *launcher)
    _, log = running.communicate(timeout=300)
    assert running.returncode == 0, log
    return log


def wait_for_checkpoint(job: Job, running: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300
    while not list(job.work.glob("checkpoint-*.pt")):
        assert running.poll() is None and time.monotonic() < end, running.communicate()[1]
        time.sleep(0.02)


def wait_until_it_resumes(running: subprocess.Popen[str]) -> None:
    assert running.stderr is not None
    assert any("resumes at step" in line for line in running.stderr)


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name not in VOLATILE}


def test_a_stopped_and_killed_run_resumes_to_the_bytes_of_torchrun(plan: Plan, environment: dict[str, str]) -> None:
    """SIGUSR1 saves and exits with 75, before torchrun's 30 seconds are over. If a rank is killed, the other one fails,
    which is not the job's failure, so the second attempt resumes. kill -9 of the launcher kills its ranks too.
    """
    (job,) = plan.find("pretrain", "mls")
    running = start(environment)
    wait_for_checkpoint(job, running)
    running.send_signal(signal.SIGUSR1)
    _, log = running.communicate(timeout=300)
    assert running.returncode == 75, log
    assert "after saving" in log and "run the same command to go on" in log and "Traceback" not in log
    assert job_state(job) == "resumable"

    running = start(environment)
    wait_until_it_resumes(running)
    ranks = [child for child in psutil.Process(running.pid).children() if "--attempt" in child.cmdline()]
    (second,) = [rank for rank in ranks if rank.environ()["RANK"] == "1"]
    second.kill()
    _, log = running.communicate(timeout=300)
    assert running.returncode == 75, log
    assert "a rank was killed (out of memory?); run the same command to go on" in log
    assert job_state(job) == "resumable"

    running = start(environment, attempt=2)
    wait_until_it_resumes(running)
    running.kill()
    running.wait()
    end = time.monotonic() + 60
    while is_locked(job.work / "lock"):
        assert time.monotonic() < end, "rank 0 lives on"
        time.sleep(0.05)
    assert running.stderr is not None
    running.stderr.close()

    assert "resumes at step" in finish(environment)
    made = open_artifact(job.path, deep=True).manifest["made"]
    assert made["ranks"] == 2
    mine = contents(job.path)
    job.path.rename("resumed")
    shutil.rmtree(job.stored)
    finish(environment, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    assert contents(job.path) == mine


def test_a_rank_that_fails(plan: Plan, environment: dict[str, str]) -> None:
    """Its error is printed, the exit code is 1, and the second attempt refuses at once."""
    Path("sitecustomize.py").write_text(BROKEN_DECODER)
    running = start(environment | {"PYTHONPATH": f"{Path.cwd()}:{ROOT}"})
    _, log = running.communicate(timeout=300)
    assert running.returncode == 1, log
    assert "broken on purpose" in log and "its ranks failed" in log
    again = [sys.executable, "-m", "mls", "pretrain", "mls", "-e", "small.yaml", "--attempt", "2"]
    done = subprocess.run(again, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1 and "failed before" in done.stderr


def test_two_gpus_where_there_is_one(plan: Plan, environment: dict[str, str]) -> None:
    running = start(environment | {"CUDA_VISIBLE_DEVICES": "a"})
    _, log = running.communicate(timeout=300)
    assert running.returncode == 1 and "2 GPUs are asked for at once (execution.gpus)" in log


def test_command_lines_of_srun_and_torchrun(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake srun prints its last argument (tests/workflow/test_slurm.py has the real one)."""
    Path("srun").write_text('#!/bin/sh\nfor last; do :; done\necho "first: $last"\n')
    Path("srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{in_tmp}:{os.environ['PATH']}")
    four = launch.torchrun(COMMAND, Execution(gpus=4), 4)
    assert four == ["--standalone", "--nproc-per-node", "4", "-m", *COMMAND]
    two_by_four = Execution(gpus=4, nodes=2)
    with pytest.raises(MlsError, match=r"execution\.nodes is 2, which needs a Slurm job"):
        launch.srun(COMMAND, two_by_four)
    monkeypatch.setenv("SLURM_JOB_ID", "1234567")
    started = launch.srun(COMMAND, two_by_four)
    assert started[:6] == ["srun", "--nodes", "2", "--ntasks", "2", "--ntasks-per-node=1"]
    assert started[-9:] == [sys.executable, "-m", *COMMAND]
    assert "--export=ALL,MASTER_ADDR=hostname" in started, "what the command printed on the first node"
    for name, value in {"MASTER_ADDR": "node1", "SLURM_NODEID": "1", "SLURM_STEP_ID": "5"}.items():
        monkeypatch.setenv(name, value)
    where = ["--nnodes", "2", "--node-rank", "1", "--master-addr", "node1", "--master-port", "23077"]
    assert launch.torchrun(COMMAND, two_by_four, 4) == [*where, "--nproc-per-node", "4", "-m", *COMMAND]


def test_a_killed_rank_is_distinguished_from_one_that_torchrun_kills() -> None:
    killed, failed = -signal.SIGKILL, 1
    assert launch.was_killed([(killed, 100)])
    assert launch.was_killed([(failed, 101), (killed, 100)]), "the other one saw it leave"
    assert launch.was_killed([(killed, 100), (killed, 130)]), "the other one waited for it, until torchrun's SIGKILL"
    assert not launch.was_killed([(failed, 100), (killed, 130)]), "it failed by itself, and the other one waited"
    assert not launch.was_killed([(failed, 100), (-signal.SIGABRT, 100)])
    assert not launch.was_killed([])


@pytest.mark.parametrize("killed", [True, False])
def test_records_that_ranks_on_other_nodes_write_about_a_killed_one_are_removed(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """A fake srun leaves a node's mark that a rank was killed, or does not."""
    (job,) = plan_of(small()).find("pretrain", "mls")
    job.work.mkdir(parents=True)
    record = job.work / "failed.json"
    said = f"touch {job.work}/rank-killed" if killed else "true"
    record_it = f"""echo '{{"message": "it is gone", "deterministic": false}}' > {record}"""
    hostname = '[ "$5" = hostname ] && exec echo one'
    Path("srun").write_text(f"#!/bin/sh\n{hostname}\n{said}\n{record_it}\nexit 75\n")
    Path("srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{in_tmp}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.delenv("SLURM_STEP_NUM_NODES", raising=False)
    with pytest.raises(Interrupted if killed else MlsError, match="was killed" if killed else "its ranks failed"):
        launch.launch(COMMAND, job, Execution(nodes=2), 0)
    assert record.exists() is not killed and not (job.work / "rank-killed").exists()


def test_which_jobs_start_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trained run or a transfer with several GPUs or nodes does; on several nodes srun comes first."""
    plan = plan_of(small())
    (mls,), (random,) = plan.find("pretrain", "mls"), plan.find("pretrain", "random")
    (detect,) = plan_of(small(transfer={"detect": DETECT})).find("transfer", "detect/mls")
    assert launch.wants_ranks(detect, Execution(gpus=2), 2) and launch.awaits_srun(detect, Execution(nodes=2))
    assert launch.wants_ranks(mls, Execution(gpus=2), 2) and not launch.wants_ranks(random, Execution(gpus=2), 1)
    assert not launch.wants_ranks(mls, Execution(gpus=2), 0), "no GPU here: one process on the CPU"
    nodes = Execution(nodes=2)
    assert launch.wants_ranks(mls, nodes, 0) and launch.awaits_srun(mls, nodes)
    assert not launch.awaits_srun(random, nodes) and not launch.awaits_srun(mls, Execution())
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
    assert not launch.awaits_srun(mls, nodes)
