"""What ``metrics.json`` says, and that ``predictions.parquet`` is enough to compute it again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score

from mls.metrics import decisions, hits, mean_average_precision
from mls.probe.bootstrap import average_precision_intervals, mean_intervals
from mls.probe.columns import read_file
from mls.probe.evaluation import Evaluation, summarise, to_evaluation, write_predictions
from mls.probe.run_probe import text_of_left_out
from mls.runtime.errors import MlsError
from tests.probe.support import make_evaluation


def same(one: Evaluation, other: Evaluation) -> bool:
    """Compare every field, bit for bit."""
    return all(
        (a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()) if hasattr(a, "dtype") else a == b
        for a, b in ((getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__)
    )


def test_metrics_of_a_test_split() -> None:
    scored = make_evaluation()
    found = summarise(scored)
    arrays = scored.scores_NC, scored.truth_NC, scored.ignored_NC
    kept = ~scored.ignored_NC
    areas = [
        100 * average_precision_score(scored.truth_NC[kept[:, c], c], scored.scores_NC[kept[:, c], c]) for c in range(3)
    ]
    assert list(found["per_class"]) == scored.classes and list(found["per_class"].values())[:3] == pytest.approx(areas)
    assert found["per_class"]["rare"] is None and found["undefined_classes"] == ["rare"]
    assert found["mAP"] == pytest.approx(np.mean(areas))
    assert found["mAP_11"] == pytest.approx(100 * mean_average_precision(*arrays, "11"))
    assert found["mAP_envelope"] == pytest.approx(100 * mean_average_precision(*arrays, "envelope"))
    assert found["mAP"] < found["mAP_envelope"]
    expected = decisions(*arrays)
    assert {name: found[name] for name in expected} == pytest.approx({k: 100 * v for k, v in expected.items()})
    sampled = average_precision_intervals(*arrays)
    assert found["n_test"] == 30
    interval = found["interval"]
    assert interval.keys() == {"covers", "resamples", "level", "mAP", "per_class"}
    assert (interval["covers"], interval["resamples"], interval["level"]) == ("test sampling only", 1000, 0.95)
    assert interval["mAP"] == pytest.approx([100 * end for end in sampled.mean or ()])
    assert interval["per_class"]["person"] == pytest.approx([100 * end for end in sampled.per_class[0] or ()])
    assert interval["per_class"]["rare"] is None
    rest = {"per_class", "undefined_classes", "untrained_classes", "classes_in_mean", "n_test", "interval"}
    assert found.keys() == {"mAP", "mAP_11", "mAP_envelope", *expected, *rest}
    assert summarise(replace(scored, decided=False)).keys() == {"mAP", "mAP_11", "mAP_envelope", *rest}
    json.dumps(found, allow_nan=False)


def test_a_val_split_has_one_metric() -> None:
    found = summarise(make_evaluation(split="val"))
    rest = {"per_class", "undefined_classes", "untrained_classes", "classes_in_mean", "n_val", "interval"}
    assert found.keys() == {"val", *rest}
    assert found["val"] == summarise(make_evaluation())["mAP"]
    assert found["interval"]["covers"] == "val sampling only" and found["interval"]["val"][0] < found["val"]


@pytest.mark.parametrize("split", ["test", "val"])
def test_metrics_of_a_single_label_set(split: str) -> None:
    scored = make_evaluation(multi_label=False, split=split)
    found = summarise(scored)
    name = "top1" if split == "test" else "val"
    rest = {"per_class", "undefined_classes", "untrained_classes", f"n_{split}", "interval"}
    assert found.keys() == {name, *rest}
    right = scored.scores_NC.argmax(axis=1) == np.arange(30) % 3
    assert found[name] == pytest.approx(100 * right.mean())
    sampled = mean_intervals(hits(scored.scores_NC, scored.truth_NC)[:, None]).mean
    assert found["interval"][name] == pytest.approx([100 * end for end in sampled or ()])
    assert found["undefined_classes"] == ["rare"] and 0 < found["per_class"]["person"] <= 100


def test_a_split_without_positives_is_refused() -> None:
    scored = make_evaluation(split="val")
    with pytest.raises(MlsError, match="the val split of this dataset has no class with both positive and negative"):
        summarise(replace(scored, truth_NC=np.zeros_like(scored.truth_NC)))


def test_a_class_that_train_or_test_cannot_tell_apart_counts_in_no_mean() -> None:
    scored = make_evaluation()
    alone = summarise(scored)
    wide = replace(
        scored,
        classes=[*scored.classes, "always", "never trained"],
        truth_NC=np.c_[scored.truth_NC, np.ones(30, bool), scored.truth_NC[:, 0]],
        ignored_NC=np.c_[scored.ignored_NC, np.zeros((30, 2), bool)],
        scores_NC=np.c_[scored.scores_NC, scored.scores_NC[:, 1], np.zeros(30, np.float32)],
        untrained=["never trained"],
    )
    found = summarise(wide)
    assert found["undefined_classes"] == ["rare", "always"] and found["untrained_classes"] == ["never trained"]
    assert found["classes_in_mean"] == 3
    for name in ("mAP", "mAP_11", "mAP_envelope", "CP", "CR", "OF1"):
        assert found[name] == pytest.approx(alone[name])
    assert found["interval"]["mAP"] == pytest.approx(alone["interval"]["mAP"])
    assert [found["per_class"][name] for name in wide.classes[3:]] == [None] * 3
    assert text_of_left_out(found) == (
        "means are over 3 of 6 classes: what was trained on or evaluated can't tell apart rare, always, never trained "
        "(all of its images have the class, or none has)"
    )


@pytest.mark.parametrize("multi_label", [True, False])
@pytest.mark.parametrize("split", ["test", "val"])
@pytest.mark.parametrize("n", [1, 30])
def test_reading_restores_every_bit_and_equal_scores_give_equal_bytes(
    n: int, split: str, multi_label: bool, tmp_path: Path
) -> None:
    scored = make_evaluation(n, multi_label=multi_label, split=split, decided=multi_label)
    if n > 1:
        scored.scores_NC[0, 0], scored.scores_NC[1, 0] = -0.0, np.float32(1e-45)
        write_predictions(scored, tmp_path / "split=other.parquet")  # no partition of a data set
        read = read_file(tmp_path / "split=other.parquet", to_evaluation)
        assert same(read, scored) and summarise(read) == summarise(scored)
    for name in "ab":
        write_predictions(make_evaluation(n, multi_label=multi_label, split=split), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert same(read_file(tmp_path / "a", to_evaluation), make_evaluation(n, multi_label=multi_label, split=split))
    (tmp_path / "c").write_bytes(b"")
    write_predictions(read_file(tmp_path / "a", to_evaluation), tmp_path / "c")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes()


def test_predictions_have_the_documented_columns(tmp_path: Path) -> None:
    scored = make_evaluation()
    write_predictions(scored, tmp_path / "p.parquet")
    table = pq.read_table(tmp_path / "p.parquet")
    assert table.schema.names == [
        "image",
        "name",
        "split",
        "classes",
        "ignored",
        *(f"score:{n}" for n in scored.classes),
    ]
    assert table.schema.field("score:rare").type == pa.float32() and table.schema.field("image").type == pa.int64()
    for name, mask in (("classes", scored.truth_NC), ("ignored", scored.ignored_NC)):
        assert table.schema.field(name).type.value_type == pa.int32()
        assert table[name].to_pylist() == [np.flatnonzero(row).tolist() for row in mask]
    about = json.loads(table.schema.metadata[b"mls"])
    assert about == {"classes": scored.classes, "multi_label": True, "decided": True, "untrained": []}


def damaged(how: str, tmp_path: Path) -> Path:
    """Write predictions and damage them."""
    path = tmp_path / "predictions.parquet"
    write_predictions(make_evaluation(), path)
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b"mls"])

    def put(name: str, values: Any, kind: Any = None) -> pa.Table:
        metadata = table.schema.metadata
        array = pa.array(values, kind or table.schema.field(name).type)
        return table.set_column(table.schema.get_field_index(name), name, array).replace_schema_metadata(metadata)

    def say(**changes: Any) -> pa.Table:
        return table.replace_schema_metadata({b"mls": json.dumps({**about, **changes})})

    scores = table["score:person"].to_pylist()
    classes, ignored, names = (table[name].to_pylist() for name in ("classes", "ignored", "name"))
    tables = {
        "no scores": lambda: table.select(["image", "name"]),
        "no metadata": lambda: table.replace_schema_metadata(None),
        "no json": lambda: table.replace_schema_metadata({b"mls": b"\xff{"}),
        "a list": lambda: table.replace_schema_metadata({b"mls": b"[1]"}),
        "no bool": lambda: say(decided="yes"),
        "numbers for classes": lambda: say(classes=[1, 2]),
        "no ignored": lambda: table.drop_columns(["ignored"]),
        "no score": lambda: table.drop_columns(["score:rare"]),
        "another score": lambda: say(classes=about["classes"][:3]),
        "one class twice": lambda: say(classes=[*about["classes"][:3], "person", "rare"]),
        "doubles": lambda: put("score:person", scores, pa.float64()),
        "nan": lambda: put("score:person", [*scores[:7], float("nan"), *scores[8:]]),
        "null": lambda: put("score:person", [None, *scores[1:]]),
        "null class": lambda: put("classes", [[None], *classes[1:]]),
        "null classes": lambda: put("classes", [None, *classes[1:]]),
        "class 4": lambda: put("classes", [[4], *classes[1:]]),
        "class -1": lambda: put("ignored", [[-1], *ignored[1:]]),
        "both": lambda: put("ignored", classes),
        "two splits": lambda: put("split", ["val"] + ["test"] * 29),
        "train": lambda: put("split", ["train"] * 30),
        "no rows": lambda: table.slice(0, 0),
        "single-label": lambda: say(multi_label=False),
        "names": lambda: put("name", [name.encode() for name in names], pa.binary()),
    }
    if how in tables:
        pq.write_table(tables[how](), path)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("image,name\n")
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "absent":
        path.unlink()
    return path


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no scores", "holds no scores"),
        ("no metadata", "does not say its classes"),
        ("no json", "does not say its classes"),
        ("a list", "does not say its classes"),
        ("no bool", "does not say its classes"),
        ("numbers for classes", "does not say its classes"),
        ("no ignored", "lacks ignored"),
        ("no score", "lacks score:rare"),
        ("another score", "has in addition score:rare"),
        ("one class twice", "lacks score:person"),
        ("doubles", r"lacks score:person \(float\) and has in addition score:person \(double\)"),
        ("nan", "the scores of 1 of 30 test images are NaN; the first: class person of test/7, grüße.jpg"),
        ("null", "column score:person has empty cells"),
        ("null class", "column classes has empty cells"),
        ("null classes", "column classes has empty cells"),
        ("class 4", "column classes holds indices outside its 4 classes"),
        ("class -1", "column ignored holds indices outside its 4 classes"),
        ("both", "both true and ignored"),
        ("two splits", r"not of one split, test or val, but of \['val', 'test'\]"),
        ("train", r"but of \['train'\]"),
        ("no rows", r"but of \[None\]"),
        ("single-label", "each image of a single-label set has one class"),
        ("names", r"has in addition name \(binary\)"),
        ("cut", "is not a readable Parquet file"),
        ("empty", "is not a readable Parquet file"),
        ("text", "is not a readable Parquet file"),
        ("folder", "is not a readable Parquet file"),
        ("absent", "does not exist"),
    ],
)
def test_damaged_files_are_refused(how: str, message: str, tmp_path: Path) -> None:
    path = damaged(how, tmp_path)
    with pytest.raises(MlsError, match=message) as caught:
        read_file(path, to_evaluation)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    if path.is_dir():
        shutil.rmtree(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["a", "b", "a", "b"]}, "two classes have the same name: a, b"),
        ({"scores_NC": np.full((30, 4), np.nan, np.float32)}, "the scores of 30 of 30"),
        ({"ignored_NC": np.ones((30, 4), dtype=bool)}, "both true and ignored"),
        ({"multi_label": False}, "has one class and ignores none; .* the first: test/0,"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MlsError, match=message):
        replace(make_evaluation(), **changes)
