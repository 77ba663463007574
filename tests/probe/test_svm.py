"""Costs and scores are those of scikit-learn's cross-validation; draws are k and k x (C - 1); odd data is handled."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC
from sklearn.utils.parallel import Parallel

from mls.errors import MlsError
from mls.probe import svm
from mls.probe.svm import Fitted, draw, fit, low_shot

COSTS = [0.01, 1.0, 100.0]


def make_data(n: int, seed: int, classes: int = 3, dims: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Features whose directions tell the classes, through much noise."""
    rng = np.random.default_rng(seed)
    truth = rng.random((n, classes)) < 0.3
    features = 2 * np.pad(truth, ((0, 0), (0, dims - classes))) + rng.normal(size=(n, dims))
    return (features * rng.gamma(4, size=(n, 1))).astype(np.float32), truth


def run(train: Any, multi_label: bool = True, costs: list[float] = COSTS, folds: int = 3, threads: int = 1) -> Fitted:
    names = [f"class {i}" for i in range(train[1].shape[1])]
    return fit(*train, costs=costs, folds=folds, names=names, multi_label=multi_label, threads=threads)


def divide_by_length(features: np.ndarray) -> np.ndarray:
    return features.astype(np.float64) / (np.linalg.norm(features.astype(np.float64), axis=1) + 1e-5)[:, None]


@pytest.mark.filterwarnings("ignore:Liblinear failed")
def test_equals_scikit_learn_end_to_end() -> None:
    train, test = make_data(120, 0), make_data(60, 1)
    fitted = run(train)
    unit, unit_test = divide_by_length(train[0]), divide_by_length(test[0])
    for c in range(3):
        target = np.where(train[1][:, c], 1, -1)
        models = {
            cost: LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual=True, max_iter=2000, random_state=0)
            for cost in COSTS
        }
        values = {
            cost: cross_val_score(model, unit, target, cv=3, scoring="average_precision").mean()
            for cost, model in models.items()
        }
        assert fitted.cross_validation[f"class {c}"] == pytest.approx(values, abs=1e-12)
        best = max(values, key=lambda cost: values[cost])
        assert fitted.costs[f"class {c}"] == best
        expected = models[best].fit(unit, target).decision_function(unit_test)
        np.testing.assert_allclose(fitted.scores(test[0])[:, c], expected, rtol=1e-5, atol=1e-6)
    assert fitted.scores(test[0]).dtype == np.float32
    assert len(set(fitted.costs.values())) > 1, "each class has its own cost, or this proves little"


def test_equal_values_leave_the_smaller_cost() -> None:
    features = np.array([[-2, 1], [-1, 1], [1, 1], [2, 1]] * 5, dtype=np.float32)
    fitted = run((features, features[:, :1] > 0), costs=[100.0, 1.0, 10.0])
    assert set(fitted.cross_validation["class 0"].values()) == {1.0}
    assert fitted.costs == {"class 0": 1.0}


def test_too_few_images_for_the_folds_get_the_middle_cost() -> None:
    train = make_data(60, 0)
    train[1][:, 0] = np.arange(60) < 2
    train[1][:, 2] = np.arange(60) >= 2
    fitted = run(train, costs=[10.0, 0.1, 1.0, 5.0])
    assert fitted.not_cross_validated == ["class 0", "class 2"]
    assert fitted.costs["class 0"] == fitted.costs["class 2"] == 1.0
    assert list(fitted.cross_validation) == ["class 1"] and fitted.untrained == []
    assert np.ptp(fitted.scores(train[0]), axis=0).all()
    enough = run(train, folds=2)
    assert enough.not_cross_validated == [] and len(enough.cross_validation) == 3


def test_untrained_classes_score_alike() -> None:
    train = make_data(60, 0)
    train[1][:, 0] = False
    train[1][:, 2] = True
    fitted = run(train)
    assert fitted.untrained == ["class 0", "class 2"] and fitted.not_cross_validated == []
    np.testing.assert_array_equal(fitted.scores(train[0])[:, [0, 2]], 0)
    with pytest.raises(MlsError, match="no class with both"):
        run((train[0], train[1][:, [0, 2]]))


