"""How much a metric would vary with other test images: 95 % bootstrap intervals over images.

    found = average_precision_intervals(scores_NC, truth_NC, ignored_NC)
    found.mean, found.per_class[0]                # (low, high) of mAP, and of the first class
    mean_intervals(ap_NC).mean                    # of a mean over images, then over classes; NaNs are left out
    mean_intervals(hits(scores_NC, truth_NC)[:, None]).mean                               # of top-1

Normal intervals [Davison and Hinkley, 1997, section 5.2] from 1000 resamples of the images with replacement: the
sample's value plus and minus 1.96 standard deviations of the resamples', clipped to 0 to 1. They say how much the value
differs between test sets *of this size*, and always hold it. They do not cover the variation between pretrainings or
trainings of the classifier.

Average precision of few positives is higher than it would be on more images, and a resample's, in which positives
repeat, is higher still. So quantiles of the resamples lie too high and, mirrored (basic intervals), too low. In
simulated test sets of 500 images and 260 classes (``benchmarks/intervals.py``, docs/classification.md), the mean over
such test sets lay in 0.96 of these intervals, 0.12 of the basic and 0.08 of the percentile ones. No kind held the value
of unlimited images there (6.1 instead of 11.6): all start from a value that is too high. So compare mAP only between
equal test sets.

A resample is a weight per image, the number of times it was drawn, so scores are sorted once and not 1000 times.
Average precision is the ``area`` of `mls.metrics`. If a resample holds no positive, or no negative, of a class, its
mean leaves out that class, and the interval of that class leaves out the resample.

The numbers do not depend on the number of threads: sums run through scipy's sparse products, which use one.
Memory: about that of the scores, and `WEIGHTS` numbers.

Shape legend: N images, C classes, R resamples (of a block), K distinct scores of positive images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from mls.metrics import Scores, Truth, ranking

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0
BLOCK = 64
"""Resamples per block: few enough that a class's sums stay in the processor's cache."""
WEIGHTS = 2**22
"""Largest number of weights in memory at a time (or one per image, if that is more)."""

Interval = tuple[float, float]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Intervals:
    """Low and high ends, shares; None if the sample or every resample has no value."""

    mean: Interval | None
    """Of the mean over the classes."""
    per_class: list[Interval | None]


def average_precision_intervals(
    scores_NC: Scores, truth_NC: Truth, ignored_NC: Truth | None = None, *, resamples: int = RESAMPLES
) -> Intervals:
    """Return intervals of mAP and of each class's average precision, from the same resamples.

    Args:
        scores_NC: higher for likelier; not NaN.
        truth_NC: true classes.
        ignored_NC: pairs of image and class that don't count; default: none.
        resamples: their number.
    """
    return intervals(resampled_average_precisions(scores_NC, truth_NC, ignored_NC, resamples=resamples))


def mean_intervals(values_NC: Values | Truth, *, resamples: int = RESAMPLES) -> Intervals:
    """Return intervals of each class's mean over images, and of the mean over classes.

    Args:
        values_NC: a value per image and class; NaN where there is none.
        resamples: their number.
    """
    present_NC = ~np.isnan(values_NC)
    sums_CN, counts_CN = csr_array(np.where(present_NC, values_NC, 0.0).T), csr_array(present_NC.T.astype(np.float64))
    blocks = []
    for weights_NR in weights(len(values_NC), resamples):
        counts_CR = counts_CN @ weights_NR
        blocks.append(np.divide(sums_CN @ weights_NR, counts_CR, np.full(counts_CR.shape, np.nan), where=counts_CR > 0))
    return intervals(np.concatenate(blocks, axis=1))


def intervals(values_CR: Values) -> Intervals:
    """Return intervals of each class's values and of their mean over classes.

    Args:
        values_CR: column 0 is of the sample, the others of the resamples.
    """
    defined_CR = ~np.isnan(values_CR)
    count_R = defined_CR.sum(axis=0)
    means_R = np.divide(
        np.where(defined_CR, values_CR, 0.0).sum(axis=0), count_R, np.full(len(count_R), np.nan), where=count_R > 0
    )
    return Intervals(_normal(means_R), [_normal(values_R) for values_R in values_CR])


def _normal(values_R: Values) -> Interval | None:
    value, resampled_R = values_R[0], values_R[1:][~np.isnan(values_R[1:])]
    if np.isnan(value) or not len(resampled_R):
        return None
    half_width = NormalDist().inv_cdf((1 + LEVEL) / 2) * resampled_R.std()
    return float(max(value - half_width, 0)), float(min(value + half_width, 1))


def resampled_average_precisions(
    scores_NC: Scores, truth_NC: Truth, ignored_NC: Truth | None = None, *, resamples: int
) -> Values:
    """Return the average precision of each class, float64 (C, 1 + resamples); NaN where the class is not told apart.

    Column 0 is of the sample itself.
    """
    counts_NC = np.ones_like(truth_NC) if ignored_NC is None else ~ignored_NC
    columns = zip(scores_NC.T, truth_NC.T, counts_NC.T, strict=True)
    sorted_classes = [Sorted.of(*column) for column in columns]
    blocks = [
        np.stack([one.average_precisions(weights_NR) for one in sorted_classes])
        for weights_NR in weights(len(scores_NC), resamples)
    ]
    return np.concatenate(blocks, axis=1)


def weights(n: int, resamples: int) -> Iterator[Scores]:
    """Yield how often each image is drawn in each resample: float32 whole numbers (N, R), a block at a time.

    The first block is the sample itself: one column, every image once.
    """
    yield np.ones((n, 1), dtype=np.float32)
    rng = np.random.default_rng(SEED)
    block = max(1, min(BLOCK, WEIGHTS // n))
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        drawn_RN = rng.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
        weights_RN = np.bincount(drawn_RN.ravel(), minlength=count * n).reshape(count, n)
        yield np.ascontiguousarray(weights_RN.T, dtype=np.float32)


@dataclass(frozen=True)
class Sorted:
    """One class's images, sorted by score: two sparse matrices of ones that sum weights between positives.

    Average precision changes only where recall grows, so sums are needed only at the K scores of positives.
    """

    images_KN: csr_array
    """Row k: the images that score at least score k but less than score k - 1."""
    positives_KN: csr_array
    """Row k: the positive images among them; all have score k."""
    negatives_1N: csr_array
    """The images that are not positive."""

    @classmethod
    def of(cls, scores_N: Scores, truth_N: Truth, counts_N: Truth) -> Sorted:
        """Sort a class's images by score; those that don't count are left out."""
        images = np.flatnonzero(counts_N)
        order, ends = ranking(scores_N[images])
        truth = truth_N[images][order]
        found = np.concatenate([[0], np.cumsum(truth)])[np.append(0, ends + 1)]
        grows = np.diff(found) > 0
        ranked = images[order]
        return cls(
            _rows(ranked, np.append(0, ends[grows] + 1), len(scores_N)),
            _rows(ranked[truth], np.append(0, found[1:][grows]), len(scores_N)),
            _rows(ranked[~truth], np.array([0, (~truth).sum()]), len(scores_N)),
        )

    def average_precisions(self, weights_NR: Scores) -> Values:
        """Return the average precision in each resample, float64 (R,); NaN where the class is not told apart."""
        if not self.positives_KN.shape[0]:
            return np.full(weights_NR.shape[1], np.nan)
        # float32 holds these sums exactly: whole numbers below 2**24
        new_KR = (self.positives_KN @ weights_NR).astype(np.float64)
        found_KR = np.cumsum(new_KR, axis=0)
        all_KR = np.cumsum(self.images_KN @ weights_NR, axis=0, dtype=np.float64)
        # before the first drawn image both are 0, which gives 0 / 1
        area_R, found_R = (new_KR * found_KR / np.maximum(all_KR, 1)).sum(axis=0), found_KR[-1]
        apart_R = (found_R > 0) & ((self.negatives_1N @ weights_NR)[0] > 0)
        return np.divide(area_R, found_R, np.full(len(area_R), np.nan), where=apart_R)


def _rows(columns: NDArray[np.int64], ends: NDArray[np.int64], n: int) -> csr_array:
    """Make a matrix of zeros and ones: row k has ones in ``columns[ends[k]:ends[k + 1]]``."""
    columns = columns[: ends[-1]].astype(np.int32)
    ones = np.ones(len(columns), dtype=np.float32)
    return csr_array((ones, columns, ends.astype(np.int32)), shape=(len(ends) - 1, n))
