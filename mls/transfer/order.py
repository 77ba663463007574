"""Plan which image each step of a transfer task trains on, and whether it is flipped.

    for index, flip, epoch in plan_batch(step, batch_size=16, images=118_287, seed=1000): ...

The plan depends only on the seed and the step. No state has to be saved: a run that resumes at a step computes the
same batch again.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mls.runtime import streams
from mls.train.finetune import places

Planned = tuple[int, bool, int]
"""Index of a sample, whether it is flipped, and the epoch."""


@lru_cache(maxsize=2)  # a batch spans at most two epochs, unless it is larger than an epoch
def order_and_flips(images: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the order of an epoch's samples, int64 (N,), and whether each place's sample is flipped, bool (N,)."""
    # A generator per epoch, not one for the whole training: an epoch then follows without those before it.
    rng = streams.order_and_flips(seed, epoch)
    return rng.permutation(images), rng.random(images) < 0.5


def plan_batch(step: int, batch_size: int, images: int, seed: int) -> list[Planned]:
    """Return the samples of a batch; see `mls.train.finetune.places`."""
    planned = []
    for epoch, place in places(step, batch_size, images):
        order_N, flips_N = order_and_flips(images, seed, epoch)
        planned.append((int(order_N[place]), bool(flips_N[place]), epoch))
    return planned
