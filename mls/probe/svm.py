"""One linear SVM per class on frozen features, as VISSL trains them for VOC07; also from a few images.

    probe = fit(train_ND, train_NC, costs=[0.1, 1.0, 10.0], folds=3, names=classes, multi_label=True, threads=2)
    scores_NC = probe.scores(test_ND)       # decision values, float32
    low_shot(train, val, test, ks=[1, 2, 4], samples=5, costs=[0.1, 1.0, 10.0], names=classes, seed=0)

The protocol [Goyal et al., arXiv 1905.01235; code: facebookresearch/vissl]: features are divided by their L2 norm (plus
1e-5); LIBLINEAR's dual solver, squared hinge loss, positives weigh twice, the intercept is regularised like a weight;
the cost of each class has the best mean average precision in stratified cross-validation without shuffling.
An image that only shows difficult objects of a class is a negative of it in training, as it is there (in testing it is
left out of the class, which is the business of `mls.probe.metrics`). VISSL prints the ``envelope`` definition of
average precision; choices by cross-validation, there and here, are made by the ``area``.

LIBLINEAR draws its permutations from one generator per process. Threads would draw from it in turns and change the
result, so classes are fitted in processes.

Shape legend: N, M, T train, val and test images, D features, C classes, K costs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC
from sklearn.utils.parallel import Parallel, delayed

from mls.errors import MlsError
from mls.probe.linear import Features, Weights, check_finite, one_blas_thread
from mls.probe.metrics import Scores, Truth, average_precision, average_precisions

MAX_ITERATIONS = 2000
"""Of LIBLINEAR, for one fit [VISSL]."""
SEED = 0
"""Of LIBLINEAR's permutations, the same for each fit."""
WORTH_PROCESSES = 500_000
"""Numbers in the train features from which on it pays to start processes: each takes some seconds to start."""

Part = tuple[Features, Truth, Truth]
"""Features, classes, and ignored classes of the images of a split."""


@dataclass(frozen=True)
class Fitted:
    """One SVM per class, and how its cost was found."""

    weight_CD: Weights
    bias_C: Weights
    costs: dict[str, float]
    """Class -> chosen cost, of classes that are trained."""
    cross_validation: dict[str, dict[float, float]]
    """Class -> cost -> mean average precision over the folds, a share."""
    untrained: list[str]
    """Classes whose score is the same for every image, since train holds no positive or no negative of them."""
    not_cross_validated: list[str]
    """Trained classes with fewer positives (or negatives) than folds; they got the middle one of the costs."""
    unconverged: int
    """Fits that reached `MAX_ITERATIONS`, those of the cross-validation included."""

    def scores(self, features_ND: Features) -> Scores:
        """Return decision values, float32 (N, C): above 0 is a yes, but they are no odds."""
        with one_blas_thread():
            return (normalise(features_ND) @ self.weight_CD.T + self.bias_C).astype(np.float32)


