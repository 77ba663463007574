"""Which image comes when in a fine-tuning: a function of seed and step alone, read ahead by threads.

    for batch in read_ahead(planned, load, workers=2): ...

Epoch follows epoch without a gap: every batch is full, and one may begin in an epoch and end in the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import numpy as np

PREFETCH = 2
"""Batches that are prepared ahead."""

Loaded = TypeVar("Loaded")
Planned = TypeVar("Planned")


@lru_cache(maxsize=2)
def epoch_order(images: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The samples of an epoch in their order, int64 (N,), and which of them are flipped, bool (N,)."""
    rng = np.random.default_rng((seed, epoch))
    return rng.permutation(images), rng.random(images) < 0.5


def plan_batch(step: int, batch_size: int, images: int, seed: int) -> list[tuple[int, bool, int]]:
    """Sample index, flip and epoch of each image of a batch; a batch may reach into the next epoch."""
    planned = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(position, images)
        order_N, flips_N = epoch_order(images, seed, epoch)
        planned.append((int(order_N[place]), bool(flips_N[place]), epoch))
    return planned


def read_ahead(
    planned: Iterable[list[Planned]], load: Callable[[Planned], Loaded], workers: int
) -> Generator[list[Loaded]]:
    """Yield loaded batches, prepared ahead by threads (decoding releases Python's lock).

    Args:
        planned: what is to be loaded for each batch.
        load: makes one sample.
        workers: threads; no effect on the batches.
    """
    with ThreadPoolExecutor(max(1, workers)) as pool:
        ahead: deque[list[Future[Loaded]]] = deque()
        try:
            for batch in planned:
                ahead.append([pool.submit(load, one) for one in batch])
                if len(ahead) > PREFETCH:
                    yield [future.result() for future in ahead.popleft()]
            while ahead:
                yield [future.result() for future in ahead.popleft()]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
