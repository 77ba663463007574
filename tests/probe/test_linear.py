"""The strength comes from val, odd data is handled or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mls.metrics import mean_average_precision, top1
from mls.probe.linear import fit_strengths
from mls.runtime.errors import MlsError
from tests.probe.support import images_of

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


@pytest.mark.parametrize("strength", [1e-4, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("dims", [20, 400])  # fewer and more than images
def test_equals_scikit_learn(strength: float, dims: int) -> None:
    classes = 12
    train, val = make_data(300, 0, classes, dims), make_data(100, 1, classes, dims)
    fitted = fit_multi(train, val, [strength])
    mean, std = train[0].mean(0), train[0].std(0)
    scores = fitted.scores(val[0])
    for index in (0, 5, 11):
        model, standard, truth = sklearn_fit(train, strength, index)
        expected = model.decision_function((val[0] - mean) / std)
        # where classes can be told apart without error, the solver stops before the scores have grown to their end
        assert np.corrcoef(scores[:, index], expected)[0, 1] > 0.98
        ours = objective(strength, fitted.weight_CD[index], fitted.bias_C[index], standard, truth)
        theirs = objective(strength, model.coef_[0], model.intercept_[0], standard, truth)
        assert theirs - 1e-9 <= ours < theirs + 1e-3
    assert fitted.unconverged == 0


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


def test_threads_have_no_effect_and_fits_repeat_bit_by_bit() -> None:
    train, val = make_data(150, 0, 23, 60), make_data(80, 1, 23, 60)
    first, *others = [fit_multi(train, val, threads=threads) for threads in (1, 1, 2, 5)]
    for other in others:
        assert other.candidates == first.candidates
        np.testing.assert_array_equal(other.weight_CD, first.weight_CD)
        np.testing.assert_array_equal(other.bias_C, first.bias_C)


def test_fits_that_do_not_converge_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = make_data(60, 0), make_data(60, 1)
    monkeypatch.setattr("mls.probe.linear.MAX_ITERATIONS", 1)
    assert fit_multi(train, val, [0.1, 1.0]).unconverged == 6
    monkeypatch.setattr("mls.probe.linear.MAX_ITERATIONS", 1000)
    assert fit_multi(train, val, [0.1, 1.0]).unconverged == 0


@pytest.mark.parametrize("kind", ["scales", "outliers", "collinear", "duplicates", "separable"])
def test_odd_features_still_converge(kind: str) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, 30)).astype(np.float32)
    truth = rng.random((120, 4)) < 0.3
    if kind == "scales":
        features *= 10.0 ** rng.uniform(-4, 4, size=30).astype(np.float32)
    elif kind == "outliers":
        features = np.exp(np.clip(rng.standard_cauchy(size=features.shape), -20, 20)).astype(np.float32)
    elif kind == "collinear":
        features = features[:, :1] + 1e-3 * features
    elif kind == "duplicates":
        features[:60] = features[60:]
    else:
        truth = features[:, :4] > 0
    fitted = fit_multi((features, truth), (features, truth), [1e-6, 1e-2, 1.0, 100.0, 1000.0])
    assert fitted.unconverged == 0 and np.isfinite(fitted.scores(features)).all()


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
