"""The cards that ``mls plan --device`` knows: memory, peak, and the share of it that training a ResNet-50 reaches.

    read_devices()["A100"].rate("bf16")         # 60.0e12 operations a second, 0.19 of 312e12
    read_devices()["A100"].memory               # 80e9 bytes

``devices.csv`` has the figures and their sources. fp32 is what torch makes of it by default: TF32 in convolutions,
where a card has it.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

RESNET50 = 24.29e9
"""Operations of training ResNet-50 on one image of 224 pixels; a multiply-add is two."""
CPU = "cpu"
"""The device that is no card: one core."""
DEFAULT = "A100"
"""The card for which hours are estimated, if none is named."""


@dataclass(frozen=True)
class Device:
    """A card, or a core."""

    name: str
    images_per_s: dict[str, float]
    """Precision -> images a second of training ResNet-50 at 224 pixels."""
    peak: dict[str, float]
    """Precision -> operations a second; empty for a core."""
    memory: float | None
    """Bytes; None for a core."""
    basis: str
    """``published``, ``computed`` from another card's, or ``measured``: the images a second."""
    differs: str
    """How the figures differ from what they are used for."""
    source: str

    @property
    def unit(self) -> str:
        """The unit of its hours."""
        return "CPU-h" if self.name == CPU else f"{self.name}-h"

    def rate(self, precision: str) -> float:
        """Operations a second: the peak times the share of it that ResNet-50 reaches."""
        return self.images_per_s[precision] * RESNET50

    def note(self) -> str:
        """What the computed hours assume."""
        peaks = self.peak or self.images_per_s
        speeds = "; ".join(
            f"{precision} at {self.rate(precision) / 1e12:.2g} TFLOP/s"
            + (f", {self.rate(precision) / self.peak[precision]:.2f} of the peak" if self.peak else "")
            for precision in peaks
        )
        return f"computed for {self.name}: {speeds}, as ResNet-50 trains ({self.basis}; {self.differs}; {self.source})"


@cache
def read_devices() -> dict[str, Device]:
    """Read ``devices.csv``: name -> device."""
    found = {}
    with Path(__file__).with_name("devices.csv").open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            speeds = {precision: float(row[f"{precision}_images_per_s"]) for precision in ("fp32", "bf16")}
            peak = {name: 1e12 * float(row[f"{name}_TFLOPS"]) for name in speeds if row[f"{name}_TFLOPS"]}
            memory = 1e9 * float(row["memory_GB"]) if row["memory_GB"] else None
            found[row["device"]] = Device(
                row["device"], speeds, peak, memory, row["basis"], row["differs"], row["source"]
            )
    return found
