"""Which interval of mAP covers what? Simulated test sets with many classes and few positives.

    python benchmarks/intervals.py --case 500x260 --case 100x80      # minutes; appends to results/intervals.csv
    python benchmarks/intervals.py --case 5000x80 --sets 25

Scores are normal with deviation 1, and those of a class's positives are shifted: by 0.5 to 1.5 for a weak classifier,
by 2 to 3.5 for a good one. Each set is scored, resampled, and asked whether each kind of interval holds

- ``same_size``: the mean of mAP over test sets of that size;
- ``unlimited``: the mean over the set's own classes of average precision on infinitely many images;
- ``value``: the set's own mAP, which is printed beside the interval.

BCa's acceleration needs a jackknife over the images; sets of more than 500 images go without it.

Shape legend: N images, C classes, R resamples, P points of an integral.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from record import append
from scipy.stats import norm

from mls.metrics import Scores, Truth
from mls.probe.bootstrap import Sorted, resampled_average_precisions

RESULTS = Path(__file__).parent / "results" / "intervals.csv"
CASES = {"500x260": (500, 260, 0.003, 0.03), "5000x80": (5000, 80, 0.005, 0.3), "100x80": (100, 80, 0.01, 0.2)}
"""Images, classes, and the rarest and the most frequent class's share of the images; those between are geometric."""
SHIFTS = {"weak": (0.5, 1.5), "good": (2.0, 3.5)}
Z = float(norm.ppf(0.975))
Values = NDArray[np.float64]
Interval = tuple[float, float]


def main() -> None:
    """Simulate the sets and write a row per case, classifier and kind of interval."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=100)
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for case in options.case or CASES:
        for classifier in SHIFTS:
            rows = simulate(case, classifier, options.sets, options.resamples, options.seed)
            append(RESULTS, rows)
            for row in rows:
                print(*row.values(), sep="\t", flush=True)


def simulate(case: str, classifier: str, sets: int, resamples: int, seed: int) -> list[Mapping[str, object]]:
    """Return a row of shares and means over the sets for each kind of interval."""
    images, classes, least, most = CASES[case]
    rng = np.random.default_rng((seed, list(CASES).index(case), list(SHIFTS).index(classifier)))
    share_C, shift_C = np.geomspace(most, least, classes), rng.uniform(*SHIFTS[classifier], classes)
    unlimited_C = unlimited(share_C, shift_C)
    values, limits, found = [], [], []
    for _ in range(sets):
        truth_NC = rng.random((images, classes)) < share_C
        scores_NC = (rng.normal(size=(images, classes)) + shift_C * truth_NC).astype(np.float32)
        plain_CR = resampled_average_precisions(scores_NC, truth_NC, resamples=resamples)
        stratified_CR = within_classes(scores_NC, truth_NC, resamples, rng)
        value = float(np.nanmean(plain_CR[:, 0]))
        plain_R, stratified_R = (np.nanmean(one_CR, axis=0) for one_CR in (plain_CR[:, 1:], stratified_CR))
        values.append(value)
        limits.append(float(unlimited_C[~np.isnan(plain_CR[:, 0])].mean()))
        jackknife_N = left_out_one(scores_NC, truth_NC) if images <= 500 else np.zeros(2)
        found.append(kinds(value, plain_R, stratified_R, jackknife_N))
    same_size = float(np.mean(values))
    rows: list[Mapping[str, object]] = []
    for kind in found[0]:
        ends = np.array([one[kind] for one in found])
        row = {"case": case, "classifier": classifier, "kind": kind, "sets": sets, "resamples": resamples}
        row |= {"mAP": round(100 * same_size, 2), "unlimited_mAP": round(100 * float(np.mean(limits)), 2)}
        for name, goal in (("same_size", same_size), ("unlimited", np.array(limits)), ("value", np.array(values))):
            row[f"covers_{name}"] = round(float(np.mean((ends[:, 0] <= goal) & (goal <= ends[:, 1]))), 3)
        rows.append(row | {"half_width": round(50 * float(np.mean(ends[:, 1] - ends[:, 0])), 2)})
    return rows


def kinds(value: float, plain_R: Values, stratified_R: Values, jackknife_N: Values) -> dict[str, Interval]:
    """Return each kind of 95 % interval of one set's mAP."""
    found: dict[str, Interval] = {}
    for name, resampled_R in (("", plain_R), ("stratified ", stratified_R)):
        low, high = np.quantile(resampled_R, [0.025, 0.975])
        spread, bias = Z * resampled_R.std(), resampled_R.mean() - value
        found[f"{name}basic"] = 2 * value - high, 2 * value - low
        found[f"{name}percentile"] = low, high
        found[f"{name}normal"] = value - spread, value + spread
        found[f"{name}normal, bias-corrected"] = value - bias - spread, value - bias + spread
    below = np.clip((plain_R < value).mean(), 0.5 / len(plain_R), 1 - 0.5 / len(plain_R))
    apart_N = jackknife_N.mean() - jackknife_N
    skew = (apart_N**3).sum() / max(6 * (apart_N**2).sum() ** 1.5, 1e-12)
    shifted = norm.ppf(below) + np.array([-Z, Z])
    ends = np.quantile(plain_R, norm.cdf(norm.ppf(below) + shifted / (1 - skew * shifted)))
    return found | {"BCa": (ends[0], ends[1])}


def within_classes(scores_NC: Scores, truth_NC: Truth, resamples: int, rng: np.random.Generator) -> Values:
    """Return average precision (C, R) where each class draws its positives, and its negatives, by themselves."""
    values = []
    for scores_N, truth_N in zip(scores_NC.T, truth_NC.T, strict=True):
        weights_NR = np.zeros((len(truth_N), resamples), dtype=np.float32)
        for group in (np.flatnonzero(truth_N), np.flatnonzero(~truth_N)):
            if len(group):
                drawn_RN = rng.integers(len(group), size=(resamples, len(group)))
                drawn_RN += len(group) * np.arange(resamples)[:, None]
                counts = np.bincount(drawn_RN.ravel(), minlength=resamples * len(group))
                weights_NR[group] = counts.reshape(resamples, -1).T
        values.append(Sorted.of(scores_N, truth_N, np.ones_like(truth_N)).average_precisions(weights_NR))
    return np.stack(values)


def left_out_one(scores_NC: Scores, truth_NC: Truth) -> Values:
    """Return mAP (N,) without each of the images."""
    weights_NR = 1 - np.eye(len(truth_NC), dtype=np.float32)
    everything = np.ones(len(truth_NC), dtype=bool)
    of_classes = [Sorted.of(*columns, everything) for columns in zip(scores_NC.T, truth_NC.T, strict=True)]
    means_N: Values = np.nanmean([one.average_precisions(weights_NR) for one in of_classes], axis=0)
    return means_N


def unlimited(share_C: Values, shift_C: Values) -> Values:
    """Return each class's average precision on infinitely many images (C,): precision integrated over recall."""
    points_P = np.linspace(-8, 12, 4001)
    recall_CP = norm.sf(points_P - shift_C[:, None])
    found_CP = share_C[:, None] * recall_CP
    precision_CP = found_CP / (found_CP + (1 - share_C[:, None]) * norm.sf(points_P))
    density_CP = norm.pdf(points_P - shift_C[:, None])
    areas_C: Values = np.trapezoid(precision_CP * density_CP, points_P, axis=1)
    return areas_C


if __name__ == "__main__":
    main()
