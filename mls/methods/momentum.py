"""What MoCo-like methods share: the key encoder's moving average, and the queues.

Shapes: B images, D dictionary entries, d dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@torch.no_grad()
def update_key_encoder(online: nn.Module, key: nn.Module, momentum: float) -> None:
    """``key = momentum * key + (1 - momentum) * online``, all parameters in one fused call.

    Buffers (batch norm's running statistics) are the key encoder's own, as in MoCo.
    """
    torch._foreach_lerp_(list(key.parameters()), list(online.parameters()), 1 - momentum)


class Queue(nn.Module):
    """A first-in-first-out dictionary of L2-normalised entries: one tensor (D, d) and a pointer.

    Begins as random normal directions (MoCo; the paper's Fig. 3 agrees). Any batch size fits.
    """

    entries_Dd: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("entries_Dd", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys_Bd: Tensor) -> None:
        """Overwrite the oldest entries with the keys, in order; of more than D keys the last D stay."""
        size = len(self.entries_Dd)
        keys_Bd = keys_Bd[-size:]
        places = (self.pointer + torch.arange(len(keys_Bd), device=keys_Bd.device)) % size
        self.entries_Dd[places] = keys_Bd.to(self.entries_Dd.dtype)
        self.pointer.copy_((self.pointer + len(keys_Bd)) % size)
