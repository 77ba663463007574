"""Learning rate as a function of the step."""

from __future__ import annotations

import math


def cosine(step: int, steps: int, lr: float) -> float:
    """Half a cosine from ``lr`` at step 0 to 0 at ``steps`` (MoCo-v2; here per step, not per epoch)."""
    return 0.5 * lr * (1 + math.cos(math.pi * step / steps))
