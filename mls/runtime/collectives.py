"""The collective operations that distributed training needs.

    torchrun --nproc-per-node 2 -m mls pretrain mls        # one machine; for more: --nnodes, --rdzv-endpoint

A process that torchrun did not start is rank 0 of 1, and every function here is then the identity. What a training step
shares (flags, keys, running statistics) is equal on all ranks, so each rank holds the whole state and only rank 0
writes it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from mls.runtime.errors import MlsError
from mls.runtime.locks import say
from mls.runtime.ranks import ALONE, number, ranks
from mls.runtime.signals import InterruptGuard, leaving_at_once

POLL_S = 0.2

Rows = TypeVar("Rows", Tensor, range)

_decisions: dist.ProcessGroup | None = None
"""On the CPU, and with a long timeout: rank 0 may wait for another process's lock, and ranks for the slowest one."""


@contextmanager
def process_group(timeout_s: float = 600) -> Iterator[None]:
    """Join the ranks that torchrun started (NCCL for GPU tensors, gloo for CPU ones); leave them at the end.

    Args:
        timeout_s: seconds to wait for the other ranks.

    Raises:
        MlsError: ranks are missing after that time; names them and the address.
        Interrupted: a signal came while this rank waited.
    """
    this = ranks()
    if this.world == 1:
        yield
        return
    global _decisions
    store = meet(timeout_s)
    backend = "cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=this.rank, world_size=this.world)
    group = dist.new_group(backend="gloo", timeout=timedelta(days=30))
    _decisions = group if isinstance(group, dist.ProcessGroup) else None
    try:
        yield
    finally:
        leave()


def leave() -> None:
    """Leave the other ranks, for good: this process then is alone, as libraries that ask torch see it too."""
    global _decisions
    _decisions = None
    if dist.is_initialized():
        dist.destroy_process_group()


def meet(timeout_s: float) -> PrefixStore:
    """Wait until all ranks are at ``MASTER_ADDR:MASTER_PORT``; return the store that they share.

    torch's own rendezvous waits inside one call, which says nothing, and during which no signal is handled.
    """
    me, size, *_ = ranks()
    if not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise MlsError(f"WORLD_SIZE is {size}, but MASTER_ADDR or MASTER_PORT is missing; {ALONE}")
    address, port = os.environ["MASTER_ADDR"], number("MASTER_PORT", most=65535)
    where = f"at {address}:{port}"
    hosts = me == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # else torchrun hosts it
    end, said, missing, store = time.monotonic() + timeout_s, False, "rank 0, or torchrun,", None
    with leaving_at_once(f"waiting for other ranks {where}"):
        while True:
            with suppress(dist.DistNetworkError, dist.DistStoreError):
                if store is None:
                    found = TCPStore(address, port, None, hosts, timedelta(seconds=2), wait_for_workers=False)
                    store = PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", found)
                    store.set(f"joined/{me}", "")
                absent = [str(one) for one in range(size) if not store.check([f"joined/{one}"])]
                if not absent:
                    store.set_timeout(timedelta(seconds=timeout_s))
                    return store
                missing = f"rank{'s' if len(absent) > 1 else ''} {', '.join(absent)}"
            if time.monotonic() > end:
                raise MlsError(
                    f"{missing} of {size} did not come {where} within {timeout_s:g} s (execution.join_timeout); {ALONE}"
                )
            if not said:
                say(f"rank {me} of {size} waits for {missing} {where}, for at most {timeout_s:g} s")
                said = True
            time.sleep(POLL_S)


def rank() -> int:
    """Index of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def own(part_of_N: Rows) -> Rows:
    """This rank's rows of a tensor (or its range of places) over the global batch: contiguous blocks in rank order."""
    size = len(part_of_N) // world()
    return part_of_N[rank() * size : (rank() + 1) * size]


@torch.no_grad()
def gather(own_B: Tensor) -> Tensor:
    """All ranks' rows in rank order (N = W x B), equal on every rank; detached, in the same memory layout."""
    if world() == 1:
        return own_B.detach()
    if own_B.ndim == 4 and own_B.is_contiguous(memory_format=torch.channels_last):
        return _gather_contiguous(own_B.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return _gather_contiguous(own_B.contiguous())


def _gather_contiguous(own_B: Tensor) -> Tensor:
    all_N = own_B.new_empty((world() * len(own_B), *own_B.shape[1:]))
    dist.all_gather_into_tensor(all_N, own_B.detach())
    return all_N


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradients[0])


def sum_over_ranks(own: Tensor) -> Tensor:
    """Sum over the ranks, equal on every rank; its gradient is the sum of the ranks' gradients."""
    if world() == 1:
        return own
    total: Tensor = _Sum.apply(own)
    return total


@torch.no_grad()
def mean_over_ranks(value: Tensor) -> Tensor:
    """Elementwise mean over the ranks, equal on every rank."""
    if world() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= world()
    return value


@torch.no_grad()
def per_rank(counted: Tensor) -> Tensor:
    """Mean number of true entries per rank, as a float of at least 1 / world.

    Dividing each rank's sum by it makes the mean over ranks equal the global mean, whatever each rank's count is.
    """
    return mean_over_ranks(counted.sum().to(torch.get_default_dtype())).clamp(min=1 / world())


@torch.no_grad()
def share(counts: Tensor) -> Tensor:
    """Weights of this rank's means over some items, with which the mean over ranks is the mean over all items.

    Args:
        counts: how many items each mean is of; 0 where there are none, on this rank or on all.

    Returns:
        The counts divided by their means over the ranks, float64; 1 on one rank.
    """
    return counts.double() / mean_over_ranks(counts.double()).clamp(min=1 / world())


def largest(values: list[int]) -> list[int]:
    """Elementwise maximum over the ranks."""
    if world() == 1:
        return values
    shared = torch.tensor(values)
    dist.all_reduce(shared, dist.ReduceOp.MAX, _decisions)
    return [int(value) for value in shared.tolist()]


def join(part: list[Any]) -> list[Any]:
    """All ranks' lists as one, in rank order, on rank 0; empty on the others."""
    if world() == 1:
        return part
    parts: list[Any] | None = [None] * world() if rank() == 0 else None
    dist.gather_object(part, parts, group=_decisions)
    return list(chain.from_iterable(parts or []))


def check_same_step(step: int, work: Path) -> None:
    """Check that all ranks resume from the same checkpoint.

    Raises:
        MlsError: they do not.
    """
    steps = gather(torch.tensor([step])).tolist()
    if len(set(steps)) > 1:
        raise MlsError(f"ranks found different checkpoints (steps {steps}); all must see the same {work}")


def stop_together(guard: InterruptGuard, save: Callable[[], None]) -> None:
    """`InterruptGuard.stop_if_asked`, on all ranks if any of them got a signal.

    Raises:
        Interrupted: after ``save`` has returned.
    """
    if largest([int(guard.asked is not None)])[0]:  # a signal that comes after this waits for the next call
        guard.asked = guard.asked or signal.SIGTERM
        guard.stop_if_asked(save)


def broadcast(go: bool) -> bool:
    """Rank 0's decision, on every rank; the other ranks wait for it as long as it takes."""
    if world() == 1:
        return go
    decision = torch.tensor(go)
    dist.broadcast(decision, src=0, group=_decisions)
    return bool(decision)
