"""Which split a probe on images trains on and evaluates, and that it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from mls.config.datasets import FolderDataset
from mls.config.probes import Features
from mls.config.views import Interpolation
from mls.data import build_store, sources
from mls.data.eval_view import normalise, square
from mls.data.image_store import ImageStore
from mls.pipeline.plan import DATA_LOCK, read_lock
from mls.pipeline.runner import run_stage
from mls.probe.classifier import Classifier
from mls.probe.features import extract
from mls.runtime.checkpoint import load_resumable
from mls.runtime.errors import MlsError
from tests.conftest import plan_of, small
from tests.probe.finetune_support import (
    CPU,
    SIDE,
    fit,
    make_backbone,
    make_store,
    make_task,
    record,
)


def test_without_test_the_test_split_is_never_read(tmp_path: Path) -> None:
    store = make_store(tmp_path / "data", test_bytes=b"no image")
    outcome = fit(make_task(epochs=1), store, tmp_path / "work")
    assert (outcome.evaluation.split, outcome.facts["n_train"], outcome.steps) == ("val", 12, 3)
    assert np.array_equal(outcome.evaluation.rows_N, store.split("val"))
    assert outcome.evaluation.scores_NC.shape == (6, 3) and outcome.evaluation.scores_NC.dtype == np.float32
    with pytest.raises(MlsError, match=r"00\.png"):
        fit(make_task(epochs=1, test=True), store, tmp_path / "other")


def test_with_test_val_is_trained_on(store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    decode = store.decode

    def watched(row: int) -> torch.Tensor:
        read.append(row)
        return decode(row)

    monkeypatch.setattr(store, "decode", watched)
    outcome = fit(make_task(epochs=1, batch_size=6, test=True), store, tmp_path / "work")
    assert (outcome.evaluation.split, outcome.facts["n_train"], outcome.steps) == ("test", 18, 3)
    assert sorted(read[:18]) == [*store.split("train"), *store.split("val")]
    assert read[18:] == outcome.evaluation.rows_N.tolist() == store.split("test").tolist()


@pytest.mark.parametrize(("kind", "interpolation"), [("finetune", "bilinear"), ("sgd", "bilinear"), ("sgd", "bicubic")])
def test_evaluated_views_are_those_of_the_other_probes(
    store: ImageStore, tmp_path: Path, kind: str, interpolation: Interpolation
) -> None:
    """Evaluation as `square` makes them, in evaluation mode, by the weights that were left."""
    task = make_task(kind, resize=18, epochs=1, augment={"crop": SIDE, "interpolation": interpolation})
    outcome = fit(task, store, tmp_path / "work")
    state, _ = load_resumable(tmp_path / "work")
    assert state is not None
    model = Classifier(make_backbone(), 3, task, seed=1).eval()
    model.trained.load_state_dict(state["model"])
    rows_N, other = outcome.evaluation.rows_N, {"bilinear": "bicubic", "bicubic": "bilinear"}[interpolation]
    squares, others = (
        torch.stack([square(store.decode(int(row)), SIDE, 18, interpolation=one) for row in rows_N])  # type: ignore[arg-type]
        for one in (interpolation, other)
    )
    assert not torch.equal(squares, others)
    with torch.no_grad():
        expected_NC = model.fc(model.backbone(normalise(squares, CPU))).numpy()
    np.testing.assert_allclose(outcome.evaluation.scores_NC[:, :2], expected_NC[:, :2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("labels", "test", "message"),
    [
        ({"val": []}, False, "finetune trains on train and is evaluated on val; this dataset has no images of val"),
        ({"val": [], "test": []}, True, "no images of val and test"),
        ({"train": []}, False, "no images of train"),
        ({"train": [[0]] * 3}, False, "train of this dataset: no class has both positive and negative images"),
        ({"train": [[]] * 3, "val": [[]]}, True, "train and val of this dataset: no class has both"),
        ({"val": [[]] * 3}, False, "the val split of this dataset has no class with both positive and negative"),
    ],
)
def test_what_cannot_be_learned_or_evaluated_is_refused(
    tmp_path: Path, labels: dict[str, list[list[int]]], test: bool, message: str
) -> None:
    with pytest.raises(MlsError, match=message):
        fit(make_task(test=test), make_store(tmp_path / "data", None, **labels), tmp_path / "work")


def test_untrained_classes_have_one_score(tmp_path: Path) -> None:
    store = make_store(tmp_path / "data", train=[[0], [0, 1], [0], [0, 1]])  # red always, blue never
    outcome = fit(make_task(epochs=1), store, tmp_path / "work")
    assert outcome.evaluation.untrained == ["red", "blue"]
    assert not outcome.evaluation.scores_NC[:, [0, 2]].any()
    assert len(np.unique(outcome.evaluation.scores_NC[:, 1])) == 6


def test_finetuning_learns_scenes(in_tmp: Path) -> None:
    plan = plan_of(small())
    job = plan.find("data", "scenes")[0]
    run_stage(plan, job, build_store.run)
    outcome = fit(make_task(batch_size=8, epochs=20, lr=0.1), ImageStore(job.path), in_tmp / "tune")
    losses = [row["loss"] for row in outcome.curves]
    assert losses[-1] < 0.9 * losses[0]
    assert [set(row) for row in outcome.curves] == [{"step", "loss", "lr"}] * len(losses)
    assert all(row["images_per_s"] > 0 for row in outcome.timing)


@pytest.mark.parametrize("kind", ["finetune", "sgd"])
def test_a_single_label_set_is_learned(in_tmp: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("MLS_DATA", str(in_tmp / "data"))
    folder = in_tmp / "data/bars"
    folder.mkdir(parents=True)
    lines = ["file,label,split"]
    for number, split in enumerate(["train"] * 10 + ["val"] * 4 + ["test"] * 4):
        (folder / f"{number}.png").write_bytes(record(split, number, [number % 2]).data)
        lines.append(f"{number}.png,{('red', 'green')[number % 2]},{split}")
    (folder / "blue.png").write_bytes(record("test", 99, [2]).data)  # a class that is never trained
    (folder / "labels.csv").write_text("\n".join([*lines, "blue.png,blue,test"]) + "\n")
    sources.pin("bars", FolderDataset(source="folder"), DATA_LOCK)
    datasets = small()["datasets"] | {"bars": {"source": "folder"}}
    raw = small(datasets=datasets, probe={"p": {"kind": "linear", "dataset": "bars"}})
    plan = plan_of(raw | {"tables": {"t": {"columns": ["p.top1"]}}}, read_lock(DATA_LOCK))
    job = plan.find("data", "bars")[0]
    run_stage(plan, job, build_store.run)
    store = ImageStore(job.path)
    assert not store.multi_label and store.classes == ["blue", "green", "red"]
    lr = 0.02 if kind == "finetune" else 2.0
    outcome = fit(make_task(kind, epochs=12, lr=lr, test=True), store, in_tmp / "fit")
    assert outcome.evaluation.untrained == ["blue"] and np.isneginf(outcome.evaluation.scores_NC[:, 0]).all()
    truth_NC = store.labels(outcome.evaluation.rows_N)
    known = ~truth_NC[:, 0]
    assert known.sum() == 4 and len(known) == 5
    assert np.array_equal(outcome.evaluation.scores_NC[known].argmax(1), truth_NC[known].argmax(1))


def test_sgd_comes_near_logistic_regression(tmp_path: Path) -> None:
    """On the same frozen features, of a separable set, both decide alike on images that neither has seen."""
    labels = [[c for c in range(3) if number >> c & 1] for number in range(8)]
    store = make_store(tmp_path / "data", train=labels * 4, val=labels * 2)
    backbone = make_backbone()

    def features(split: str) -> NDArray[np.float32]:
        return extract(backbone, store, store.split(split), Features(image_size=SIDE), CPU)

    augment = {"crop": SIDE, "scale": [0.9, 1.0]}
    outcome = fit(make_task("sgd", epochs=40, lr=10.0, batch_size=16, augment=augment), store, tmp_path / "work")
    train_ND, val_ND, truth_NC = features("train"), features("val"), store.labels(store.split("val"))
    decided_NC = np.zeros_like(truth_NC)
    for c in range(3):
        model = LogisticRegression(C=100.0, max_iter=5000).fit(train_ND, store.labels(store.split("train"))[:, c])
        decided_NC[:, c] = model.predict(val_ND)
    theirs = (decided_NC == truth_NC).mean()
    assert theirs > 0.9
    assert ((outcome.evaluation.scores_NC > 0) == truth_NC).mean() > theirs - 0.05


@pytest.mark.parametrize("kind", ["finetune", "sgd"])
def test_bf16_applies_only_to_the_backbone(store: ImageStore, tmp_path: Path, kind: str) -> None:
    full = fit(make_task(kind, epochs=1, lr=1e-4), store, tmp_path / "fp32").evaluation.scores_NC
    half = fit(make_task(kind, epochs=1, lr=1e-4, precision="bf16"), store, tmp_path / "bf16").evaluation.scores_NC
    assert half.dtype == np.float32
    assert not np.array_equal(half, full)
    np.testing.assert_allclose(half, full, atol=0.05 * np.abs(full).max())
    state, _ = load_resumable(tmp_path / "bf16")
    assert state is not None
    assert all(v.dtype == torch.float32 for v in state["model"].values() if v.is_floating_point())
