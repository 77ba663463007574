"""Precision: networks may run in half precision under autocast, losses and statistics never do."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
