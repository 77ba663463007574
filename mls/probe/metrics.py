"""What a probe is judged by: average precision of each class, top-1 accuracy.

    per_class_C = average_precisions(scores_NC, truth_NC)     # NaN where a class has no positive
    mean = mean_average_precision(scores_NC, truth_NC)        # over the classes that have one

Shape legend: N images, C classes. All values are shares from 0 to 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]
Truth = NDArray[np.bool_]


def average_precision(scores_N: Scores, truth_N: Truth) -> float:
    """Area under the precision-recall curve, summed over all points without interpolation.

    ``sum_n (R_n - R_{n-1}) P_n`` over the distinct scores, from the highest: what scikit-learn's
    ``average_precision_score`` computes. Images with equal scores enter together, so their order is irrelevant.

    Returns:
        A share, or NaN where no image is positive: precision then has nothing to measure.
    """
    positives = int(truth_N.sum())
    if not positives:
        return float("nan")
    order = np.argsort(-scores_N, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores_N[order])), len(order) - 1)
    found = np.cumsum(truth_N[order])[ends]
    precision = found / (ends + 1)
    return float(np.sum(np.diff(found, prepend=0) * precision) / positives)


def average_precisions(scores_NC: Scores, truth_NC: Truth) -> NDArray[np.float64]:
    """Average precision of each class, float64 (C,); NaN where a class has no positive."""
    pairs = zip(scores_NC.T, truth_NC.T, strict=True)
    return np.array([average_precision(scores_N, truth_N) for scores_N, truth_N in pairs])


def mean_average_precision(scores_NC: Scores, truth_NC: Truth) -> float:
    """Mean over the classes that have a positive; NaN where none has."""
    values_C = average_precisions(scores_NC, truth_NC)
    defined = values_C[~np.isnan(values_C)]
    return float(defined.mean()) if defined.size else float("nan")


def top1(scores_NC: Scores, truth_NC: Truth) -> float:
    """Share of images whose highest score is their class; of equal scores the first class counts."""
    return float(np.mean(scores_NC.argmax(axis=1) == truth_NC.argmax(axis=1)))
