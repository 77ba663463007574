"""How often do the nearest train images share a class? From a published experiment's features, the same k for all runs.

    python benchmarks/neighbours.py results/coco-3k --column linear.mAP --store STORE

A run's log has ``agreement`` over its own positives: k of them by Eq. 7, but 20 for methods without a k. The nearest
agree most often, so runs with different k cannot be compared by it, and these numbers can: frozen features of all train
images, without augmentation; of each image the nearest 4 % of the others by cosine (``--share``, about k / D).

Prints for each run, and appends to results/neighbours.csv, in percent: ``agreement``, the share of these neighbours
that share a class with their image, as a mean over n seeds; ``chance``, the same for all other images; ``difference``
from the ``--baseline``, paired by seed, and half the width of its 95 % t-interval. Ignored classes count as absent.

Shape legend: N images, D features, C classes, K neighbours.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from record import append

from mls.metrics import Truth
from mls.probe.feature_set import FeatureSet
from mls.report.tables import mean_with_interval

RESULTS = Path(__file__).parent / "results" / "neighbours.csv"
COLUMNS = ("experiment", "run", "n", "k", "agreement", "chance", "difference", "half_width")


def main() -> None:
    """Print and record a row for each run of the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of a published experiment")
    parser.add_argument("--table", default="main")
    parser.add_argument("--column", required=True, help="of a linear probe: its features are read")
    parser.add_argument("--baseline", default="moco-v2")
    parser.add_argument("--share", type=float, default=0.04, help="of the other images that are neighbours")
    parser.add_argument("--store", type=Path, required=True, help="where the features are")
    options = parser.parse_args()
    cells = json.loads((options.results / "provenance.json").read_text())["cells"][options.table]
    if options.baseline not in cells or options.column not in cells[options.baseline]:
        parser.error(f"no {options.column} of {options.baseline!r}; rows: {', '.join(map(repr, cells))}")
    runs = [row for row in cells if " - " not in row]
    if lacking := [run for run in runs if options.column not in cells[run]]:
        parser.error(f"no {options.column} of {lacking[0]!r}")
    found = {run: by_seed(cells[run][options.column], options.store, options.share) for run in runs}
    rows: list[dict[str, object]] = []
    for run, seeds in found.items():
        agreement, chance, k = (float(value) for value in np.mean(list(seeds.values()), axis=0))
        row: dict[str, object] = {"experiment": options.results.name, "run": run, "n": len(seeds), "k": int(k)}
        row |= {"agreement": f"{agreement:.2f}", "chance": f"{chance:.2f}"}
        base = found[options.baseline]
        if run != options.baseline and (pairs := [seeds[seed][0] - base[seed][0] for seed in seeds if seed in base]):
            difference = mean_with_interval(pairs)
            row["difference"] = f"{difference.mean:.2f}"
            if difference.half_width is not None:
                row["half_width"] = f"{difference.half_width:.2f}"
        print(*(f"{key} {value}" for key, value in row.items()), sep="  ")
        rows.append(row)
    append(RESULTS, rows, COLUMNS)


def by_seed(cell: Mapping[str, Sequence[str]], store: Path, share: float) -> dict[int, tuple[float, float, int]]:
    """Return `agreement` of a cell's backbones by seed; ``cell`` has the probes of each pretraining."""
    found = {}
    for pretrained, probes in cell.items():
        seed = manifest(store / "pretrain" / pretrained)["params"]["seed"]
        features = manifest(store / "probe" / probes[0])["inputs"]["features"]
        train = FeatureSet(store / "features" / features).images("train")
        found[seed] = agreement(np.asarray(train.features_ND), train.truth_NC, share)
    return found


def manifest(artifact: Path) -> dict[str, Any]:
    """Return what an artifact says about itself."""
    return dict(json.loads((artifact / "artifact.json").read_text()))


def agreement(features_ND: NDArray[np.floating[Any]], truth_NC: Truth, share: float) -> tuple[float, float, int]:
    """Return the percentage of the nearest, and of all, other images that share a class; and k of the nearest.

    Args:
        features_ND: of any length, also zero: then all others are equally near. N times N numbers must fit in memory.
        truth_NC: bool; an image without classes shares none.
        share: of the other images that are neighbours.
    """
    unit_ND = features_ND.astype(np.float64)
    unit_ND /= np.maximum(np.linalg.norm(unit_ND, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    cosines_NN = unit_ND @ unit_ND.T
    np.fill_diagonal(cosines_NN, -np.inf)  # an image is not its own neighbour: it comes last
    others = len(unit_ND) - 1
    k = max(1, round(share * others))
    nearest_NK = np.argsort(-cosines_NN, axis=1, kind="stable")[:, :k]
    shares_NN = (truth_NC.astype(np.float32) @ truth_NC.T.astype(np.float32)) > 0
    np.fill_diagonal(shares_NN, False)
    agreeing = np.take_along_axis(shares_NN, nearest_NK, axis=1).mean()
    return 100 * float(agreeing), 100 * float(shares_NN.sum() / (len(unit_ND) * others)), k


if __name__ == "__main__":
    main()
