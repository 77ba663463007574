"""Mean and interval against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from mls.report.statistics import exact_mean, mean_with_interval, t_half_width


def test_three_values_by_hand() -> None:
    # mean 3, deviations -2, 0, 2: s = sqrt(8 / 2) = 2; t(0.975, 2) = 0.95 * sqrt(2 / (1 - 0.95^2)) = 4.303
    summary = mean_with_interval([1.0, 3.0, 5.0])
    assert (summary.mean, summary.n) == (3.0, 3)
    assert summary.half_width == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)) * 2 / math.sqrt(3), rel=1e-9)


def test_two_values_by_hand() -> None:
    # s = |a - b| / sqrt(2), so the half-width is t(0.975, 1) * |a - b| / 2; t = tan(0.475 pi) = 12.706
    assert t_half_width([1.0, 2.0]) == pytest.approx(math.tan(0.475 * math.pi) / 2, rel=1e-9)


def test_one_value_has_no_interval() -> None:
    assert t_half_width([0.4]) is None
    assert mean_with_interval([0.4]).mean == 0.4


def test_equal_values_have_an_interval_of_zero() -> None:
    assert t_half_width([0.1, 0.1, 0.1]) == pytest.approx(0.0, abs=1e-15)


def test_the_order_of_values_does_not_matter() -> None:
    values = [0.1, 0.2, 0.3, 1e-9, 0.7]
    assert exact_mean(values) == exact_mean(values[::-1])
    assert t_half_width(values) == t_half_width(values[::-1])
