"""The same experiment on a real Slurm (stopped by its time limit, retried, on two nodes) gives the same bytes.

Skipped where Slurm or the executor plugin is absent. This machine plays both nodes.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mls.pipeline.artifact import open_artifact
from mls.pipeline.plan import plan_file
from tests.transfer import test_ranks as transfers
from tests.workflow import slurm as rig
from tests.workflow.clone import Clone

PLUGIN = importlib.util.find_spec("snakemake_executor_plugin_slurm")
pytestmark = [
    pytest.mark.timeout(1800),  # waits for a time limit, whose unit is the minute
    pytest.mark.skipif(PLUGIN is None, reason="no snakemake-executor-plugin-slurm here (extra: slurm)"),
    pytest.mark.skipif(rig.why_not() is not None, reason=str(rig.why_not())),
]
SNAKEMAKE = (
    *("snakemake", "--workflow-profile", "profiles/slurm", "--latency-wait", "5"),
    *("--slurm-init-seconds-before-status-checks", "5", "--slurm-status-command", "squeue"),
)
RESOURCES = ("--default-resources", "runtime=30", "mem_mb=500", "slurm_extra='--signal=TERM@60'")
STEP = 7
"""Between two checkpoints of the micro experiment (every 5 steps of 16)."""
WAITS = f"""
import sys
if "pretrain" in sys.orig_argv:
    import time
    from mls.runtime import signals
    from mls.train import loop
    guards, enter, step = [], signals.InterruptGuard.__enter__, loop.Trainer._train_step
    def remember(self):
        guards.append(self)
        return enter(self)
    def wait(self, batch, **asked):
        step(self, batch, **asked)
        while self.step == {STEP} and guards[-1].asked is None:
            time.sleep(0.1)
    signals.InterruptGuard.__enter__, loop.Trainer._train_step = remember, wait
"""
"""A pretraining that reaches this step waits for a signal; one resumed from it goes on."""
KILLED = f"""
import os, sys
if os.environ.get("RANK") == "1" and sys.orig_argv[-2:] == ["--attempt", "1"]:
    import signal
    from mls.train import loop
    step = loop.Trainer._train_step
    def then_killed(self, batch, **asked):
        step(self, batch, **asked)
        if self.step == {STEP}:
            os.kill(os.getpid(), signal.SIGKILL)
    loop.Trainer._train_step = then_killed
"""
"""In the first attempt the second rank is killed at this step."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rig.Slurm]:
    with rig.Slurm(tmp_path_factory.mktemp("slurm") / "one") as started:
        yield started


@pytest.fixture
def clone(pulled: Clone, cluster: rig.Slurm, monkeypatch: pytest.MonkeyPatch) -> Clone:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLS_LEASES", str(cluster.folder / "leases"))
    return pulled


def lost(clone: Clone, *labels: tuple[str, str]) -> list[Path]:
    """Remove artifacts, given by stage and label; their paths."""
    plan = plan_file(clone.path / "params.yaml")
    paths = [clone.path / job.path for stage, label in labels for job in plan.find(stage, label)]
    for path in paths:
        shutil.rmtree(path)
    return paths


def test_a_time_limit_stops_a_job_and_its_retry_makes_the_same_bytes(
    clone: Clone, finished: Clone, tmp_path: Path
) -> None:
    """The signal is Slurm's: the pretraining waits for it, one minute before its limit of two."""
    lost(clone, ("pretrain", "mls"), ("features", "linear/mls"), ("probe", "linear/mls"), ("tables", "micro"))
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(WAITS)
    short = (*RESOURCES, "--set-resources", "pretrain_artifact:runtime=2")
    text = clone.run("env", f"PYTHONPATH={tmp_path / 'slow'}:{clone.path}", *SNAKEMAKE, *short)
    assert len(re.findall("Trying to restart job", text)) >= 1 and "100%) done" in text, text
    failed = [log.read_text() for log in clone.path.glob(".snakemake/slurm_logs/rule_pretrain_artifact/*/*.log")]
    assert any(f"{STEP}/16" in log and "stopped by SIGTERM after saving" in log for log in failed), failed
    assert clone.digests() == finished.digests()
    assert clone.planned() == {}


def test_two_nodes_make_what_two_processes_make(clone: Clone, cluster: rig.Slurm, tmp_path: Path) -> None:
    """srun starts torchrun's agents; each has its node's lease, and the ranks are those of one machine.

    One is killed: the retry is not kept from going on by what the other node recorded of that.
    """
    (path,) = lost(clone, ("pretrain", "mls"))
    target = str((path / "artifact.json").relative_to(clone.path))
    clone.edit(execution__nodes=2)
    visible = "CUDA_VISIBLE_DEVICES=a,b"  # here; on the nodes it is what Slurm says
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "sitecustomize.py").write_text(KILLED)
    killed = f"PYTHONPATH={tmp_path / 'killed'}:{clone.path}"
    clone.run("env", visible, killed, *SNAKEMAKE, *RESOURCES, "--retries", "1", "--", target)
    logs = [log.read_text() for log in clone.path.glob(".snakemake/slurm_logs/rule_pretrain_artifact/*/*.log")]
    assert ["a rank was killed" in log for log in logs] == [True], "the logs of what ends well are removed"
    leases = {file.name for file in (cluster.folder / "leases").iterdir()}
    assert {name.split("-", 2)[2] for name in leases} == {"n1-0.lock", "n2-0.lock"}, "slurm-<job>-<node>-<device>"
    assert json.loads((path / "artifact.json").read_text())["made"]["ranks"] == 2
    two_nodes = clone.digests()
    shutil.rmtree(path)
    shutil.rmtree(clone.path / ".store" / "pretrain" / path.name)
    clone.edit(execution__nodes=None, execution__gpus=2)
    text = clone.run("env", visible, "snakemake", "--", target)
    assert 'gpu=Resource("gpu", 2)' in text
    assert json.loads((path / "artifact.json").read_text())["made"]["ranks"] == 2
    assert clone.digests() == two_nodes


def test_a_transfer_on_two_nodes_makes_what_two_processes_make(cluster: rig.Slurm, in_tmp: Path) -> None:
    """Started by hand inside sbatch."""
    plan = transfers.written(epochs=2, nodes=2)
    transfers.make_inputs(plan)
    (job,) = plan.find("transfer", "detect/random")
    environment = {**transfers.ENVIRONMENT, **cluster.environment, "MLS_LEASES": str(in_tmp / "leases")}
    command = f"exec {sys.executable} -m mls transfer detect/random -e small.yaml"
    nodes = ("--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--output=log")
    done = subprocess.run(["sbatch", "--wait", *nodes, "--wrap", command], env=environment, check=False)
    assert done.returncode == 0, Path("log").read_text()
    assert open_artifact(job.path).manifest["made"]["ranks"] == 2
    two_nodes = transfers.contents(job.path)
    job.path.rename("two-nodes")
    shutil.rmtree(job.stored)
    assert transfers.written(epochs=2, gpus=2).find("transfer", "detect/random")[0].id == job.id
    transfers.finish()
    assert transfers.contents(job.path) == two_nodes
