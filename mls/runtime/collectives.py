"""Many processes as one: ranks, and the three collectives that training needs.

torchrun --nproc-per-node 2 -m mls pretrain mls        # one machine; more: --nnodes, --rdzv-endpoint

A process that torchrun did not start is rank 0 of 1, and every function here is then the identity.
What leaves a step (losses' flags, keys, running statistics) is equal on all ranks, so each of them
holds the whole state, and rank 0 alone writes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

_decisions: dist.ProcessGroup | None = None
"""Over it rank 0 tells what it decided: on the CPU, and as late as it takes (another process may hold the lock)."""


@contextmanager
def process_group() -> Iterator[None]:
    """Join the ranks that torchrun started (NCCL for GPU tensors, gloo for CPU ones); leave them at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    global _decisions
    dist.init_process_group("cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo")
    group = dist.new_group(backend="gloo", timeout=timedelta(days=30))
    _decisions = group if isinstance(group, dist.ProcessGroup) else None
    try:
        yield
    finally:
        _decisions = None
        dist.destroy_process_group()


def rank() -> int:
    """Of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def own(part_of_N: Tensor) -> Tensor:
    """This rank's rows of a tensor over the global batch: contiguous blocks in rank order."""
    size = len(part_of_N) // world()
    return part_of_N[rank() * size : (rank() + 1) * size]


@torch.no_grad()
def gather(own_B: Tensor) -> Tensor:
    """Every rank's rows, in rank order (N = W x B rows, equal on all ranks); without gradient, in the same layout."""
    if world() == 1:
        return own_B.detach()
    if own_B.ndim == 4 and own_B.is_contiguous(memory_format=torch.channels_last):
        return _gather_contiguous(own_B.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return _gather_contiguous(own_B.contiguous())


def _gather_contiguous(own_B: Tensor) -> Tensor:
    all_N = own_B.new_empty((world() * len(own_B), *own_B.shape[1:]))
    dist.all_gather_into_tensor(all_N, own_B.detach())
    return all_N


@torch.no_grad()
def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean over the ranks, elementwise, equal on all of them."""
    if world() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= world()
    return value


@torch.no_grad()
def per_rank(counted: Tensor) -> Tensor:
    """How many are true on a rank, on average over the ranks, as a float; where none are on any, what one would be.

    Ranks whose own sums are divided by it have the mean over all as their mean, however the counts lie.
    """
    return mean_over_ranks(counted.sum().to(torch.get_default_dtype())).clamp(min=1 / world())


def broadcast(go: bool) -> bool:
    """Rank 0's decision, on every rank; the others wait for it, however long it takes."""
    if world() == 1:
        return go
    decision = torch.tensor(go)
    dist.broadcast(decision, src=0, group=_decisions)
    return bool(decision)
