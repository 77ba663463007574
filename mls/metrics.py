"""Metrics of classification: average precision per class, top-1 accuracy, precision and recall of decisions.

    per_class_C = average_precisions(scores_NC, truth_NC, ignored_NC)        # NaN where no images can be told apart
    mean = mean_average_precision(scores_NC, truth_NC, ignored_NC, "11")     # over the other classes
    decisions(scores_NC, truth_NC, ignored_NC)["CF1"]

Average precision has three definitions in the literature (`Kind`), and papers seldom say which one they use. With P the
precision and R the recall of the images down to a score:

- ``area``: sum of (R_n - R_{n-1}) P_n over all points, without interpolation. scikit-learn's
  ``average_precision_score``; without ties also that of ML-GCN and CSRA: the mean of P over the positives.
- ``envelope``: the same with P_n replaced by the highest precision at that recall or a higher one. VOC's
  development kits from 2010 on (``VOCap.m``), and VISSL's SVM protocol.
- ``11``: the mean of the highest precision at recall >= t, over t = 0, 0.1 .. 1. VOC 2007's kit (``VOCevalcls.m``).

In all three, images with equal scores enter together, so their order does not matter. The kits (and VISSL, ML-GCN,
CSRA) let them enter one by one, so there the value depends on the order in which tied images happen to be stored.

An image can be ignored for a class (VOC: all its objects of the class are ``difficult``): it then counts as neither a
true nor a false positive, as in the kits.

A class is told apart if, among the images that count, some are positive and some negative. Otherwise it has no value,
and means leave it out: without a positive nothing can be found, and without a negative every ranking gets 1.

Shape legend: N images, C classes, K distinct scores. Scores are not NaN; they may be infinite. All values are shares
from 0 to 1.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]
Truth = NDArray[np.bool_]
Kind = Literal["area", "envelope", "11"]


def average_precision(scores_N: Scores, truth_N: Truth, kind: Kind = "area") -> float:
    """Return the average precision of one class, NaN if it is not told apart; see the module for the definitions."""
    positives = int(truth_N.sum())
    if positives in (0, len(truth_N)):
        return float("nan")
    order_N, ends_K = ranking(scores_N)
    found_K = np.cumsum(truth_N[order_N])[ends_K]
    precision_K = found_K / (ends_K + 1)
    if kind != "area":
        precision_K = np.maximum.accumulate(precision_K[::-1])[::-1]
    if kind == "11":
        # Recall >= t in whole numbers: as fractions, 3 of 10 positives would miss t = 3 * 0.1 by rounding.
        return float(precision_K[np.searchsorted(10 * found_K, positives * np.arange(11))].mean())
    return float(np.sum(np.diff(found_K, prepend=0) * precision_K) / positives)


def ranking(scores_N: Scores) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the images in order of falling score, int64 (N,), and each distinct score's last place, int64 (K,)."""
    order_N = np.argsort(-scores_N, kind="stable")
    sorted_N = scores_N[order_N]
    # Compared, not subtracted: infinite scores can be equal too.
    return order_N, np.append(np.flatnonzero(sorted_N[1:] != sorted_N[:-1]), len(order_N) - 1)


def average_precisions(
    scores_NC: Scores, truth_NC: Truth, ignored_NC: Truth | None = None, kind: Kind = "area"
) -> NDArray[np.float64]:
    """Return the average precision of each class, float64 (C,), NaN for a class that is not told apart.

    Args:
        scores_NC: higher means likelier.
        truth_NC: ground truth.
        ignored_NC: pairs of image and class that do not count; default: none.
        kind: the definition, see the module.
    """
    counts_NC = np.ones_like(truth_NC) if ignored_NC is None else ~ignored_NC
    columns = zip(scores_NC.T, truth_NC.T, counts_NC.T, strict=True)
    return np.array([average_precision(scores_N[c], truth_N[c], kind) for scores_N, truth_N, c in columns])


def mean_average_precision(
    scores_NC: Scores, truth_NC: Truth, ignored_NC: Truth | None = None, kind: Kind = "area"
) -> float:
    """Return the mean of `average_precisions` over the classes that are told apart, NaN if none is."""
    values_C = average_precisions(scores_NC, truth_NC, ignored_NC, kind)
    defined = values_C[~np.isnan(values_C)]
    return float(defined.mean()) if defined.size else float("nan")


def told_apart(truth_NC: Truth, ignored_NC: Truth | None = None) -> Truth:
    """Return which classes have both a positive and a negative image among those that count, bool (C,)."""
    counts_NC = np.ones_like(truth_NC) if ignored_NC is None else ~ignored_NC
    apart_C: Truth = np.logical_and((truth_NC & counts_NC).any(axis=0), (~truth_NC & counts_NC).any(axis=0))
    return apart_C


def decisions(scores_NC: Scores, truth_NC: Truth, ignored_NC: Truth | None = None) -> dict[str, float]:
    """Return precision, recall and F1 of the decision "score > 0", as the multi-label literature does [ML-GCN, CSRA].

    CP and CR are the means of the classes' precisions and recalls; OP and OR are computed from the decisions on all
    classes together. Classes that are not told apart count in none of them. CF1 is the harmonic mean of CP and CR (not
    the mean of the classes' F1s), OF1 that of OP and OR.

    0/0: a class that is never predicted has precision 0, and so has a classifier that never says yes; F1 is 0 if
    precision and recall are. If no class is told apart, all six are NaN. The published evaluators differ slightly:
    ML-GCN's says yes at 0 too, and both count a class that is never predicted as one wrong yes in OP.

    Args:
        scores_NC: logits.
        truth_NC: ground truth.
        ignored_NC: pairs of image and class that do not count; default: none.

    Returns:
        ``CP``, ``CR``, ``CF1``, ``OP``, ``OR``, ``OF1``.
    """
    apart_C = told_apart(truth_NC, ignored_NC)
    yes_NC = scores_NC > 0
    if ignored_NC is not None:
        yes_NC, truth_NC = yes_NC & ~ignored_NC, truth_NC & ~ignored_NC
    yes_NC, truth_NC = yes_NC[:, apart_C], truth_NC[:, apart_C]
    right_C, yes_C, positives_C = (yes_NC & truth_NC).sum(axis=0), yes_NC.sum(axis=0), truth_NC.sum(axis=0)
    if not apart_C.any():
        return dict.fromkeys(("CP", "CR", "CF1", "OP", "OR", "OF1"), float("nan"))
    values: dict[str, float] = {}
    for letter, precision, recall in (
        ("C", (right_C / np.maximum(yes_C, 1)).mean(), (right_C / positives_C).mean()),
        ("O", right_C.sum() / max(yes_C.sum(), 1), right_C.sum() / positives_C.sum()),
    ):
        f1 = 2 * precision * recall / (precision + recall) if recall else 0.0
        values |= {f"{letter}P": float(precision), f"{letter}R": float(recall), f"{letter}F1": float(f1)}
    return values


def hits(scores_NC: Scores, truth_NC: Truth) -> Truth:
    """Return which images have their class as highest score, bool (N,); among equal scores the first class counts."""
    hits_N: Truth = scores_NC.argmax(axis=1) == truth_NC.argmax(axis=1)
    return hits_N


def top1(scores_NC: Scores, truth_NC: Truth) -> float:
    """Return the share of images whose highest score is their class, see `hits`."""
    return float(np.mean(hits(scores_NC, truth_NC)))
