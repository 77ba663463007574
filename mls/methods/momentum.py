"""The key encoder's moving average, and shuffled batch norm.

Shapes: B images of this rank, N of the global batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mls.runtime import streams
from mls.runtime.collectives import gather, own


@torch.no_grad()
def update_key_encoder(online: nn.Module, key: nn.Module, momentum: float, finite: Tensor) -> None:
    """Move the key encoder: ``key += (1 - momentum) * (online - key)`` over all parameters, in three fused calls.

    Buffers (batch norm's running statistics) stay the key encoder's own, as in MoCo.

    Args:
        online: the encoder that is trained.
        key: its moving average, changed in place.
        momentum: m, a share from 0 to 1.
        finite: bool scalar on the device; if false, nothing changes.
    """
    keys: list[Tensor] = list(key.parameters())
    towards: list[Tensor] = list(online.parameters())
    change = torch._foreach_sub(towards, keys)
    torch._foreach_mul_(change, (1 - momentum) * finite)
    torch._foreach_add_(keys, list(change))


def rising_momentum(base: float, progress: float) -> float:
    """Return m of BYOL and SlotCon: half a cosine from ``base`` at the start of training to 1 at its end.

    ``1 - (1 - base) (cos(pi progress) + 1) / 2`` (arXiv 2006.07733, section 3.3).

    Args:
        base: m of the first step.
        progress: share of the training that is done.
    """
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2


def key_order(seed: int, step: int, size: int) -> Tensor:
    """Return the permutation (N,) of a step's keys over the batch norm groups, a function of seed and step only."""
    return torch.from_numpy(streams.shuffle(seed, step).permutation(size))


@torch.no_grad()
def shuffled(
    encode: Callable[[Tensor], tuple[Tensor, ...]], key_BCHW: Tensor, order_N: Tensor | None
) -> tuple[Tensor, ...]:
    """Encode the key views in a different order than the queries, over all ranks, and put the keys back in order.

    A key then shares its batch norm statistics with different images than its query does, so the statistics do not
    give the pair away (MoCo's shuffled batch norm; here on one device too).

    Args:
        encode: the key encoder: images (B, C, H, W) to tensors (B, ...), such as features and projections.
        key_BCHW: this rank's key views.
        order_N: permutation of the global batch, equal on all ranks; None keeps the order.

    Returns:
        The same tensors of the global batch, (N, ...), in rank order.
    """
    if order_N is None:
        return tuple(gather(made) for made in encode(key_BCHW))
    back_N = order_N.argsort()
    return tuple(gather(made)[back_N] for made in encode(gather(key_BCHW)[own(order_N)]))
