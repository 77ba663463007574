"""`mls watch` shows what runs, from the logs of the workflow's jobs, and leaves the terminal as it was."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from rich.console import Console
from ruamel.yaml import YAML

from mls.pipeline import watch
from mls.pipeline.artifact_store import lock_of
from mls.pipeline.plan import Plan
from mls.pipeline.watch import clock, last_progress, screen
from mls.runtime.locks import locked
from mls.runtime.progress import Bar
from tests.conftest import plan_of, small

LISTENING = """
import os, signal, sys
# a shell's background jobs, such as this pytest, may ignore it, and then their children do
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, "-m", "mls", "watch"])
"""


def shown(plan: Plan) -> str:
    console = Console(width=140, color_system=None)
    with console.capture() as captured:
        console.print(screen(plan))
    return captured.get()


def shown_after(plan: Plan, log: Path) -> str:
    """What is shown if a log ended 700 seconds ago."""
    os.utime(log, (0, time.time() - 700))
    return shown(plan)


def write_log(log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a job's bar prints, among other lines."""
    monkeypatch.setenv("MLS_PLAIN", "1")
    monkeypatch.setattr("mls.runtime.progress.PLAIN_EVERY_S", 0.0)
    with Bar("pretrain mls:0", total=1500, done=1200) as bar:
        bar.advance(1, count=8, note="loss 4.210")
        bar.advance(1, count=8, note="loss 4.125")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("resumes at step 1200\n" + capsys.readouterr().err + "a warning: \xb5\n", encoding="latin-1")


def test_progress_is_what_a_bar_printed_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "logs" / "one.log"
    assert last_progress(log) is None
    write_log(log, capsys, monkeypatch)
    found = last_progress(log)
    assert found is not None and found[:2] == (1202, 1500) and found.note.startswith("loss 4.125  ")
    assert found.note.endswith(" images/s") and found.quiet_s < 100
    log.write_bytes(log.read_bytes() + b"x" * 3 * watch.TAIL)
    assert last_progress(log) is None, "only the end is read"


def test_running_jobs_are_shown_with_their_progress(
    in_tmp: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(small())
    (job,) = plan.find("pretrain", "mls")
    assert "nothing runs" in shown(plan) and f"{len(plan.jobs)} missing" in shown(plan)
    with locked(lock_of(job.id), "test"):
        assert "no progress in its log yet" in shown(plan)
        write_log(job.log, capsys, monkeypatch)
        text = shown(plan)
        of_an_earlier_try = shown_after(plan, job.log)
        os.utime(lock_of(job.id), (0, time.time() - 800))
        later = shown(plan)
    assert "1 running" in text and plan.name(job) in text and "1,202/1,500" in text and "loss 4.125" in text
    assert "1,202/1,500" not in of_an_earlier_try and "started by hand" in of_an_earlier_try
    assert "quiet" not in text and "quiet for 12 min" in later
    assert "nothing runs" in shown(plan), "a log alone is no running job"


def test_the_log_is_where_the_workflow_writes_it(in_tmp: Path) -> None:
    plan = plan_of(small())
    rules = (Path(__file__).parents[2] / "workflow" / "rules").glob("*.smk")
    text = "".join(file.read_text() for file in rules)
    for job in plan.jobs.values():
        log = job.log.as_posix()
        generic = log.replace(job.id, "{id}")
        assert f'"{generic}"' in text or (job.stage == "data" and '"logs/{folder}/{id}.log"' in text), log


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (99, "99 s"), (100, "2 min"), (3570, "1 h 0 min"), (12_000, "3 h 20 min")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize("how", ["q", "Ctrl-C"])
def test_it_leaves_at_a_key_and_puts_the_terminal_back(in_tmp: Path, how: str) -> None:
    (in_tmp / "params.yaml").touch()
    YAML().dump(small(), in_tmp / "params.yaml")
    (in_tmp / "mls").symlink_to(Path(__file__).parents[2] / "mls")
    (in_tmp / "data.lock").touch()
    terminal, child = pty.openpty()
    before = termios.tcgetattr(child)
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENING], stdin=child, stdout=child, stderr=child, start_new_session=True
    )
    said = b""
    while b"nothing runs" not in said:
        assert select.select([terminal], [], [], 120)[0], said
        said += os.read(terminal, 4096)
    assert not termios.tcgetattr(child)[3] & termios.ICANON, "keys are read one at a time"
    if how == "q":
        os.write(terminal, b"q")
    else:
        process.send_signal(signal.SIGINT)
    until = time.monotonic() + 60
    while process.poll() is None:  # its last bytes must be read, or it waits to write them
        assert time.monotonic() < until, said
        if select.select([terminal], [], [], 0.1)[0]:
            said += os.read(terminal, 4096)
    assert process.returncode == 0, said
    assert termios.tcgetattr(child) == before


def test_without_a_terminal_it_prints_once(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch.watch(plan_of(small()))
    assert "nothing runs" in capsys.readouterr().out
