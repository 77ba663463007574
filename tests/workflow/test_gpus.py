"""Through the rules: pretraining on several leased devices, and the retry of a stopped job."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mls.pipeline.plan import plan_file
from tests.workflow.clone import Clone

STOPPED = """
import sys
if "pretrain" in sys.orig_argv and sys.orig_argv[-2:] == ["--attempt", "1"]:
    import os, signal
    from mls.train import loop
    step = loop.Trainer._train_step
    def then_stopped(self, batch, **asked):
        step(self, batch, **asked)
        if self.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
    loop.Trainer._train_step = then_stopped
"""


@pytest.fixture
def lost(pulled: Clone) -> Path:
    """Path of the artifact of run `mls`, which was removed."""
    (job,) = plan_file(pulled.path / "params.yaml").find("pretrain", "mls")
    shutil.rmtree(pulled.path / job.path)
    return pulled.path / job.path


def test_two_devices_are_two_ranks(pulled: Clone, lost: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "a,b")
    monkeypatch.setenv("MLS_LEASES", str(pulled.path.parent / "leases"))
    pulled.edit(execution__gpus=2)
    text = pulled.run("snakemake", "--", str((lost / "artifact.json").relative_to(pulled.path)))
    assert 'gpu=Resource("gpu", 2)' in text
    assert json.loads((lost / "artifact.json").read_text())["made"]["ranks"] == 2
    assert pulled.planned() == {}, "the ids are the same"
    asked = pulled.run("snakemake", "-n", "--resources", "gpu=1", "--", "pretrain")
    assert 'gpu=Resource("gpu", 2)' not in asked, "a limit of the command line stays"


def test_the_retry_of_a_stopped_job_resumes(pulled: Clone, finished: Clone, lost: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(STOPPED)
    target = str((lost / "artifact.json").relative_to(pulled.path))
    text = pulled.run("env", f"PYTHONPATH={tmp_path}:{pulled.path}", "snakemake", "--retries", "1", "--", target)
    assert "stopped by SIGTERM after saving" in text and "resumes at step 7 of 16" in text
    assert pulled.digests() == finished.digests()
