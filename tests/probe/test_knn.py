"""Votes are scikit-learn's, val chooses k, ties go to the lower row, and odd data is handled or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from mls.metrics import mean_average_precision, top1
from mls.probe import feature_set, knn
from mls.probe.knn import KnnFit, fit_ks, nearest
from mls.runtime.errors import MlsError
from tests.probe.support import images_of, with_threads


def make_data(n: int, seed: int, classes: int = 4, dims: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Features whose directions tell the classes, through much noise; lengths tell nothing."""
    rng = np.random.default_rng(seed)
    truth = rng.random((n, classes)) < 0.3
    features = np.pad(truth, ((0, 0), (0, dims - classes))) + 0.5 * rng.normal(size=(n, dims))
    return (features * rng.gamma(2, size=(n, 1))).astype(np.float32), truth


def run(
    train: Any, val: Any, ks: list[int], multi_label: bool = True, temperature: float = 0.07, **more: Any
) -> KnnFit:
    given, chosen = (images_of(*part, multi_label=multi_label) for part in (train, val))
    return fit_ks(given, chosen, ks=ks, temperature=temperature, **more)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("k", [1, 7, 120])
def test_equals_scikit_learn(k: int, temperature: float) -> None:
    train, test = make_data(120, 0), make_data(50, 1)

    def weigh(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances) / temperature)

    scores = run(train, test, [k], temperature=temperature).scores(test[0])
    model = KNeighborsClassifier(k, weights=weigh, metric="cosine", algorithm="brute")
    model.fit(train[0].astype(np.float64), train[1])
    expected = [share[:, 1] for share in model.predict_proba(test[0].astype(np.float64))]
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, np.stack(expected, axis=1), atol=3e-6)


def test_k_is_chosen_on_val() -> None:
    train, val = make_data(200, 0), make_data(150, 1)
    ks = [100, 1, 10, 200]
    fitted = run(train, val, ks)
    alone = {k: mean_average_precision(run(train, val, [k]).scores(val[0]), val[1]) for k in ks}
    assert fitted.candidates == alone and list(fitted.candidates) == [1, 10, 100, 200]
    assert fitted.k == max(alone, key=lambda k: alone[k]) != 1  # nor the first
    assert fitted.candidates[fitted.k] == alone[fitted.k]
    other = run(train, (val[0], ~val[1]), ks)
    assert other.k != fitted.k, "the same train images and other val labels"


def test_equal_values_leave_the_smaller_k() -> None:
    features = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]] * 3, dtype=np.float32)
    data = features, np.stack([features[:, 0] > 0.5, features[:, 0] < 0.5], axis=1)
    fitted = run(data, data, [6, 2, 4])
    assert set(fitted.candidates.values()) == {1.0} and fitted.k == 2


def test_single_label_sets_are_evaluated_by_top1() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=120)
    truth = np.eye(4, dtype=bool)[labels]  # the fourth class has no image
    features = (truth + 0.4 * rng.normal(size=(120, 4))).astype(np.float32)
    fitted = run((features[:80], truth[:80]), (features[80:], truth[80:]), [5, 20], multi_label=False)
    assert fitted.candidates[fitted.k] == top1(fitted.scores(features[80:]), truth[80:]) > 0.8
    assert fitted.untrained == ["class 3"]
    np.testing.assert_allclose(fitted.scores(features).sum(axis=1), 1, rtol=1e-6)


def test_ignored_val_images_do_not_count() -> None:
    train, val = make_data(100, 0), make_data(60, 1)
    ignored = ~val[1] & (np.random.default_rng(2).random(val[1].shape) < 0.3)
    fitted = run(train, (*val, ignored), [5])
    assert fitted.candidates[fitted.k] == mean_average_precision(fitted.scores(val[0]), val[1], ignored)
    assert fitted.candidates != run(train, val, [5]).candidates


