"""benchmarks/contrasts.py: paired tests from a table's means and intervals, and intervals over images."""

from __future__ import annotations

import csv
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import t, ttest_rel

from mls.probe.bootstrap import resampled_average_precisions
from mls.probe.evaluation import summarise, write_predictions
from tests.probe.support import make_evaluation

ROOT = Path(__file__).parents[1]


@pytest.fixture
def contrasts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("contrasts")


def half_width(values: np.ndarray) -> float:
    return float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


@pytest.mark.parametrize("n", [2, 5, 12])
def test_it_finds_what_scipy_finds_in_the_pairs(n: int, contrasts: ModuleType) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.normal(1, 1, n), rng.normal(0, 1, n)
    found = contrasts.paired_test(float((a - b).mean()), half_width(a - b), n, target=1.0)
    expected = ttest_rel(a, b)
    low, high = expected.confidence_interval()
    assert (found["p"], found["low"], found["high"]) == pytest.approx((expected.pvalue, low, high))
    assert found["sd"] == pytest.approx((a - b).std(ddof=1))


def test_the_detectable_difference_is_found_in_80_of_100_tries(contrasts: ModuleType) -> None:
    n, sd = 5, 0.7
    width = sd * t.ppf(0.975, n - 1) / np.sqrt(n)
    detectable = contrasts.paired_test(0.1, width, n, target=1.0)["detectable"]
    pairs = np.random.default_rng(0).normal(detectable, sd, (20_000, n))
    found = np.abs(pairs.mean(axis=1)) / (pairs.std(axis=1, ddof=1) / np.sqrt(n)) > t.ppf(0.975, n - 1)
    assert found.mean() == pytest.approx(0.8, abs=0.01)


def test_the_number_of_pairs_is_the_smallest_with_that_power(contrasts: ModuleType) -> None:
    for sd in (0.3, 0.8, 2.0):
        width = sd * t.ppf(0.975, 3) / 2
        n = contrasts.paired_test(0.1, width, 4, target=1.0)["n_needed"]
        assert contrasts.power(1 / sd, n) >= 0.8 > contrasts.power(1 / sd, n - 1)


def test_holm(contrasts: ModuleType) -> None:
    assert contrasts.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert contrasts.holm([0.6, 0.9]) == [1, 1]


def test_the_interval_over_images(contrasts: ModuleType, tmp_path: Path) -> None:
    """Untrained classes don't count; against itself it is empty, else around the difference of the metrics."""
    found = replace(make_evaluation(60), untrained=["person"])
    write_predictions(found, tmp_path / "a.parquet")
    kept = found.scores_NC[:, 1:], found.truth_NC[:, 1:], found.ignored_NC[:, 1:]
    resampled = np.nanmean(resampled_average_precisions(*kept, resamples=1000), axis=0)
    assert contrasts.mean_resamples([tmp_path / "a.parquet"]) == pytest.approx(resampled)

    worse = replace(found, scores_NC=-found.scores_NC)
    write_predictions(worse, tmp_path / "b.parquet")
    a, b = tmp_path / "a.parquet", tmp_path / "b.parquet"
    assert contrasts.image_interval([a, b], [b, a]) == pytest.approx((0, 0))
    low, high = contrasts.image_interval([a], [b])
    expected = summarise(found)["mAP"] - summarise(worse)["mAP"]
    assert (low + high) / 2 == pytest.approx(expected) and low < expected < high


def test_it_reads_a_published_experiment(
    contrasts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contrasts, "RESULTS", tmp_path / "contrasts.csv")
    difference = "random - moco-v2"
    published = ROOT / "results" / "scenes-3seeds"
    monkeypatch.setattr(sys, "argv", ["contrasts.py", str(published), "--column", "linear.mAP", difference])
    contrasts.main()
    (row,) = csv.DictReader((tmp_path / "contrasts.csv").read_text().splitlines())
    cell = json.loads((published / "metrics.json").read_text())["main"][difference]["linear.mAP"]
    assert (row["difference"], row["n"]) == (difference, "3") and "p_holm" in capsys.readouterr().out
    assert float(row["mean"]) == pytest.approx(cell["mean"], rel=1e-2)
    assert float(row["high"]) - float(row["low"]) == pytest.approx(2 * cell["half_width"], rel=1e-2)


def test_one_pair_and_a_row_that_is_not_there(
    contrasts: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert contrasts.paired_test(1.2, None, 1, target=1.0) == {"n": 1, "mean": 1.2}
    published = ROOT / "results" / "scenes-3seeds"
    monkeypatch.setattr(sys, "argv", ["contrasts.py", str(published), "--column", "linear.mAP", "mls - random"])
    with pytest.raises(SystemExit):
        contrasts.main()
    assert "no linear.mAP of 'mls - random'; rows: 'mls', 'mls - moco-v2'" in capsys.readouterr().err
