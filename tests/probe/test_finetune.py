"""Training on images: losses and schedules by hand, what is frozen stays, a resumed run is the uninterrupted one."""

from __future__ import annotations

import io
import json
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from torchvision.models.resnet import ResNet

from mls.config.datasets import FolderDataset
from mls.config.experiment import Backbone, Execution
from mls.config.probes import Features, FinetuneProbe, SgdProbe, TrainedProbe
from mls.config.views import Interpolation
from mls.data import build_store, sources
from mls.data.eval_view import normalise, square
from mls.data.image_store import ImageStore
from mls.data.writer import Record, write_store
from mls.models.backbone import build_backbone
from mls.pipeline.plan import DATA_LOCK, read_lock
from mls.pipeline.runner import run_stage
from mls.probe import finetune as module
from mls.probe.classifier import Classifier, learning_rate, loss_of, make_optimizer
from mls.probe.evaluation import Evaluation
from mls.probe.features import extract
from mls.probe.finetune import ClassifierTraining, Views, train_and_score
from mls.runtime.checkpoint import load_resumable
from mls.runtime.device import set_up
from mls.runtime.errors import DeterministicError, Interrupted, MlsError
from tests.conftest import plan_of, small

SEED = 1000
SIDE = 16
CPU = torch.device("cpu")
EXECUTION = Execution(threads=1, workers=1, device="cpu", checkpoint_every=100)
COLOURS = ((220, 40, 40), (40, 220, 40), (40, 40, 220))


class Fitted(NamedTuple):
    """What a training gave, and what it wrote."""

    evaluation: Evaluation
    facts: dict[str, Any]
    steps: int
    curves: list[dict[Any, Any]]
    timing: list[dict[Any, Any]]


def make_backbone() -> ResNet:
    """A tiny ResNet whose running statistics are away from their start."""
    torch.manual_seed(0)
    net = build_backbone(Backbone(name="resnet18", width=0.125, stem="small"))
    with torch.no_grad():
        net.train()(torch.randn(32, 3, SIDE, SIDE))
    return net


def make_task(kind: str = "finetune", **changes: Any) -> TrainedProbe:
    """Six epochs of 3 steps, of the 12 images in train of `make_store`."""
    values = {"kind": kind, "dataset": "d", "epochs": 6, "batch_size": 4, "augment": {"crop": SIDE}, "test": False}
    return (FinetuneProbe if kind == "finetune" else SgdProbe).model_validate(values | changes)


def record(split: str, number: int, classes: list[int]) -> Record:
    """A noisy image that holds a bar in the colour of each of its classes."""
    pixels_HW3 = np.random.default_rng((number, len(split))).integers(80, 120, (20, 24, 3))
    for c in classes:
        pixels_HW3[2 + 6 * c : 7 + 6 * c] = COLOURS[c]
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW3.astype(np.uint8)).save(buffer, "PNG")
    return Record(f"{number:02d}.png", split, buffer.getvalue(), 24, 20, classes, [])


def make_store(out: Path, test_bytes: bytes | None = None, **labels: list[list[int]]) -> ImageStore:
    """Twelve train, six val and six test images; ``test_bytes``: what the last are instead, ``labels``: of a split."""
    some = [[0], [1], [0, 1], []]
    records = []
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        for number, classes in enumerate(labels.get(split, (some * 3)[:count])):
            records.append(record(split, number, classes))
            if split == "test" and test_bytes is not None:
                records[-1].data = test_bytes
    out.mkdir()
    write_store(out, records, ["red", "green", "blue"], True, [])
    return ImageStore(out)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return make_store(tmp_path / "data")


def fit(
    task: TrainedProbe,
    store: ImageStore,
    work: Path,
    execution: Execution = EXECUTION,
    backbone: ResNet | None = None,
    lines: list[str] | None = None,
) -> Fitted:
    """One process's life: set up, build, train, score."""
    work.mkdir(exist_ok=True)
    log = (lines if lines is not None else []).append
    given = {"job": SimpleNamespace(seed=0), "label": "task/run:0", "execution": execution, "log": log}
    context: Any = SimpleNamespace(work=work, out=work, **given)
    device = set_up(execution.device, execution.threads, SEED)
    evaluation, facts = train_and_score(context, task, store, backbone or make_backbone(), device)
    curves, timing = (pd.read_csv(work / name).to_dict("records") for name in ("curves.csv", "timing.csv"))
    return Fitted(evaluation, facts, json.loads((work / "derived.json").read_text())["total_steps"], curves, timing)


