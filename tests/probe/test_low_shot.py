"""Low-shot SVMs: draws are k and k x (C - 1) of train and val, drawn images are not evaluated, val chooses the cost."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.svm import LinearSVC

from mls.metrics import average_precision
from mls.probe.feature_set import Parts
from mls.probe.low_shot import Row, draw, low_shot
from mls.runtime import streams
from mls.runtime.errors import MlsError
from mls.runtime.files import write_csv
from tests.probe.support import COSTS, divide_by_length, images_of, make_directions

N = {"train": 60, "val": 40, "test": 60}


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    """Means of nothing warn; none may be taken."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def make_parts() -> list[list[np.ndarray]]:
    """Train, val and test with a few ignored pairs each."""
    parts = []
    for seed, n in enumerate(N.values()):
        features, truth = make_directions(n, seed)
        parts.append([features, truth, ~truth & (np.random.default_rng(50 + seed).random(truth.shape) < 0.2)])
    return parts


def shoot(
    parts: Any, ks: list[int], samples: int = 3, costs: list[float] = COSTS, **more: Any
) -> tuple[dict[str, float], list[Row]]:
    images = Parts(*(images_of(*part) for part in parts))
    return low_shot(images, ks=ks, samples=samples, costs=costs, **{"seed": 5, **more})


def table(rows: list[Row], k: int, part: str) -> np.ndarray:
    """Values of k, (samples, classes, costs)."""
    kept = [row for row in rows if row["k"] == k]
    axes = [sorted({row[name] for row in kept}) for name in ("sample", "class", "cost")]
    values = np.full([len(axis) for axis in axes], -1.0)
    for row in kept:
        values[tuple(axes[i].index(row[name]) for i, name in enumerate(("sample", "class", "cost")))] = row[part]
    assert len(kept) == values.size and -1 not in values, "each once"
    return values


def test_equals_a_loop_over_scikit_learn() -> None:
    train, val, test = parts = make_parts()
    metrics, rows = shoot(parts, [8, 2])
    unit, truth, ignored = (
        np.concatenate(pair) for pair in zip((divide_by_length(train[0]), *train[1:]), val, strict=True)
    )
    unit[N["train"] :] = divide_by_length(val[0])
    drawn_of_val = 0
    for k in (2, 8):
        expected = {"val": np.zeros((3, 3, 3)), "test": np.zeros((3, 3, 3))}
        fitted = {}
        for sample, c, i in np.ndindex(3, 3, 3):
            rng = np.random.default_rng((5, sample, k, c))
            drawn = np.sort(
                [
                    *rng.choice(np.flatnonzero(truth[:, c]), k, replace=False),
                    *rng.choice(np.flatnonzero(~truth[:, c] & ~ignored[:, c]), 2 * k, replace=False),
                ]
            )
            model = LinearSVC(C=COSTS[i], class_weight={1: 2, 0: 1}, dual=True, max_iter=2000, random_state=0)
            fitted[sample, c, i] = model.fit(unit[drawn], truth[drawn, c].astype(int))
            held = [n for n in range(N["train"], len(unit)) if n not in drawn and not ignored[n, c]]
            drawn_of_val += sum(drawn >= N["train"])
            counts = ~test[2][:, c]
            for part, of_part, unit_of_part in (
                ("val", truth[held, c], unit[held]),
                ("test", test[1][counts, c], divide_by_length(test[0])[counts]),
            ):
                ap = average_precision_score(of_part, model.decision_function(unit_of_part))
                expected[part][sample, c, i] = 100 * ap
        expected["test_envelope"] = np.zeros((3, 3, 3))
        for (sample, c, i), model in fitted.items():
            counts = ~test[2][:, c]
            scores = model.decision_function(divide_by_length(test[0])[counts])
            ap = average_precision(scores, test[1][counts, c], "envelope")
            expected["test_envelope"][sample, c, i] = 100 * ap
        for part, values in expected.items():
            np.testing.assert_allclose(table(rows, k, part), values, rtol=1e-9, err_msg=f"{k} {part}")
        on_val = expected["val"].mean(axis=(0, 1))
        for end in ("", "_envelope"):
            on_test = expected[f"test{end}"].mean(axis=1)
            for key, i in (("", on_val.argmax()), ("_best_on_test", on_test.mean(axis=0).argmax())):
                assert metrics[f"low_shot_{k}{key}{end}_cost"] == COSTS[i]
                assert metrics[f"low_shot_{k}{key}{end}"] == pytest.approx(on_test[:, i].mean())
                assert metrics[f"low_shot_{k}{key}{end}_std"] == pytest.approx(on_test[:, i].std())
        assert metrics[f"low_shot_{k}_envelope"] > metrics[f"low_shot_{k}"]
        assert metrics[f"low_shot_{k}_val"] == pytest.approx(on_val.max())
    assert drawn_of_val, "or this proves little"
    assert metrics["low_shot_unconverged"] == 0
    assert [row["k"] for row in rows] == [2] * 27 + [8] * 27


