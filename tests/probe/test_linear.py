"""The strength comes from val, odd data is handled or refused, and whole artifacts repeat byte for byte."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageDraw
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from mls.data.store import Store
from mls.data.writer import Record, write_store
from mls.errors import MlsError
from mls.experiment.artifact import Artifact
from mls.experiment.params import Backbone, Execution, LinearProbe
from mls.models.backbone import build_backbone, save_backbone
from mls.probe import stage
from mls.probe.linear import fit
from mls.probe.metrics import mean_average_precision, top1

STRENGTHS = [1e-4, 1e-2, 1.0, 100.0]


def make_data(n: int, seed: int, classes: int = 3, dims: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Features whose first columns tell the classes, through much noise."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, dims)).astype(np.float32)
    truth = features[:, :classes] + rng.normal(size=(n, classes)) > 0.5
    return features, truth


def fit_multi(train: Any, val: Any, strengths: list[float] = STRENGTHS) -> Any:
    names = [f"class {i}" for i in range(train[1].shape[1])]
    return fit(*train, *val, strengths=strengths, multi_label=True, names=names)


def test_strength_is_chosen_on_val_not_on_test_or_train() -> None:
    train, val, test = make_data(40, 0), make_data(400, 1), make_data(400, 2)
    fitted = fit_multi(train, val)
    alone = {c: fit_multi(train, val, [c]) for c in STRENGTHS}
    on_val = {c: mean_average_precision(alone[c].scores(val[0]), val[1]) for c in STRENGTHS}
    on_train = {c: mean_average_precision(alone[c].scores(train[0]), train[1]) for c in STRENGTHS}
    assert fitted.strength == max(on_val, key=lambda c: on_val[c])
    assert fitted.strength != max(on_train, key=lambda c: on_train[c])  # or this would prove nothing
    assert fitted.value == pytest.approx(on_val[fitted.strength], abs=1e-3)
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


def test_equals_scikit_learn_alone() -> None:
    train, val = make_data(300, 0), make_data(100, 1)
    fitted = fit_multi(train, val, [0.01, 0.1])
    mean, std = train[0].mean(0), train[0].std(0)
    for index in range(3):
        model = LogisticRegression(C=fitted.strength, tol=1e-8).fit((train[0] - mean) / std, train[1][:, index])
        expected = model.decision_function((val[0] - mean) / std)
        np.testing.assert_allclose(fitted.scores(val[0])[:, index], expected, atol=5e-3)
    assert fitted.unconverged == 0


def test_single_label() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=300)
    features = (np.eye(3)[labels] * 2 + rng.normal(size=(300, 3))).astype(np.float32)
    truth = np.eye(4, dtype=bool)[labels]  # the fourth class has no image
    fitted = fit(
        features[:200], truth[:200], features[200:], truth[200:],
        strengths=STRENGTHS, multi_label=False, names=["a", "b", "c", "d"],
    )  # fmt: skip
    assert fitted.untrained == ["d"]
    assert fitted.value == top1(fitted.scores(features[200:]), truth[200:]) > 0.7
    model = LogisticRegression(C=fitted.strength, tol=1e-8).fit(features[:200], labels[:200])
    same = fitted.scores(features[200:]).argmax(1) == model.predict(features[200:])
    assert same.mean() > 0.95  # the same model but for standardised features


def test_single_label_of_two_classes() -> None:
    features = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
    truth = np.stack([features[:, 0] > 0.1, features[:, 0] <= 0.1], axis=1)
    fitted = fit(features, truth, features, truth, strengths=[100.0], multi_label=False, names=["a", "b"])
    assert fitted.value > 0.9


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
    assert fitted.value == pytest.approx(plain.value, abs=1e-3)


def test_nan_features_are_refused() -> None:
    train, val = make_data(60, 0), make_data(60, 1)
    val[0][3:5, 7] = np.nan
    with pytest.raises(MlsError, match="2 of 60 val images are NaN or infinite"):
        fit_multi(train, val)
    with pytest.raises(MlsError, match="train images are NaN"):
        fit_multi(val, train)


def test_nothing_to_learn_or_to_choose_by_is_refused() -> None:
    train, val = make_data(60, 0), make_data(60, 1)
    with pytest.raises(MlsError, match="val split of this dataset has no positive"):
        fit_multi(train, (val[0], np.zeros_like(val[1])))
    with pytest.raises(MlsError, match="no class with both"):
        fit_multi((train[0], np.ones_like(train[1])), val)


# ------------------------------------------------------------------------------------------- stage


COUNTS = {"train": 24, "val": 12, "test": 12}


def make_store(out: Path, multi_label: bool, without: str = "") -> Store:
    """Rectangles of two colours; a third class is only in train, a fourth only in test."""
    records = []
    for split, count in COUNTS.items():
        if split == without:
            continue
        for number in range(count):
            kinds = [number % 2] if number % 3 or not multi_label else [0, 1]
            image = Image.new("RGB", (32, 32), (120, 120, 120 + number))
            for kind in kinds:
                x = 3 + 16 * kind
                ImageDraw.Draw(image).rectangle((x, 4 + number % 8, x + 9, 20), fill=((255, 0, 0), (0, 0, 255))[kind])
            if multi_label and number == 0 and split != "val":
                kinds = sorted([*kinds, 2 if split == "train" else 3])
            buffer = io.BytesIO()
            image.save(buffer, "JPEG")
            records.append(Record(f"{split}/{number:03d}.jpg", split, buffer.getvalue(), 32, 32, kinds, []))
    out.mkdir()
    write_store(out, records, ["red", "blue", "rare", "unseen"], multi_label, [])
    return Store(out)


def run_stage(store: Store, folder: Path, test: bool = True) -> dict[str, bytes]:
    """Run the stage function as `run_stage` would; return its files."""
    config = Backbone(name="resnet18", width=0.125, stem="small")
    pretrain = folder / "pretrain"
    pretrain.mkdir(parents=True)
    torch.manual_seed(0)
    save_backbone(build_backbone(config), pretrain / "backbone.safetensors")
    (pretrain / "params.json").write_text(json.dumps({"resolved": {"backbone": config.model_dump(mode="json")}}))
    files: dict[str, object] = {"backbone.safetensors": {}, "params.json": {}}
    (folder / "out").mkdir()
    context = SimpleNamespace(
        job=SimpleNamespace(config=LinearProbe(kind="linear", dataset="d", image_size=32, test=test), seed=0),
        label="linear/test:0",
        out=folder / "out",
        work=folder,
        execution=Execution(threads=1, workers=1, device="cpu"),
        inputs={"data": Artifact(store.path, {}), "pretrain": Artifact(pretrain, {"files": files})},
        log=lambda message: None,
    )
    stage.run(context)  # type: ignore[arg-type]
    return {file.name: file.read_bytes() for file in (folder / "out").iterdir()}


def test_stage_repeats_byte_for_byte(tmp_path: Path) -> None:
    store = make_store(tmp_path / "data", multi_label=True)
    first, second = run_stage(store, tmp_path / "a"), run_stage(store, tmp_path / "b")
    assert set(first) == {"metrics.json", "predictions.parquet"}
    assert first == second
    metrics = json.loads(first["metrics.json"])
    assert metrics["undefined_classes"] == ["rare"] and metrics["per_class"]["rare"] is None
    assert metrics["untrained_classes"] == ["unseen"]
    assert metrics["per_class"]["unseen"] == pytest.approx(100 / 12)  # chance: its score is constant
    assert (metrics["n_train"], metrics["n_val"], metrics["n_test"]) == (24, 12, 12)
    assert metrics["val"] > 60

    table = pq.read_table(io.BytesIO(first["predictions.parquet"]))
    assert table["image"].to_pylist() == store.split("test").tolist()
    assert table["name"][0].as_py() == "test/000.jpg"
    truth = store.labels(store.split("test"))
    kept = [0, 1, 3]
    scores = np.stack([table[f"score:{store.classes[i]}"].to_numpy() for i in kept], axis=1)
    assert scores.dtype == np.float32
    assert metrics["mAP"] == pytest.approx(100 * average_precision_score(truth[:, kept], scores, average="macro"))


def test_stage_of_a_single_label_set(tmp_path: Path) -> None:
    metrics = json.loads(run_stage(make_store(tmp_path / "data", multi_label=False), tmp_path / "a")["metrics.json"])
    assert metrics["top1"] > 60 and "mAP" not in metrics
    assert metrics["untrained_classes"] == metrics["undefined_classes"] == ["rare", "unseen"]


def watch_reads(monkeypatch: pytest.MonkeyPatch) -> tuple[set[int], set[int]]:
    """Rows whose image, and rows whose labels, are read from now on."""
    decode, labels = Store.decode, Store.labels
    decoded: set[int] = set()
    labelled: set[int] = set()

    def decode_watched(self: Store, row: int) -> torch.Tensor:
        decoded.add(row)
        return decode(self, row)

    def labels_watched(self: Store, rows: Any) -> np.ndarray:
        labelled.update(int(row) for row in rows)
        return labels(self, rows)

    monkeypatch.setattr(Store, "decode", decode_watched)
    monkeypatch.setattr(Store, "labels", labels_watched)
    return decoded, labelled


@pytest.mark.parametrize("multi_label", [True, False])
def test_without_test_the_same_is_chosen_and_test_is_never_read(
    tmp_path: Path, multi_label: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "data", multi_label)
    test = set(store.split("test").tolist())
    with monkeypatch.context() as patch:
        reads = watch_reads(patch)
        full = json.loads(run_stage(store, tmp_path / "full")["metrics.json"])
        assert all(read == set(range(len(store))) for read in reads)
    with monkeypatch.context() as patch:
        reads = watch_reads(patch)
        files = run_stage(store, tmp_path / "a", test=False)
        assert all(read == set(range(len(store))) - test for read in reads)
    metrics = json.loads(files["metrics.json"])
    headline = "mAP" if multi_label else "top1"
    assert full.keys() - metrics.keys() == {headline, "n_test"} and not metrics.keys() - full.keys()
    same = ("strength", "val", "candidates", "untrained_classes", "unconverged_fits", "n_train", "n_val")
    assert {name: metrics[name] for name in same} == {name: full[name] for name in same}
    assert metrics["undefined_classes"] == ["rare", "unseen"], "val has no image of them"

    table = pq.read_table(io.BytesIO(files["predictions.parquet"]))
    assert table["image"].to_pylist() == store.split("val").tolist() and set(table["split"].to_pylist()) == {"val"}
    assert table["name"][0].as_py() == "val/000.jpg"
    truth = store.labels(store.split("val"))
    scores = np.stack([table[f"score:{name}"].to_numpy() for name in store.classes], axis=1)
    average = [average_precision_score(truth[:, i], scores[:, i]) for i in (0, 1)]
    assert [metrics["per_class"][name] for name in ("red", "blue")] == pytest.approx([100 * one for one in average])
    value = sum(average) / 2 if multi_label else (scores.argmax(1) == truth.argmax(1)).mean()
    assert metrics["val"] == pytest.approx(100 * value)


def test_a_split_without_images_is_an_error_where_it_is_needed(tmp_path: Path) -> None:
    store = make_store(tmp_path / "no test", multi_label=True, without="test")
    with pytest.raises(MlsError, match=r"needs images of train, val, test; this dataset has no test$"):
        run_stage(store, tmp_path / "a")
    assert "val" in json.loads(run_stage(store, tmp_path / "b", test=False)["metrics.json"])
    store = make_store(tmp_path / "no val", multi_label=True, without="val")
    with pytest.raises(MlsError, match=r"needs images of train, val; this dataset has no val$"):
        run_stage(store, tmp_path / "c", test=False)


def test_nothing_to_judge_by_is_refused() -> None:
    store: Any = SimpleNamespace(multi_label=True, classes=["a"])
    fitted: Any = None
    with pytest.raises(MlsError, match="the val split of this dataset has no positive image of any class"):
        stage.summarise(fitted, np.zeros((2, 1), np.float32), np.zeros((2, 1), dtype=bool), store, "val")
