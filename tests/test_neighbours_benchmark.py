"""benchmarks/neighbours.py: how often the nearest train images share a class."""

from __future__ import annotations

import csv
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import t

from mls.probe.feature_set import SCHEMA

ROOT = Path(__file__).parents[1]
TRUTH_NC = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 0]], bool)
"""Of the 20 ordered pairs, 4 share a class: the first two images, and the next two."""
BY_CLASS_ND = np.array([[1, 0, 0], [2, 0.1, 0], [0, 1, 0], [5, 30, 1], [0, 0, 1]], np.float32)
"""Directions follow the classes; lengths differ, so that without normalisation the fourth is nearest to all."""
BY_NOTHING_ND = BY_CLASS_ND[[0, 2, 1, 4, 3]]
BY_HALF_ND = np.array([[1, 0, 0], [1, 0.1, 0], [0, 1, 0], [0, 0, 1], [0, 0.1, 1]], np.float32)
"""Two of five neighbours are right: those of the first two."""


@pytest.fixture
def neighbours(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("neighbours")


def test_each_image_counts_its_nearest_others(neighbours: ModuleType) -> None:
    """The last image shares no class with any; one neighbour each is right for the four others, or for none."""
    assert neighbours.agreement(BY_CLASS_ND, TRUTH_NC, 0.25) == pytest.approx((80, 20, 1))
    assert neighbours.agreement(BY_NOTHING_ND, TRUTH_NC, 0.25) == pytest.approx((0, 20, 1))
    assert neighbours.agreement(BY_CLASS_ND, TRUTH_NC, 1) == pytest.approx((20, 20, 4)), "all others: chance"
    assert neighbours.agreement(BY_CLASS_ND, TRUTH_NC, 0.01)[2] == 1
    assert neighbours.agreement(np.zeros((5, 3), np.float32), TRUTH_NC, 1)[0] == pytest.approx(20)


def write_artifacts(store: Path, pretrained: str, seed: int, features_ND: np.ndarray) -> dict[str, list[str]]:
    """A pretraining, its features and its probe in a store, as far as they are read; the cell that names them."""
    of = {
        "pretrain": {"params": {"seed": seed}, "inputs": {}},
        "features": {},
        "probe": {"inputs": {"features": pretrained}},
    }
    for stage, about in of.items():
        (store / stage / pretrained).mkdir(parents=True)
        (store / stage / pretrained / "artifact.json").write_text(json.dumps(about))
    folder = store / "features" / pretrained
    (folder / "classes.json").write_text(json.dumps({"classes": ["a", "b", "c"], "multi_label": True}))
    classes = [np.flatnonzero(truth_C).tolist() for truth_C in TRUTH_NC]
    rows = [*range(5), 5]  # the last is of another split, at the place of the first
    columns = [rows, [str(row) for row in rows], ["train"] * 5 + ["test"], [*classes, [0]], [[]] * 6]
    pq.write_table(pa.table(columns, schema=SCHEMA), folder / "images.parquet")
    np.save(folder / "features.npy", np.vstack([features_ND, features_ND[:1]]))
    return {pretrained: [pretrained]}


def test_runs_are_compared_by_seed(
    neighbours: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, published = tmp_path / "store", tmp_path / "published"
    # the second seed of one run is written first: order must not pair them
    first = write_artifacts(store, "b1", 1, BY_NOTHING_ND) | write_artifacts(store, "b0", 0, BY_CLASS_ND)
    second = write_artifacts(store, "m0", 0, BY_CLASS_ND) | write_artifacts(store, "m1", 1, BY_HALF_ND)
    cells = {"moco-v2": {"linear.val": first}, "mls": {"linear.val": second}, "mls - moco-v2": {"linear.val": {}}}
    published.mkdir()
    (published / "provenance.json").write_text(json.dumps({"cells": {"main": cells}}))
    monkeypatch.setattr(neighbours, "RESULTS", tmp_path / "neighbours.csv")
    command = ["neighbours.py", str(published), "--store", str(store), "--share", "0.25", "--column"]
    monkeypatch.setattr(sys, "argv", [*command, "linear.val"])
    neighbours.main()
    base, mls = csv.DictReader((tmp_path / "neighbours.csv").read_text().splitlines())
    assert (base["run"], base["n"], base["agreement"], base["difference"]) == ("moco-v2", "2", "40.00", "")
    assert (mls["run"], mls["agreement"], mls["difference"]) == ("mls", "60.00", "20.00")
    half_width = t.ppf(0.975, 1) * np.std([0, 40], ddof=1) / np.sqrt(2)  # of unlike seeds it would be that of -40, 80
    assert float(mls["half_width"]) == pytest.approx(half_width, abs=0.01)

    monkeypatch.setattr(sys, "argv", [*command, "linear.mAP"])
    with pytest.raises(SystemExit):
        neighbours.main()
    assert "no linear.mAP of 'moco-v2'; rows: 'moco-v2', 'mls'" in capsys.readouterr().err