def test_cost_is_chosen_on_val() -> None:
    train, val, test = make_parts()
    opposite = [test[0], ~test[1], test[2] & False]
    (usual, _), (found, _) = (shoot([train, val, last], [8], costs=[1e-4, 100.0]) for last in (test, opposite))
    for key in ("low_shot_8_cost", "low_shot_8_val"):
        assert found[key] == usual[key], "test has no say"
    assert found["low_shot_8_cost"] != found["low_shot_8_best_on_test_cost"]
    assert found["low_shot_8"] < found["low_shot_8_best_on_test"]


def test_draws_differ_by_sample_class_and_seed_and_hold_no_ignored_image() -> None:
    truth, ignored = np.arange(100) < 40, np.arange(100) >= 70
    names = ["a", "b", "c"]
    draws = [
        draw(truth, ignored, 4, names, c, streams.few_images(*words))
        for c, words in [(0, (0, 0, 4, 0)), (0, (0, 1, 4, 0)), (1, (0, 0, 4, 1)), (0, (1, 0, 4, 0))]
    ]
    for rows in draws:
        assert len(set(rows.tolist())) == 12 and truth[rows].sum() == 4 and not ignored[rows].any()
        assert (np.diff(rows) > 0).all()
    assert len({tuple(rows) for rows in draws}) == 4
    np.testing.assert_array_equal(draws[0], draw(truth, ignored, 4, names, 0, streams.few_images(0, 0, 4, 0)))


def test_classes_that_a_split_lacks_are_left_out() -> None:
    train, val, test = make_parts()
    val[1][:, 1] = False
    test[1][:, 0] = False
    metrics, rows = shoot([train, val, test], [4])
    assert np.isnan(table(rows, 4, "val")[:, 1]).all() and np.isnan(table(rows, 4, "test")[:, 0]).all()
    on_val = table(rows, 4, "val")[:, [0, 2]].mean(axis=(0, 1))
    on_test = table(rows, 4, "test")[:, 1:].mean(axis=(0, 1))
    assert metrics["low_shot_4_val"] == pytest.approx(on_val.max())
    assert metrics["low_shot_4"] == pytest.approx(on_test[on_val.argmax()])
    assert metrics["low_shot_4_best_on_test"] == pytest.approx(on_test.max())


def test_every_positive_can_be_drawn(tmp_path: Any) -> None:
    """As VOC07's sheep, of which trainval has 96: with k = 96 val has none left to choose by."""
    train, val, test = make_parts()
    train[1][:, 0], val[1][:, 0] = np.arange(N["train"]) < 7, np.arange(N["val"]) < 3
    for part in (train, val):
        part[2] &= ~part[1]
    metrics, rows = shoot([train, val, test], [10])
    on_val = table(rows, 10, "val")
    assert np.isnan(on_val[:, 0]).all() and np.isfinite(on_val[:, 1:]).all()
    assert metrics["low_shot_10_val"] == pytest.approx(on_val[:, 1:].mean(axis=(0, 1)).max())
    assert metrics["low_shot_10"] == pytest.approx(
        table(rows, 10, "test").mean(axis=(0, 1))[COSTS.index(metrics["low_shot_10_cost"])]
    )
    write_csv(rows, tmp_path / "low_shot.csv")
    assert (tmp_path / "low_shot.csv").read_text().splitlines()[1].startswith("10,0,0,0.01,nan,")
    with pytest.raises(
        MlsError, match=r"low_shot: 11 needs 11 positive images of class 'class 0'; .* have 10; lower k"
    ):
        shoot([train, val, test], [11])


