"""mIoU, mAcc and aAcc against pixels counted one by one; results that contradict themselves are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mls.data.image_store import IGNORE
from mls.runtime.errors import MlsError
from mls.transfer.index_masks import IndexMasks
from mls.transfer.semantic import pixels_to_coco
from mls.transfer.semantic_score import pixel_metrics
from tests.transfer.semantic_support import CLASSES, masked_record, write_masked

Masks = list[NDArray[np.uint8]]
Truth = Callable[[Masks], IndexMasks]


@pytest.fixture
def truth(tmp_path: Path) -> Truth:
    """Make the truth of some masks."""

    def make(masks: Masks) -> IndexMasks:
        return IndexMasks(write_masked(tmp_path / "data", [masked_record("test", mask) for mask in masks]), "test")

    return make


def results_of(predictions: Masks) -> list[dict[str, Any]]:
    return [result for row, mask in enumerate(predictions) for result in pixels_to_coco(row, mask)]


def random_masks(seed: int, values: list[int]) -> Masks:
    rng = np.random.default_rng(seed)
    return [rng.choice(np.array(values, dtype=np.uint8), (5 + i, 9)) for i in range(3)]


def plain(true: Masks, predicted: Masks) -> dict[str, Any]:
    """The same numbers, by loops over pixels and classes."""
    both, either, there = ([0] * len(CLASSES) for _ in range(3))
    right = every = 0
    for true_HW, predicted_HW in zip(true, predicted, strict=True):
        for t, p in zip(true_HW.flatten().tolist(), predicted_HW.flatten().tolist(), strict=True):
            if t == IGNORE:
                continue
            every += 1
            right += t == p
            for label in range(len(CLASSES)):
                both[label] += t == label and p == label
                either[label] += t == label or p == label
                there[label] += t == label
    iou = {n: 100 * b / e if e else None for n, b, e in zip(CLASSES, both, either, strict=True)}
    acc = {n: 100 * b / t if t else None for n, b, t in zip(CLASSES, both, there, strict=True)}
    known, found = ([v for v in values.values() if v is not None] for values in (iou, acc))
    return {
        "mIoU": sum(known) / len(known),
        "mAcc": sum(found) / len(found),
        "aAcc": 100 * right / every,
        "per_class": {name: {"IoU": iou[name], "Acc": acc[name]} for name in CLASSES},
    }


@pytest.mark.parametrize(
    ("there", "found"),
    [
        ([0, 1, 2, 3, IGNORE], [0, 1, 2, 3]),
        ([0, 1, IGNORE], [0, 2]),  # blue neither there nor found; green found and not there; red there and not found
        ([0, 2], [0, 2]),
    ],
)
def test_scores_equal_plain_loops(truth: Truth, there: list[int], found: list[int]) -> None:
    true, predicted = random_masks(0, there), random_masks(1, found)
    metrics, expected = pixel_metrics(truth(true), results_of(predicted)), plain(true, predicted)
    assert list(metrics) == list(expected)
    for name in ("mIoU", "mAcc", "aAcc"):
        assert metrics[name] == pytest.approx(expected[name]) and 0 < metrics[name] < 100
    for name in CLASSES:
        assert metrics["per_class"][name] == pytest.approx(expected["per_class"][name])


def test_truth_as_prediction_is_perfect(truth: Truth) -> None:
    true = random_masks(0, [0, 1, 3, IGNORE])
    predicted = [np.where(mask == IGNORE, 2, mask) for mask in true]
    metrics = pixel_metrics(truth(true), results_of(predicted))
    assert [metrics[name] for name in ("mIoU", "mAcc", "aAcc")] == [100, 100, 100]
    assert metrics["per_class"]["red"] == {"IoU": 100, "Acc": 100}
    assert metrics["per_class"]["green"] == {"IoU": None, "Acc": None}  # predicted only on ignored pixels


def test_no_results_score_0(truth: Truth) -> None:
    metrics = pixel_metrics(truth(random_masks(0, [0, 1, IGNORE])), [])
    assert [metrics[name] for name in ("mIoU", "mAcc", "aAcc")] == [0, 0, 0]
    assert metrics["per_class"]["blue"] == {"IoU": None, "Acc": None}


def test_pixels_without_a_prediction_are_errors(truth: Truth) -> None:
    true = [np.zeros((4, 4), dtype=np.uint8)]
    results = results_of([np.array([[0] * 4, [0] * 4, [1] * 4, [1] * 4], dtype=np.uint8)])[:1]
    metrics = pixel_metrics(truth(true), results)
    assert [metrics[name] for name in ("mIoU", "mAcc", "aAcc")] == [50, 50, 50]


def test_metrics_are_none_if_every_pixel_is_ignored(truth: Truth) -> None:
    everything = [np.full((4, 4), IGNORE, dtype=np.uint8)]
    metrics = pixel_metrics(truth(everything), results_of([np.zeros((4, 4), dtype=np.uint8)]))
    assert [metrics[name] for name in ("mIoU", "mAcc", "aAcc")] == [None, None, None]


def test_contradicting_results_are_refused(truth: Truth) -> None:
    masks = random_masks(0, [0, 1, 2])
    known = truth(masks)
    results = results_of(masks)
    for claim in (results[0], {**results[0], "category_id": 2}):
        with pytest.raises(MlsError, match=r"results for image 0 overlap: category \d claims \d+ pixels of"):
            pixel_metrics(known, [*results, claim])
    with pytest.raises(MlsError, match="name image 3 with category 1; evaluated are 3 images"):
        pixel_metrics(known, [{**results[0], "image_id": 3}])
    with pytest.raises(MlsError, match=r"name image 0 with category 5; .* categories 1 to 4"):
        pixel_metrics(known, [{**results[0], "category_id": 5}])
    with pytest.raises(MlsError, match=r"a result for image 1 has the size \[5, 9\], but the image has \[6, 9\]"):
        pixel_metrics(known, [{**results[0], "image_id": 1}])


def test_results_are_sorted_and_in_cocos_format() -> None:
    prediction = np.array([[2, 2, 0], [0, 0, 0]], dtype=np.uint8)
    results = pixels_to_coco(7, prediction)
    assert [(result["image_id"], result["category_id"]) for result in results] == [(7, 1), (7, 3)]
    assert all(list(result) == ["image_id", "category_id", "segmentation"] for result in results)
    assert results[0]["segmentation"]["size"] == [2, 3]
    assert isinstance(results[0]["segmentation"]["counts"], str)