def parameters(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


def changed(net: torch.nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    """Kinds of what is not bit for bit as it was: ``running_mean``, ``weight``, ..."""
    return {key.split(".")[-1] for key, value in net.state_dict().items() if not torch.equal(value, before[key])}


# ------------------------------------------------------------------------------------------------ pieces


def test_multi_label_loss_by_hand() -> None:
    generator = torch.Generator().manual_seed(1)
    logits_BC = 5 * torch.randn(6, 4, generator=generator)
    truth_BC = torch.rand(6, 4, generator=generator) < 0.5
    kept_BC = truth_BC | (torch.rand(6, 4, generator=generator) < 0.6)
    assert 0 < (~kept_BC).sum() < 12
    terms = []
    for logit, truth, kept in zip(*(v.flatten().tolist() for v in (logits_BC, truth_BC, kept_BC)), strict=True):
        if kept:
            terms.append(math.log1p(math.exp(-logit)) if truth else math.log1p(math.exp(logit)))
    assert float(loss_of(logits_BC, truth_BC, kept_BC, True)) == pytest.approx(np.mean(terms), rel=1e-6)
    everything = torch.ones_like(kept_BC)
    plain = torch.nn.BCEWithLogitsLoss()(logits_BC, truth_BC.float())
    torch.testing.assert_close(loss_of(logits_BC, truth_BC, everything, True), plain)


def test_ignored_entries_have_no_gradient() -> None:
    logits_BC = torch.randn(3, 2, requires_grad=True)
    kept_BC = torch.tensor([[True, False], [True, True], [False, True]])
    loss_of(logits_BC, torch.zeros(3, 2, dtype=torch.bool), kept_BC, True).backward()
    assert logits_BC.grad is not None and torch.equal(logits_BC.grad.bool(), kept_BC)
    nothing = loss_of(torch.randn(3, 2), torch.zeros(3, 2, dtype=torch.bool), torch.zeros(3, 2).bool(), True)
    assert float(nothing) == 0


def test_single_label_loss_by_hand() -> None:
    logits_BC = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
    truth_BC = torch.tensor([[False, True, False], [True, False, False]])
    terms = [
        math.log(sum(map(math.exp, row))) - row[answer] for row, answer in zip(logits_BC.tolist(), (1, 0), strict=True)
    ]
    value = loss_of(logits_BC, truth_BC, torch.ones(2, 3).bool(), False)
    assert float(value) == pytest.approx(np.mean(terms), rel=1e-6)


def test_the_cosine_schedule_warms_up_and_falls() -> None:
    task = make_task(lr=2.0, epochs=10, warmup_epochs=1.0)
    rates = [learning_rate(task, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([2 * (step + 1) / 11 for step in range(10)])
    assert rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(1 + math.cos(math.pi * 89 / 90))
    assert learning_rate(make_task(lr=2.0), 0, 18) == 2.0
    assert learning_rate(make_task(lr=2.0, epochs=1, warmup_epochs=0.9), 0, 1) == 1.0  # all steps there are


def test_the_step_schedule_divides_by_ten() -> None:
    task = make_task("sgd", lr=30.0, epochs=100)
    rates = [learning_rate(task, step, 500) for step in range(500)]
    assert rates == pytest.approx([30.0] * 300 + [3.0] * 100 + [0.3] * 100)
    slow = make_task("sgd", lr=1.0, epochs=10, warmup_epochs=6.0, steps=[0.5])
    assert learning_rate(slow, 5, 10) == pytest.approx(0.1 * 6 / 7)  # a drop within the warm-up counts too


def test_first_weights_follow_from_the_seed() -> None:
    heads: list[torch.nn.Linear] = []
    for kind in ("finetune", "sgd"):
        made: list[torch.nn.Linear] = []
        for seed in (1, 1, 2):
            torch.manual_seed(len(heads) + len(made))  # of no account
            made.append(Classifier(make_backbone(), 500, make_task(kind), seed).fc)
        assert torch.equal(made[0].weight, made[1].weight)
        assert not torch.equal(made[0].weight, made[2].weight)
        heads.append(made[0])
    tuned, frozen = heads
    assert tuned.weight.shape == (500, 64)
    for parameter in (tuned.weight, tuned.bias):
        assert parameter.abs().max() <= 1 / 8
        assert float(parameter.detach().std()) == pytest.approx(1 / 8 / math.sqrt(3), rel=0.1)
    assert not frozen.bias.any()
    assert float(frozen.weight.detach().std()) == pytest.approx(0.01, rel=0.05)


def test_optimizer_groups() -> None:
    task = make_task(classifier_lr=10.0, nesterov=True, weight_decay=1e-3)
    model = Classifier(make_backbone(), 3, task, SEED)
    optimizer = make_optimizer(model, task)
    assert [group["times"] for group in optimizer.param_groups] == [10.0, 1.0]
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    assert all(group["weight_decay"] == 1e-3 and group["nesterov"] for group in optimizer.param_groups)
    alone = make_optimizer(frozen := Classifier(make_backbone(), 3, make_task("sgd"), SEED), make_task("sgd"))
    assert [id(p) for group in alone.param_groups for p in group["params"]] == [id(p) for p in frozen.fc.parameters()]


# ----------------------------------------------------------------------------------------------- training


def test_classifier_lr_changes_only_the_classifier(store: ImageStore, tmp_path: Path) -> None:
    steps: dict[float, dict[str, torch.Tensor]] = {}
    for times in (0.5, 1.0, 8.0):
        task = make_task(epochs=1, batch_size=12, lr=1e-3, classifier_lr=times, momentum=0.0)  # a single step
        assert fit(task, store, tmp_path / f"{times}").steps == 1
        state, _ = load_resumable(tmp_path / f"{times}")
        assert state is not None
        steps[times] = state["model"]
    begun = Classifier(make_backbone(), 3, make_task(), SEED).state_dict()
    moved = {times: state["fc.weight"] - begun["fc.weight"] for times, state in steps.items()}
    torch.testing.assert_close(moved[8.0], 8 * moved[1.0], rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(moved[0.5], 0.5 * moved[1.0], rtol=1e-3, atol=1e-7)
    assert moved[1.0].abs().max() > 1e-5
    assert torch.equal(steps[8.0]["backbone.conv1.weight"], steps[1.0]["backbone.conv1.weight"])


def test_sgd_leaves_the_backbone_bit_for_bit(store: ImageStore, tmp_path: Path) -> None:
    backbone = make_backbone()
    before = parameters(backbone)
    outcome = fit(make_task("sgd", lr=0.1, weight_decay=0.1), store, tmp_path / "work", backbone=backbone)
    assert changed(backbone, before) == set()
    losses = [row["loss"] for row in outcome.curves]
    assert losses[-1] < losses[0]
    state, _ = load_resumable(tmp_path / "work")
    assert state is not None and set(state["model"]) == {"1.weight", "1.bias"}


@pytest.mark.parametrize(("batchnorm", "kept"), [("frozen", True), ("train", False)])
def test_statistics_of_batch_norm(store: ImageStore, tmp_path: Path, batchnorm: str, kept: bool) -> None:
    backbone = make_backbone()
    before = parameters(backbone)
    fit(make_task(epochs=1, batchnorm=batchnorm), store, tmp_path / "work", backbone=backbone)
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    assert changed(backbone, before) == {"weight", "bias"} | (set() if kept else statistics)


@pytest.mark.parametrize("multi_label", [True, False])
def test_mixup_by_hand(store: ImageStore, monkeypatch: pytest.MonkeyPatch, multi_label: bool) -> None:
    """Zhang et al.: cross-entropy of mixed images with mixed labels. Ignored classes leave the share of their image."""
    monkeypatch.setattr(store, "multi_label", multi_label)
    task = make_task(mixup=1.0, batchnorm="frozen", weight_decay=0.0)
    training = ClassifierTraining(
        Classifier(make_backbone(), 3, task, SEED), Views(store, store.split("train"), task, SEED), CPU
    )
    training.model.train()
    (batch,) = training.batches(range(1), 1)
    assert batch.mixture is not None and 0.02 < batch.mixture.share < 0.98
    share, partner_B = batch.mixture.share, batch.mixture.partner_B
    assert not torch.equal(partner_B, torch.arange(4))
    if not multi_label:
        batch = batch._replace(truth_BC=torch.eye(3).bool()[[0, 1, 2, 1]])
    images_BCHW = training.augment(batch.crops_BCHW, batch.draws_BU)
    logits_BC = training.model(share * images_BCHW + (1 - share) * images_BCHW[partner_B])
    truth_BC = batch.truth_BC.float()
    mixed_BC = share * truth_BC + (1 - share) * truth_BC[partner_B]
    loss_fn = torch.nn.BCEWithLogitsLoss() if multi_label else torch.nn.CrossEntropyLoss()
    torch.testing.assert_close(training.losses(batch)["loss"], loss_fn(logits_BC, mixed_BC))
    if multi_label:
        kept_BC = torch.ones(4, 3).bool()
        kept_BC[0] = False
        pairs_BC = torch.nn.functional.binary_cross_entropy_with_logits(logits_BC, truth_BC, reduction="none")
        theirs_BC = torch.nn.functional.binary_cross_entropy_with_logits(
            logits_BC, truth_BC[partner_B], reduction="none"
        )
        expected = share * pairs_BC[1:].mean() + (1 - share) * theirs_BC[partner_B != 0].mean()
        torch.testing.assert_close(training.losses(batch._replace(kept_BC=kept_BC))["loss"], expected)


def test_mixup_is_refused_where_the_backbone_is_frozen() -> None:
    with pytest.raises(ValidationError, match=r"mixup\n.*Extra inputs"):
        make_task("sgd", mixup=1.0)
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        make_task(mixup=-1.0)


@pytest.mark.parametrize("kind", ["finetune", "sgd"])
@pytest.mark.parametrize("how", ["signal", "kill", "damage"])
def test_a_resumed_training_equals_an_uninterrupted_one(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, how: str
) -> None:
    monkeypatch.setattr("mls.train.finetune.CURVE_EVERY", 2)
    own = {"batchnorm": True} if kind == "sgd" else {"mixup": 0.4, "augment": {"crop": SIDE, "resize": 18}}
    task = make_task(kind, epochs=3, batch_size=5, lr=0.1, warmup_epochs=1.0, nesterov=True, **own)
    whole = fit(task, store, tmp_path / "whole")
    assert whole.steps == 7
    original, calls = learning_rate, 0

    def stop_on_the_way(task: TrainedProbe, step: int, steps: int) -> float:
        nonlocal calls
        calls += 1
        if how == "signal" and calls == 3:
            os.kill(os.getpid(), signal.SIGTERM)  # the step is finished, then the state is saved
        if how != "signal" and calls == 6:
            raise KeyboardInterrupt  # nothing is saved any more
        return original(task, step, steps)

    every = EXECUTION.model_copy(update={"checkpoint_every": {"signal": 100, "kill": 4, "damage": 2}[how]})
    monkeypatch.setattr(module, "learning_rate", stop_on_the_way)
    with pytest.raises(Interrupted if how == "signal" else KeyboardInterrupt):
        fit(task, store, tmp_path / "parts", every)
    left = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert left == [f"checkpoint-{n:09d}.pt" for n in {"signal": [3], "kill": [4], "damage": [2, 4]}[how]]
    if how == "damage":
        with (tmp_path / "parts" / left[-1]).open("r+b") as file:
            file.truncate(1000)
    monkeypatch.setattr(module, "learning_rate", original)
    lines: list[str] = []
    resumed = fit(task, store, tmp_path / "parts", lines=lines)

    assert lines[-1] == f"going on from step { ({'signal': 3, 'kill': 4, 'damage': 2}[how]) } of 7"
    assert len(lines) == (2 if how == "damage" else 1)
    assert [row["step"] for row in whole.curves] == [0, 2, 4, 6]
    assert resumed.curves == whole.curves
    assert np.array_equal(resumed.evaluation.scores_NC, whole.evaluation.scores_NC)
    states = [load_resumable(tmp_path / folder)[0] for folder in ("whole", "parts")]
    for state in states:
        assert state is not None
        state["timing"] = None
    first, second = (flat(state) for state in states)
    assert len(first) == len(second) > 10
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(first, second, strict=True))
    again = fit(task, store, tmp_path / "parts")  # finished: trains no more
    assert np.array_equal(again.evaluation.scores_NC, whole.evaluation.scores_NC)
    assert again.curves == whole.curves


def flat(value: Any) -> list[Any]:
    """The leaves of nested containers, in order."""
    if isinstance(value, dict):
        return [leaf for key in sorted(value, key=str) for leaf in [key, *flat(value[key])]]
    if isinstance(value, list):
        return [leaf for item in value for leaf in flat(item)]
    return [value]


def test_bad_loss_stops_before_the_update(store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = make_backbone()
    before = parameters(backbone)

    def broken(*args: Any) -> torch.Tensor:
        return loss_of(*args) * math.inf

    monkeypatch.setattr(module, "loss_of", broken)
    with pytest.raises(DeterministicError, match=r"at step 0 of 18 \(loss inf\); .* 0\.5: lower lr \(now 0\.5\)"):
        fit(make_task(lr=0.5), store, tmp_path / "work", backbone=backbone)
    assert changed(backbone, before).isdisjoint({"weight", "bias"})
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("kind", ["finetune", "sgd"])
def test_a_broken_backbone_is_named(store: ImageStore, tmp_path: Path, kind: str) -> None:
    backbone = make_backbone()
    with torch.no_grad():
        backbone.layer4[1].bn2.bias[0] = math.inf
    with pytest.raises(DeterministicError, match=r"at step 0 of 18.*backbone's features are not.*pretraining diverged"):
        fit(make_task(kind), store, tmp_path / "work", backbone=backbone)


def test_logits_that_are_not_finite_are_refused(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = np.array([[0, math.nan, 0], [0, 0, 0]], dtype=np.float32)
    monkeypatch.setattr(module, "outputs_of", lambda *_: logits)
    with pytest.raises(DeterministicError, match=r"after 18 steps the logits of 1 of 2 val images are not finite"):
        fit(make_task(), store, tmp_path / "work")


# ------------------------------------------------------------------------------------------------ splits


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


# --------------------------------------------------------------------------------------------- it learns


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
    lr = 0.05 if kind == "finetune" else 2.0
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
