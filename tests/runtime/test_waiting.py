"""A process that waits (for a lock, for other ranks) says for what, and leaves when it is asked to."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from mls.runtime.errors import Interrupted
from mls.runtime.locks import locked
from mls.runtime.signals import InterruptGuard, leaving_at_once
from tests.conftest import SMALL, small

ROOT = Path(__file__).parents[2]
HOLDS = """
import sys, time
from pathlib import Path
from mls.runtime.locks import locked
with locked(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    time.sleep(600)
"""
WAITS = """
import signal, sys
from pathlib import Path
from mls.runtime.locks import locked
from mls.runtime.signals import InterruptGuard
with InterruptGuard():  # as Snakemake's handlers, it only notes the signal
    with locked(Path(sys.argv[1]), "it"):
        pass
"""


def start(*command: str, **environment: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *command], env=env, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_who_waits_for_a_lock_leaves_when_asked_even_where_signals_are_only_noted(
    tmp_path: Path, number: signal.Signals
) -> None:
    lock = str(tmp_path / "lock")
    holder = start("-c", HOLDS, lock)
    assert holder.stdout and holder.stdout.readline() == "held\n"
    try:
        waiter = start("-c", WAITS, lock)
        assert waiter.stderr and "is making it; waiting for it" in waiter.stderr.readline()
        waiter.send_signal(number)
        _, log = waiter.communicate(timeout=60)
        assert waiter.returncode != 0 and f"stopped by {number.name} while waiting for it" in log
    finally:
        holder.kill()
        holder.communicate()


def test_handlers_are_as_before_after_waiting() -> None:
    with InterruptGuard() as guard:
        with leaving_at_once("waiting"):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert guard.asked == signal.SIGTERM
    with pytest.raises(Interrupted, match="stopped by SIGUSR1 while waiting"), leaving_at_once("waiting"):
        signal.raise_signal(signal.SIGUSR1)


def test_a_lock_that_is_free_is_taken_at_once(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", "it"):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def lonely(port: int, rank: int = 0, timeout: int = 600) -> subprocess.Popen[str]:
    """One of two ranks, whose other never comes."""
    raw = small(execution={**SMALL["execution"], "join_timeout": timeout})
    with Path("small.yaml").open("w") as file:
        YAML().dump(raw, file)
    group = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    return start("-m", "mls", "pretrain", "mls", "-e", "small.yaml", **group)


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_rank_says_who_is_missing_and_leaves_when_asked(in_tmp: Path, port: int, number: signal.Signals) -> None:
    waiter = lonely(port)
    assert waiter.stderr
    while "waits for" not in (line := waiter.stderr.readline()):
        assert line, "it ended"
    assert line == f"rank 0 of 2 waits for rank 1 at localhost:{port}, for at most 600 s\n"
    waiter.send_signal(number)
    _, log = waiter.communicate(timeout=60)
    assert waiter.returncode == 75
    assert f"mls pretrain: stopped by {number.name} while waiting for other ranks at localhost:{port}" in log


@pytest.mark.parametrize(("rank", "missing"), [(0, "rank 1 of 2"), (1, "rank 0, or torchrun, of 2")])
def test_a_rank_gives_up_in_time(in_tmp: Path, port: int, rank: int, missing: str) -> None:
    _, log = lonely(port, rank, timeout=1).communicate(timeout=120)
    assert f"mls pretrain: {missing} did not come at localhost:{port} within 1 s (execution.join_timeout)" in log


def test_a_rank_without_an_address_or_of_no_such_number(in_tmp: Path, port: int) -> None:
    _, log = lonely(port, rank=2).communicate(timeout=120)
    assert "RANK is 2, but WORLD_SIZE is 2: ranks are 0 to 1; start all ranks with torchrun, or unset RANK" in log
