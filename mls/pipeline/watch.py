"""``mls watch``: the jobs of an experiment live in a terminal, from the logs that the workflow's jobs write anyway.

It only reads: files of state as `mls status` does, and the last line of each running job's log. So it works over ssh,
for jobs of another process of this clone, and for jobs of a cluster whose nodes share the folder.
"""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mls.pipeline.artifact_store import lock_of, state_lock_of
from mls.pipeline.plan import Job, Plan
from mls.pipeline.status import STYLES, failures, job_state

LINE = re.compile(r"^\[.+\] (?P<done>\d+)/(?P<total>\d+)  (?P<note>.*)  (?P<left>[\d,]+) s left$")
"""What `mls.runtime.progress.Bar` prints where there is no terminal."""
TAIL = 4096
"""Bytes at the end of a log that are read."""
EVERY_S = 2.0
QUIET_S = 60.0
"""A running job whose log has had no line for longer is said to be quiet."""


class Last(NamedTuple):
    """The last line of progress in a log."""

    done: int
    total: int
    note: str
    """Such as the loss, and images per second."""
    left_s: int
    """As the job estimates it."""
    quiet_s: float
    """Since the log's last line of any kind."""


def watch(plan: Plan) -> None:
    """Show the jobs until q or Ctrl-C; once, where the output is not a terminal."""
    console = Console()
    if not console.is_terminal:
        console.print(screen(plan))
        return
    try:
        with _keys() as pressed, Live(screen(plan), console=console, screen=True, auto_refresh=False) as live:
            while pressed(EVERY_S) != "q":
                live.update(screen(plan), refresh=True)
    except KeyboardInterrupt:
        pass


def screen(plan: Plan) -> Group:
    """Return what is shown: counts, running jobs with their progress, and what failed."""
    states = {job.id: job_state(job) for job in plan.jobs.values()}
    counts = {name: [*states.values()].count(name) for name in STYLES}
    running = [job for job in plan.jobs.values() if states[job.id] == "running"]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("running", "", "", "", "left"):
        table.add_column(column, no_wrap=True, justify="right" if column == "left" else "left")
    for job in running:
        table.add_row(*_cells(plan, job))
    head = Text(plan.loaded.experiment.experiment, style="bold").append(f"  {time.strftime('%H:%M:%S')}  ")
    for name, count in counts.items():
        if count:
            head.append(f"  {count} {name}", style=STYLES[name])
    parts = [head, Text()]
    if not running:
        parts.append(Text("all done" if counts["done"] == len(states) else "nothing runs"))
    return Group(*parts, *([table] if running else []), *(Text(line, style="red") for line in failures(plan)))


def _cells(plan: Plan, job: Job) -> Iterator[Text | ProgressBar]:
    last = last_progress(job.log, since(job))
    yield Text(plan.name(job))
    yield ProgressBar(last.total, last.done, width=20) if last else Text()
    yield Text(f"{last.done:,}/{last.total:,}" if last else "")
    quiet = last is not None and last.quiet_s > QUIET_S
    yield Text(last.note if last else "no progress in its log yet, or started by hand").append(
        f"  quiet for {clock(last.quiet_s)}" if last and quiet else "", style="yellow"
    )
    yield Text(clock(last.left_s) if last else "")


def since(job: Job) -> float:
    """When a running job took its locks: a log that ended before is another try's."""
    locks = [lock for lock in (lock_of(job.id), state_lock_of(job.id)) if lock.exists()]
    return max((lock.stat().st_mtime for lock in locks), default=0.0)


def last_progress(log: Path, since: float = 0.0) -> Last | None:
    """Read the last line of progress near the end of a log; None if there is none, or the log ended earlier."""
    try:
        with log.open("rb") as opened:
            opened.seek(max(0, opened.seek(0, os.SEEK_END) - TAIL))
            text = opened.read().decode(errors="replace")
            written = os.fstat(opened.fileno()).st_mtime
    except OSError:
        return None
    found = next(filter(None, map(LINE.match, reversed(text.splitlines()))), None)
    if found is None or written < since:
        return None
    left_s, quiet_s = int(found["left"].replace(",", "")), time.time() - written
    return Last(int(found["done"]), int(found["total"]), found["note"], left_s, quiet_s)


def clock(seconds: float) -> str:
    """Write a duration: ``45 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Within the block, wait up to some seconds for a key and return it, or "". The terminal is put back afterwards."""

    def pressed(seconds: float) -> str:
        if not sys.stdin.isatty():
            time.sleep(seconds)
            return ""
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        return os.read(sys.stdin.fileno(), 1).decode(errors="replace") if ready else ""

    before = termios.tcgetattr(sys.stdin) if sys.stdin.isatty() else None
    try:
        if before is not None:
            tty.setcbreak(sys.stdin)
        yield pressed
    finally:
        if before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
