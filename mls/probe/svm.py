"""One linear SVM per class on frozen features, as VISSL trains them for VOC07; on few images: `mls.probe.low_shot`.

    probe = fit_costs(train, costs=[0.1, 1.0, 10.0], folds=3, threads=2)
    scores_NC = probe.scores(test_ND)       # decision values, float32

The protocol [Goyal et al., arXiv 1905.01235; code: facebookresearch/vissl]: features are divided by their L2 norm (plus
1e-5); LIBLINEAR's dual solver, squared hinge loss, positives have weight 2, the intercept is regularised like a weight;
the cost of each class has the best mean average precision in stratified cross-validation without shuffling.
An image that only shows difficult objects of a class is a negative of it in training, as in VISSL (in testing it is
left out of the class, see `mls.metrics`). VISSL prints the ``envelope`` definition of average precision; both VISSL and
this module choose by the ``area`` in cross-validation.

LIBLINEAR draws its permutations from one generator per process. Threads would take turns drawing from it and change
the result, so classes are fitted in processes.

Shape legend: N train images, M images of a held-out fold, D features, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC
from sklearn.utils.parallel import Parallel, delayed

from mls.metrics import Scores, Truth, average_precision
from mls.probe.feature_set import Features, Images, blocks, check_finite
from mls.probe.fitting import Weights, logits, one_blas_thread, trained_classes, untrained_model
from mls.runtime.progress import Bar

FIT_ITERATIONS = 2000
"""Limit of LIBLINEAR's iterations in one fit [VISSL]."""
SEED = 0
"""Seed of LIBLINEAR's permutations, the same for each fit."""
WORTH_PROCESSES = 500_000
"""Size of the train features, in numbers, above which processes pay: each takes some seconds to start."""


@dataclass(frozen=True)
class SvmFit:
    """One SVM per class, and how its cost was found."""

    weight_CD: Weights
    bias_C: Weights
    costs: dict[str, float]
    """Class -> chosen cost, of classes that are trained."""
    cross_validation: dict[str, dict[float, float]]
    """Class -> cost -> mean average precision over the folds, a share."""
    untrained: list[str]
    """Classes with one score for every image, since train holds no positive or no negative of them."""
    not_cross_validated: list[str]
    """Trained classes with fewer positives (or negatives) than folds; they got the middle one of the costs."""
    unconverged: int
    """Fits that reached `FIT_ITERATIONS`, including those of the cross-validation."""

    def scores(self, features_ND: Features) -> Scores:
        """Return decision values, float32 (N, C): above 0 means yes, but they are not log odds."""
        return logits(divide_by_norm(features_ND), self.weight_CD, self.bias_C)


def fit_costs(train: Images, *, costs: Sequence[float], folds: int, threads: int = 1, name: str = "svm") -> SvmFit:
    """Choose each class's cost by cross-validation, then fit it on all images.

    On a tie the smaller cost wins. A class with too few images for cross-validation gets the middle
    one of the candidates (the smaller of two), and is listed. Single-label sets get one SVM against the rest per class.
    An untrained class scores 0; in single-label sets minus infinity, so that it is never the answer.

    Args:
        train: N images; ``truth_NC`` is false where a class is ignored.
        costs: candidates for C.
        folds: of the cross-validation.
        threads: processes that fit at a time; no effect on the result.
        name: of the progress bar.

    Raises:
        MlsError: features are not finite; no class has both positive and negative images.
    """
    truth_NC, names = train.truth_NC, train.classes
    check_finite(train.features_ND, "train")
    trained, untrained = trained_classes(truth_NC, np.ones_like(truth_NC), names)
    positives_C = truth_NC.sum(axis=0)
    fewer_C = np.minimum(positives_C, len(truth_NC) - positives_C)
    candidates = sorted(set(costs))
    unit_ND = divide_by_norm(train.features_ND)
    processes = threads if unit_ND.size >= WORTH_PROCESSES else 1

    # The greatest costs take longest, so they start first: no process is left with a long fit at the end.
    divided = [c for c in trained if fewer_C[c] >= folds]
    pairs = [(cost, c) for cost in reversed(candidates) for c in divided]
    calls = [partial(cross_validate, unit_ND, truth_NC[:, c], cost, folds) for cost, c in pairs]
    results = in_processes(calls, processes, f"{name}: cross-validation")
    value = {pair: found for pair, (found, _) in zip(pairs, results, strict=True)}
    unconverged = sum(stops for _, stops in results)
    chosen = dict.fromkeys(trained, candidates[(len(candidates) - 1) // 2])
    chosen |= {c: max(candidates, key=lambda cost: value[cost, c]) for c in divided}

    weight_CD, bias_C = untrained_model(train)
    fits = [partial(fit_one, unit_ND, truth_NC[:, c], cost) for c, cost in chosen.items()]
    for c, model in zip(trained, in_processes(fits, processes, f"{name}: all images"), strict=True):
        weight_CD[c], bias_C[c] = model.coef_[0], model.intercept_[0]
        unconverged += stopped(model)
    return SvmFit(
        weight_CD,
        bias_C,
        costs={names[c]: cost for c, cost in chosen.items()},
        cross_validation={names[c]: {cost: value[cost, c] for cost in candidates} for c in divided},
        untrained=untrained,
        not_cross_validated=[names[c] for c in trained if c not in divided],
        unconverged=unconverged,
    )


def cross_validate(unit_ND: Weights, truth_N: Truth, cost: float, folds: int) -> tuple[float, int]:
    """Return the mean average precision over the folds of one class and cost, and the number of unconverged fits."""
    values: list[float] = []
    unconverged = 0
    for seen, held in StratifiedKFold(folds).split(unit_ND, truth_N):
        model = fit_one(unit_ND[seen], truth_N[seen], cost)
        with one_blas_thread():
            values.append(average_precision(model.decision_function(unit_ND[held]), truth_N[held]))
        unconverged += stopped(model)
    return float(np.mean(values)), unconverged


def fit_one(unit_ND: Weights, truth_N: Truth, cost: float) -> LinearSVC:
    """Fit the SVM of one class and cost with VISSL's settings."""
    model = LinearSVC(
        C=cost, class_weight={True: 2, False: 1}, dual=True, tol=1e-4, max_iter=FIT_ITERATIONS, random_state=SEED
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # counted instead
        return model.fit(unit_ND, truth_N)


def stopped(model: LinearSVC) -> bool:
    """Return whether a fit ended at the limit of iterations."""
    return bool(model.n_iter_ >= FIT_ITERATIONS)


def divide_by_norm(features_ND: Features) -> Weights:
    """Divide by the L2 norm + 1e-5 [VISSL]; float64 and C-contiguous, so that no fit converts them again."""
    unit_ND = np.empty(features_ND.shape)
    for rows in blocks(*features_ND.shape):
        wide_BD = features_ND[rows].astype(np.float64)
        unit_ND[rows] = wide_BD / (np.linalg.norm(wide_BD, axis=1, keepdims=True) + 1e-5)
    return unit_ND


def in_processes(calls: Sequence[Callable[[], Any]], processes: int, name: str) -> list[Any]:
    """Return the calls' results in their order; large arrays are shared, not copied. ``name`` labels the bar."""
    parallel = Parallel(n_jobs=max(1, min(processes, len(calls))), return_as="generator")
    results = []
    with Bar(name, len(calls), unit="fits") as bar:
        for result in parallel(delayed(call)() for call in calls):
            results.append(result)
            bar.advance(1, count=1)
    return results
