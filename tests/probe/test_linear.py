"""The strength comes from val, odd data is handled or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mls.config.probes import LinearProbe
from mls.metrics import mean_average_precision, top1
from mls.probe.linear import fit_strengths, standardisation, standardise
from mls.probe.logistic import Logistic
from mls.runtime.errors import MlsError
from tests.probe.support import images_of, with_threads

STRENGTHS = [1e-4, 1e-2, 1.0, 100.0]


def make_data(n: int, seed: int, classes: int = 3, dims: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Features whose first columns tell the classes, through much noise."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, dims)).astype(np.float32)
    truth = features[:, :classes] + rng.normal(size=(n, classes)) > 0.5
    return features, truth


def fit_multi(train: Any, val: Any, strengths: list[float] = STRENGTHS, **more: Any) -> Any:
    return fit_strengths(images_of(*train), images_of(*val), strengths=strengths, **more)


def test_strength_is_chosen_on_val_not_on_test_or_train() -> None:
    train, val, test = make_data(40, 0), make_data(400, 1), make_data(400, 2)
    fitted = fit_multi(train, val)
    alone = {c: fit_multi(train, val, [c]) for c in STRENGTHS}
    on_val = {c: mean_average_precision(alone[c].scores(val[0]), val[1]) for c in STRENGTHS}
    on_train = {c: mean_average_precision(alone[c].scores(train[0]), train[1]) for c in STRENGTHS}
    assert fitted.strength == max(on_val, key=lambda c: on_val[c])
    assert fitted.strength != max(on_train, key=lambda c: on_train[c])  # or this would prove nothing
    assert fitted.candidates[fitted.strength] == pytest.approx(on_val[fitted.strength], abs=1e-3)
    # the same train data and other val labels: another choice, so it is val that chooses
    inverted = (val[0], ~val[1])
    other = fit_multi(train, inverted)
    assert other.strength != fitted.strength
    assert mean_average_precision(fitted.scores(test[0]), test[1]) > 1.5 * test[1].mean()  # chance is the mean


def test_ties_go_to_the_smaller_strength() -> None:
    features = np.array([[-2.0], [-1.0], [1.0], [2.0]] * 5, dtype=np.float32)
    data = features, features > 0
    fitted = fit_multi(data, data, [100.0, 0.01, 1.0])
    assert set(fitted.candidates.values()) == {1.0}
    assert fitted.strength == 0.01


def sklearn_fit(train: Any, strength: float, label: int, seen: Any = slice(None)) -> tuple[Any, Any, Any]:
    """A tightly converged fit of scikit-learn's on standardised features; the standardised features and 0/1 truth."""
    standard = ((train[0] - train[0].mean(0)) / train[0].std(0)).astype(np.float64)[seen]
    truth = train[1][seen, label]
    model = LogisticRegression(C=strength, tol=1e-12, solver="newton-cholesky", max_iter=1000)
    return model.fit(standard, truth), standard, truth


def objective(strength: float, weight: Any, bias: float, standard: Any, truth: Any) -> float:
    """Mean loss and penalty, as scikit-learn defines C."""
    logit = standard @ weight + bias
    return float(np.mean(np.logaddexp(0, logit) - logit * truth) + weight @ weight / (2 * strength * len(truth)))


