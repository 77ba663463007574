"""How each classifier on frozen features is fitted: from a task and its splits to scores of the judged one.

    scores_NC, facts = FITS[type(task)](context, task, features, Parts(train, val, judged))

How one is added: docs/extending.md. The mathematics is in `mls.probe.linear`, `mls.probe.knn` and `mls.probe.svm`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mls.config.probes import Features, KnnProbe, LinearProbe, SvmProbe
from mls.metrics import Scores
from mls.pipeline.runner import Context
from mls.probe import knn, linear, svm
from mls.probe.feature_set import FeatureSet, Parts
from mls.probe.low_shot import low_shot
from mls.runtime.errors import MlsError
from mls.runtime.files import write_csv

FIRST_SEED = 1000
"""Trial 0's seed. Trials, not pretraining seeds, number the repeats of a task; only training on images has any."""

Facts = dict[str, Any]
"""What ``metrics.json`` says beside the metrics: how the classifier came about."""


def fit_linear(context: Context, task: LinearProbe, features: FeatureSet, parts: Parts) -> tuple[Scores, Facts]:
    """Logistic or softmax regression; val chooses the strength."""
    train, val, judged = parts
    logistic = linear.fit(
        train.features_ND,
        train.truth_NC,
        val.features_ND,
        val.truth_NC,
        strengths=task.strengths,
        multi_label=features.multi_label,
        names=features.classes,
        threads=context.execution.threads,
        train_ignored_NC=train.ignored_NC,
        val_ignored_MC=val.ignored_NC,
    )
    return logistic.scores(judged.features_ND), {
        "val": 100 * logistic.value,
        "strength": logistic.strength,
        "candidates": percent(logistic.candidates),
        "untrained_classes": logistic.untrained,
        "unconverged_fits": logistic.unconverged,
    }


def fit_knn(context: Context, task: KnnProbe, features: FeatureSet, parts: Parts) -> tuple[Scores, Facts]:
    """Votes of train images; val chooses k."""
    train, val, judged = parts
    votes = knn.fit(
        train.features_ND,
        train.truth_NC,
        val.features_ND,
        val.truth_NC,
        ks=task.ks,
        temperature=task.temperature,
        multi_label=features.multi_label,
        names=features.classes,
        val_ignored_MC=val.ignored_NC,
        threads=context.execution.threads,
    )
    return votes.scores(judged.features_ND), {
        "val": 100 * votes.value,
        "k": votes.k,
        "candidates": percent(votes.candidates),
        "untrained_classes": votes.untrained,
    }


def fit_svm(context: Context, task: SvmProbe, features: FeatureSet, parts: Parts) -> tuple[Scores, Facts]:
    """SVMs on all that is not judged; also the low-shot ones, where some are wanted."""
    if task.low_shot and not features.multi_label:
        raise MlsError("low_shot: this dataset has one label an image; low-shot SVMs need several")
    facts: Facts = {}
    if task.low_shot:
        facts, rows = low_shot(
            *((part.features_ND, part.truth_NC, part.ignored_NC) for part in parts),
            ks=task.low_shot,
            samples=task.samples,
            costs=task.costs,
            names=features.classes,
            seed=FIRST_SEED,
            threads=context.execution.threads,
            name=f"probe {context.label}: low-shot",
        )
        write_csv(rows, context.out / "low_shot.csv")
    known = features.images("train", "val") if task.test else features.images("train")
    fitted = svm.fit(
        known.features_ND,
        known.truth_NC,
        costs=task.costs,
        folds=task.folds,
        names=features.classes,
        multi_label=features.multi_label,
        threads=context.execution.threads,
        name=f"probe {context.label}",
    )
    facts |= {
        "costs": fitted.costs,
        "cross_validation": {name: percent(found) for name, found in fitted.cross_validation.items()},
        "untrained_classes": fitted.untrained,
        "not_cross_validated": fitted.not_cross_validated,
        "unconverged_fits": fitted.unconverged,
    }
    return fitted.scores(parts.judged.features_ND), facts


def percent(shares: Mapping[Any, float]) -> dict[str, float]:
    """Candidates and their values as JSON has them."""
    return {f"{candidate:g}": 100 * share for candidate, share in shares.items()}


Fit = Callable[[Context, Any, FeatureSet, Parts], tuple[Scores, Facts]]
FITS: dict[type[Features], Fit] = {
    LinearProbe: fit_linear,
    KnnProbe: fit_knn,
    SvmProbe: fit_svm,
}
"""Section of a probe -> what fits it: float32 scores (N, C) of the judged images, and facts for ``metrics.json``.

Raises:
    MlsError: nothing can be learned from the labels of a split; says why.
"""