@pytest.mark.parametrize("block", [1, 130, 7 * 120])
@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_and_threads_change_nothing(block: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = make_data(120, 0), make_data(50, 1)
    train = np.concatenate([train[0]] * 2), np.concatenate([train[1], ~train[1]])  # each image twice: ties everywhere
    expected = run(train, val, [5, 9])
    monkeypatch.setattr(knn, "COSINES", block)
    monkeypatch.setattr(feature_set, "BLOCK", block)
    found = with_threads(threads, lambda: run(train, val, [5, 9]))
    assert found.candidates == expected.candidates
    np.testing.assert_array_equal(found.scores(val[0]), expected.scores(val[0]))


def test_equally_near_images_count_by_row() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 33)).astype(np.float32)
    truth = np.arange(70)[:, None] == [3, 0]
    judges = np.repeat(image, 2, axis=0), np.array([[True, False], [False, True]])
    # the same direction everywhere, in any length: none but the order of the rows can decide
    train = np.repeat(image, 70, axis=0) * 2.0 ** rng.integers(-3, 4, size=(70, 1)).astype(np.float32)
    scores = run((train, truth), judges, [3, 4]).scores
    np.testing.assert_array_equal(scores(image), [[0, np.float32(1 / 3)]])


def test_nearest_is_a_stable_descending_sort() -> None:
    rng = np.random.default_rng(0)
    cosine = rng.choice(np.array([-1, -0.5, -1e-20, -0.0, 0.0, 1e-20, 0.25, 1], dtype=np.float32), size=(40, 50))
    expected = np.argsort(-cosine, axis=1, kind="stable")
    for k in (1, 10, 49, 50):
        values, rows = (tensor.numpy() for tensor in nearest(torch.from_numpy(cosine), k))
        np.testing.assert_array_equal(rows, expected[:, :k])
        np.testing.assert_array_equal(values, np.take_along_axis(cosine, rows, axis=1))


def test_zeros_have_cosine_zero() -> None:
    train = np.array([[0, 0], [1, 0], [-1, 0]], dtype=np.float32)
    truth = np.eye(3, dtype=bool)
    fitted = run((train, truth), (train, truth), [3], temperature=1.0)
    weights = np.exp([0, 1, -1])
    np.testing.assert_allclose(fitted.scores(train[1:2])[0], weights / weights.sum(), rtol=1e-6)
    np.testing.assert_allclose(fitted.scores(train[:1])[0], [1 / 3] * 3, rtol=1e-6)


def test_a_very_low_temperature_is_the_nearest_neighbour() -> None:
    train, val = make_data(50, 0), make_data(20, 1)
    np.testing.assert_array_equal(
        run(train, val, [40], temperature=1e-9).scores(val[0]), run(train, val, [1]).scores(val[0])
    )


def test_untrained_classes_score_alike() -> None:
    train, val = make_data(60, 0), make_data(30, 1)
    train[1][:, 0] = False
    train[1][:, 2] = True
    fitted = run(train, val, [5])
    assert fitted.untrained == ["class 0", "class 2"]
    scores = fitted.scores(val[0])
    np.testing.assert_array_equal(scores[:, [0, 2]], [[0, 1]] * 30)


def test_what_cannot_be_done_is_refused() -> None:
    train, val = make_data(30, 0), make_data(30, 1)
    with pytest.raises(MlsError, match="ks: 31 neighbours can't be found among the 30 train images"):
        run(train, val, [31, 5])
    with pytest.raises(MlsError, match="val split of this dataset has no class with both positive and negative"):
        run(train, (val[0], np.zeros_like(val[1])), [5])
    with pytest.raises(MlsError, match="no class with both"):
        run((train[0][:, :1], np.ones((30, 1), dtype=bool)), (val[0][:, :1], val[1][:, :1]), [5])
    val[0][3, 1] = np.inf
    with pytest.raises(MlsError, match="1 of 30 val images are NaN or infinite"):
        run(train, val, [5])
    with pytest.raises(MlsError, match="train images are NaN"):
        run(val, train, [5])
