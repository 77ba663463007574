"""Learning rate as a function of the step.

group["lr"] = warmup_cosine(step, steps, steps_per_epoch, config.optimizer)
"""

from __future__ import annotations

import math

from mls.config.experiment import Optimizer


def warmup_cosine(step: int, steps: int, steps_per_epoch: int, config: Optimizer) -> float:
    """Return the learning rate: a linear rise, then half a cosine to 0 at ``steps`` (MoCo-v2's, here per step).

    With W warm-up steps (``warmup_epochs`` rounded to whole steps), steps 0 to W - 1 get ``lr * (step + 1) / (W + 1)``,
    so that step W is the first with the full ``lr``; there the cosine begins. Without warm-up the rate is
    ``lr / 2 * (1 + cos(pi * step / steps))``.

    Args:
        step: from 0 to ``steps - 1``.
        steps: of the whole training; must exceed the warm-up.
        steps_per_epoch: converts ``warmup_epochs`` to steps.
        config: supplies ``lr`` and ``warmup_epochs``.
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    return 0.5 * config.lr * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
