"""Mean and interval against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from mls.report.tables import mean_with_interval


def test_three_values_by_hand() -> None:
    # mean 3, deviations -2, 0, 2: s = sqrt(8 / 2) = 2; t(0.975, 2) = 0.95 * sqrt(2 / (1 - 0.95^2)) = 4.303
    summary = mean_with_interval([1.0, 3.0, 5.0])
    assert (summary.mean, summary.n) == (3.0, 3)
    assert summary.half_width == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)) * 2 / math.sqrt(3), rel=1e-9)


def test_two_values_by_hand() -> None:
    # s = |a - b| / sqrt(2), so the half-width is t(0.975, 1) * |a - b| / 2; t = tan(0.475 pi) = 12.706
    half_width = mean_with_interval([1.0, 2.0]).half_width
    assert half_width == pytest.approx(math.tan(0.475 * math.pi) / 2, rel=1e-9)


def test_one_value_has_no_interval() -> None:
    summary = mean_with_interval([0.4])
    assert (summary.mean, summary.half_width, summary.n) == (0.4, None, 1)


def test_equal_values_have_an_interval_of_zero() -> None:
    assert mean_with_interval([0.1, 0.1, 0.1]).half_width == pytest.approx(0.0, abs=1e-15)


def test_the_order_of_values_does_not_matter() -> None:
    values = [0.1, 0.2, 0.3, 1e-9, 0.7]
    assert mean_with_interval(values) == mean_with_interval(values[::-1])
