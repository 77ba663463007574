"""The collective operations that distributed training needs.

    torchrun --nproc-per-node 2 -m mls pretrain mls        # one machine; for more: --nnodes, --rdzv-endpoint

A process that torchrun did not start is rank 0 of 1, and every function here is then the identity. What a training step
shares (flags, keys, running statistics) is equal on all ranks, so each rank holds the whole state and only rank 0
writes it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from mls.runtime.errors import MlsError
from mls.runtime.locks import say
from mls.runtime.ranks import ALONE, number, ranks
from mls.runtime.signals import leaving_at_once

POLL_S = 0.2

_decisions: dist.ProcessGroup | None = None
"""For `broadcast`: on the CPU, and with a long timeout, since rank 0 may have to wait for another process's lock."""


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
        _decisions = None
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


def own(part_of_N: Tensor) -> Tensor:
    """This rank's rows of a tensor over the global batch: contiguous blocks in rank order."""
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


def broadcast(go: bool) -> bool:
    """Rank 0's decision, on every rank; the other ranks wait for it as long as it takes."""
    if world() == 1:
        return go
    decision = torch.tensor(go)
    dist.broadcast(decision, src=0, group=_decisions)
    return bool(decision)