def test_single_label_sets_are_judged_one_against_the_rest() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=120)
    truth = np.eye(4, dtype=bool)[labels]  # the fourth class has no image
    features = (2 * truth + rng.normal(size=(120, 4))).astype(np.float32)
    fitted = run((features[:80], truth[:80]), multi_label=False)
    assert fitted.untrained == ["class 3"]
    assert (fitted.scores(features[80:]).argmax(axis=1) == labels[80:]).mean() > 0.8
    strange = fitted.scores(np.array([[-1, -1, -1, 0]], dtype=np.float32))
    assert (strange[:, :3] < 0).all() and strange.argmax() != 3, "like none, yet no image of an untrained class"


def test_fits_that_do_not_converge_are_counted_and_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    train = make_data(60, 0)
    assert run(train, costs=[0.01]).unconverged == 0
    monkeypatch.setattr(svm, "MAX_ITERATIONS", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(train, costs=[100.0, 1000.0]).unconverged == 3 * (2 * 3 + 1)


def test_features_that_are_not_finite_are_refused() -> None:
    train = make_data(60, 0)
    train[0][3:5, 7] = np.nan
    with pytest.raises(MlsError, match="2 of 60 train images are NaN or infinite"):
        run(train)


def test_features_of_zeros_are_harmless() -> None:
    train = make_data(60, 0)
    train[0][5] = 0
    fitted = run(train)
    np.testing.assert_allclose(fitted.scores(train[0])[5], fitted.bias_C, rtol=1e-6)


def test_features_are_divided_by_their_length_as_vissl_does_it() -> None:
    unit = svm.normalise(np.array([[3, 4], [3e-5, 4e-5], [0, 0]], dtype=np.float32)[:, ::-1])
    np.testing.assert_allclose(unit, [[4 / 5.00001, 3 / 5.00001], [4 / 6, 3 / 6], [0.0, 0.0]], rtol=1e-6)
    assert unit.dtype == np.float64 and unit.flags.c_contiguous, "or LIBLINEAR's wrapper copies it for each fit"


# ---------------------------------------------------------------------------------------- low-shot


def make_parts() -> tuple[Any, Any, Any]:
    """Train, val and test with a few ignored pairs each."""
    parts = []
    for seed, n in enumerate((120, 30, 60)):
        features, truth = make_data(n, seed)
        parts.append((features, truth, ~truth & (np.random.default_rng(50 + seed).random(truth.shape) < 0.2)))
    return tuple(parts)  # type: ignore[return-value]


def shoot(parts: Any, ks: list[int], samples: int = 3, costs: list[float] = COSTS, **more: Any) -> dict[str, float]:
    names = [f"class {i}" for i in range(parts[0][1].shape[1])]
    return low_shot(*parts, ks=ks, samples=samples, costs=costs, names=names, **{"seed": 5, **more})


def test_low_shot_equals_a_loop_over_scikit_learn() -> None:
    parts = make_parts()
    units = [divide_by_length(part[0]) for part in parts]
    found = shoot(parts, [2, 8])
    for k in (2, 8):
        mean_ap = np.zeros((2, 3, len(COSTS)))
        for sample in range(3):
            for index, cost in enumerate(COSTS):
                for c in range(3):
                    truth, ignored = parts[0][1][:, c], parts[0][2][:, c]
                    rng = np.random.default_rng((5, sample, k, c))
                    rows = [
                        *rng.choice(np.flatnonzero(truth), k, replace=False),
                        *rng.choice(np.flatnonzero(~truth & ~ignored), 2 * k, replace=False),
                    ]
                    model = LinearSVC(C=cost, class_weight={1: 2, 0: 1}, dual=True, max_iter=2000, random_state=0)
                    model.fit(units[0][np.sort(rows)], truth[np.sort(rows)].astype(int))
                    for place, (unit, part) in enumerate(zip(units[1:], parts[1:], strict=True)):
                        counts = ~part[2][:, c]
                        ap = average_precision_score(part[1][counts, c], model.decision_function(unit[counts]))
                        mean_ap[place, sample, index] += 100 * ap / 3
        on_val, on_test = mean_ap.mean(axis=1)
        for name, index in (("", on_val.argmax()), ("_best_on_test", on_test.argmax())):
            assert found[f"low_shot_{k}{name}_cost"] == COSTS[index]
            assert found[f"low_shot_{k}{name}"] == pytest.approx(on_test[index])
            assert found[f"low_shot_{k}{name}_std"] == pytest.approx(mean_ap[1, :, index].std())
        assert found[f"low_shot_{k}_val"] == pytest.approx(on_val.max())
    assert found["low_shot_unconverged"] == 0


def test_low_shot_cost_is_chosen_on_val() -> None:
    train, val, test = make_parts()
    # val says the opposite of test: its choice is another one, and no better than test's own
    found = shoot((train, (val[0], ~val[1], val[2] & False), test), [8], costs=[1e-4, 100.0])
    assert found["low_shot_8_cost"] != found["low_shot_8_best_on_test_cost"]
    assert found["low_shot_8"] < found["low_shot_8_best_on_test"]
    assert (
        found["low_shot_8_best_on_test"]
        == shoot((train, val, test), [8], costs=[1e-4, 100.0])["low_shot_8_best_on_test"]
    )


def test_draws_differ_by_sample_class_k_and_seed_and_hold_no_ignored_image() -> None:
    truth, ignored = np.arange(100) < 40, np.arange(100) >= 70
    names = ["a", "b", "c"]
    draws = [
        draw(truth, ignored, 4, names, c, seed)
        for c, seed in [(0, (0, 0, 4, 0)), (0, (0, 1, 4, 0)), (1, (0, 0, 4, 1)), (0, (1, 0, 4, 0))]
    ]
    for rows in draws:
        assert len(set(rows.tolist())) == 12 and truth[rows].sum() == 4 and not ignored[rows].any()
        assert (np.diff(rows) > 0).all()
    assert len({tuple(rows) for rows in draws}) == 4
    np.testing.assert_array_equal(draws[0], draw(truth, ignored, 4, names, 0, (0, 0, 4, 0)))


def test_low_shot_leaves_out_classes_that_a_split_lacks() -> None:
    train, val, test = make_parts()
    val[1][:, 1] = False
    test[1][:, 0] = False
    found = shoot((train, val, test), [4])
    assert all(np.isfinite(value) for value in found.values())


def test_low_shot_that_cannot_be_done_is_refused() -> None:
    train, val, test = make_parts()
    positives = int(train[1][:, 0].sum())
    with pytest.raises(
        MlsError, match=f"low_shot: 50 needs 50 positive .* class 'class 0', which has {positives}; lower"
    ):
        shoot((train, val, test), [1, 50])
    crowded = train[1].copy()
    crowded[:, 1] = np.arange(120) < 115
    with pytest.raises(
        MlsError, match=r"low_shot: 4 needs 8 negative train images of class 'class 1', which has [0-5];"
    ):
        shoot(((train[0], crowded, train[2] & ~crowded), val, test), [4])
    with pytest.raises(MlsError, match="a set of one class has no low-shot protocol"):
        shoot([[part[0], part[1][:, :1], part[2][:, :1]] for part in (train, val, test)], [4])
    with pytest.raises(MlsError, match="the val split of this dataset has no positive"):
        shoot((train, (val[0], val[1] & False, val[2]), test), [4])
    test[0][0, 0] = np.inf
    with pytest.raises(MlsError, match="1 of 60 test images are NaN or infinite"):
        shoot((train, val, test), [4])


def test_processes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, parts = make_data(90, 0), make_parts()
    alone, few_alone = run(train), shoot(parts, [4])
    used: list[int] = []

    def watched(n_jobs: int) -> Any:
        used.append(n_jobs)
        return Parallel(n_jobs=n_jobs)

    monkeypatch.setattr(svm, "Parallel", watched)
    assert shoot(parts, [4], threads=2) == few_alone and used == [1], "not worth it"
    monkeypatch.setattr(svm, "WORTH_PROCESSES", 1)
    together = run(train, threads=2)
    np.testing.assert_array_equal(together.weight_CD, alone.weight_CD)
    assert together.cross_validation == alone.cross_validation
    assert shoot(parts, [4], threads=2) == few_alone and used == [1, 2, 2, 2]
