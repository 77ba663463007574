"""Fit classifiers on frozen features: from a task and its splits to scores of the evaluated images.

    scores_NC, facts = FITS[type(task)](context, task, features, Parts(train, val, evaluated))

To add one, see docs/extending.md. The mathematics is in `mls.probe.linear`, `mls.probe.knn` and `mls.probe.svm`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from mls.config.probes import Features, KnnProbe, LinearProbe, SvmProbe
from mls.metrics import Scores
from mls.pipeline.plan import FIRST_SEED
from mls.pipeline.runner import Context
from mls.probe import knn, linear, svm
from mls.probe.feature_set import FeatureSet, Parts
from mls.probe.low_shot import low_shot
from mls.runtime.device import set_up
from mls.runtime.errors import MlsError
from mls.runtime.files import write_csv

Facts = dict[str, Any]
"""What ``metrics.json`` holds beside the metrics: how the classifier was fitted and chosen."""


def fit_linear(context: Context, task: LinearProbe, features: FeatureSet, parts: Parts) -> tuple[Scores, Facts]:
    """Logistic or softmax regression; val chooses the strength."""
    device, name = device_of(context), f"probe {context.label}"
    fitted = linear.fit_strengths(parts.train, parts.val, strengths=task.strengths, device=device, name=name)
    return fitted.scores(parts.evaluated.features_ND), {
        "val": 100 * fitted.candidates[fitted.strength],
        "strength": fitted.strength,
        "candidates": percents(fitted.candidates),
        "iterations": {f"{strength:g}": steps for strength, steps in fitted.iterations.items()},
        "untrained_classes": fitted.untrained,
        "unconverged_fits": fitted.unconverged,
    }


def fit_knn(context: Context, task: KnnProbe, features: FeatureSet, parts: Parts) -> tuple[Scores, Facts]:
    """Votes of train images; val chooses k."""
    how: Facts = {"device": device_of(context), "name": f"probe {context.label}"}
    fitted = knn.fit_ks(parts.train, parts.val, ks=task.ks, temperature=task.temperature, **how)
    return fitted.scores(parts.evaluated.features_ND), {
        "val": 100 * fitted.candidates[fitted.k],
        "k": fitted.k,
        "candidates": percents(fitted.candidates),
        "untrained_classes": fitted.untrained,
    }


def fit_svm(context: Context, task: SvmProbe, features: FeatureSet, parts: Parts) -> tuple[Scores, Facts]:
    """SVMs on all images that are not evaluated; also the low-shot ones, if the task asks for them."""
    name, threads = f"probe {context.label}", context.execution.threads
    facts: Facts = {}
    if task.low_shot:
        if not features.multi_label:
            raise MlsError("low_shot: this dataset has one label per image; low-shot SVMs need several")
        draws: Facts = {"ks": task.low_shot, "samples": task.samples, "seed": FIRST_SEED}
        facts, rows = low_shot(parts, costs=task.costs, threads=threads, name=f"{name}: low-shot", **draws)
        write_csv(rows, context.out / "low_shot.csv")
    known = features.images("train", "val") if task.test else features.images("train")
    fitted = svm.fit_costs(known, costs=task.costs, folds=task.folds, threads=threads, name=name)
    return fitted.scores(parts.evaluated.features_ND), facts | {
        "costs": fitted.costs,
        "cross_validation": {name: percents(found) for name, found in fitted.cross_validation.items()},
        "untrained_classes": fitted.untrained,
        "not_cross_validated": fitted.not_cross_validated,
        "unconverged_fits": fitted.unconverged,
    }


def device_of(context: Context) -> torch.device:
    """Set torch up for a job that draws nothing at random, and return its device."""
    return set_up(context.execution.device, context.execution.threads, FIRST_SEED)


def percents(candidates: Mapping[Any, float]) -> dict[str, float]:
    """Return candidates and their values, percent, for JSON."""
    return {f"{candidate:g}": 100 * share for candidate, share in candidates.items()}


Fit = Callable[[Context, Any, FeatureSet, Parts], tuple[Scores, Facts]]
FITS: dict[type[Features], Fit] = {
    LinearProbe: fit_linear,
    KnnProbe: fit_knn,
    SvmProbe: fit_svm,
}
"""Section of a probe -> its fit: float32 scores (N, C) of the evaluated images, and facts for ``metrics.json``.

Raises:
    MlsError: nothing can be learned from the labels of a split; says why.
"""
