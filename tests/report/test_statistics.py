"""Mean and interval against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from mls.report.statistics import interval, mean, summarise


def test_three_values_by_hand() -> None:
    # mean 3, deviations -2, 0, 2: s = sqrt(8 / 2) = 2; t(0.975, 2) = 4.302652729911275 (printed tables: 4.303)
    summary = summarise([1.0, 3.0, 5.0])
    assert (summary.mean, summary.n) == (3.0, 3)
    assert summary.half_width == pytest.approx(4.302652729911275 * 2 / math.sqrt(3), rel=1e-12)


def test_two_values_by_hand() -> None:
    # s = |a - b| / sqrt(2), so the half-width is t(0.975, 1) * |a - b| / 2 = 12.7062... * 0.5
    assert interval([1.0, 2.0]) == pytest.approx(12.706204736432095 / 2, rel=1e-12)


def test_one_value_has_no_interval() -> None:
    assert interval([0.4]) is None
    assert summarise([0.4]).mean == 0.4


def test_equal_values_have_an_interval_of_zero() -> None:
    assert interval([0.1, 0.1, 0.1]) == 0.0


def test_the_order_of_values_does_not_matter() -> None:
    values = [0.1, 0.2, 0.3, 1e-9, 0.7]
    assert mean(values) == mean(values[::-1])
    assert interval(values) == interval(values[::-1])
