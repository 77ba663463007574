"""Stop on request without losing work: SIGTERM, SIGINT and SIGUSR1 set a flag that training loops poll."""

from __future__ import annotations

import os
import signal
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mls.runtime.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class InterruptGuard:
    """Within the block the first signal only sets ``asked``; a second SIGINT stops at once.

    Forked worker processes inherit the handler. In them it does nothing (the process id differs), because the job
    itself decides when its workers stop.
    """

    def __enter__(self) -> InterruptGuard:
        self.asked: signal.Signals | None = None
        self._pid = os.getpid()
        self._before = {number: signal.signal(number, self.handle) for number in SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def handle(self, number: int, frame: types.FrameType | None) -> None:
        """Note the signal; `mls.pipeline.launch` has a guard that passes it on."""
        if os.getpid() != self._pid:
            return
        if self.asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number)

    def stop_if_asked(self, save: Callable[[], None]) -> None:
        """Save and stop if a signal came; call it once a step.

        Raises:
            Interrupted: after ``save`` has returned.
        """
        if self.asked is not None:
            save()
            raise Interrupted(f"stopped by {self.asked.name} after saving; run the same command to go on")


@contextmanager
def leaving_at_once(doing: str) -> Iterator[None]:
    """Within the block, a signal to stop raises, whatever the process does about it elsewhere.

    Snakemake's handlers and `InterruptGuard` only note a signal, and a call that waits then goes on. Outside the main
    thread, which alone may set handlers, nothing changes.

    Args:
        doing: ends the message: ``waiting for ...``.

    Raises:
        Interrupted: a signal came.
    """

    def stop(number: int, frame: types.FrameType | None) -> None:
        raise Interrupted(f"stopped by {signal.Signals(number).name} while {doing}")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
