"""What classifiers on frozen features share: the classes that can be learned, the choice on val, linear scores.

    trained, untrained = trained_classes(train.truth_NC, ~train.ignored_NC, train.classes)
    measure = measure_of(train, val, trained)
    weight_CD, bias_C = untrained_model(train)
    measure(logits(val.features_ND, weight_CD, bias_C))

Shape legend: N train images (or those of any block), M val images, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from mls.metrics import Scores, Truth, mean_average_precision, told_apart, top1
from mls.probe.feature_set import Images, check_finite
from mls.runtime.errors import MlsError

Weights = NDArray[np.float64]


def measure_of(train: Images, val: Images, trained: Sequence[int]) -> Callable[[Scores], float]:
    """Return the measure by which val chooses: scores (M, C) to top-1 or, for multi-label sets, mAP over ``trained``.

    Raises:
        MlsError: features are not finite; no trained class is told apart in val; val of a single-label set is empty.
    """
    check_finite(train.features_ND, "train")
    check_finite(val.features_ND, "val")
    truth_MC, ignored_MC = val.truth_NC[:, trained], val.ignored_NC[:, trained]
    if not (told_apart(truth_MC, ignored_MC) if val.multi_label else val.truth_NC).any():
        raise MlsError(
            "the val split of this dataset has no class with both positive and negative images that train has too; "
            "nothing can be chosen on it"
        )
    if not val.multi_label:
        return lambda scores_MC: top1(scores_MC, val.truth_NC)
    return lambda scores_MC: mean_average_precision(scores_MC[:, trained], truth_MC, ignored_MC)


def trained_classes(truth_NC: Truth, counted_NC: Truth, names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return the classes with both positives and negatives in train, and the names of the others.

    Args:
        truth_NC: classes of the train images.
        counted_NC: which of them count; the others are ignored.
        names: of the classes.

    Raises:
        MlsError: no class has both.
    """
    trained_C = told_apart(truth_NC, ~counted_NC)
    if not trained_C.any():
        raise MlsError("the train split of this dataset has no class with both positive and negative images")
    return np.flatnonzero(trained_C).tolist(), [name for name, has in zip(names, trained_C, strict=True) if not has]


def untrained_model(train: Images) -> tuple[Weights, Weights]:
    """Return weights (C, D) of 0 and biases (C,), as they are before any class is fitted.

    An untrained class keeps them. Its score is 0 if classes are independent, and minus infinity if they exclude each
    other, so that it is never the answer.
    """
    classes = len(train.classes)
    return np.zeros((classes, train.features_ND.shape[1])), np.full(classes, 0.0 if train.multi_label else -np.inf)


def logits(features_ND: NDArray[np.floating[Any]], weight_CD: Weights, bias_C: Weights) -> Scores:
    """Return features times weights plus biases, float32 (N, C)."""
    with one_blas_thread():
        return (features_ND @ weight_CD.T + bias_C).astype(np.float32)


def one_blas_thread() -> threadpool_limits:
    """Keep linear algebra on one thread: sums do not depend on the number of threads, and no thread spins idly."""
    return threadpool_limits(1, user_api="blas")
