"""Steps that are not finite change nothing, and are told of one step late, so that no step waits for the host.

Whether a step's loss and gradient are finite is a flag on the device; the optimiser, the key encoder,
the dictionary and the running statistics are masked by it there. The host reads the flag while the
next step runs, counts it, and keeps what is needed to look into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mls.data.loader import ViewBatch
from mls.runtime.checkpoint import save_checkpoint


@dataclass(frozen=True)
class LateStep:
    """What the host learns of a step after it."""

    step: int
    values: list[float]
    """As they were handed in."""
    batch: ViewBatch
    rng: dict[str, Any]


class LateReader:
    """Hands values from the device to the host one step late."""

    def __init__(self) -> None:
        self._waiting: tuple[int, Tensor, torch.cuda.Event | None, ViewBatch, dict[str, Any]] | None = None

    def exchange(self, step: int, values: Tensor, batch: ViewBatch, rng: dict[str, Any]) -> LateStep | None:
        """Take this step's values, return the last step's: the host waits for that one at most."""
        before = self.drain()
        on_gpu = values.device.type == "cuda"
        copy = torch.empty_like(values, device="cpu", pin_memory=on_gpu).copy_(values, non_blocking=True)
        event = None
        if on_gpu:
            event = torch.cuda.Event()
            event.record()
        self._waiting = (step, copy, event, batch, rng)
        return before

    def drain(self) -> LateStep | None:
        """Return what is still waiting, if anything."""
        if self._waiting is None:
            return None
        step, copy, event, batch, rng = self._waiting
        self._waiting = None
        if event is not None:
            event.synchronize()
        return LateStep(step, copy.tolist(), batch, rng)


def dump(told: LateStep, values: dict[str, float], seed: int, epoch: int, names: list[str], folder: Path) -> Path:
    """Write the batch of a step that was not finite: images, crops, random draws and generator state.

    The views can be made again from it: ``draws`` are every random number of the augmentation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"step-{told.step:09d}.pt"
    save_checkpoint(
        {
            "step": told.step,
            "epoch": epoch,
            "seed": seed,
            "values": values,
            "images": names,
            "rows": told.batch.rows_B,
            "boxes": told.batch.boxes_VB4,
            "draws": told.batch.draws_VBU,
            "rng": told.rng,
        },
        file,
    )
    return file
