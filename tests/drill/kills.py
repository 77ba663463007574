"""kill -9 at random moments of an experiment, each time followed by the same command."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections import Counter

from tests.drill.watch import PATIENCE_S, Lost, compare, made, say, until
from tests.workflow.clone import Clone

VICTIMS = {"stage": r" -m mls ", "snakemake": r"bin/snakemake", "dvc": r"bin/dvc repro", "group": ""}
"""Victim -> pattern of its command line."""


def kill(clone: Clone, expected: dict[str, str], kills: int, moments: random.Random, within_s: float) -> str:
    """Kill ``kills`` times, then let the experiment finish.

    Each kill comes up to ``within_s`` seconds after a stage has begun, or soon after one has saved its state.
    """
    done: Counter[str] = Counter()
    finished = 0
    while done.total() < kills:
        victim = moments.choice(list(VICTIMS))
        command = ("dvc", "repro") if victim == "dvc" or moments.random() < 0.5 else ("snakemake",)
        life = clone.start(*command)
        struck = strike(clone, life, victim, moments, within_s)
        if struck is None:
            compare(expected, clone)
            finished += 1
            say("  finished between kills, with the same bytes; starting over")
            start_over(clone)
            continue
        done[victim] += 1
        say(
            f"  kill {done.total():2}: {victim:9} of {' '.join(command):9}, {struck}; {len(made(clone))} artifacts made"
        )
    clone.run(*command)
    compare(expected, clone)
    assert clone.planned() == {}, "something is left to do"
    resumed = clone.path.with_suffix(".log").read_text().count("resumes at step")
    killed = ", ".join(f"{n} x {victim}" for victim, n in sorted(done.items()))
    return (
        f"{killed}; finished {finished + 1} times, {resumed} resumptions from a checkpoint; {len(expected)} equal files"
    )


def strike(
    clone: Clone, life: subprocess.Popen[bytes], victim: str, moments: random.Random, within_s: float
) -> str | None:
    """Wait for a random moment within a stage and kill; None if the command ended first.

    Small stages spend most of their time starting, so uniform moments rarely hit the training loop. A third of the
    kills therefore wait for a checkpoint first.
    """
    wanted = len(made(clone)) + moments.randrange(3)
    delay, since = moments.uniform(0, within_s), "into"
    saved = moments.random() < 1 / 3
    if until(lambda: len(made(clone)) >= wanted and found(clone, "stage"), life):
        before = checkpoints(clone)
        if saved and until(lambda: checkpoints(clone) - before, life):
            delay, since = delay / 10, "after a checkpoint of"
        time.sleep(delay)
    stages = [re.sub(r".* -m mls (\w+ \w+).*", r"\1", line) for line in found(clone, "stage").values()]
    victims = found(clone, victim) if victim != "group" else {}
    if life.poll() is not None or (victim != "group" and not victims):
        if life.wait(PATIENCE_S) == 0:
            return None
        raise Lost(f"{life.args!r} ended with {life.returncode}; see {clone.path.with_suffix('.log')}")
    if victim == "group":
        os.killpg(life.pid, signal.SIGKILL)
        until(lambda: not clone.processes())
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    if victim == "stage":  # Snakemake goes on with the other runs; a user who sees the failure stops it
        os.killpg(life.pid, signal.SIGTERM)
    life.wait(PATIENCE_S)
    return f"{delay:.1f} s {since} {' and '.join(stages) or 'a pause between stages'}"


def checkpoints(clone: Clone) -> set[str]:
    """Names of the checkpoints; each holds its step."""
    return {str(file) for file in clone.path.glob("work/*/checkpoint*.pt")}


def start_over(clone: Clone) -> None:
    """Remove everything that was made, once no process works on it."""
    until(lambda: not clone.processes())
    for name in ("artifacts", ".store", "work", "results/micro", "dvc.lock", ".dvc/cache"):
        subprocess.run(["rm", "-rf", str(clone.path / name)], check=True)


def found(clone: Clone, victim: str) -> dict[int, str]:
    """Processes of one kind that work in the clone."""
    return {pid: line for pid, line in clone.processes().items() if re.search(VICTIMS[victim], line)}
