"""Means over the steps since the last row of the curves, kept on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mls.runtime.errors import MlsError


class Window:
    """Sum and count of each named value. Values that are not finite and skipped steps do not count."""

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
