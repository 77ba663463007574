"""kill -9 of any process, then the same command: it goes on, and every artifact is the same bytes."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import time

import pytest

from tests.workflow.clone import Clone

pytestmark = pytest.mark.timeout(1200)  # each runs most of micro, in many processes

CHILD = "-m mls pretrain"


def trainers(clone: Clone) -> list[int]:
    """Trainings alive in the clone."""
    return [pid for pid, line in clone.processes().items() if CHILD in line]


def wait_until_gone(clone: Clone, seconds: float = 60) -> None:
    """Wait until no training is alive: the leader of a killed group can be reaped before the others have died."""
    end = time.monotonic() + seconds
    while survivors := trainers(clone):
        assert time.monotonic() < end, f"{survivors} live {seconds} s after the kill"
        time.sleep(0.02)


@pytest.fixture
def training(pulled: Clone) -> Clone:
    """A clone with data and one run that is still to be trained (long enough to be killed) and probed."""
    for stage in ("pretrain", "features", "probe", "transfer", "tables"):
        subprocess.run(["rm", "-r", str(pulled.path / "artifacts" / stage)], check=True)
    pulled.edit(**{"runs__moco-v2": None}, transfer=None, draw=None)
    pulled.edit(tables={"main": {"columns": ["linear.mAP"]}})
    return pulled


def same(mine: Clone, finished: Clone) -> bool:
    """Whether everything made here equals what the whole experiment made; only the tables differ."""
    theirs = finished.digests()
    made = {name: digest for name, digest in mine.digests().items() if not name.startswith("tables/")}
    stages = {name.split("/")[0] for name in made}
    return stages == {"data", "pretrain", "features", "probe"} and made.items() <= theirs.items()


@pytest.mark.parametrize("victim", ["trainer", "snakemake", "dvc", "group"])
def test_the_same_command_after_a_kill_makes_the_same_bytes(victim: str, training: Clone, finished: Clone) -> None:
    command = ("dvc", "repro") if victim in ("dvc", "group") else ("snakemake",)
    started = training.start(*command)
    training.wait_for("work/*/checkpoint-*.pt")
    if victim == "group":
        os.killpg(started.pid, signal.SIGKILL)
        wait_until_gone(training)
    elif victim == "trainer":
        killed = trainers(training)
        assert killed
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
    elif victim == "snakemake":
        started.kill()
    else:
        (pid,) = (pid for pid, line in training.processes().items() if "dvc repro" in line)
        os.kill(pid, signal.SIGKILL)
    started.wait()
    if victim == "snakemake":
        assert trainers(training), "its child keeps running"
    training.run(*command)
    assert same(training, finished)
    assert training.planned() == {}
    assert "Data and pipelines are up to date" in (training.run("dvc", "repro") and training.run("dvc", "repro"))


def test_jobs_that_a_killed_snakemake_marked_incomplete_hide_no_other(pulled: Clone) -> None:
    """Its child finished the job, so the artifact is whole; the jobs after it never began."""
    (manifest, *_) = sorted((pulled.path / "artifacts" / "features").glob("*/artifact.json"))
    subprocess.run(["rm", "-r", *(str(pulled.path / "artifacts" / stage) for stage in ("probe", "tables"))], check=True)
    marks = pulled.path / ".snakemake" / "incomplete"
    marks.mkdir(parents=True)
    name = str(manifest.relative_to(pulled.path)).encode()
    (marks / base64.urlsafe_b64encode(name).decode()).touch()
    assert pulled.planned() == {"probe_artifact": 2, "tables_artifact": 1, "publish": 1}


def test_a_trainer_resumes_where_it_was_killed(training: Clone, finished: Clone) -> None:
    started = training.start("mls", "pretrain", "mls")
    training.wait_for("work/*/checkpoint-*.pt")
    started.kill()
    started.wait()
    assert "resumable" in training.run("mls", "status")
    assert "resumes at step" in training.run("mls", "pretrain", "mls")
    mine, theirs = training.digests(), finished.digests()
    assert all(theirs[name] == digest for name, digest in mine.items())


def test_two_processes_at_once_make_an_artifact_once(training: Clone, finished: Clone) -> None:
    both = [training.start("mls", "pretrain", "mls"), training.start("mls", "pretrain", "mls")]
    for process in both:
        assert process.wait() == 0
    log = training.path.with_suffix(".log").read_text()
    assert log.count("16/16") == 1 and ("waiting for it" in log or "is there" in log)
    theirs = finished.digests()
    assert all(theirs[name] == digest for name, digest in training.digests().items())


def test_sigterm_saves_exits_with_75_and_the_next_run_resumes(training: Clone) -> None:
    started = training.start("mls", "pretrain", "mls")
    training.wait_for("work/*/checkpoint-*.pt")
    started.send_signal(signal.SIGTERM)
    assert started.wait() == 75
    assert "stopped by SIGTERM after saving" in training.path.with_suffix(".log").read_text()
    assert "resumes at step" in training.run("mls", "pretrain", "mls")
