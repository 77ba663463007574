"""Linear classifiers on frozen features: fitted on train, their strength chosen on val.

    probe = fit_strengths(train, val, strengths=[0.01, 0.1, 1.0])
    scores_NC = probe.scores(test_ND)       # logits, float32

Multi-label sets: one L2-regularised logistic regression per class. Single-label sets: softmax regression.
Features are standardised with the mean and standard deviation of train, so that one grid of strengths suits every
backbone; a feature that is constant on train is only centred. The chosen model is fitted on train, not on val too. An
image that is ignored for a class has no weight in that class's fit.

Shape legend: N train images, M val images, D features, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from mls.metrics import Scores, Truth, mean_average_precision, told_apart, top1
from mls.probe.feature_set import Images, check_finite
from mls.runtime.errors import MlsError

TOLERANCE = 1e-4
"""L-BFGS stops when no component of the mean loss's gradient is greater (scikit-learn's default)."""
MAX_ITERATIONS = 1000
"""Limit of L-BFGS's iterations, per class and strength."""

Features = NDArray[np.float32]
Weights = NDArray[np.float64]


@dataclass(frozen=True)
class LinearFit:
    """The linear classifier with the best value on val, on standardised features, and how it was found."""

    mean_D: Weights
    scale_D: Weights
    weight_CD: Weights
    bias_C: Weights
    strength: float
    candidates: dict[float, float]
    """Strength -> mAP or top-1 on val, a share."""
    untrained: list[str]
    """Classes with one score for every image, since train holds no positive or no negative of them."""
    unconverged: int
    """Fits that reached `MAX_ITERATIONS`, over all strengths."""

    def scores(self, features_ND: Features) -> Scores:
        """Return logits, float32 (N, C)."""
        return logits(standardise(features_ND, self.mean_D, self.scale_D), self.weight_CD, self.bias_C)


def fit_strengths(train: Images, val: Images, *, strengths: Sequence[float], threads: int = 1) -> LinearFit:
    """Fit every strength on train, keep the one with the best mAP (multi-label) or top-1 on val.

    Strengths are fitted in ascending order, each starting from the solution before it; on a tie the smaller strength
    wins.

    Args:
        train: N images to fit on. Multi-label sets get one classifier per class, others softmax regression.
        val: M images to choose by.
        strengths: candidates for C, the inverse regularisation strength.
        threads: classes that are fitted at a time; no effect on the result.

    Raises:
        MlsError: features are not finite; no class has both positives and negatives in train, or none of these in val.
    """
    trained, untrained = trained_classes(train.truth_NC, ~train.ignored_NC, train.classes)
    measure = measure_of(train, val, trained)
    mean_D, scale_D = standardisation(train.features_ND)
    standard_ND = standardise(train.features_ND, mean_D, scale_D)
    standard_MD = standardise(val.features_ND, mean_D, scale_D)
    fitters = make_fitters(train.truth_NC, ~train.ignored_NC, np.array(trained), train.multi_label)
    models: dict[float, tuple[Weights, Weights]] = {}
    candidates: dict[float, float] = {}
    unconverged = 0
    with one_blas_thread(), ThreadPoolExecutor(threads) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # counted instead
        for strength in sorted(set(strengths)):
            weight_CD, bias_C = untrained_model(train)
            solve = partial(refit, strength=strength, standard_ND=standard_ND)
            for (classes, _, _, model), (weight_KD, bias_K) in zip(fitters, pool.map(solve, fitters), strict=True):
                weight_CD[classes], bias_C[classes] = weight_KD, bias_K
                unconverged += int(max(model.n_iter_) >= MAX_ITERATIONS)
            models[strength] = weight_CD, bias_C
            candidates[strength] = measure(logits(standard_MD, weight_CD, bias_C))
    best = max(candidates, key=candidates.__getitem__)  # on a tie the first, which is the smallest
    return LinearFit(mean_D, scale_D, *models[best], best, candidates, untrained, unconverged)


Fitter = tuple[NDArray[np.int64], NDArray[np.int64], Weights, LogisticRegression]


def make_fitters(train_NC: Truth, counted_NC: Truth, trained: NDArray[np.int64], multi_label: bool) -> list[Fitter]:
    """List the independent fits: the classes that each scores, target and weight of each image, and its model."""
    targets = [train_NC[:, [c]] for c in trained] if multi_label else [train_NC]
    groups = [np.array([c]) for c in trained] if multi_label else [trained]
    return [
        (
            group,
            (target_NK[:, 0] if multi_label else target_NK.argmax(axis=1)).astype(np.int64),
            np.asarray(counted_NC[:, group].all(axis=1), dtype=np.float64),
            LogisticRegression(solver="lbfgs", tol=TOLERANCE, max_iter=MAX_ITERATIONS, warm_start=True),
        )
        for group, target_NK in zip(groups, targets, strict=True)
    ]


def refit(fitter: Fitter, *, strength: float, standard_ND: Features) -> tuple[Weights, Weights]:
    """Fit from the last strength's solution; return weights and biases, one row per class of the fitter."""
    classes, target_N, weight_N, model = fitter
    model.set_params(C=strength).fit(standard_ND, target_N, sample_weight=weight_N)
    if len(classes) == 2:  # scikit-learn's binary model: the first class gets logit 0
        return np.concatenate([0 * model.coef_, model.coef_]), np.concatenate([[0.0], model.intercept_])
    return model.coef_, model.intercept_


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


def standardisation(features_ND: Features) -> tuple[Weights, Weights]:
    """Return mean and standard deviation of each feature; the latter is 1 if a feature is constant up to rounding."""
    mean_D = features_ND.mean(axis=0, dtype=np.float64)
    scale_D = features_ND.std(axis=0, dtype=np.float64)
    constant_D = scale_D <= 1e-6 * np.abs(mean_D)
    return mean_D, np.where(constant_D, 1.0, scale_D)


def standardise(features_ND: Features, mean_D: Weights, scale_D: Weights) -> Features:
    """Return standardised features as float32, which L-BFGS takes without converting them."""
    return ((features_ND - mean_D) / scale_D).astype(np.float32)
