"""Costs and scores are those of scikit-learn's cross-validation; odd data is handled."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC
from sklearn.utils.parallel import Parallel

from mls.probe import svm
from mls.probe.svm import SvmFit, fit_costs
from mls.runtime.errors import MlsError
from tests.probe.support import COSTS, divide_by_length, images_of, make_directions


def run(train: Any, multi_label: bool = True, costs: list[float] = COSTS, folds: int = 3, threads: int = 1) -> SvmFit:
    return fit_costs(images_of(*train, multi_label=multi_label), costs=costs, folds=folds, threads=threads)


@pytest.mark.filterwarnings("ignore:Liblinear failed")
def test_equals_scikit_learn_end_to_end() -> None:
    train, test = make_directions(120, 0), make_directions(60, 1)
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
    train = make_directions(60, 0)
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
    train = make_directions(60, 0)
    train[1][:, 0] = False
    train[1][:, 2] = True
    fitted = run(train)
    assert fitted.untrained == ["class 0", "class 2"] and fitted.not_cross_validated == []
    np.testing.assert_array_equal(fitted.scores(train[0])[:, [0, 2]], 0)
    with pytest.raises(MlsError, match="no class with both"):
        run((train[0], train[1][:, [0, 2]]))


def test_single_label_sets_are_fitted_one_against_the_rest() -> None:
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
    train = make_directions(60, 0)
    assert run(train, costs=[0.01]).unconverged == 0
    monkeypatch.setattr(svm, "FIT_ITERATIONS", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(train, costs=[100.0, 1000.0]).unconverged == 3 * (2 * 3 + 1)


def test_features_that_are_not_finite_are_refused() -> None:
    train = make_directions(60, 0)
    train[0][3:5, 7] = np.nan
    with pytest.raises(MlsError, match="2 of 60 train images are NaN or infinite"):
        run(train)


def test_features_of_zeros_are_harmless() -> None:
    train = make_directions(60, 0)
    train[0][5] = 0
    fitted = run(train)
    np.testing.assert_allclose(fitted.scores(train[0])[5], fitted.bias_C, rtol=1e-6)


def test_features_are_divided_by_their_length_as_vissl_does_it() -> None:
    unit = svm.divide_by_norm(np.array([[3, 4], [3e-5, 4e-5], [0, 0]], dtype=np.float32)[:, ::-1])
    np.testing.assert_allclose(unit, [[4 / 5.00001, 3 / 5.00001], [4 / 6, 3 / 6], [0.0, 0.0]], rtol=1e-6)
    assert unit.dtype == np.float64 and unit.flags.c_contiguous, "or LIBLINEAR's wrapper copies it for each fit"


def test_processes_change_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    train = make_directions(90, 0)
    alone = run(train)
    used: list[int] = []

    def watched(n_jobs: int, **more: Any) -> Any:
        used.append(n_jobs)
        return Parallel(n_jobs=n_jobs, **more)

    monkeypatch.setattr(svm, "Parallel", watched)
    run(train, threads=2)
    assert used == [1, 1], "not worth it"
    monkeypatch.setattr(svm, "WORTH_PROCESSES", 1)
    together = run(train, threads=2)
    assert used == [1, 1, 2, 2]
    np.testing.assert_array_equal(together.weight_CD, alone.weight_CD)
    assert together.cross_validation == alone.cross_validation
    shown = capsys.readouterr().err
    assert "[svm: cross-validation] 9/9" in shown and "[svm: all images] 3/3" in shown


def test_progress_bears_the_name_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    results = svm.in_processes([partial(pow, 2, i) for i in range(3)], 1, "probe svm/mls")
    assert results == [1, 2, 4], "in the order of the calls"
    assert "[probe svm/mls] 3/3" in capsys.readouterr().err
