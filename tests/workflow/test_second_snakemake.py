"""A second Snakemake of one experiment waits for the first, and leaves when it is asked to."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from mls.runtime.locks import locked
from tests.workflow.clone import Clone, new_clone


def wait_for_line(clone: Clone, text: str) -> None:
    log, end = clone.path.with_suffix(".log"), time.monotonic() + 300
    while text not in log.read_text():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_leaves_when_asked_and_makes_nothing(number: signal.Signals, tmp_path: Path) -> None:
    clone = new_clone(tmp_path / "clone")
    with locked(clone.path / "artifacts" / ".snakemake-micro.lock", "experiment micro"):  # what the first one holds
        second = clone.start("snakemake")
        wait_for_line(clone, "experiment micro: process")
        second.send_signal(number)
        assert second.wait(timeout=60) != 0, "the first still holds the lock"
    log = clone.path.with_suffix(".log").read_text()
    assert f"stopped by {number.name} while waiting for experiment micro" in log
    assert "Traceback" not in log
    assert not list(clone.path.glob("artifacts/*/*/artifact.json")) and not clone.processes()
    assert clone.planned()["data_artifact"] == 1, "the lock is free, and Snakemake's own state is whole"
