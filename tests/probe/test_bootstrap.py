"""Weighted metrics are those of really resampled arrays; intervals follow from them and cover what they claim."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from mls.metrics import average_precisions, mean_average_precision
from mls.probe import bootstrap
from mls.probe.bootstrap import (
    average_precision_intervals,
    intervals,
    mean_intervals,
    resampled_average_precisions,
    weights,
)


def resampled(n: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    """Yield the image numbers of the sample itself, then of each resample."""
    for weights_NR in weights(n, resamples):
        for weights_N in weights_NR.T:
            yield np.repeat(np.arange(n), weights_N.astype(int))


def case(n: int, c: int, levels: int | None, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Scores that follow the truth; with levels, of so few values that many tie."""
    rng = np.random.default_rng(seed)
    truth = rng.random((n, c)) < np.geomspace(0.5, 1.5 / n, c)
    scores = truth + rng.normal(size=(n, c))
    if levels:
        scores = np.round(scores * levels) / levels
    return scores.astype(np.float32), truth


@pytest.mark.parametrize("levels", [None, 1, 3])
@pytest.mark.parametrize("n", [1, 2, 13, 90])
def test_average_precision_is_that_of_the_resampled_arrays(n: int, levels: int | None) -> None:
    scores, truth = case(n, 5, levels, seed=n)
    scores[scores < -1] = -np.inf
    truth[:, 3], truth[:, 4] = True, False
    ignored = ~truth & (np.random.default_rng(n).random((n, 5)) < 0.3)
    ignored[:, 4] = True
    truth[:2, 0], ignored[:2, 0] = np.array([True, False])[:n], False
    values = resampled_average_precisions(scores, truth, ignored, resamples=70)
    assert values.shape == (5, 71)
    for value_C, drawn in zip(values.T, resampled(n, 70), strict=True):
        expected_C = average_precisions(scores[drawn], truth[drawn], ignored[drawn])
        np.testing.assert_allclose(value_C, expected_C, rtol=0, atol=1e-13)  # NaN where NaN
    assert np.isnan(values[3:]).all(), "all positive, and all ignored"
    if n > 1:
        assert not np.isnan(values[0, 0]) and np.isnan(values[0]).any() == (n == 2), "half of two images' resamples"
    plain = resampled_average_precisions(scores, truth, resamples=5)
    for value_C, drawn in zip(plain.T, resampled(n, 5), strict=True):
        np.testing.assert_allclose(value_C, average_precisions(scores[drawn], truth[drawn]), rtol=0, atol=1e-13)


def test_weights_are_resamples_of_all_images() -> None:
    blocks = list(weights(50, 1000))
    assert (blocks.pop(0) == np.ones((50, 1))).all()
    assert max(block.shape[1] for block in blocks) <= bootstrap.BLOCK
    weights_NR = np.concatenate(blocks, axis=1)
    assert weights_NR.shape == (50, 1000) and (weights_NR.sum(axis=0) == 50).all()
    # each image's weight is binomial (50, 1/50): mean 1, variance 0.98; a mean of 1000 errs by 0.031
    assert np.abs(weights_NR.mean(axis=1) - 1).max() < 0.15 and weights_NR.var() == pytest.approx(0.98, abs=0.02)
    assert len(np.unique(weights_NR, axis=1).T) == 1000


def test_same_numbers_in_any_blocks_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, truth = case(80, 4, 3)
    values = np.where(truth, np.nan, scores.astype(np.float64))
    expected = average_precision_intervals(scores, truth), mean_intervals(values)
    with threadpool_limits(4):
        assert (average_precision_intervals(scores, truth), mean_intervals(values)) == expected
    monkeypatch.setattr(bootstrap, "WEIGHTS", 7 * 80)  # blocks of seven
    assert {block.shape for block in weights(80, 1000)} == {(80, 1), (80, 7), (80, 6)}
    found = average_precision_intervals(scores, truth), mean_intervals(values)
    for one, other in zip(found, expected, strict=True):
        assert one.mean == pytest.approx(other.mean, abs=1e-12)
        assert np.array(one.per_class) == pytest.approx(np.array(other.per_class), abs=1e-12)
    monkeypatch.setattr(bootstrap, "WEIGHTS", 1)  # more images than that: still one resample at a time
    assert [block.shape for block in weights(80, 2)] == [(80, 1)] * 3


def normal(value: float, resampled: Any) -> tuple[float, float]:
    """What `intervals` should say of a value and the same of each resample."""
    half_width = 1.959964 * np.nanstd(resampled)
    return max(value - half_width, 0), min(value + half_width, 1)


