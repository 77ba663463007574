"""The features and probe stages as a whole: every kind on both kinds of sets, odd sets, repeats, what test is for."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import average_precision_score

from mls.config.probes import Features, metrics_of
from mls.data.eval_view import normalise, square
from mls.data.image_store import ImageStore
from mls.models.backbone import feature_maps, load_backbone
from mls.probe.columns import read_file
from mls.probe.evaluation import summarise, to_evaluation
from mls.probe.feature_set import FeatureSet
from mls.probe.features import extract
from mls.probe.score import print_probe_score
from mls.runtime.errors import MlsError
from tests.probe.support import CLASSES, LAYOUT, make_pretrain, make_store, run_probe

VIEWS = {"augment": {"crop": 32, "scale": [0.5, 1.0]}}
KINDS: dict[str, dict[str, Any]] = {
    "linear": {"image_size": 32},
    "svm": {"image_size": 32, "costs": [0.1, 1.0], "low_shot": [1]},
    "knn": {"image_size": 32, "ks": [1, 5, 9]},
    "finetune": {**VIEWS, "epochs": 6, "batch_size": 12, "lr": 0.05},
    "sgd": {**VIEWS, "epochs": 6, "batch_size": 12, "lr": 1.0},
}
CHOSEN_ON_VAL = ("linear", "knn")


def task(kind: str, **changes: Any) -> dict[str, Any]:
    return {"kind": kind, **KINDS[kind], **changes}


def metrics_in(files: dict[str, bytes]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files["metrics.json"])
    return found


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "svm"])
def test_every_kind_on_several_labels_an_image(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "data", multi_label=True)
    files = run_probe(store, tmp_path / "run", **task(kind))
    metrics = metrics_in(files)
    assert metrics["n_test"] == 12 and metrics["undefined_classes"] == ["rare"], "test has no image of it"
    assert metrics["untrained_classes"] == ["unseen"]
    promised = set(metrics_of(task(kind))) - {"top1"}
    assert promised <= set(metrics), "a table's column may name any of them"

    path = tmp_path / "run" / "out" / "predictions.parquet"
    scored = read_file(path, to_evaluation)
    assert scored.names[0] == "test/000.jpg" and scored.rows_N.tolist() == store.split("test").tolist()
    assert scored.ignored_NC.tolist() == store.ignored(scored.rows_N).tolist() and scored.ignored_NC.sum() == 1
    assert "means are over 2 of 4 classes: what was trained on or evaluated can't tell apart rare, unseen (all" in (
        capsys.readouterr().out
    )
    assert metrics["classes_in_mean"] == 2 and metrics["per_class"]["rare"] is metrics["per_class"]["unseen"] is None
    kept = [0, 1]  # the one class that test lacks, and the one that train lacks
    values = [
        average_precision_score(scored.truth_NC[counts, c], scored.scores_NC[counts, c])
        for c in kept
        for counts in [~scored.ignored_NC[:, c]]
    ]
    assert metrics["mAP"] == pytest.approx(100 * np.mean(values))
    print_probe_score(path)  # compares with metrics.json beside it
    recomputed = summarise(scored)
    assert {name: metrics[name] for name in recomputed} == recomputed


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_on_one_label_an_image(kind: str, tmp_path: Path) -> None:
    store = make_store(tmp_path / "data", multi_label=False)
    metrics = metrics_in(run_probe(store, tmp_path / "run", **task(kind) | ({"low_shot": []} if kind == "svm" else {})))
    assert metrics["top1"] > 60 and "mAP" not in metrics and "CF1" not in metrics
    assert metrics["untrained_classes"] == metrics["undefined_classes"] == ["rare", "unseen"]


def test_low_shot_needs_several_labels(tmp_path: Path) -> None:
    store = make_store(tmp_path / "data", multi_label=False)
    with pytest.raises(MlsError, match="low-shot SVMs need several"):
        run_probe(store, tmp_path / "run", **task("svm"))


def test_svm_trains_on_train_and_val(tmp_path: Path) -> None:
    store = make_store(tmp_path / "data", multi_label=True)
    with pytest.raises(MlsError, match="4 positive images of class 'rare'; train and val have 1"):
        run_probe(store, tmp_path / "few", **task("svm", low_shot=[4]))
    metrics = metrics_in(run_probe(store, tmp_path / "run", **task("svm")))
    assert metrics["low_shot_1"] > 0 and metrics["classes_in_mean"] == 2, "a class that nobody has is left out"
    assert metrics["mAP"] > 40 and set(metrics["costs"]) == {"red", "blue", "rare"}
    assert metrics["not_cross_validated"] == ["rare"] and metrics["untrained_classes"] == ["unseen"]
    assert "CF1" not in metrics, "margins are no odds"


def test_low_shot_svms(tmp_path: Path) -> None:
    store = make_store(tmp_path / "data", multi_label=True, plain=True)
    metrics = metrics_in(run_probe(store, tmp_path / "run", **task("svm", low_shot=[1, 4], samples=2)))
    assert {"low_shot_1", "low_shot_4", "low_shot_1_best_on_test"} <= set(metrics)
    assert metrics["low_shot_4_best_on_test"] >= metrics["low_shot_4"] > 30


def test_retrieval(tmp_path: Path) -> None:
    store = make_store(tmp_path / "data", multi_label=True)
    files = run_probe(store, tmp_path / "run", kind="retrieval", image_size=32, precision_at=[1, 3])
    metrics = metrics_in(files)
    assert metrics["undefined_classes"] == ["rare", "unseen"] and metrics["mAP"] > 50
    assert set(metrics_of({"kind": "retrieval", "precision_at": [1, 3]})) <= set(metrics)
    table = pq.read_table(io.BytesIO(files["predictions.parquet"]))
    per_class = [np.nanmean(table[f"ap:{name}"].to_numpy()) for name in ("red", "blue")]
    assert metrics["mAP"] == pytest.approx(100 * np.mean(per_class))
    low, high = metrics["interval"]["mAP"]
    assert low < metrics["mAP"] < high
    print_probe_score(tmp_path / "run" / "out" / "predictions.parquet")  # compares with metrics.json beside it


@pytest.mark.parametrize("kind", ["linear", "knn", "finetune"])
def test_artifacts_repeat_byte_for_byte(kind: str, tmp_path: Path) -> None:
    store = make_store(tmp_path / "data", multi_label=True)
    first, second = (run_probe(store, tmp_path / name, **task(kind)) for name in "ab")
    for files in (first, second):
        files.pop("timing.csv", None)
    assert first == second and {"metrics.json", "predictions.parquet"} <= set(first)
    if kind != "finetune":
        features = [(tmp_path / name / "features") for name in "ab"]
        for file in ("features.npy", "images.parquet", "classes.json"):
            assert len({(folder / file).read_bytes() for folder in features}) == 1


def watch_reads(monkeypatch: pytest.MonkeyPatch) -> tuple[set[int], set[int]]:
    """Rows whose image, and rows whose labels, are read from now on."""
    decode, labels = ImageStore.decode, ImageStore.labels
    decoded: set[int] = set()
    labelled: set[int] = set()

    def decode_watched(self: ImageStore, row: int) -> torch.Tensor:
        decoded.add(row)
        return decode(self, row)

    def labels_watched(self: ImageStore, rows: Any) -> np.ndarray:
        labelled.update(int(row) for row in rows)
        return labels(self, rows)

    monkeypatch.setattr(ImageStore, "decode", decode_watched)
    monkeypatch.setattr(ImageStore, "labels", labels_watched)
    return decoded, labelled


@pytest.mark.parametrize("kind", [*KINDS, "retrieval"])
def test_without_test_val_is_evaluated_and_test_is_never_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "data", multi_label=True)
    rest = set(range(len(store))) - set(store.split("test").tolist())
    small = {"kind": "retrieval", "image_size": 32} if kind == "retrieval" else task(kind)
    small |= {"low_shot": []} if kind == "svm" else {}
    with monkeypatch.context() as patch:
        reads = watch_reads(patch)
        files = run_probe(store, tmp_path / "val", **small, test=False)
        assert all(read == rest for read in reads)
    metrics = metrics_in(files)
    assert metrics["val"] > 50 and metrics["n_train"] == 24 and metrics["n_val"] == 12
    assert not {"mAP", "mAP_11", "P@1", "CF1", "n_test"} & set(metrics)
    if kind != "retrieval":
        assert read_file(tmp_path / "val" / "out" / "predictions.parquet", to_evaluation).split == "val"
    if kind in CHOSEN_ON_VAL:
        full = metrics_in(run_probe(store, tmp_path / "full", **small))
        same = ("val", "candidates", "untrained_classes", "n_train", "n_val")
        assert {name: metrics[name] for name in same} == {name: full[name] for name in same}


@pytest.mark.parametrize("kind", ["linear", "finetune"])
def test_a_split_without_images_is_an_error_where_it_is_needed(kind: str, tmp_path: Path) -> None:
    store = make_store(tmp_path / "no test", multi_label=True, without="test")
    with pytest.raises(MlsError, match=r"no (images of )?test$"):
        run_probe(store, tmp_path / "a", **task(kind))
    assert "val" in metrics_in(run_probe(store, tmp_path / "b", **task(kind, test=False)))
    store = make_store(tmp_path / "no val", multi_label=True, without="val")
    with pytest.raises(MlsError, match=r"no (images of )?val$"):
        run_probe(store, tmp_path / "c", **task(kind, test=False))


def test_features_that_are_not_finite_stop_at_once(tmp_path: Path) -> None:
    store = make_store(tmp_path / "data", multi_label=True)
    with pytest.raises(MlsError, match="features of 24 of 24 train images are NaN or infinite"):
        run_probe(store, tmp_path / "a", poison=True, **task("linear"))
    with pytest.raises(MlsError, match="not finite"):
        run_probe(store, tmp_path / "b", poison=True, **task("sgd"))
    assert not list((tmp_path / "a").glob("out/*")) and not list((tmp_path / "b").glob("out/*"))


# ------------------------------------------------------------------------------------- the features themselves


def test_feature_set_round_trip(tmp_path: Path) -> None:
    store = make_store(tmp_path / "data", multi_label=True)
    run_probe(store, tmp_path / "run", **task("linear"))
    features = FeatureSet(tmp_path / "run" / "features")
    assert features.classes == CLASSES and features.multi_label
    both = features.images("train", "val")
    assert both.names[0] == "train/000.jpg" and both.names[24] == "val/000.jpg" and len(both.features_ND) == 36
    test, rows = features.images("test"), store.split("test")
    assert test.rows_N.tolist() == rows.tolist()
    assert np.array_equal(test.truth_NC, store.labels(rows)) and np.array_equal(test.ignored_NC, store.ignored(rows))
    net = load_backbone(LAYOUT, make_pretrain(tmp_path / "again").file("backbone.safetensors"))
    expected = extract(net, store, rows, Features(image_size=32), torch.device("cpu"))
    assert np.array_equal(test.features_ND, expected)


def test_features_may_be_stored_as_float16(tmp_path: Path) -> None:
    store = make_store(tmp_path / "data", multi_label=True)
    wide, narrow = (run_probe(store, tmp_path / kept, **task("linear", dtype=kept)) for kept in ("float32", "float16"))
    files = [tmp_path / kept / "features" / "features.npy" for kept in ("float32", "float16")]
    arrays = [np.load(file) for file in files]
    assert [array.dtype for array in arrays] == [np.float32, np.float16]
    np.testing.assert_array_equal(arrays[0].astype(np.float16), arrays[1])
    again = io.BytesIO()
    np.save(again, arrays[0])
    assert files[0].read_bytes() == again.getvalue(), "as numpy writes it"
    assert metrics_in(narrow)["mAP"] == pytest.approx(metrics_in(wide)["mAP"], abs=0.5)
    assert narrow["predictions.parquet"] != wide["predictions.parquet"]
    small = {"kind": "retrieval", "image_size": 32, "precision_at": [1]}
    for name, others in (("knn", task("knn")), ("svm", task("svm")), ("retrieval", small)):
        assert metrics_in(run_probe(store, tmp_path / name, **others, dtype="float16"))["mAP"] > 40


def test_features_beyond_float16_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "data", multi_label=True)
    monkeypatch.setattr("mls.probe.features.extract", lambda *_, **__: np.full((24, 8), 7e4, dtype=np.float32))
    message = r"dtype: features of 24 of 24 train images are beyond float16's largest number, 65504; use dtype: float32"
    with pytest.raises(MlsError, match=message):
        run_probe(store, tmp_path / "run", **task("linear", dtype="float16"))


def test_splits_are_mapped_not_copied(tmp_path: Path) -> None:
    store = make_store(tmp_path / "data", multi_label=True)
    run_probe(store, tmp_path / "run", **task("linear"))
    features = FeatureSet(tmp_path / "run" / "features")
    whole = np.load(tmp_path / "run" / "features" / "features.npy")
    for splits, rows in ((("train",), slice(24)), (("train", "val"), slice(36)), (("test",), slice(36, 48))):
        part = features.images(*splits).features_ND
        assert isinstance(part, np.memmap), "its pages are read when they are needed, and may leave memory again"
        np.testing.assert_array_equal(part, whole[rows])
    np.testing.assert_array_equal(features.images("test", "train").features_ND, whole[[*range(36, 48), *range(24)]])


@pytest.mark.parametrize("layer", ["layer1", "layer2", "layer3", "layer4"])
def test_any_stage_of_the_backbone(layer: str, tmp_path: Path) -> None:
    store = make_store(tmp_path / "data", multi_label=True)
    net = load_backbone(LAYOUT, make_pretrain(tmp_path / "p").file("backbone.safetensors"))
    rows, config = store.split("val"), Features.model_validate({"image_size": 24, "layer": layer})
    found = extract(net, store, rows, config, torch.device("cpu"))

    images = torch.stack([square(store.decode(int(row)), 24) for row in rows])
    with torch.inference_mode():
        maps = feature_maps(net, normalise(images, torch.device("cpu")))
    expected = maps[str(int(layer[-1]) - 1)].mean((2, 3)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_bf16_is_near_and_not_the_same(tmp_path: Path) -> None:
    store = make_store(tmp_path / "data", multi_label=True)
    net = load_backbone(LAYOUT, make_pretrain(tmp_path / "p").file("backbone.safetensors"))
    exact, near = (
        extract(net, store, store.split("val"), Features(image_size=32, precision=p), torch.device("cpu"))
        for p in ("fp32", "bf16")
    )
    assert near.dtype == np.float32 and not np.array_equal(exact, near)
    assert np.abs(near - exact).max() < 0.05 * np.abs(exact).max()
