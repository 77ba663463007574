"""Linear classifiers on frozen features: fitted on train, their strength chosen on val.

    probe = fit_strengths(train, val, strengths=[0.01, 0.1, 1.0])
    scores_NC = probe.scores(test_ND)       # logits, float32

Multi-label sets: one L2-regularised logistic regression per class. Single-label sets: softmax regression; of two
classes, logistic regression in which the first has logit 0. Both are `mls.probe.logistic`'s.
Features are standardised with the mean and standard deviation of train, so that one grid of strengths suits every
backbone; a feature that is constant on train is only centred. The chosen model is fitted on train, not on val too. An
image that is ignored for a class has no weight in that class's fit.

Shape legend: N train images (or those of any split), M val images, D features, C classes, K of them that are fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mls.metrics import Scores
from mls.probe.feature_set import Features, Images, blocks
from mls.probe.fitting import Weights, logits, measure_of, trained_classes, untrained_model
from mls.probe.logistic import Logistic
from mls.runtime.progress import Bar

CPU = torch.device("cpu")


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
    iterations: dict[float, int]
    """Strength -> steps of the class that took the most, from the solution of the strength before."""
    untrained: list[str]
    """Classes with one score for every image, since train holds no positive or no negative of them."""
    unconverged: int
    """Fits that did not reach `mls.probe.logistic.TOLERANCE`, over all strengths."""

    def scores(self, features_ND: Features) -> Scores:
        """Return logits, float32 (N, C)."""
        return scores_of(features_ND, self.mean_D, self.scale_D, self.weight_CD, self.bias_C)


def fit_strengths(
    train: Images, val: Images, *, strengths: Sequence[float], device: torch.device = CPU, name: str = "linear"
) -> LinearFit:
    """Fit every strength on train, keep the one with the best mAP (multi-label) or top-1 on val.

    Strengths are fitted in ascending order, each starting from the solution before it; on a tie the smaller strength
    wins.

    Args:
        train: N images to fit on. Multi-label sets get one classifier per class, others softmax regression.
        val: M images to choose by.
        strengths: candidates for C, the inverse regularisation strength.
        device: where the fits run; torch's number of threads, and the device, change the last digits only.
        name: of the progress bar.

    Raises:
        MlsError: features are not finite; no class has both positives and negatives in train, or none of these in val.
    """
    trained, untrained = trained_classes(train.truth_NC, ~train.ignored_NC, train.classes)
    measure = measure_of(train, val, trained)
    mean_D, scale_D = standardisation(train.features_ND)
    # Softmax regression of two classes is not scikit-learn's and would count the penalty differently.
    fitted = trained[1:] if not train.multi_label and len(trained) == 2 else trained
    problem = Logistic(
        standardise(train.features_ND, mean_D, scale_D, device),
        *(torch.from_numpy(array_NC[:, fitted]).to(device) for array_NC in (train.truth_NC, ~train.ignored_NC)),
        exclusive=not train.multi_label and len(fitted) > 1,
    )
    ascending = sorted(set(strengths))
    models: dict[float, tuple[Weights, Weights]] = {}
    candidates: dict[float, float] = {}
    iterations: dict[float, int] = {}
    unconverged, solution = 0, None
    with Bar(name, len(ascending) * len(fitted), unit="fits") as bar:
        for strength in ascending:
            solution = problem.fit(strength, solution, told=lambda classes: bar.advance(classes, count=classes))
            iterations[strength] = int(solution.iterations_C.max())
            unconverged += int((~solution.converged_C).sum())
            weight_CD, bias_C = untrained_model(train)
            bias_C[trained] = 0  # of the first of two classes
            weight_CD[fitted], bias_C[fitted] = solution.weight_CD.cpu().numpy(), solution.bias_C.cpu().numpy()
            models[strength] = weight_CD, bias_C
            candidates[strength] = measure(scores_of(val.features_ND, mean_D, scale_D, weight_CD, bias_C))
    best = max(candidates, key=candidates.__getitem__)  # on a tie the first, which is the smallest
    return LinearFit(mean_D, scale_D, *models[best], best, candidates, iterations, untrained, unconverged)


def scores_of(features_ND: Features, mean_D: Weights, scale_D: Weights, weight_CD: Weights, bias_C: Weights) -> Scores:
    """Return logits, float32 (N, C), of features that are not standardised yet."""
    rows = blocks(*features_ND.shape)
    return np.concatenate([logits((features_ND[some] - mean_D) / scale_D, weight_CD, bias_C) for some in rows])


def standardisation(features_ND: Features) -> tuple[Weights, Weights]:
    """Return mean and standard deviation of each feature; the latter is 1 if a feature is constant up to rounding."""
    rows = list(blocks(*features_ND.shape))
    images = len(features_ND)
    mean_D = sum(features_ND[some].sum(axis=0, dtype=np.float64) for some in rows) / images
    scale_D = np.sqrt(sum(np.square(features_ND[some] - mean_D).sum(axis=0) for some in rows) / images)
    constant_D = scale_D <= 1e-6 * np.abs(mean_D)
    return mean_D, np.where(constant_D, 1.0, scale_D)


def standardise(features_ND: Features, mean_D: Weights, scale_D: Weights, device: torch.device = CPU) -> torch.Tensor:
    """Return standardised features, float32 (N, D) on a device."""
    standard_ND = torch.empty(features_ND.shape, device=device)
    for rows in blocks(*features_ND.shape):
        standard_ND[rows] = torch.from_numpy(((features_ND[rows] - mean_D) / scale_D).astype(np.float32))
    return standard_ND
