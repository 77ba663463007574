"""Three definitions of AP, ties and ignored images; precision and recall by class and over all.

Oracles: scikit-learn, and loops written from the text of VOC's development kits.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from mls.metrics import (
    Kind,
    average_precision,
    average_precisions,
    decisions,
    hits,
    mean_average_precision,
    told_apart,
    top1,
)

KINDS: tuple[Kind, ...] = ("area", "envelope", "11")


def voc(scores: NDArray[np.float32], gt: NDArray[np.int64], year: int) -> float:
    """AP as the kits of 2007 and of 2010 define it, image by image; gt is 1, -1, or 0 for difficult; no ties."""
    recall, precision = [], []
    tp = fp = 0
    for _, one in sorted(zip(scores.tolist(), gt.tolist(), strict=True), reverse=True):
        tp, fp = tp + (one > 0), fp + (one < 0)
        if tp + fp:  # max() passes over the kit's NaN
            recall.append(tp / int((gt > 0).sum()))
            precision.append(tp / (tp + fp))
    if year == 2007:
        tenths = [max([p for r, p in zip(recall, precision, strict=True) if r >= t - 1e-9]) for t in np.arange(11) / 10]
        return sum(tenths) / 11
    area, before = 0.0, 0.0
    for i, r in enumerate(recall):
        area += (r - before) * max(precision[i:])
        before = r
    return area


@pytest.mark.parametrize("levels", [2, 5, 1000])  # few levels: many ties
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_area_equals_scikit_learn(levels: int, share: float) -> None:
    rng = np.random.default_rng(levels)
    for n in (2, 7, 200):
        scores = rng.integers(levels, size=n).astype(np.float32) - levels / 2
        truth = rng.random(n) < share
        truth[:2] = True, False
        assert average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)


def test_multi_label_mean_equals_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    truth = rng.random((300, 6)) < 0.3
    scores = (truth + rng.normal(size=(300, 6))).astype(np.float32)
    assert mean_average_precision(scores, truth) == pytest.approx(
        average_precision_score(truth, scores, average="macro")
    )


@pytest.mark.parametrize(("n", "share"), [(2, 1.0), (9, 0.5), (60, 0.1), (300, 0.3), (40, 0.95)])
def test_envelope_and_eleven_points_equal_the_kits(n: int, share: float) -> None:
    rng = np.random.default_rng(n)
    for _ in range(5):
        scores = rng.permutation(n).astype(np.float32)  # no ties
        gt = np.where(rng.random(n) < share, 1, -1)
        gt[rng.random(n) < 0.2] = 0
        gt[:2] = 1, -1
        arrays = scores[:, None], (gt > 0)[:, None], (gt == 0)[:, None]
        assert average_precisions(*arrays, "11")[0] == pytest.approx(voc(scores, gt, 2007), abs=1e-12)
        assert average_precisions(*arrays, "envelope")[0] == pytest.approx(voc(scores, gt, 2010), abs=1e-12)
        assert average_precisions(*arrays)[0] == pytest.approx(
            average_precision_score(gt[gt != 0] > 0, scores[gt != 0]), abs=1e-12
        )


def test_by_hand() -> None:
    # From the highest score: - + + - +. Precision at the positives: 1/2, 2/3, 3/5, at recall 1/3, 2/3, 1.
    scores = np.array([5, 4, 3, 2, 1], dtype=np.float32)
    truth = np.array([0, 1, 1, 0, 1], dtype=bool)
    assert average_precision(scores, truth) == pytest.approx((1 / 2 + 2 / 3 + 3 / 5) / 3)
    # The 1/2 becomes 2/3, which is reached at a higher recall.
    assert average_precision(scores, truth, "envelope") == pytest.approx((2 / 3 + 2 / 3 + 3 / 5) / 3)
    # t = 0 .. 0.6 (seven of them) are within recall 2/3: 2/3; t = 0.7 .. 1 (four): 3/5.
    assert average_precision(scores, truth, "11") == pytest.approx((7 * 2 / 3 + 4 * 3 / 5) / 11)


def test_a_recall_of_just_three_tenths_counts_at_three_tenths() -> None:
    # Ten positives: three first (precision 1 up to recall 0.3), then 90 negatives, then seven.
    truth = np.array([1] * 3 + [0] * 90 + [1] * 7, dtype=bool)
    # t = 0, 0.1, 0.2, 0.3: 1; t = 0.4 .. 1: the best later one is at the end, 10/100.
    expected = (4 * 1 + 7 * 0.1) / 11
    assert average_precision(-np.arange(100, dtype=np.float32), truth, "11") == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_ties_is_irrelevant(kind: Kind) -> None:
    rng = np.random.default_rng(2)
    scores = rng.integers(4, size=80).astype(np.float32)
    scores[scores == 0], scores[scores == 3] = -np.inf, np.inf  # these tie as well
    truth = rng.random(80) < 0.3
    values = {average_precision(scores[order], truth[order], kind) for order in map(rng.permutation, [80] * 20)}
    assert len(values) == 1
    # All tied, infinitely low or not: there is one point, of recall 1 and precision the share of positives.
    for level in (0.0, -np.inf):
        assert average_precision(np.full(80, level, np.float32), truth, kind) == pytest.approx(truth.mean())


def test_ties_enter_together() -> None:
    # 2: one positive of two; 1: one of one. Precision 1/2 at recall 1/2, 2/3 at recall 1.
    scores, truth = np.array([2, 2, 1], dtype=np.float32), np.array([1, 0, 1], dtype=bool)
    assert average_precision(scores, truth) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert average_precision(scores, truth, "envelope") == pytest.approx(2 / 3)
    assert average_precision(scores, truth, "11") == pytest.approx(2 / 3)


@pytest.mark.parametrize("kind", KINDS)
def test_ignored_images_are_as_if_absent(kind: Kind) -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(50, 3)).astype(np.float32)
    truth = rng.random((50, 3)) < 0.3
    ignored = ~truth & (rng.random((50, 3)) < 0.4)
    ignored[:, 2] = True
    truth[:, 2] = False
    values = average_precisions(scores, truth, ignored, kind)
    for c in (0, 1):
        kept = ~ignored[:, c]
        assert values[c] == average_precision(scores[kept, c], truth[kept, c], kind)
        assert values[c] > average_precision(scores[:, c], truth[:, c], kind), "as negatives they would cost"
    assert np.isnan(values[2]), "all of it is ignored"
    assert mean_average_precision(scores, truth, ignored, kind) == pytest.approx(values[:2].mean())


def test_difficult_by_hand() -> None:
    # Scores 4 (difficult), 3 (+), 2 (-), 1 (+): precision 1/1 and 2/3.
    scores = np.array([[4], [3], [2], [1]], dtype=np.float32)
    truth, ignored = np.array([[0], [1], [0], [1]], dtype=bool), np.array([[1], [0], [0], [0]], dtype=bool)
    assert average_precisions(scores, truth, ignored)[0] == pytest.approx((1 + 2 / 3) / 2)
    # t = 0 .. 0.5 (six): 1; 0.6 .. 1 (five): 2/3.
    assert average_precisions(scores, truth, ignored, "11")[0] == pytest.approx((6 + 5 * 2 / 3) / 11)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_without_positives_are_left_out(kind: Kind) -> None:
    scores = np.array([[3, 1], [2, 2], [1, 3]], dtype=np.float32)
    truth = np.array([[1, 0], [0, 0], [1, 0]], dtype=bool)
    values = average_precisions(scores, truth, kind=kind)
    assert np.isnan(values[1])
    assert mean_average_precision(scores, truth, kind=kind) == values[0]
    assert math.isnan(mean_average_precision(scores, np.zeros_like(truth), kind=kind))
    if kind == "area":
        assert values[0] == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_without_negatives_are_left_out(kind: Kind) -> None:
    """A column of ones would be found perfectly, whatever the scores: 82.7 instead of 65.4."""
    scores = np.array([[3, 1], [2, 2], [1, 3]], dtype=np.float32)
    truth, ignored = np.array([[0, 1], [1, 1], [0, 0]], dtype=bool), np.array([[0, 0], [0, 0], [0, 1]], dtype=bool)
    assert told_apart(truth, ignored).tolist() == [True, False] and told_apart(truth).all()
    values = average_precisions(scores, truth, ignored, kind)
    assert values[0] == pytest.approx(0.5) and np.isnan(values[1]), "its only negative does not count"
    assert mean_average_precision(scores, truth, ignored, kind) == values[0]
    assert math.isnan(mean_average_precision(scores, truth | True, kind=kind))


@pytest.mark.parametrize("seed", range(4))
def test_decisions_equal_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random((120, 5)) < [0.5, 0.2, 0.05, 0.3, 0.1]
    truth[:2] = [[True], [False]]
    scores = (truth + rng.normal(size=truth.shape) - 0.8).astype(np.float32)
    scores[:, 4] = -1  # never predicted
    found = decisions(scores, truth)
    for letter, average in (("C", "macro"), ("O", "micro")):
        precision, recall, f1, _ = precision_recall_fscore_support(truth, scores > 0, average=average, zero_division=0)
        assert found[f"{letter}P"] == pytest.approx(precision) and found[f"{letter}R"] == pytest.approx(recall)
        # scikit-learn's macro F1 is the mean of F1s; the literature's CF1 is of the means
        expected = f1 if letter == "O" else 2 * precision * recall / (precision + recall)
        assert found[f"{letter}F1"] == pytest.approx(expected)


def test_decisions_by_hand() -> None:
    scores = np.array([[1, 1, 1], [1, 0, 1], [-1, -1, -1], [-1, 2, -1]], dtype=np.float32)
    truth = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 1, 0]], dtype=bool)
    # Class 0: 2 yes, 1 right, 2 positive. Class 1: 2 yes (0 is none), 1 right, 3 positive. Class 2: no positive.
    found = decisions(scores, truth)
    assert found["CP"] == pytest.approx((1 / 2 + 1 / 2) / 2) and found["CR"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found["CF1"] == pytest.approx(2 * (1 / 2) * (5 / 12) / (1 / 2 + 5 / 12))
    assert found["OP"] == pytest.approx(2 / 4) and found["OR"] == pytest.approx(2 / 5)
    assert found["OF1"] == pytest.approx(2 * 2 / (4 + 5))
    assert decisions(scores, truth | [False, False, True]) == found, "a class that all have says as little"
    # Without the wrong yes of image 0 on class 1, which leaves it without a negative.
    ignored = np.zeros_like(truth)
    ignored[0, 1] = True
    found = decisions(scores, truth, ignored)
    assert found == dict.fromkeys(("CP", "CR", "CF1", "OP", "OR", "OF1"), 0.5)


def test_decisions_without_a_yes_or_without_a_positive() -> None:
    truth = np.array([[1, 0], [0, 0]], dtype=bool)
    names = {"CP", "CR", "CF1", "OP", "OR", "OF1"}
    assert decisions(np.array([[-1, -np.inf]] * 2, np.float32), truth) == dict.fromkeys(names, 0.0)
    assert decisions(np.array([[1, -1], [-1, -1]], np.float32), truth) == dict.fromkeys(names, 1.0)
    nothing = decisions(np.array([[1, 1]] * 2, np.float32), np.zeros_like(truth))
    assert nothing.keys() == names and all(math.isnan(value) for value in nothing.values())


def test_top1() -> None:
    scores = np.array([[1, 0], [0, 1], [2, 3], [0, 0]], dtype=np.float32)
    truth = np.array([[1, 0], [1, 0], [0, 1], [1, 0]], dtype=bool)
    assert top1(scores, truth) == 0.75
    assert hits(scores, truth).tolist() == [True, False, True, True]