def test_a_class_is_left_out_of_the_samples_that_drew_its_val() -> None:
    train, val, test = make_parts()
    val[1][:, 0] = np.arange(N["val"]) == 4
    val[2][4, 0] = False
    metrics, rows = shoot([train, val, test], [int(train[1][:, 0].sum()) // 2], samples=6)
    (k,) = {int(row["k"]) for row in rows}
    on_val = table(rows, k, "val")
    gone = np.isnan(on_val[:, 0, 0])
    assert 0 < gone.sum() < 6, "or this proves little"
    assert np.isnan(on_val[gone, 0]).all() and np.isfinite(on_val[:, 1:]).all()
    of_class = [on_val[~gone, 0].mean(axis=0), on_val[:, 1].mean(axis=0), on_val[:, 2].mean(axis=0)]
    assert metrics[f"low_shot_{k}_val"] == pytest.approx(np.mean(of_class, axis=0).max())


def test_no_positive_of_val_left_is_an_error_before_any_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    train, val, test = make_parts()
    for c in range(3):  # three positives each, one of them in val
        train[1][:, c] = np.arange(N["train"]) // 2 == c
        val[1][:, c] = np.arange(N["val"]) == c
        train[2][:, c], val[2][:, c] = False, False
    found, _ = shoot([train, val, test], [1])
    assert 0 < found["low_shot_1_val"] <= 100
    monkeypatch.setattr("mls.probe.low_shot.fit_one", None)
    with pytest.raises(MlsError, match=r"low_shot: 3 draws every positive image of val, .* lower k"):
        shoot([train, val, test], [1, 3])


def test_what_cannot_be_done_is_refused() -> None:
    train, val, test = make_parts()
    have = int(train[1][:, 0].sum() + val[1][:, 0].sum())
    with pytest.raises(MlsError, match=f"50 needs 50 positive images of class 'class 0'; train and val have {have}; l"):
        shoot([train, val, test], [1, 50])
    crowded = [[part[0], part[1].copy(), part[2].copy()] for part in (train, val, test)]
    for part in crowded[:2]:
        part[1][:, 1] = np.arange(len(part[1])) >= 4
        part[2][:, 1] = np.arange(len(part[1])) < 1  # of the eight that lack the class two are ignored
    with pytest.raises(MlsError, match="4 needs 8 negative images of class 'class 1'; train and val have 6; lower k"):
        shoot(crowded, [4])
    with pytest.raises(MlsError, match="a set of one class has no low-shot protocol"):
        shoot([[part[0], part[1][:, :1], part[2][:, :1]] for part in (train, val, test)], [4])
    for index, split in list(enumerate(N))[1:]:
        without = [[part[0], part[1] & (index != i), part[2]] for i, part in enumerate((train, val, test))]
        with pytest.raises(MlsError, match=f"the {split} split of this dataset has no class with both"):
            shoot(without, [4])
    test[0][0, 0] = np.inf
    with pytest.raises(MlsError, match="1 of 60 test images are NaN or infinite"):
        shoot([train, val, test], [4])


def test_pickled_calls_and_results_give_the_same_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without starting any, which takes seconds and is tested for `mls.probe.svm`."""
    parts, seen = make_parts(), []
    alone = shoot(parts, [4, 4, 1])

    def elsewhere(calls: list[Any], processes: int, name: str) -> list[Any]:
        seen.append((len(calls), processes, name))
        return [pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(call))())) for call in reversed(calls)][::-1]

    monkeypatch.setattr("mls.probe.low_shot.in_processes", elsewhere)
    assert shoot(parts, [1, 4], threads=2, name="probe svm/mls: low-shot") == alone
    monkeypatch.setattr("mls.probe.low_shot.WORTH_PROCESSES", 100 * 20)
    assert shoot(parts, [1, 4], threads=2) == alone
    assert seen == [(18, 1, "probe svm/mls: low-shot"), (18, 2, "low-shot")], "3 samples x 3 classes x 2 ks"
