"""What the host learns of the steps without waiting for the device: each step one step late, and means over steps.

Whether a step's loss and gradient are finite is a flag on the device. The optimiser, the key encoder, the dictionary
and the running statistics are masked by it there, so a non-finite step changes nothing. The host reads the flag while
the next step runs, counts it, and saves what is needed to reproduce the step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mls.data.loader import ViewBatch
from mls.runtime.checkpoint import save_checkpoint
from mls.runtime.errors import MlsError


@dataclass(frozen=True)
class LateStep:
    """What the host learns of a step, one step later."""

    step: int
    values: dict[str, float]
    batch: ViewBatch
    rng: dict[str, Any]
    """State of the generators before the step."""


class LateReader:
    """Hands values from the device to the host one step late."""

    def __init__(self) -> None:
        self._pending: Callable[[], LateStep] | None = None

    def exchange(self, step: int, values: dict[str, Tensor], batch: ViewBatch, rng: dict[str, Any]) -> LateStep | None:
        """Start to copy the values of this step (scalars on the device); return the step before.

        The host waits only for the copy of the step before, which the device finished long ago: reading this step's
        values here would leave the device idle until the host has queued the next step.
        """
        before = self.drain()
        values_V = torch.stack([*values.values()])
        on_gpu = values_V.device.type == "cuda"
        # Only a copy to pinned memory is asynchronous; the event tells when it has arrived.
        host_V = torch.empty_like(values_V, device="cpu", pin_memory=on_gpu).copy_(values_V, non_blocking=True)
        event = torch.cuda.Event() if on_gpu else None
        if event is not None:
            event.record()

        def read() -> LateStep:
            if event is not None:
                event.synchronize()
            return LateStep(step, dict(zip(values, host_V.tolist(), strict=True)), batch, rng)

        self._pending = read
        return before

    def drain(self) -> LateStep | None:
        """Return the pending step, if any."""
        pending, self._pending = self._pending, None
        return pending() if pending else None


def dump(late: LateStep, folder: Path, **facts: Any) -> Path:
    """Write the batch of a non-finite step: images, crops, random draws and generator state.

    The views can be made again from it: ``draws`` are all random numbers of the augmentation.

    Args:
        late: the step.
        folder: made where it does not exist.
        **facts: plain values to store beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"step-{late.step:09d}.pt"
    batch = {"rows": late.batch.rows_B, "boxes": late.batch.boxes_VB4, "draws": late.batch.draws_VBU}
    if late.batch.local is not None:
        batch |= {"local_boxes": late.batch.local.boxes_BL4, "local_draws": late.batch.local.draws_BLU}
    save_checkpoint({**facts, **batch, "step": late.step, "values": late.values, "rng": late.rng}, file)
    return file


class Window:
    """Means over the steps since the last row of the curves, kept on the device.

    Values that are not finite and skipped steps do not count.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.total_V: Tensor | None = None
        self.count_V: Tensor | None = None

    def add(self, values: dict[str, Tensor], finite: Tensor) -> None:
        """Add one step's values, scalars on the device, without waiting for it.

        Raises:
            MlsError: the code that saved the checkpoint began the window with other names.
        """
        values_V = torch.stack([*values.values()])
        if self.total_V is None or self.count_V is None:
            self.names = [*values]
            self.total_V, self.count_V = torch.zeros_like(values_V), torch.zeros_like(values_V)
        elif [*values] != self.names:
            raise MlsError("the checkpoint was saved by code that logs other values; remove the run's folder in work/")
        counts_V = torch.isfinite(values_V) & finite
        self.total_V += torch.where(counts_V, values_V, 0)
        self.count_V += counts_V

    def means(self) -> dict[str, float]:
        """Return the mean of each value, NaN where no step counts, and start again. Waits for the device."""
        if self.total_V is None or self.count_V is None:
            return {}
        means = (self.total_V / self.count_V).tolist()
        self.total_V = self.count_V = None
        return dict(zip(self.names, means, strict=True))

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"names": self.names, "total": self.total_V, "count": self.count_V}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore what `state` returned."""
        self.names = state["names"]
        self.total_V, self.count_V = (None if v is None else v.to(device) for v in (state["total"], state["count"]))
