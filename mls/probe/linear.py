"""Linear classifiers on frozen features: fitted on train, their strength chosen on val.

    probe = fit(train_ND, train_NC, val_MD, val_MC, strengths=[0.01, 0.1, 1.0], multi_label=True, names=classes)
    scores_NC = probe.scores(test_ND)       # logits, float32

Multi-label sets: one L2-regularised logistic regression per class. Single-label sets: softmax regression.
Features are standardised with the mean and deviation of train (so that one strength suits every backbone);
a feature that is constant on train is only centred. The chosen model is fitted on train alone, not on val. An image
that is ignored for a class has no weight in that class's fit.

Shape legend: N train images, M val images, D features, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from mls.metrics import Scores, Truth, mean_average_precision, top1
from mls.runtime.errors import MlsError

TOLERANCE = 1e-4
"""Greatest component of the mean loss's gradient at which L-BFGS stops (scikit-learn's default)."""
MAX_ITERATIONS = 1000
"""Of L-BFGS, for one class and one strength."""

Features = NDArray[np.float32]
Weights = NDArray[np.float64]


@dataclass(frozen=True)
class Linear:
    """Weights and biases on standardised features."""

    mean_D: Weights
    scale_D: Weights
    weight_CD: Weights
    bias_C: Weights

    def scores(self, features_ND: Features) -> Scores:
        """Return logits, float32 (N, C)."""
        standard_ND = standardise(features_ND, self.mean_D, self.scale_D)
        with one_blas_thread():
            return (standard_ND @ self.weight_CD.T + self.bias_C).astype(np.float32)


@dataclass(frozen=True)
class Fitted:
    """The classifier that did best on val, and how it was found."""

    linear: Linear
    strength: float
    value: float
    """mAP or top-1 on val, a share."""
    candidates: dict[float, float]
    """Strength -> value on val."""
    untrained: list[str]
    """Classes whose score is the same for every image, since train holds no positive or no negative of them."""
    unconverged: int
    """Fits that reached `MAX_ITERATIONS`, over all strengths."""

    def scores(self, features_ND: Features) -> Scores:
        """Return logits, float32 (N, C)."""
        return self.linear.scores(features_ND)


def fit(
    train_ND: Features,
    train_NC: Truth,
    val_MD: Features,
    val_MC: Truth,
    *,
    strengths: Sequence[float],
    multi_label: bool,
    names: Sequence[str],
    threads: int = 1,
    train_ignored_NC: Truth | None = None,
    val_ignored_MC: Truth | None = None,
) -> Fitted:
    """Fit every strength on train, keep the one with the best mAP (multi-label) or top-1 on val.

    Strengths are taken in ascending order, each starting from the solution before it; of equal
    values the smaller strength stays.

    Args:
        train_ND: features of the train images.
        train_NC: their classes, bool.
        val_MD: features of the val images.
        val_MC: their classes, bool.
        strengths: candidates for C, the inverse regularisation strength.
        multi_label: mAP and one classifier per class, else top-1 and softmax regression.
        names: of the classes.
        threads: classes that are fitted at a time; no effect on the result.
        train_ignored_NC: pairs of train image and class that don't count; default: none.
        val_ignored_MC: the same of val.

    Raises:
        MlsError: features that are not finite; no class with a positive in val; a train split without
            two classes to tell apart.
    """
    check_finite(train_ND, "train")
    check_finite(val_MD, "val")
    measure = partial(mean_average_precision, ignored_NC=val_ignored_MC) if multi_label else top1
    counted_NC = np.ones_like(train_NC) if train_ignored_NC is None else ~train_ignored_NC
    mean_D, scale_D = standardisation(train_ND)
    standard_ND = standardise(train_ND, mean_D, scale_D)
    positives_C = (train_NC & counted_NC).sum(axis=0)
    trained = np.flatnonzero((positives_C > 0) & (positives_C < counted_NC.sum(axis=0)))
    if not len(trained):
        raise MlsError("the train split of this dataset has no class with both positive and negative images")
    fitters = make_fitters(train_NC, counted_NC, trained, multi_label)
    best: tuple[float, float, Linear] | None = None
    candidates: dict[float, float] = {}
    unconverged = 0
    with one_blas_thread(), ThreadPoolExecutor(threads) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # counted instead
        for strength in sorted(set(strengths)):
            # Untrained classes: logit 0 beside independent classifiers; never the answer of a softmax.
            weight_CD = np.zeros((len(names), train_ND.shape[1]))
            bias_C = np.full(len(names), 0.0 if multi_label else -np.inf)
            solve = partial(refit, strength=strength, standard_ND=standard_ND)
            for (classes, _, _, model), (weight_KD, bias_K) in zip(fitters, pool.map(solve, fitters), strict=True):
                weight_CD[classes], bias_C[classes] = weight_KD, bias_K
                unconverged += int(max(model.n_iter_) >= MAX_ITERATIONS)
            linear = Linear(mean_D, scale_D, weight_CD, bias_C)
            value = measure(linear.scores(val_MD), val_MC)
            if np.isnan(value):
                raise MlsError(
                    "the val split of this dataset has no positive image of any class; strengths can't be compared"
                )
            candidates[strength] = value
            if best is None or value > best[1]:
                best = strength, value, linear
    assert best is not None  # strengths is never empty
    untrained = [name for index, name in enumerate(names) if index not in set(trained.tolist())]
    return Fitted(best[2], best[0], best[1], candidates, untrained, unconverged)


Fitter = tuple[NDArray[np.int64], NDArray[np.int64], Weights, LogisticRegression]


def make_fitters(train_NC: Truth, counted_NC: Truth, trained: NDArray[np.int64], multi_label: bool) -> list[Fitter]:
    """List what is fitted on its own: the classes it scores, target and weight of each image, and its model."""
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
    """Fit on from the last strength's solution; return weights and biases, one row per class of the fitter."""
    classes, target_N, weight_N, model = fitter
    model.set_params(C=strength).fit(standard_ND, target_N, sample_weight=weight_N)
    if len(classes) == 2:  # scikit-learn's binary model: the first class gets logit 0
        return np.concatenate([0 * model.coef_, model.coef_]), np.concatenate([[0.0], model.intercept_])
    return model.coef_, model.intercept_


def one_blas_thread() -> threadpool_limits:
    """Keep linear algebra on one thread: sums then come out alike everywhere, and no thread spins for another."""
    return threadpool_limits(1, user_api="blas")


def standardisation(features_ND: Features) -> tuple[Weights, Weights]:
    """Mean and deviation of each feature; 1 where it is constant up to rounding, so that it is only centred."""
    mean_D = features_ND.mean(axis=0, dtype=np.float64)
    scale_D = features_ND.std(axis=0, dtype=np.float64)
    constant_D = scale_D <= 1e-6 * np.abs(mean_D)
    return mean_D, np.where(constant_D, 1.0, scale_D)


def standardise(features_ND: Features, mean_D: Weights, scale_D: Weights) -> Features:
    """Return standardised features as float32: L-BFGS runs on them as they are."""
    return ((features_ND - mean_D) / scale_D).astype(np.float32)


def check_finite(features_ND: Features, split: str) -> None:
    """Stop on features that no classifier can use.

    Raises:
        MlsError: says how many images of which split are affected.
    """
    bad = int((~np.isfinite(features_ND)).any(axis=1).sum())
    if bad:
        raise MlsError(
            f"the backbone's features of {bad} of {len(features_ND)} {split} images are NaN or infinite; "
            "its pretraining diverged or its weights are damaged: look at the run's curves.csv, or lower its lr"
        )
