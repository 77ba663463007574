"""``mls score FILE``: the table, and the comparison with what was recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mls.probe import retrieval
from mls.probe.evaluation import summarise, write_predictions
from mls.probe.score import print_probe_score
from mls.runtime.errors import MlsError
from tests.probe.support import images_of, make_evaluation


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """A predictions file without anything beside it."""
    path = tmp_path / "predictions.parquet"
    write_predictions(make_evaluation(), path)
    return path


def record(path: Path, change: Callable[[dict[str, Any]], object] = lambda metrics: None) -> None:
    """Write the metrics beside it, as a probe does, with what it adds of its own, and changed."""
    metrics = {**summarise(make_evaluation()), "val": 12.5, "strength": 1.0, "n_train": 100}
    change(metrics)
    path.with_name("metrics.json").write_text(json.dumps(metrics))


def test_metrics_are_printed_as_aligned_tables(predictions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_probe_score(predictions)
    text = capsys.readouterr().out
    metrics = summarise(make_evaluation())
    lines = text.splitlines()
    assert lines[0] == "30 images of test, 4 classes, percent."
    low, high = metrics["interval"]["mAP"]
    rows = [[cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")] for line in lines if "|" in line]
    assert ["metric", "value", "95 % interval"] in rows and ["class", "AP", "95 % interval"] in rows
    assert ["mAP", f"{metrics['mAP']:.2f}", f"{low:.2f} .. {high:.2f}"] in rows
    assert ["CF1", f"{metrics['CF1']:.2f}", ""] in rows
    low, high = metrics["interval"]["per_class"]["fire | hydrant"]
    assert ["fire / hydrant", f"{metrics['per_class']['fire | hydrant']:.2f}", f"{low:.2f} .. {high:.2f}"] in rows
    assert ["rare", "-", ""] in rows
    assert len({len(line) for line in lines if line.startswith("|")}) == 2, "two tables, each aligned"
    assert "- Without positive or without negative images, so without AP and left out of means: rare." in lines
    assert "- Intervals: test sampling only, 1,000 bootstrap resamples of the images." in lines
    assert lines[-1] == "Nothing to compare with: there is no metrics.json beside it."


def test_a_single_label_val_split_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_predictions(make_evaluation(multi_label=False, split="val"), tmp_path / "p.parquet")
    print_probe_score(tmp_path / "p.parquet")
    text = capsys.readouterr().out
    assert "30 images of val" in text and "| val " in text and "val sampling only" in text and "mAP" not in text


def test_agrees_with_what_was_recorded(predictions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(predictions)
    print_probe_score(predictions)
    assert f"Agrees with {predictions.with_name('metrics.json')}." in capsys.readouterr().out
    record(predictions, lambda metrics: metrics.update(mAP=metrics["mAP"] + 5e-10))
    print_probe_score(predictions)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(mAP=m["mAP"] + 5e-9), r"says mAP = [\d.]+, its predictions say [\d.]+"),
        (lambda m: m.update(CF1=float("nan")), "says CF1 = nan, its predictions say"),
        (lambda m: m.pop("mAP_11"), "says mAP_11 = nothing"),
        (lambda m: m.update(OP="12"), "says OP = 12"),
        (lambda m: m["per_class"].update(person=50), r"says per_class.person = 50, its predictions say [\d.]+"),
        (lambda m: m["per_class"].update(rare=0.0), r"says per_class.rare = 0.0, its predictions say None"),
        (lambda m: m.update(per_class=None), "says per_class = None"),
        (lambda m: m.update(undefined_classes=[]), r"says undefined_classes = \[\], its predictions say \['rare'\]"),
        (lambda m: m.update(n_test=31), "says n_test = 31, its predictions say 30"),
        (lambda m: m["interval"]["mAP"].__setitem__(1, 99.0), r"says interval.mAP\[1\] = 99.0"),
        (lambda m: m["interval"].update(mAP=[1.0]), r"says interval.mAP = \[1.0\]"),
    ],
)
def test_disagreement_is_an_error(
    change: Callable[[dict[str, Any]], object], message: str, predictions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(predictions, change)
    with pytest.raises(MlsError, match=message):
        print_probe_score(predictions)
    out = capsys.readouterr().out
    assert "| mAP " in out and "Agrees" not in out


@pytest.mark.parametrize(
    ("content", "message"), [(b"{", "can't be read"), (b"\xff", "can't be read"), (b"[]", "not a JSON object")]
)
def test_damaged_metrics_are_an_error(content: bytes, message: str, predictions: Path) -> None:
    predictions.with_name("metrics.json").write_bytes(content)
    with pytest.raises(MlsError, match=message):
        print_probe_score(predictions)


def test_what_holds_no_scores_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MlsError, match="does not exist; name a probe's predictions"):
        print_probe_score(tmp_path / "predictions.parquet")
    pq.write_table(pa.table({"image": [0], "p@1:person": [0.5]}), tmp_path / "predictions.parquet")
    with pytest.raises(MlsError, match="holds no scores"):
        print_probe_score(tmp_path / "predictions.parquet")


# ----------------------------------------------------------------------------------------------- of a retrieval


def retrieve_to(folder: Path, split: str) -> dict[str, Any]:
    """Write predictions and metrics as the stage does; one class has no query, and class names hold colons."""
    rng = np.random.default_rng(0)
    gallery, queries = rng.normal(size=(2, 200, 6)).astype(np.float32)
    gallery_truth, query_truth = gallery[:, :4] > 0.5, queries[:, :4] > 0.5
    query_truth[:, 2] = False
    names = ["traffic: light", "p@1:cat", "rare", "a | b"]
    found = retrieval.retrieve(
        images_of(gallery, gallery_truth, classes=names), images_of(queries, query_truth), precision_at=[1, 3, 7]
    )
    path = folder / "predictions.parquet"
    retrieval.write_ranking(found, np.arange(200), [f"{i}.jpg" for i in range(200)], split, path)
    metrics = retrieval.retrieval_metrics(found, split) | {"n_train": 200, f"n_{split}": 200}
    path.with_name("metrics.json").write_text(json.dumps(metrics))
    return metrics


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_retrieval_is_printed(split: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = retrieve_to(tmp_path, split)
    print_probe_score(tmp_path / "predictions.parquet")
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0] == f"200 images of {split}, 4 classes, percent."
    rows = [[cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")] for line in lines if "|" in line]
    headline = "mAP" if split == "test" else "val"
    low, high = metrics["interval"][headline]
    assert low < metrics[headline] < high
    assert [headline, f"{metrics[headline]:.2f}", f"{low:.2f} .. {high:.2f}"] in rows
    assert (
        (["P@7", f"{metrics['P@7']:.2f}", ""] in rows) if split == "test" else "P@" not in text.replace("p@1:cat", "")
    )
    low, high = metrics["interval"]["per_class"]["p@1:cat"]
    assert ["p@1:cat", f"{metrics['per_class']['p@1:cat']:.2f}", f"{low:.2f} .. {high:.2f}"] in rows
    assert ["rare", "-", ""] in rows
    assert (
        "- Without a query, or gallery images with and without the class, so without AP and left out of means: rare."
        in lines
    )
    assert f"- Intervals: {split} sampling only, 1,000 bootstrap resamples of the images." in lines
    assert lines[-1] == f"Agrees with {tmp_path / 'metrics.json'}."


@pytest.mark.parametrize("name", ["mAP", "P@3", "n_test"])
def test_a_retrieval_with_other_recorded_metrics_is_an_error(name: str, tmp_path: Path) -> None:
    metrics = retrieve_to(tmp_path, "test")
    metrics[name] += 1e-8 if name != "n_test" else 1
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(MlsError, match=f"says {name} = "):
        print_probe_score(tmp_path / "predictions.parquet")


def test_a_damaged_retrieval_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [0], "ap:person": [0.5]}), tmp_path / "predictions.parquet")
    with pytest.raises(MlsError, match=r"predictions\.parquet: .* lacks name \(string\), split"):
        print_probe_score(tmp_path / "predictions.parquet")
    (tmp_path / "predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(MlsError, match="not a readable Parquet file"):
        print_probe_score(tmp_path / "predictions.parquet")
