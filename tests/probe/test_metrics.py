"""Average precision is scikit-learn's, ties and all; classes without positives count for nothing."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from mls.probe.metrics import average_precision, average_precisions, mean_average_precision, top1


@pytest.mark.parametrize("levels", [2, 5, 1000])  # few levels: many ties
@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_equals_scikit_learn(levels: int, share: float) -> None:
    rng = np.random.default_rng(levels)
    for n in (1, 7, 200):
        scores = rng.integers(levels, size=n).astype(np.float32) - levels / 2
        truth = rng.random(n) < share
        truth[rng.integers(n)] = True
        assert average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)


def test_multi_label_mean_equals_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    truth = rng.random((300, 6)) < 0.3
    scores = (truth + rng.normal(size=(300, 6))).astype(np.float32)
    assert mean_average_precision(scores, truth) == pytest.approx(
        average_precision_score(truth, scores, average="macro")
    )


def test_classes_without_positives_are_left_out() -> None:
    scores = np.array([[3, 1], [2, 2], [1, 3]], dtype=np.float32)
    truth = np.array([[1, 0], [0, 0], [1, 0]], dtype=bool)
    values = average_precisions(scores, truth)
    assert values[0] == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(values[1])
    assert mean_average_precision(scores, truth) == values[0]
    assert np.isnan(mean_average_precision(scores, np.zeros_like(truth)))


def test_top1() -> None:
    scores = np.array([[1, 0], [0, 1], [2, 3], [0, 0]], dtype=np.float32)
    truth = np.array([[1, 0], [1, 0], [0, 1], [1, 0]], dtype=bool)
    assert top1(scores, truth) == 0.75