def fit(
    train_ND: Features,
    train_NC: Truth,
    *,
    costs: Sequence[float],
    folds: int,
    names: Sequence[str],
    multi_label: bool,
    threads: int = 1,
) -> Fitted:
    """Choose each class's cost by cross-validation, then fit it on all images.

    Of costs with equal values the smaller one stays. Where a class has too few images for cross-validation its cost
    is the middle one of the candidates (the smaller of two): chosen by nobody, and listed as such. Single-label sets
    get one SVM against the rest per class; an untrained class is never their answer.

    Args:
        train_ND: features of the train images.
        train_NC: their classes, bool; false where a class is ignored.
        costs: candidates for C.
        folds: of the cross-validation.
        names: of the classes.
        multi_label: an untrained class scores 0, else minus infinity.
        threads: processes that fit at a time; no effect on the result.

    Raises:
        MlsError: features that are not finite; no class with both positive and negative images.
    """
    check_finite(train_ND, "train")
    positives_C = train_NC.sum(axis=0)
    fewer_C = np.minimum(positives_C, len(train_NC) - positives_C)
    trained: list[int] = np.flatnonzero(fewer_C).tolist()
    if not trained:
        raise MlsError("the train split of this dataset has no class with both positive and negative images")
    candidates = sorted(set(costs))
    unit_ND = normalise(train_ND)
    run = partial(in_processes, processes=threads if unit_ND.size >= WORTH_PROCESSES else 1)

    # The greatest costs take longest: started first, none is left over for a single process at the end.
    divided = [c for c in trained if fewer_C[c] >= folds]
    pairs = [(cost, c) for cost in reversed(candidates) for c in divided]
    results = run([partial(cross_validate, unit_ND, train_NC[:, c], cost, folds) for cost, c in pairs])
    value = {pair: found for pair, (found, _) in zip(pairs, results, strict=True)}
    unconverged = sum(stops for _, stops in results)
    chosen = dict.fromkeys(trained, candidates[(len(candidates) - 1) // 2])
    chosen |= {c: max(candidates, key=lambda cost: value[cost, c]) for c in divided}

    weight_CD = np.zeros((len(names), train_ND.shape[1]))
    bias_C = np.full(len(names), 0.0 if multi_label else -np.inf)
    models = run([partial(fit_one, unit_ND, train_NC[:, c], cost) for c, cost in chosen.items()])
    for c, model in zip(trained, models, strict=True):
        weight_CD[c], bias_C[c] = model.coef_[0], model.intercept_[0]
        unconverged += stopped(model)
    return Fitted(
        weight_CD,
        bias_C,
        costs={names[c]: cost for c, cost in chosen.items()},
        cross_validation={names[c]: {cost: value[cost, c] for cost in candidates} for c in divided},
        untrained=[name for name, fewer in zip(names, fewer_C, strict=True) if not fewer],
        not_cross_validated=[names[c] for c in trained if c not in divided],
        unconverged=unconverged,
    )


def low_shot(
    train: Part,
    val: Part,
    test: Part,
    *,
    ks: Sequence[int],
    samples: int,
    costs: Sequence[float],
    names: Sequence[str],
    seed: int,
    threads: int = 1,
) -> dict[str, float]:
    """Judge SVMs that see k positives and k x (C - 1) negatives of each class, all drawn from train.

    Each class has its own draw: ``np.random.default_rng((seed, sample, k, class))``; images for which it is ignored
    are not drawn. All classes share one cost per k: the one whose mAP, averaged over the samples, is best on val. With
    few val images that choice is noisy. VISSL takes the cost that is best on test instead, a value that no choice made
    beforehand can exceed; it is given beside the other one, to be read beside published numbers (theirs are of the
    ``envelope`` definition, all here of the ``area``).

    Args:
        train: features, classes and ignored classes of the images to draw from.
        val: the same, to choose costs by.
        test: the same, to report.
        ks: positives per class.
        samples: independent draws for each k.
        costs: candidates for C.
        names: of the classes.
        seed: of the draws.
        threads: processes that fit at a time; no effect on the result.

    Returns:
        Per k, percent: ``low_shot_<k>``, mAP on test, mean over the samples, and ``_std``, its deviation over them
        (of this population, as in VISSL); ``_val``, the mAP by which ``_cost`` was chosen; ``_best_on_test``,
        ``_best_on_test_std`` and ``_best_on_test_cost``, the same with the choice made on test. Over all:
        ``low_shot_unconverged``, fits that reached `MAX_ITERATIONS`.

    Raises:
        MlsError: features that are not finite; val or test without a positive of any class; a class with too few
            images in train, named with k and their number.
    """
    for (features_ND, truth_NC, _), split in ((train, "train"), (val, "val"), (test, "test")):
        check_finite(features_ND, split)
        if not truth_NC.any():
            raise MlsError(f"the {split} split of this dataset has no positive image of any class; low_shot needs some")
    candidates = sorted(set(costs))
    units = [normalise(features_ND) for features_ND, _, _ in (train, val, test)]
    draws = [
        (k, sample, c, draw(train[1][:, c], train[2][:, c], k, names, c, (seed, sample, k, c)))
        for k in sorted(set(ks), reverse=True)  # the longest first
        for sample in range(samples)
        for c in range(len(names))
    ]
    judged = [(unit_MD, part[1], part[2]) for unit_MD, part in zip(units[1:], (val, test), strict=True)]
    calls = [partial(fit_few, units[0], train[1][:, c], rows, candidates, judged, c) for _, _, c, rows in draws]
    results = in_processes(calls, threads if units[0].size >= WORTH_PROCESSES else 1)
    ap = {(k, sample, c): found for (k, sample, c, _), (found, _) in zip(draws, results, strict=True)}

    metrics: dict[str, float] = {"low_shot_unconverged": sum(stops for _, stops in results)}
    for k in ks:
        # classes without a positive in a split are NaN there, and left out of its mean
        values_SCPK = 100 * np.array([[ap[k, sample, c] for c in range(len(names))] for sample in range(samples)])
        val_SK, test_SK = np.nanmean(values_SCPK, axis=1).transpose(1, 0, 2)
        chosen, best = int(val_SK.mean(axis=0).argmax()), int(test_SK.mean(axis=0).argmax())
        metrics[f"low_shot_{k}_val"] = float(val_SK[:, chosen].mean())
        for name, index in ((f"low_shot_{k}", chosen), (f"low_shot_{k}_best_on_test", best)):
            metrics[name] = float(test_SK[:, index].mean())
            metrics[f"{name}_std"] = float(test_SK[:, index].std())
            metrics[f"{name}_cost"] = candidates[index]
    return metrics


def draw(
    truth_N: Truth, ignored_N: Truth, k: int, names: Sequence[str], c: int, seed: tuple[int, ...]
) -> NDArray[np.int64]:
    """Draw k positives and k x (C - 1) negatives of class c: ascending rows.

    Raises:
        MlsError: there are not so many.
    """
    rng = np.random.default_rng(seed)
    rows: list[NDArray[np.int64]] = []
    for kind, pool_N, count in (("positive", truth_N, k), ("negative", ~truth_N & ~ignored_N, k * (len(names) - 1))):
        pool = np.flatnonzero(pool_N)
        if not 0 < count <= len(pool):
            raise MlsError(
                f"low_shot: {k} needs {count} {kind} train images of class {names[c]!r}, which has {len(pool)}"
                + ("; lower k" if count else "; a set of one class has no low-shot protocol")
            )
        rows.append(rng.choice(pool, count, replace=False))
    return np.sort(np.concatenate(rows))


def fit_few(
    unit_ND: Weights,
    truth_N: Truth,
    rows: NDArray[np.int64],
    costs: Sequence[float],
    parts: Sequence[tuple[Weights, Truth, Truth]],
    c: int,
) -> tuple[Weights, int]:
    """Fit class c on some rows: average precision per part and cost (2, K), and the number of unconverged fits."""
    few_ND, few_N = unit_ND[rows], truth_N[rows]
    models = [fit_one(few_ND, few_N, cost) for cost in costs]
    weight_KD = np.concatenate([model.coef_ for model in models])
    bias_K = np.concatenate([model.intercept_ for model in models])
    values: list[Weights] = []
    for unit_MD, truth_MC, ignored_MC in parts:
        with one_blas_thread():
            scores_MK = unit_MD @ weight_KD.T + bias_K
        of_each_cost = [c] * len(costs)
        values.append(average_precisions(scores_MK, truth_MC[:, of_each_cost], ignored_MC[:, of_each_cost]))
    return np.stack(values), sum(stopped(model) for model in models)


def cross_validate(unit_ND: Weights, truth_N: Truth, cost: float, folds: int) -> tuple[float, int]:
    """Mean average precision over the folds of one class and cost, and the number of unconverged fits."""
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
        C=cost, class_weight={True: 2, False: 1}, dual=True, tol=1e-4, max_iter=MAX_ITERATIONS, random_state=SEED
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # counted instead
        return model.fit(unit_ND, truth_N)


def stopped(model: LinearSVC) -> bool:
    """Tell whether a fit ended at the limit of iterations."""
    return bool(model.n_iter_ >= MAX_ITERATIONS)


def normalise(features_ND: Features) -> Weights:
    """Divide by the L2 norm + 1e-5 [VISSL]; float64 and C-contiguous: no fit has to convert them again."""
    wide_ND = np.ascontiguousarray(features_ND, dtype=np.float64)
    unit_ND: Weights = wide_ND / (np.linalg.norm(wide_ND, axis=1, keepdims=True) + 1e-5)
    return unit_ND


def in_processes(calls: Sequence[Callable[[], Any]], processes: int) -> list[Any]:
    """Return what the calls return, in their order; large arrays are shared, not copied."""
    return list(Parallel(n_jobs=max(1, min(processes, len(calls))))(delayed(call)() for call in calls))
