"""How sure are the differences in a table? From a published experiment, paired by seed.

    python benchmarks/contrasts.py results/coco-3k --column linear.mAP "best - moco-v2" "warm-up - moco-v2"
    python benchmarks/contrasts.py results/coco-3k --column linear.mAP "best - moco-v2" --store STORE

Prints for each difference, and appends to results/contrasts.csv, in percentage points:

- ``mean`` and ``sd`` of the n pairs, ``low`` and ``high`` of the mean's 95 % t-interval;
- ``p`` of the two-sided paired t-test, and ``p_holm``, corrected for the differences given [Holm, 1979];
- ``detectable``: the smallest true difference that n pairs with this sd find, at 5 %, in 80 of 100 tries;
- ``n_needed``: how many pairs find a true difference of ``--target`` points as often;
- with ``--store``, ``images_low`` and ``images_high``: the 95 % interval over other test images. Both rows are scored
  on the same resamples of the images (`mls.probe.bootstrap`); the pretrainings stay the same.

All but the last follow from metrics.json alone. One pair has ``mean`` and the interval over images only.

Shape legend: N images, C classes, R resamples.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from record import append
from scipy.optimize import brentq
from scipy.stats import nct, norm, t

from mls.probe.bootstrap import RESAMPLES, resampled_average_precisions
from mls.probe.columns import read_file
from mls.probe.evaluation import to_evaluation

RESULTS = Path(__file__).parent / "results" / "contrasts.csv"
COLUMNS = (
    *("experiment", "table", "column", "difference", "n", "mean", "sd", "low", "high"),
    *("p", "p_holm", "detectable", "n_needed", "images_low", "images_high"),
)
LEVEL, POWER = 0.05, 0.8
MOST_PAIRS = 1000


def main() -> None:
    """Print and record a row for each difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of a published experiment")
    parser.add_argument("differences", nargs="+", help='rows of its table, such as "mls - moco-v2"')
    parser.add_argument("--table", default="main")
    parser.add_argument("--column", required=True)
    parser.add_argument("--target", type=float, default=1.0, help="points")
    parser.add_argument("--store", type=Path, help="where the probes are; for mAP of classifiers")
    options = parser.parse_args()
    metrics = json.loads((options.results / "metrics.json").read_text())[options.table]
    used = json.loads((options.results / "provenance.json").read_text())["cells"][options.table]
    if missing := [name for name in options.differences if name not in metrics or options.column not in metrics[name]]:
        parser.error(f"no {options.column} of {missing[0]!r}; rows: {', '.join(map(repr, metrics))}")
    tests = {name: paired_test(**metrics[name][options.column], target=options.target) for name in options.differences}
    p_values = {name: test["p"] for name, test in tests.items() if "p" in test}
    p_holm = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    rows: list[dict[str, object]] = []
    for name, found in tests.items():
        if name in p_holm:
            found["p_holm"] = p_holm[name]
        if options.store:
            a, b = (probes(used[row][options.column], options.store) for row in name.split(" - "))
            found["images_low"], found["images_high"] = image_interval(a, b)
        about = {"experiment": options.results.name, "table": options.table, "column": options.column}
        rows.append({**about, "difference": name, **{key: f"{value:.3g}" for key, value in found.items()}})
        print(*(f"{key} {value}" for key, value in rows[-1].items()), sep="  ")
    append(RESULTS, rows, COLUMNS)


def paired_test(mean: float, half_width: float | None, n: int, *, target: float) -> dict[str, float]:
    """Return what n paired differences say, from their mean and half the width of its 95 % t-interval, in points.

    One difference has no interval, so there is nothing to add to it.
    """
    if half_width is None:
        return {"n": n, "mean": mean}
    error = half_width / t.ppf(1 - LEVEL / 2, n - 1)
    sd = error * math.sqrt(n)
    return {
        "n": n,
        "mean": mean,
        "sd": sd,
        "low": mean - half_width,
        "high": mean + half_width,
        "p": 2 * t.sf(abs(mean) / error, n - 1),
        "detectable": brentq(lambda effect: power(effect / sd, n) - POWER, 0, 100 * sd),
        "n_needed": next((pairs for pairs in range(2, MOST_PAIRS) if power(target / sd, pairs) >= POWER), math.inf),
    }


def power(deviations: float, n: int) -> float:
    """Return how often a two-sided paired t-test finds a true difference, given in standard deviations of a pair.

    Finds of the wrong sign don't count; where they are not negligible, the power is far below `POWER`.
    """
    return float(nct.sf(t.ppf(1 - LEVEL / 2, n - 1), n - 1, deviations * math.sqrt(n)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number: at most a share `LEVEL` of such families holds one false find."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def probes(pretrained: Mapping[str, Sequence[str]], store: Path) -> list[Path]:
    """Return the predictions of a cell: those of every probe of every pretraining."""
    return [store / "probe" / probe / "predictions.parquet" for ids in pretrained.values() for probe in ids]


def image_interval(a: Sequence[Path], b: Sequence[Path]) -> tuple[float, float]:
    """Return the 95 % interval of mean mAP of ``a`` less that of ``b`` over other images, in points."""
    difference_R = 100 * (mean_resamples(a) - mean_resamples(b))
    half_width = norm.ppf(1 - LEVEL / 2) * difference_R[1:].std()
    return difference_R[0] - half_width, difference_R[0] + half_width


def mean_resamples(files: Sequence[Path]) -> NDArray[np.float64]:
    """Return the mean of the files' mAP on the images (element 0) and on each resample, equal for all files."""
    of_files = []
    for file in files:
        found = read_file(file, to_evaluation)
        untrained_C = np.isin(found.classes, found.untrained)  # they count in no mean
        truth_NC, ignored_NC = found.truth_NC & ~untrained_C, found.ignored_NC | untrained_C
        values_CR = resampled_average_precisions(found.scores_NC, truth_NC, ignored_NC, resamples=RESAMPLES)
        of_files.append(np.nanmean(values_CR, axis=0))
    return np.mean(of_files, axis=0)


if __name__ == "__main__":
    main()
