"""Numbers in the environment: read, or refused in one line that names the variable."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mls import cli
from mls.config.experiment import Execution
from mls.pipeline.launch import torchrun
from mls.runtime.collectives import meet
from mls.runtime.errors import MlsError
from mls.runtime.ranks import Ranks, number, ranks

ROOT = Path(__file__).parents[2]
NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
FAULTS = ["x", "-1", "1.0", "0x1", "1e3", "1_0", "\u0661", "9" * 400, "1 2", "nan"]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NUMBERS:
        monkeypatch.delenv(name, raising=False)


def test_a_process_is_rank_0_of_1_unless_torchrun_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks() == Ranks(rank=0, world=1, local_rank=0, local_world=1)
    for name, value in zip(NUMBERS, ("5", " 8 ", "1", "4"), strict=True):
        monkeypatch.setenv(name, value)
    assert ranks() == Ranks(rank=5, world=8, local_rank=1, local_world=4)
    monkeypatch.setenv("RANK", "")
    assert ranks().rank == 0, "empty is not set"


@pytest.mark.parametrize("value", FAULTS)
@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["mls", "validate"])
    least = 0 if name.endswith("RANK") else 1
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    expected = (
        f"mls: environment variable {name} is {value[:40]!r}; it must be a whole number from {least} to 1000000000"
    )
    assert stopped.value.code == expected


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("1", None)])
def test_a_rank_is_below_their_number(rank: str, world: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", rank)
    if world:
        monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(MlsError, match=rf"RANK is {rank}, but WORLD_SIZE is {world or 1}: ranks are 0 to .* torchrun"):
        ranks()


def test_a_command_prints_one_line(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "WORLD_SIZE": "two"}
    done = subprocess.run(
        [sys.executable, "-m", "mls", "status"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stderr.startswith("mls: environment variable WORLD_SIZE is 'two'")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("port", ["http", "0", "65536", "-1"])
def test_a_port_is_a_number(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MlsError, match=rf"MASTER_PORT is '{port}'; it must be a whole number from 1 to 65535"):
        meet(1)


def test_slurms_numbers_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    execution = Execution(nodes=2)
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NODEID": "1", "MASTER_ADDR": "a"}.items():
        monkeypatch.setenv(name, value)
    assert "20112" in torchrun(["mls"], execution, 1)
    monkeypatch.setenv("SLURM_STEP_ID", "extern")
    with pytest.raises(MlsError, match="SLURM_STEP_ID is 'extern'"):
        torchrun(["mls"], execution, 1)
    monkeypatch.delenv("SLURM_STEP_ID")
    with pytest.raises(MlsError, match="SLURM_STEP_ID is not set"):
        torchrun(["mls"], execution, 1)


def test_a_default_is_for_what_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A_NUMBER", raising=False)
    assert number("A_NUMBER", default=3) == 3
    monkeypatch.setenv("A_NUMBER", "4")
    assert number("A_NUMBER", default=3) == 4
