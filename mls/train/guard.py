"""Non-finite steps are skipped on the device; the host learns of them one step later, so it never blocks.

Whether a step's loss and gradient are finite is a flag on the device. The optimiser, the key encoder, the dictionary
and the running statistics are masked by it there. The host reads the flag while the next step runs, counts it, and
saves what is needed to reproduce the step.
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
    save_checkpoint({**facts, **batch, "step": late.step, "values": late.values, "rng": late.rng}, file)
    return file
