"""The dictionaries Q_g and Q_z of Eq. 6 in one first-in-first-out store.

Entry i of both is the same key: one pointer moves them together, so their orders cannot diverge. Each key is stored
with its origin, so that pseudo-labels can be evaluated (do neighbours share a class?) and drawn (which crop of which
image?).

Shapes: N keys of a global batch, D dictionary entries, G backbone and d embedding dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RANDOM = -1
"""The image row of an entry that is still its random initial direction."""


class Keys(NamedTuple):
    """The keys of one global batch, in rank order."""

    g_NG: Tensor
    """L2-normalised pooled backbone features of the key views, by the key encoder (Eq. 6)."""
    z_Nd: Tensor
    """L2-normalised projections of them (Eq. 6)."""
    row_N: Tensor
    """int64 row of the image in the store."""
    box_N4: Tensor
    """int64 top, left, height, width of the key's crop, pixels of the stored image."""


class Dictionary(nn.Module):
    """D entries of Q_g and Q_z with their origin; batches of any size fit.

    Begins as random normal directions, as MoCo does (the paper's Fig. 3 agrees).
    """

    z_Dd: Tensor
    g_DG: Tensor
    row_D: Tensor
    box_D4: Tensor
    pointer: Tensor

    def __init__(self, size: int, feature_dim: int, projection_dim: int) -> None:
        super().__init__()
        self.register_buffer("z_Dd", F.normalize(torch.randn(size, projection_dim), dim=1))
        self.register_buffer("g_DG", F.normalize(torch.randn(size, feature_dim), dim=1))
        self.register_buffer("row_D", torch.full((size,), RANDOM))
        self.register_buffer("box_D4", torch.zeros((size, 4), dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @property
    def known_D(self) -> Tensor:
        """Return which entries are keys by now, bool."""
        return self.row_D != RANDOM

    @torch.no_grad()
    def snapshot_with(self, keys: Keys) -> tuple[Tensor, Tensor]:
        """Return Q_g and Q_z as they will be with these keys; changes nothing."""
        g_DG, z_Dd = self.g_DG.clone(), self.z_Dd.clone()
        for own_DX, new_NX in ((g_DG, keys.g_NG), (z_Dd, keys.z_Nd)):
            self.write(own_DX, new_NX, torch.ones((), dtype=torch.bool, device=g_DG.device))
        return g_DG, z_Dd

    @torch.no_grad()
    def enqueue(self, keys: Keys, finite: Tensor) -> None:
        """Overwrite the oldest entries with the keys, in order; of more than D keys keep the last D.

        Args:
            keys: of the whole global batch.
            finite: bool scalar on the device; if false, nothing changes.
        """
        for own_DX, new_NX in zip((self.g_DG, self.z_Dd, self.row_D, self.box_D4), keys, strict=True):
            self.write(own_DX, new_NX, finite)
        self.pointer.copy_((self.pointer + min(len(keys.row_N), len(self.z_Dd)) * finite) % len(self.z_Dd))

    @torch.no_grad()
    def write(self, own_DX: Tensor, new_NX: Tensor, finite: Tensor) -> None:
        """Write one row per key where the next keys go, into a tensor in the dictionary's order; keep the pointer.

        Args:
            own_DX: one row per entry, changed in place.
            new_NX: one row per key.
            finite: bool scalar on the device; if false, nothing changes.
        """
        size = len(self.z_Dd)
        last_NX = new_NX[-size:]
        # Indices, not slices: the pointer stays on the device. `where`, not `if`: the host must not wait for the flag.
        places = (self.pointer + torch.arange(len(last_NX), device=self.pointer.device)) % size
        own_DX[places] = torch.where(finite, last_NX.to(own_DX.dtype), own_DX[places])