def make_case(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Features and classes, each with something odd."""
    rng = np.random.default_rng(0)
    dims = 200 if name == "fewer images than features" else 30
    features = rng.normal(size=(120, dims)).astype(np.float32)
    truth = features[:, :4] + rng.normal(size=(120, 4)) > [-0.5, 0.5, 1.5, 2.5]
    if name == "scales":
        features *= 10.0 ** rng.uniform(-4, 4, size=dims).astype(np.float32)
    elif name == "outliers":
        features = np.exp(np.clip(rng.standard_cauchy(size=features.shape), -20, 20)).astype(np.float32)
    elif name == "collinear":
        features = features[:, :1] + 1e-3 * features
    elif name == "duplicates":
        features[:60] = features[60:]
    elif name == "constants":
        features[:, 4], features[:, 5] = 0, 1e4 / 3
    elif name == "separable":
        truth = features[:, :4] > 0
    elif name == "one positive":
        truth = np.arange(120)[:, None] == [3, 50, 51, 119]
    return features, truth


CASES = ["plain", "fewer images than features", "scales", "outliers", "collinear", "duplicates", "constants"]


@pytest.mark.parametrize("name", [*CASES, "separable", "one positive"])
def test_every_strength_reaches_scikit_learns_minimum(name: str) -> None:
    features, truth = make_case(name)
    standard = standardise(features, *standardisation(features))
    problem = Logistic(standard, torch.from_numpy(truth), torch.ones(truth.shape, dtype=torch.bool))
    found, wide = None, standard.double().numpy()
    for strength in [1e-6, *LinearProbe(kind="linear", dataset="d").strengths, 1000.0]:
        found = problem.fit(strength, found)
        assert found.converged_C.all() and found.iterations_C.max() < 600
        scores, expected = np.zeros(truth.shape, np.float32), np.zeros(truth.shape, np.float32)
        for c in range(truth.shape[1]):
            model = LogisticRegression(C=strength, tol=1e-13, solver="newton-cholesky", max_iter=2000)
            model.fit(wide, truth[:, c])
            ours = objective(strength, found.weight_CD[c].numpy(), float(found.bias_C[c]), wide, truth[:, c])
            theirs = objective(strength, model.coef_[0], model.intercept_[0], wide, truth[:, c])
            assert theirs * (1 - 1e-9) <= ours <= theirs * (1 + 1e-6)
            assert float(found.objective_C[c]) == pytest.approx(ours, rel=1e-6)
            scores[:, c] = wide @ found.weight_CD[c].numpy() + float(found.bias_C[c])
            expected[:, c] = model.decision_function(wide)
        # strong penalties leave scores that hardly differ, of which float32 decides the order
        if strength >= 0.01:
            assert mean_average_precision(scores, truth) == pytest.approx(
                mean_average_precision(expected, truth), abs=1e-4
            )


@pytest.mark.parametrize("strength", [1e-4, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("dims", [20, 400])  # fewer and more than images
def test_scores_of_other_images_are_scikit_learns(strength: float, dims: int) -> None:
    classes = 12
    train, val = make_data(300, 0, classes, dims), make_data(2000, 1, classes, dims)
    fitted = fit_multi(train, val, [strength])
    mean, std = train[0].mean(0), train[0].std(0)
    scores, expected = fitted.scores(val[0]), np.zeros((2000, classes), np.float32)
    for c in range(classes):
        model, _, _ = sklearn_fit(train, strength, c)
        expected[:, c] = model.decision_function((val[0] - mean) / std)
    np.testing.assert_allclose(scores, expected, atol=2e-3 * np.abs(expected).max())
    found, wanted = (mean_average_precision(values, val[1]) for values in (scores, expected))
    assert found == pytest.approx(wanted, abs=1e-4)
    assert fitted.unconverged == 0


@pytest.mark.parametrize("dims", [3, 60])
def test_softmax_regression_reaches_scikit_learns_minimum(dims: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(50) % 4
    truth, standard = np.eye(4, dtype=bool)[labels], rng.normal(size=(50, dims)).astype(np.float32)
    problem = Logistic(
        torch.from_numpy(standard), torch.from_numpy(truth), torch.ones(50, 4, dtype=torch.bool), exclusive=True
    )
    found, wide = None, standard.astype(np.float64)
    for strength in (1e-4, 0.01, 1.0, 100.0):
        found = problem.fit(strength, found)
        model = LogisticRegression(C=strength, tol=1e-10, solver="newton-cg", max_iter=2000).fit(wide, labels)
        assert found.converged_C.all()
        values = []
        for weight_CD, bias_C in ((found.weight_CD.numpy(), found.bias_C.numpy()), (model.coef_, model.intercept_)):
            logits = wide @ weight_CD.T + bias_C
            loss = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(50), labels]
            values.append(loss.mean() + np.square(weight_CD).sum() / (2 * strength * 50))
        assert values[0] <= values[1] * (1 + 1e-6)
        np.testing.assert_allclose(found.objective_C.numpy(), values[0], rtol=1e-6)


def test_an_ignored_image_is_not_there_for_its_class() -> None:
    train, val = make_data(120, 0), make_data(100, 1)
    ignored = np.zeros_like(train[1])
    ignored[:50, 1] = True
    plain = fit_multi(train, val, [0.1])
    fitted = fit_multi((*train, ignored), val, [0.1])
    flipped = fit_multi((train[0], train[1] ^ ignored, ignored), val, [0.1])
    scores = fitted.scores(val[0])
    np.testing.assert_array_equal(scores, flipped.scores(val[0]))
    np.testing.assert_allclose(scores[:, [0, 2]], plain.scores(val[0])[:, [0, 2]], atol=1e-4)
    model, _, _ = sklearn_fit(train, 0.1, 1, slice(50, None))
    expected = model.decision_function((val[0] - train[0].mean(0)) / train[0].std(0))
    np.testing.assert_allclose(scores[:, 1], expected, atol=1e-3)
    assert np.abs(plain.scores(val[0])[:, 1] - expected).max() > 0.1


def test_an_image_that_val_ignores_does_not_count() -> None:
    train, val = make_data(120, 0), make_data(100, 1)
    alone = fit_multi(train, (val[0][30:], val[1][30:]))
    ignored = np.zeros_like(val[1])
    ignored[:30] = True
    assert fit_multi(train, (*val, ignored)).candidates == alone.candidates != fit_multi(train, val).candidates


def test_a_class_of_which_all_positives_are_ignored_is_untrained() -> None:
    train, val = make_data(60, 0), make_data(60, 1)
    fitted = fit_multi((*train, train[1] & [[False, True, False]]), val)
    assert fitted.untrained == ["class 1"]
    fitted = fit_multi((*train, ~train[1] & [[True, False, False]]), val)
    assert fitted.untrained == ["class 0"]
    with pytest.raises(MlsError, match="no class with both"):
        fit_multi((*train, train[1]), val)


def test_fits_repeat_bit_by_bit_and_threads_change_the_last_digits_only() -> None:
    train, val = make_data(150, 0, 23, 60), make_data(80, 1, 23, 60)
    first, same, other = [with_threads(threads, lambda: fit_multi(train, val)) for threads in (1, 1, 2)]
    assert same.candidates == first.candidates and same.iterations == first.iterations
    np.testing.assert_array_equal(same.weight_CD, first.weight_CD)
    np.testing.assert_array_equal(same.bias_C, first.bias_C)
    np.testing.assert_allclose(other.weight_CD, first.weight_CD, atol=1e-3 * np.abs(first.weight_CD).max())


def test_blocks_of_features_change_the_last_digits_only(monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = make_data(150, 0), make_data(80, 1)
    whole = fit_multi(train, val)
    monkeypatch.setattr("mls.probe.feature_set.BLOCK", 37 * 20)
    parts = fit_multi(train, val)
    np.testing.assert_allclose(parts.scores(val[0]), whole.scores(val[0]), atol=1e-3)
    assert parts.strength == whole.strength


def test_fits_that_do_not_converge_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = make_data(60, 0), make_data(60, 1)
    monkeypatch.setattr("mls.probe.logistic.MAX_ITERATIONS", 1)
    found = fit_multi(train, val, [0.1, 1.0])
    assert found.unconverged == 6 and found.iterations == {0.1: 1, 1.0: 1}
    monkeypatch.setattr("mls.probe.logistic.MAX_ITERATIONS", 1000)
    assert fit_multi(train, val, [0.1, 1.0]).unconverged == 0


def test_single_label_sets_get_softmax_regression() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=300)
    features = (np.eye(3)[labels] * 2 + rng.normal(size=(300, 3))).astype(np.float32)
    truth = np.eye(4, dtype=bool)[labels]  # the fourth class has no image
    train, val = (images_of(features[part], truth[part], multi_label=False) for part in (slice(200), slice(200, None)))
    fitted = fit_strengths(train, val, strengths=STRENGTHS)
    assert fitted.untrained == ["class 3"]
    assert fitted.candidates[fitted.strength] == top1(fitted.scores(features[200:]), truth[200:]) > 0.7
    model = LogisticRegression(C=fitted.strength, tol=1e-8).fit(features[:200], labels[:200])
    same = fitted.scores(features[200:]).argmax(1) == model.predict(features[200:])
    assert same.mean() > 0.95  # the same model but for standardised features


def test_softmax_regression_of_two_classes() -> None:
    features = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
    truth = np.stack([features[:, 0] > 0.1, features[:, 0] <= 0.1], axis=1)
    images = images_of(features, truth, multi_label=False)
    fitted = fit_strengths(images, images, strengths=[100.0])
    assert fitted.candidates[fitted.strength] > 0.9


def test_untrained_classes_score_alike() -> None:
    train, val = make_data(60, 0), make_data(60, 1)
    train[1][:, 0] = False
    train[1][:, 2] = True
    fitted = fit_multi(train, val)
    assert fitted.untrained == ["class 0", "class 2"]
    scores = fitted.scores(val[0])
    assert np.ptp(scores[:, 0]) == np.ptp(scores[:, 2]) == 0 < np.ptp(scores[:, 1])


def test_constant_features_are_harmless() -> None:
    train, val = make_data(60, 0), make_data(60, 1)
    plain = fit_multi(train, val)
    constant = np.full((60, 2), [0.0, 1e4 / 3], dtype=np.float32)
    fitted = fit_multi((np.hstack([train[0], constant]), train[1]), (np.hstack([val[0], constant]), val[1]))
    assert np.isfinite(fitted.scores(np.hstack([val[0], constant]))).all()
    assert fitted.candidates[fitted.strength] == pytest.approx(plain.candidates[plain.strength], abs=1e-3)


def test_nan_features_are_refused() -> None:
    train, val = make_data(60, 0), make_data(60, 1)
    val[0][3:5, 7] = np.nan
    with pytest.raises(MlsError, match="2 of 60 val images are NaN or infinite"):
        fit_multi(train, val)
    with pytest.raises(MlsError, match="train images are NaN"):
        fit_multi(val, train)


def test_nothing_to_learn_or_to_choose_by_is_refused() -> None:
    train, val = make_data(60, 0), make_data(60, 1)
    with pytest.raises(MlsError, match="val split of this dataset has no class with both positive and negative"):
        fit_multi(train, (val[0], np.zeros_like(val[1])))
    with pytest.raises(MlsError, match="no class with both"):
        fit_multi((train[0], np.ones_like(train[1])), val)
