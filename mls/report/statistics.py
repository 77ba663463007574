"""Mean and 95 % confidence interval of a few repeats.

summary = mean_with_interval([31.0, 33.0, 32.0])
print(summary.mean, summary.half_width)      # 32.0 2.484...
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Mean of ``n`` values; ``half_width`` of its confidence interval is None for one value."""

    mean: float
    half_width: float | None
    n: int


def exact_mean(values: Sequence[float]) -> float:
    """Arithmetic mean whose sum is rounded only once, so the order of the values does not matter."""
    return math.fsum(values) / len(values)


def t_half_width(values: Sequence[float]) -> float | None:
    """Half the width of the mean's two-sided 95 % t-interval; None for a single value.

    ``t(0.975, n - 1) * s / sqrt(n)``, where s is the sample standard deviation (n - 1 in the denominator).
    """
    n = len(values)
    if n < 2:
        return None
    from scipy.stats import t  # here, because importing it takes a second and planning never needs it

    centre = exact_mean(values)
    deviation = math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (n - 1))
    return float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * deviation / math.sqrt(n)


def mean_with_interval(values: Sequence[float]) -> Summary:
    """Mean, half-width and number of the values.

    Raises:
        ZeroDivisionError: there are no values; a missing number has no mean.
    """
    return Summary(exact_mean(values), t_half_width(values), len(values))
