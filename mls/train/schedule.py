"""Learning rate as a function of the step.

group["lr"] = learning_rate(step, steps, steps_per_epoch, config.optimizer)
"""

from __future__ import annotations

import math

from mls.config.experiment import Optimizer


def learning_rate(step: int, steps: int, steps_per_epoch: int, config: Optimizer) -> float:
    """A linear rise, then half a cosine to 0 at ``steps`` (MoCo-v2's, here per step, not per epoch).

    With W warm-up steps (``warmup_epochs`` in whole steps, rounded), steps 0 to W - 1 get
    ``lr * (step + 1) / (W + 1)``: an even rise, in which step -1 would have 0 and step W has the full
    ``lr``, where the cosine begins. Without warm-up it is ``lr / 2 * (1 + cos(pi * step / steps))``.

    Args:
        step: from 0; the last one that is trained is ``steps - 1``.
        steps: of the whole training, more than the warm-up's.
        steps_per_epoch: optimiser steps, to count the warm-up.
        config: ``lr`` and ``warmup_epochs`` are read.
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    return 0.5 * config.lr * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
