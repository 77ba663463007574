"""Linear SVMs that see a few images of each class, as VISSL trains them for VOC07.

    metrics, rows = low_shot(parts, ks=[1, 2, 4], samples=5, costs=[0.1, 1.0, 10.0], seed=0)

The protocol [Goyal et al., arXiv 1905.01235; code: facebookresearch/vissl and fair_self_supervision_benchmark]: for
each class k positives and k x (C - 1) negatives, drawn from train and val together (VOC's trainval); five independent
draws; SVMs as in `mls.probe.svm`. All classes share one cost per k.

VISSL takes the cost that is best on test, an upper bound for every choice made without test. Here the cost is chosen on
the val images that were not drawn, which is noisy if val is small; VISSL's value is reported beside it. Average
precision is defined by the ``area``, and again by the ``envelope``, which VISSL and ORL print [vissl @ 3169e42,
vissl/utils/svm_utils/evaluate.py; ORL @ 2ad64f7, benchmarks/svm_tools/svm_helper.py].

Shape legend: N images to draw from, M val images, D features, C classes that are trained, K costs, S samples, V values
(on val, on test, and on test by the envelope).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mls.metrics import Kind, Truth, average_precisions, told_apart
from mls.probe.feature_set import Parts, check_finite
from mls.probe.fitting import Weights, one_blas_thread
from mls.probe.svm import WORTH_PROCESSES, divide_by_norm, fit_one, in_processes, stopped
from mls.runtime import streams
from mls.runtime.errors import MlsError

Row = dict[str, float]
VALUES: dict[str, tuple[int, Kind]] = {"val": (0, "area"), "test": (1, "area"), "test_envelope": (1, "envelope")}
"""Column of ``low_shot.csv`` -> whether it is of val (0) or test (1), and the definition of average precision."""


def low_shot(
    parts: Parts,
    *,
    ks: Sequence[int],
    samples: int,
    costs: Sequence[float],
    seed: int,
    threads: int = 1,
    name: str = "low-shot",
) -> tuple[dict[str, float], list[Row]]:
    """Draw, fit and evaluate; each class has its own draw, `mls.runtime.streams.few_images`.

    Images for which a class is ignored are not drawn for it. Classes that all of train and val have, or none of it, are
    left out.

    Args:
        parts: train and val to draw from, the rest of val to choose costs by, test to report.
        ks: positives per class.
        samples: independent draws for each k.
        costs: candidates for C.
        seed: of the draws.
        threads: processes that fit at a time; no effect on the result.
        name: of the progress bar.

    Returns:
        Metrics for ``metrics.json``, percent. Per k: ``low_shot_<k>``, the mean over the samples of mAP on test;
        ``_std``, its standard deviation over them (not corrected, as in VISSL); ``_val``, the mAP by which ``_cost``
        was chosen; ``_best_on_test``, ``_best_on_test_std`` and ``_best_on_test_cost``, the same with the choice made
        on test. All but ``_val`` also by the envelope, as ``low_shot_<k>_envelope`` (with the same cost) and
        ``low_shot_<k>_best_on_test_envelope`` (with the cost that is best by it). Over all: ``low_shot_unconverged``,
        fits that reached the limit of iterations. And the rows of ``low_shot.csv``, from which these follow: k,
        sample, class (its index), cost, and `VALUES` (percent; NaN where a class can't be told apart).

    Raises:
        MlsError: features are not finite; val or test can't tell apart any class that is trained; a class has too few
            images to draw (named with k and their number); draws of k leave no positive of any class in val.
    """
    train, val, test = parts
    names = train.classes
    candidates = sorted(set(costs))
    truth_NC = np.concatenate([train.truth_NC, val.truth_NC])
    ignored_NC = np.concatenate([train.ignored_NC, val.ignored_NC])
    trained_C = told_apart(truth_NC, ignored_NC)
    for images, split in ((train, "train"), (val, "val"), (test, "test")):
        check_finite(images.features_ND, split)
        if split != "train" and not (told_apart(images.truth_NC, images.ignored_NC) & trained_C).any():
            raise MlsError(
                f"the {split} split of this dataset has no class with both positive and negative images that was "
                "trained; low_shot needs some"
            )
    trained = np.flatnonzero(trained_C).tolist()
    draws = [
        (k, sample, c, draw(truth_NC[:, c], ignored_NC[:, c], k, names, c, streams.few_images(seed, sample, k, c)))
        for k in sorted(set(ks), reverse=True)  # the longest first
        for sample in range(samples)
        for c in trained
    ]
    for k in sorted(set(ks)):  # here, not when it is needed: fitting takes hours
        first = len(train.names)
        left = [np.setdiff1d(first + np.flatnonzero(val.truth_NC[:, c]), rows) for j, _, c, rows in draws if j == k]
        if not any(map(len, left)):
            raise MlsError(f"low_shot: {k} draws every positive image of val, which leaves none to choose by; lower k")
    known_ND = np.concatenate([divide_by_norm(images.features_ND) for images in (train, val)])
    val_unit, test_unit = known_ND[len(train.names) :], divide_by_norm(test.features_ND)
    scored = [(val_unit, val.truth_NC, val.ignored_NC), (test_unit, test.truth_NC, test.ignored_NC)]
    calls = [partial(fit_few, known_ND, truth_NC[:, c], rows, candidates, scored, c) for _, _, c, rows in draws]
    results = in_processes(calls, threads if known_ND.size >= WORTH_PROCESSES else 1, name)
    ap_VK = {(k, sample, c): 100 * found for (k, sample, c, _), (found, _) in zip(draws, results, strict=True)}

    metrics: dict[str, float] = {"low_shot_unconverged": sum(stops for _, stops in results)}
    rows: list[Row] = []
    for k in sorted(set(ks)):
        values_SCVK = np.array([[ap_VK[k, sample, c] for c in trained] for sample in range(samples)])
        for sample, place, i in np.ndindex(samples, len(trained), len(candidates)):
            values = dict(zip(VALUES, values_SCVK[sample, place, :, i].tolist(), strict=True))
            rows.append({"k": k, "sample": sample, "class": trained[place], "cost": candidates[i], **values})
        # a class that is not told apart (in val: by the images that were not drawn) is NaN, and means leave it out
        val_SCK = values_SCVK[:, :, 0]
        defined_C = ~np.isnan(val_SCK).all(axis=(0, 2))
        val_K = np.nanmean(val_SCK[:, defined_C], axis=0).mean(axis=0)
        chosen = int(val_K.argmax())
        metrics[f"low_shot_{k}_val"] = float(val_K[chosen])
        for end, value in (("", 1), ("_envelope", 2)):
            test_SK = np.nanmean(values_SCVK[:, :, value], axis=1)
            best = int(test_SK.mean(axis=0).argmax())
            for key, index in ((f"low_shot_{k}{end}", chosen), (f"low_shot_{k}_best_on_test{end}", best)):
                metrics[key] = float(test_SK[:, index].mean())
                metrics[f"{key}_std"] = float(test_SK[:, index].std())
                metrics[f"{key}_cost"] = candidates[index]
    return metrics, rows


def draw(
    truth_N: Truth, ignored_N: Truth, k: int, names: Sequence[str], c: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw k positives and k x (C - 1) negatives of class c: ascending rows.

    Raises:
        MlsError: there are too few.
    """
    rows: list[NDArray[np.int64]] = []
    for kind, pool_N, count in (("positive", truth_N, k), ("negative", ~truth_N & ~ignored_N, k * (len(names) - 1))):
        pool = np.flatnonzero(pool_N)
        if not 0 < count <= len(pool):
            raise MlsError(
                f"low_shot: {k} needs {count} {kind} images of class {names[c]!r}; train and val have {len(pool)}"
                + ("; lower k" if count else "; a set of one class has no low-shot protocol")
            )
        rows.append(rng.choice(pool, count, replace=False))
    return np.sort(np.concatenate(rows))


def fit_few(
    known_ND: Weights,
    truth_N: Truth,
    rows: NDArray[np.int64],
    costs: Sequence[float],
    parts: Sequence[tuple[Weights, Truth, Truth]],
    c: int,
) -> tuple[Weights, int]:
    """Fit class c on some rows; return `VALUES` of each cost (V, K), and the number of unconverged fits.

    The val images are the last of the known ones; val leaves out those that were drawn.
    """
    few_ND, few_N = known_ND[rows], truth_N[rows]
    models = [fit_one(few_ND, few_N, cost) for cost in costs]
    weight_KD = np.concatenate([model.coef_ for model in models])
    bias_K = np.concatenate([model.intercept_ for model in models])
    drawn_M = np.isin(np.arange(len(known_ND) - len(parts[0][0]), len(known_ND)), rows)
    arrays = []
    for (unit_MD, truth_MC, ignored_MC), out_M in zip(parts, (drawn_M, np.array(False)), strict=True):
        with one_blas_thread():
            scores_MK = unit_MD @ weight_KD.T + bias_K
        of_each_cost = [c] * len(costs)
        ignored_MK = ignored_MC[:, of_each_cost] | np.atleast_1d(out_M)[:, None]
        arrays.append((scores_MK, truth_MC[:, of_each_cost] & ~ignored_MK, ignored_MK))
    values = [average_precisions(*arrays[part], kind) for part, kind in VALUES.values()]
    return np.stack(values), sum(stopped(model) for model in models)
