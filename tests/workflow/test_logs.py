"""Each stage's log in logs/<stage>/<id>.log is whole, also when the stage is stopped, and the exit code is its own."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from mls.pipeline.plan import plan_file
from tests.workflow.clone import environment, new_clone

STOP_ALL = """
import sys
if "pretrain" in sys.orig_argv:
    import os, signal
    from mls.train import loop
    step = loop.Trainer._train_step
    def then_stopped(self, batch, **asked):
        step(self, batch, **asked)
        if self.step == 7:
            os.killpg(0, signal.SIGTERM)
    loop.Trainer._train_step = then_stopped
"""
"""A terminal's Ctrl-C and Slurm's time limit signal every process of a job, `tee` too."""


def test_a_stopped_stage_keeps_its_last_lines_and_its_exit_code(tmp_path: Path) -> None:
    (tmp_path / "clone").mkdir()
    clone = new_clone(tmp_path / "clone")
    (job,) = plan_file(clone.path / "params.yaml").find("pretrain", "mls")
    target, log = f"{job.path}/artifact.json", clone.path / "logs" / "pretrain" / f"{job.id}.log"
    clone.run("snakemake", "data")
    (data_log,) = (clone.path / "logs" / "data").iterdir()
    assert "images/s" in data_log.read_text()

    (tmp_path / "sitecustomize.py").write_text(STOP_ALL)
    (command,) = re.findall("Shell command: (.*)", clone.run("snakemake", "-n", "-p", "--", target))
    log.parent.mkdir()  # as Snakemake does
    stopped = subprocess.run(
        ["bash", "-c", f"set -euo pipefail; {command}"],
        cwd=clone.path,
        env=environment() | {"PYTHONPATH": f"{tmp_path}:{clone.path}"},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert stopped.returncode == 75, stopped.stderr
    assert stopped.stderr == log.read_text(), "the terminal and the log have the same lines"
    assert stopped.stderr.splitlines()[-1].startswith("mls pretrain: stopped by SIGTERM after saving")

    clone.run("snakemake", "--", target)
    lines = log.read_text()
    assert "resumes at step 7 of 16" in lines and "stopped by SIGTERM" not in lines, "the log of the last try"
    assert "logs" not in clone.run("git", "status", "--porcelain")
    assert os.fspath(log.relative_to(clone.path)) in clone.run("dvc", "check-ignore", str(log.relative_to(clone.path)))