def test_intervals_are_the_spread_of_the_resamples() -> None:
    scores, truth = case(150, 4, None)
    drawn = list(resampled(150, 200))[1:]
    per_class = np.array([average_precisions(scores[one], truth[one]) for one in drawn])
    means = [mean_average_precision(scores[one], truth[one]) for one in drawn]
    found = average_precision_intervals(scores, truth, resamples=200)
    assert found.mean == pytest.approx(normal(mean_average_precision(scores, truth), means))
    for c, value in enumerate(average_precisions(scores, truth)):
        assert found.per_class[c] == pytest.approx(normal(value, per_class[:, c]))
    assert found.mean is not None and found.mean[0] < mean_average_precision(scores, truth) < found.mean[1]


def test_means_leave_out_what_is_not_there() -> None:
    rng = np.random.default_rng(4)
    values = rng.random((40, 4))
    values[rng.random((40, 4)) < 0.5] = np.nan
    values[:, 2] = np.nan
    values[:, 3] = np.nan
    values[0, 3] = 0.25  # one image: absent from a third of all resamples
    drawn = list(resampled(40, 100))[1:]
    per_class = np.array([[np.nan if np.isnan(v).all() else np.nanmean(v) for v in values[one].T] for one in drawn])
    found = mean_intervals(values, resamples=100)
    values_C = np.nanmean(np.delete(values, 2, axis=1), axis=0)
    assert found.mean == pytest.approx(normal(values_C.mean(), np.nanmean(per_class, axis=1)))
    assert found.per_class[0] == pytest.approx(normal(values_C[0], per_class[:, 0]))
    assert found.per_class[2] is None
    assert found.per_class[3] == pytest.approx((0.25, 0.25))


def test_an_accuracy_has_the_binomial_interval() -> None:
    hits = np.arange(400) < 300
    found = mean_intervals(hits[:, None])
    # 0.75 +- 1.96 sqrt(0.75 * 0.25 / 400) = 0.75 +- 0.0424
    assert found.mean == found.per_class[0]
    assert found.mean == pytest.approx((0.7076, 0.7924), abs=0.006)


def test_intervals_cover_what_they_claim() -> None:
    """Of 100 small test sets, about 95 have an interval around the value of a test set without end."""
    scores, truth = case(20_000, 1, None, seed=5)
    goal = mean_average_precision(scores, truth)
    covered = 0
    for start in range(0, 20_000, 200):
        found = average_precision_intervals(scores[start : start + 200], truth[start : start + 200], resamples=200).mean
        assert found is not None
        covered += found[0] <= goal <= found[1]
    assert 88 <= covered <= 99


def test_an_interval_holds_its_value_however_few_are_positive() -> None:
    """499 images and 260 classes gave 11.3 [6.8, 10.3]."""
    rng = np.random.default_rng(3)
    truth = rng.random((499, 260)) < np.geomspace(0.03, 0.003, 260)
    scores = (truth + rng.normal(size=truth.shape)).astype(np.float32)
    found, value = average_precision_intervals(scores, truth, resamples=100).mean, mean_average_precision(scores, truth)
    assert found is not None and value - 0.025 < found[0] < value - 0.005 and value + 0.005 < found[1] < value + 0.025


def test_there_is_no_interval_without_values() -> None:
    one = average_precision_intervals(np.array([[1, 1], [0, 0]], np.float32), np.array([[True, False], [False, False]]))
    assert one.mean == (1, 1) and one.per_class == [(1, 1), None]
    every = average_precision_intervals(np.ones((3, 1), np.float32), np.ones((3, 1), dtype=bool))
    assert every.mean is None, "all images are positive"
    none = average_precision_intervals(np.ones((3, 2), np.float32), np.zeros((3, 2), dtype=bool))
    assert none.mean is None and none.per_class == [None, None]
    everything = np.ones((3, 1), dtype=bool)
    assert average_precision_intervals(np.ones((3, 1), np.float32), ~everything, everything).mean is None
    # no resample of the second class holds a positive; the first class's value is nowhere
    assert intervals(np.array([[np.nan, 0.5], [0.5, np.nan]])).per_class == [None, None]
    # means 0.6, and 0.7 and 0.5 of one class each: their deviation is 0.1
    found = intervals(np.array([[0.4, np.nan, 0.5], [0.8, 0.7, np.nan]])).mean
    assert found == pytest.approx((0.6 - 0.196, 0.6 + 0.196), abs=1e-4)
