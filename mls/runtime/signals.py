"""Stop on request without losing work: SIGTERM, SIGINT and SIGUSR1 set a flag that loops poll."""

from __future__ import annotations

import os
import signal
import types
from collections.abc import Callable

from mls.runtime.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class InterruptGuard:
    """Within the block the first signal only sets ``asked``; a second SIGINT stops at once.

    Worker processes inherit the handler; there it does nothing, because the process id differs:
    the job itself decides when its workers stop.
    """

    def __enter__(self) -> InterruptGuard:
        self.asked: signal.Signals | None = None
        self._pid = os.getpid()
        self._before = {s: signal.signal(s, self._handle) for s in SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        if os.getpid() != self._pid:
            return
        if self.asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number)

    def stop_if_asked(self, save: Callable[[], None]) -> None:
        """Call once a step: saves and leaves with exit code 75 if a signal came.

        Raises:
            Interrupted: after ``save`` has returned.
        """
        if self.asked is not None:
            save()
            raise Interrupted(f"stopped by {self.asked.name} after saving; run the same command to go on")
