"""A progress bar on a terminal; elsewhere (logs, Snakemake) a plain line every few seconds."""

from __future__ import annotations

import os
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

PLAIN_EVERY_S = 15.0
FANCY_EVERY_S = 0.1
"""A million annotations advance a bar by one each: to draw each of them would take longer than to read them."""


class Bar:
    """Progress over ``total`` steps: a note, the rate in ``unit`` per second, and the time left.

        with Bar("pretrain mls", total=1920, unit="images", done=0) as bar:
            bar.advance(1, count=128, note="loss 4.21")

    ``MLS_PLAIN=1`` chooses plain lines; the workflow sets it, because its jobs share a terminal. A ``hidden`` bar (of
    any rank but the first) only counts.
    """

    def __init__(self, name: str, total: int, unit: str = "images", done: int = 0, hidden: bool = False) -> None:
        self.name, self.total, self.unit, self.done, self.hidden = name, total, unit, done, hidden
        self._begun = done
        self._count = 0
        self._start = self._last = time.monotonic()
        self._fancy: Progress | None = None
        if not hidden and sys.stderr.isatty() and not os.environ.get("MLS_PLAIN"):
            columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[note]}")
            self._fancy = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))

    def __enter__(self) -> Bar:
        if self._fancy is not None:
            self._fancy.start()
            self._task = self._fancy.add_task(self.name, total=self.total, completed=self.done, note="")
        return self

    def __exit__(self, *exc: object) -> None:
        if self._fancy is not None:
            self._fancy.stop()

    @property
    def rate(self) -> float:
        """Units per second since the bar was made."""
        return self._count / max(time.monotonic() - self._start, 1e-9)

    def advance(self, steps: int = 1, count: int = 0, note: str = "") -> None:
        """Advance by ``steps`` that processed ``count`` units."""
        self.done += steps
        self._count += count
        now = time.monotonic()
        every = PLAIN_EVERY_S if self._fancy is None else FANCY_EVERY_S
        if self.hidden or (now - self._last < every and self.done != self.total):
            return
        self._last = now
        text = f"{note}  {self.rate:,.0f} {self.unit}/s".strip()
        if self._fancy is not None:
            self._fancy.update(self._task, completed=self.done, note=text)
        else:
            left = (now - self._start) / max(self.done - self._begun, 1) * (self.total - self.done)
            print(f"[{self.name}] {self.done}/{self.total}  {text}  {left:,.0f} s left", file=sys.stderr, flush=True)
