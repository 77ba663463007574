"""Detectron2's models start from the pretrained weights, train, go on bit for bit, and are scored as it would.

Skipped where Detectron2 is not installed; ``mls doctor`` says how to.
"""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mls.data.augment import MEAN
from mls.data.store import Store
from mls.data.writer import Record
from mls.errors import DeterministicError, Interrupted
from mls.experiment.params import Backbone, Execution
from mls.experiment.transfers import Detectron2Detector
from mls.models.backbone import build_backbone, save_backbone
from mls.models.foreign import read_state, translate
from mls.train.runtime import set_up
from mls.transfer.evaluate import score
from mls.transfer.interface import Given
from mls.transfer.train import fit
from tests.transfer.conftest import make_record, make_store, write_records

pytest.importorskip("detectron2", reason="needs detectron2 (README: Detectron2)")

from mls.transfer import detectron2, detectron2_model
from mls.transfer.detectron2 import Detectron2Detection
from mls.transfer.export import export_backbone
from mls.transfer.voc import voc_score, year_of

pytestmark = pytest.mark.xdist_group("detectron2")  # one worker: each ResNet-50 trained takes 2 GB

R50 = Backbone(name="resnet50")
PAPER: dict[str, dict[str, Any]] = {
    "table 1": {"kind": "instance", "architecture": "fpn"},
    "table 2": {"kind": "instance", "architecture": "c4"},
    "table 4": {"kind": "detection", "architecture": "c4"},
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a ResNet-50 whose batch norms have statistics of their own."""
    torch.manual_seed(0)
    net = build_backbone(R50)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith(("running_mean", "bias")):
                tensor.normal_(0, 0.05)
            if name.endswith("running_var"):
                tensor.uniform_(0.8, 1.2)
    file = tmp_path_factory.mktemp("resnet50") / "backbone.safetensors"
    save_backbone(net, file)
    return file


@pytest.fixture
def start(store: Store, backbone: Path, log: list[str]) -> Given:
    return Given(store, R50, backbone, 1000, torch.device("cpu"), log.append)


def task_of(**changes: Any) -> Detectron2Detector:
    """A detector that trains in seconds: three steps of two images."""
    small = {"kind": "instance", "iterations": 3, "batch_size": 2, "reference_batch": 2, "warmup_steps": 2}
    small |= {"train_sizes": [48, 64], "test_size": 64, "max_size": 96, "rois": 8, "precise_bn": 2, "lr": 0.01}
    return Detectron2Detector.model_validate({"backend": "detectron2", "dataset": "rectangles", **small, **changes})


def run(given: Given, task: Detectron2Detector, execution: Execution, work: Path) -> Detectron2Detection:
    """One process's life: set up, build, train, finish."""
    work.mkdir(exist_ok=True)
    set_up(execution, given.seed)
    transfer = Detectron2Detection(task, given)
    fit(transfer, execution=execution, work=work, log=given.log)
    transfer.finish(1, "test")
    return transfer


# ------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("which", PAPER)
def test_the_papers_models(which: str) -> None:
    """What DenseCL's detection configs say (paper.md, section 3)."""
    task = Detectron2Detector.model_validate({"backend": "detectron2", "dataset": "coco", **PAPER[which]})
    cfg = detectron2_model.make_config(task, R50, num_classes=80)
    assert cfg.MODEL.RESNETS.NORM == "BN" and cfg.MODEL.BACKBONE.FREEZE_AT == 0
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1 is False and cfg.INPUT.FORMAT == "RGB"
    assert list(cfg.MODEL.PIXEL_MEAN) == pytest.approx([123.675, 116.28, 103.53])
    assert list(cfg.MODEL.PIXEL_STD) == pytest.approx([58.395, 57.12, 57.375])
    assert bool(cfg.MODEL.MASK_ON) == (task.kind == "instance")
    if task.architecture == "c4":
        assert cfg.MODEL.ROI_HEADS.NAME == "Res5ROIHeadsExtraNorm"
        assert (cfg.MODEL.RPN.PRE_NMS_TOPK_TEST, cfg.MODEL.RPN.POST_NMS_TOPK_TEST) == (6000, 1000)
    else:
        assert (cfg.MODEL.ROI_BOX_HEAD.NUM_CONV, cfg.MODEL.ROI_BOX_HEAD.NUM_FC) == (4, 1)
        assert cfg.MODEL.FPN.NORM == cfg.MODEL.ROI_BOX_HEAD.NORM == cfg.MODEL.ROI_MASK_HEAD.NORM == "BN"


def test_variants() -> None:
    task = task_of(norm="FrozenBN", precise_bn=0, freeze_at=2, fpn_norm="none", box_head="2fc", head_norm="none")
    cfg = detectron2_model.make_config(task, Backbone(name="resnet18"), num_classes=3)
    assert (cfg.MODEL.RESNETS.NORM, cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.FPN.NORM) == ("FrozenBN", 2, "")
    assert (cfg.MODEL.ROI_BOX_HEAD.NUM_CONV, cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_BOX_HEAD.NORM) == (0, 2, "")
    plain = task_of(architecture="c4", extra_norm=False)
    assert detectron2_model.make_config(plain, R50, num_classes=3).MODEL.ROI_HEADS.NAME == "Res5ROIHeads"


@pytest.mark.parametrize("architecture", ["fpn", "c4"])
def test_weights_are_loaded_and_counted(architecture: str, start: Given, log: list[str]) -> None:
    transfer = Detectron2Detection(task_of(architecture=architecture), start)
    assert log[0].startswith("backbone loaded: 318 of 318 tensors match, 0 missing, 0 unexpected; new, as expected:")
    assert ("FPN" in log[0], "extra norm 5" in log[0]) == (architecture == "fpn", architecture == "c4")
    assert f"equal in both backbones, {'C2' if architecture == 'fpn' else 'C4'} to C5" in log[1]
    own, stored = transfer.model.state_dict(), load_file(start.weights)
    for name, tensor in stored.items():
        assert torch.equal(own[detectron2_model.place(name, architecture)], tensor), name
    assert all(parameter.requires_grad for parameter in transfer.model.parameters())


@pytest.mark.parametrize("tensor", ["layer4.1.bn2.running_mean", "layer3.0.conv1.weight", "bn1.weight"])
@pytest.mark.parametrize("architecture", ["fpn", "c4"])
def test_a_conversion_that_mixes_tensors_up_is_seen(
    architecture: str, tensor: str, start: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(file: Path) -> dict[str, Tensor]:
        state = load_file(file)
        state[tensor] = state[tensor] + 0.1
        return state

    monkeypatch.setattr(detectron2_model, "load_file", wrong)
    with pytest.raises(DeterministicError, match="the converted backbone gives other features"):
        Detectron2Detection(task_of(architecture=architecture), start)


def test_blue_before_red_is_seen(start: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectron2_model, "MEAN", MEAN[::-1])
    with pytest.raises(DeterministicError, match="other features: C2"):
        Detectron2Detection(task_of(), start)


def test_weights_that_lack_a_tensor_are_refused(start: Given, tmp_path: Path) -> None:
    state = load_file(start.weights)
    del state["layer4.2.bn3.running_var"]
    save_file(state, tmp_path / "short.safetensors")
    with pytest.raises(DeterministicError, match=r"317 of 317 tensors match; .*missing: backbone.bottom_up.res5.2"):
        Detectron2Detection(task_of(), replace(start, weights=tmp_path / "short.safetensors"))


def test_weights_of_another_architecture_are_refused(start: Given, tmp_path: Path) -> None:
    save_backbone(build_backbone(Backbone(name="resnet18")), tmp_path / "small.safetensors")
    with pytest.raises(DeterministicError, match=r"nothing was loaded: .*no place for"):
        Detectron2Detection(task_of(), replace(start, weights=tmp_path / "small.safetensors"))


# ----------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("which", PAPER)
def test_the_papers_models_train_and_are_scored(which: str, start: Given, execution: Execution, tmp_path: Path) -> None:
    transfer = run(start, task_of(iterations=20, **PAPER[which]), execution, tmp_path / "work")
    results = transfer.predict(1, "test")
    metrics = transfer.score(results)
    assert ("mask_AP" in metrics) == (PAPER[which]["kind"] == "instance")
    assert all(("segmentation" in result) == ("mask_AP" in metrics) for result in results)
    assert {result["image_id"] for result in results} <= set(start.store.split("test").tolist())


@pytest.mark.parametrize("which", ["table 1", "table 2"])
def test_resumed_equals_uninterrupted(
    which: str, start: Given, execution: Execution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(**PAPER[which])
    whole = run(start, task, execution, tmp_path / "whole")
    original = Detectron2Detection.learning_rate
    calls = 0

    def stopped(self: Detectron2Detection, step: int) -> float:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, step)

    monkeypatch.setattr(Detectron2Detection, "learning_rate", stopped)
    with pytest.raises(Interrupted):
        run(start, task, execution, tmp_path / "parts")
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["checkpoint-000000002.pt"]
    monkeypatch.setattr(Detectron2Detection, "learning_rate", original)
    parts = run(start, task, execution, tmp_path / "parts")
    expected, found = whole.model.state_dict(), parts.model.state_dict()
    assert all(torch.equal(expected[key], found[key]) for key in expected)  # precise statistics included
    assert whole.predict(1, "test") == parts.predict(1, "test")


def test_precise_statistics_replace_the_running_ones(start: Given, execution: Execution, tmp_path: Path) -> None:
    def variance(precise_bn: int) -> Tensor:
        task = task_of(iterations=1, precise_bn=precise_bn)
        transfer = run(start, task, execution, tmp_path / f"work{precise_bn}")
        return transfer.model.state_dict()["backbone.bottom_up.stem.conv1.norm.running_var"]

    running, precise = variance(0), variance(2)
    pretrained = load_file(start.weights)["bn1.running_var"]
    # one step moves the running variance a tenth of the way from the pretrained one
    assert bool(((precise - pretrained).abs() > 3 * (running - pretrained).abs()).all())


def test_parts_beside_a_frozen_backbone_get_precise_statistics(
    start: Given, execution: Execution, tmp_path: Path
) -> None:
    task = task_of(norm="FrozenBN", iterations=1, precise_bn=2)
    with_, without = (
        run(start, task.model_copy(update={"precise_bn": n}), execution, tmp_path / f"work{n}").model.state_dict()
        for n in (2, 0)
    )
    moved = {name for name in with_ if not torch.equal(with_[name], without[name]) and "running" in name}
    assert moved and not any("bottom_up" in name for name in moved)


def test_precise_statistics_are_of_as_many_images_by_the_linear_rule(
    start: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer = Detectron2Detection(task_of(batch_size=2, reference_batch=8, precise_bn=3), start)
    counted: list[int] = []
    monkeypatch.setattr(detectron2, "update_bn_stats", lambda model, batches, num_iters: counted.append(num_iters))
    transfer.finish(1, "test")
    assert counted == [12]


def test_the_linear_rule(start: Given, log: list[str]) -> None:
    given = {"batch_size": 2, "reference_batch": 8, "iterations": 30, "warmup_steps": 10, "lr": 0.08}
    transfer = Detectron2Detection(task_of(**given, steps=[0.5]), start)
    assert transfer.total == 120
    rates = [transfer.learning_rate(step) for step in range(120)]
    assert rates[0] == pytest.approx(0.02 / 1000) and rates[40] == pytest.approx(0.02)
    assert rates[39] < rates[40] and rates[59:61] == pytest.approx([0.02, 0.002])
    assert "batches of 2 images instead of 8: by the linear rule the learning rate is 0.02 instead of 0.08" in log[-1]
    assert "steps are 120 instead of 30" in log[-1]
    assert transfer.derived() == {"total_steps": 120, "train_images": 7, "lr": 0.02}


def test_batches_hold_wide_images_or_tall_ones(start: Given, tmp_path: Path) -> None:
    records = [make_record("train", number) for number in range(6)] + [make_record("test", 1)]
    for record in records[:3]:
        record.width = 50
    transfer = Detectron2Detection(task_of(), replace(start, store=write_records(tmp_path / "wide", records)))
    plan = transfer.plan()
    batches = [next(plan) for _ in range(30)]
    assert all(len({index < 3 for index, _, _ in batch}) == 1 for batch in batches)
    epochs = [sorted(index for batch in batches for index, _, epoch in batch if epoch == one) for one in range(8)]
    assert all(epoch == list(range(6)) for epoch in epochs)


def test_samples_follow_from_the_seed_alone(start: Given) -> None:
    transfer = Detectron2Detection(task_of(), start)
    np.random.seed(1)
    first = transfer.load_sample((2, True, 5))
    np.random.seed(2)
    again = transfer.load_sample((2, True, 5))
    assert torch.equal(first["image"], again["image"])
    sides = {min(transfer.load_sample((2, True, epoch))["image"].shape[1:]) for epoch in range(12)}
    assert sides == {48, 64}


def test_a_flipped_sample_is_its_mirror_image(start: Given) -> None:
    transfer = Detectron2Detection(task_of(train_sizes=[40]), start)
    plain, flipped = transfer.load_sample((0, False, 0)), transfer.load_sample((0, True, 0))
    assert torch.equal(plain["image"], start.store.decode(start.store.split("train")[0]))
    assert torch.equal(flipped["image"], plain["image"].flip(-1))
    boxes, mirrored = (sample["instances"].gt_boxes.tensor for sample in (plain, flipped))
    assert torch.equal(mirrored, torch.stack([40 - boxes[:, 2], boxes[:, 1], 40 - boxes[:, 0], boxes[:, 3]], dim=1))
    annotations = start.store.ground_truth("train")["annotations"][:2]
    assert plain["instances"].gt_classes.tolist() == [a["category_id"] - 1 for a in annotations]
    masks = plain["instances"].gt_masks.tensor  # one from a polygon, one from a run-length code
    assert masks.sum((1, 2)).tolist() == [a["area"] for a in annotations]


# ------------------------------------------------------------------------------------------ scoring


def noisy(truth: dict[str, Any], perfect: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The truth with boxes that are a little off, some classes wrong, some found twice, in no order."""
    rng = np.random.default_rng(0)
    results = perfect(truth) + perfect(truth)[::3]
    for result in results:
        result["bbox"] = [round(max(0.5, v + float(rng.normal(0, 1.2))), 2) for v in result["bbox"]]
        result["score"] = round(float(rng.random()), 5)
        if rng.random() < 0.1:
            result["category_id"] = result["category_id"] % 3 + 1
    return results


def test_scores_are_those_of_its_own_evaluator(tmp_path: Path) -> None:
    from detectron2.evaluation.coco_evaluation import COCOEvaluator, _evaluate_predictions_on_coco
    from pycocotools.coco import COCO

    from tests.transfer.test_evaluate import perfect

    truth = make_store(tmp_path / "data", test=30).ground_truth("test")
    results = noisy(truth, perfect)
    (tmp_path / "truth.json").write_text(json.dumps(truth | {"info": {}}))
    coco = COCO(str(tmp_path / "truth.json"))
    metrics = score(truth, results, ("box", "mask"))
    evaluator = COCOEvaluator.__new__(COCOEvaluator)
    evaluator._logger = logging.getLogger("detectron2")
    for target, iou_type in (("box", "bbox"), ("mask", "segm")):
        copied = [dict(result) for result in results]
        evaluation = _evaluate_predictions_on_coco(coco, copied, iou_type)
        theirs = evaluator._derive_coco_results(evaluation, iou_type, class_names=["red", "green", "blue"])
        assert 5 < metrics[f"{target}_AP"] < 95
        for name in ("AP", "AP50", "AP75", "APs"):
            assert metrics[f"{target}_{name}"] == pytest.approx(theirs[name], abs=1e-9), (target, name)
        for name in ("red", "green", "blue"):
            assert metrics["per_class"][name][f"{target}_AP"] == pytest.approx(theirs[f"AP-{name}"], abs=1e-9)


@pytest.fixture
def voc(tmp_path: Path) -> Store:
    """A store as VOC's: difficult objects, no masks."""
    records = [make_record(split, number) for split in ("train", "test") for number in range(8)]
    for record in records:
        for index, annotation in enumerate(record.annotations):
            annotation |= {"segmentation": [], "difficult": int(index == 0 and record.split == "test"), "truncated": 0}
    return named(tmp_path / "voc", records, 2007)


def named(folder: Path, records: list[Record], *years: int) -> Store:
    """Write records under VOC's names, years in turn."""
    store = write_records(folder, records)
    names = [f"VOC{years[i % len(years)]}/JPEGImages/{i:06d}.jpg" for i in range(len(store))]
    store._names = pa.chunked_array([names])
    return store


def boxes(truth: dict[str, Any], difficult: bool) -> list[dict[str, Any]]:
    return [
        {**{key: a[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.9}
        for a in truth["annotations"]
        if difficult or not a["difficult"]
    ]


def test_voc_truth_scores_100_and_nothing_0(voc: Store) -> None:
    truth = voc.ground_truth("test")
    for difficult in (True, False):  # neither to be found nor a mistake to find
        results = boxes(truth, difficult)
        assert voc_score(voc, truth, results) == pytest.approx({"voc_AP": 100, "voc_AP50": 100, "voc_AP75": 100})
        assert score(truth, results, ("box",))["box_AP"] == pytest.approx(100)
    assert voc_score(voc, truth, []) == {"voc_AP": 0, "voc_AP50": 0, "voc_AP75": 0}
    assert score(truth, [], ("box",))["box_AP"] == 0


@pytest.mark.parametrize(
    ("years", "expected"),
    [
        ((2007,), 100 * (6 * 1 + 5 * 2 / 3) / 11),  # precision at recalls 0, 0.1, ..., 1
        ((2012,), 100 * (0.5 * 1 + 0.5 * 2 / 3)),  # area under the curve
        ((2007, 2012), 100 * (0.5 * 1 + 0.5 * 2 / 3)),
    ],
)
def test_each_year_has_its_rule(tmp_path: Path, years: tuple[int, ...], expected: float) -> None:
    """Two objects: found, a mistake, found."""
    records = [make_record("train", 0), make_record("test", 1, instances=1), make_record("test", 2, instances=1)]
    for record in records:
        for annotation in record.annotations:
            annotation |= {"segmentation": [], "difficult": 0, "truncated": 0, "category_id": 1}
        record.classes = [0]
    store = named(tmp_path / "voc", records, *years)
    truth = store.ground_truth("test")
    first, second = boxes(truth, True)
    wrong = {**first, "bbox": [0.0, 0.0, 2.0, 2.0], "score": 0.5}
    metrics = voc_score(store, truth, [first, wrong, {**second, "score": 0.1}])
    assert year_of(store, truth) == (2007 if years == (2007,) else 2012)
    assert metrics["voc_AP50"] == pytest.approx(expected) and metrics["voc_AP"] == pytest.approx(expected)


def test_voc_boxes_keep_their_pixels(voc: Store) -> None:
    """A box one pixel too wide on each side is the worse the smaller: an inclusive edge read as exclusive shows."""
    truth = voc.ground_truth("test")
    results = boxes(truth, False)
    for result in results:
        x, y, w, h = result["bbox"]
        result["bbox"] = [x, y, w + 1, h]
    ious = [r["bbox"][2] - 1 for r in results]
    lowest = min(w / (w + 1) for w in ious)
    metrics = voc_score(voc, truth, results)
    assert metrics["voc_AP75"] == pytest.approx(100)
    assert (metrics["voc_AP"] < 100) == (lowest < 0.95)


def test_voc_metrics_are_there(voc: Store, start: Given, execution: Execution, tmp_path: Path) -> None:
    transfer = run(replace(start, store=voc), task_of(**PAPER["table 4"]), execution, tmp_path / "work")
    assert transfer.train_images == 8, "difficult objects are trained on"
    assert set(transfer.score([])) == {f"box_{n}" for n in ("AP", "AP50", "AP75", "APs", "APm", "APl")} | {
        *("voc_AP", "voc_AP50", "voc_AP75", "per_class")
    }


# ------------------------------------------------------------------------------------------- export


@pytest.mark.parametrize("which", ["table 1", "table 2"])
def test_an_exported_backbone_is_read_by_its_checkpointer(
    which: str, backbone: Path, tmp_path: Path, log: list[str]
) -> None:
    from detectron2.checkpoint import DetectionCheckpointer

    out = tmp_path / "mls.pth"
    export_backbone(R50, backbone, "detectron2", out, log.append)
    assert "features of one image are equal" in log[0]
    task = task_of(**PAPER[which])
    model = detectron2_model.build_model(task, R50, num_classes=3)
    DetectionCheckpointer(model).load(f"{out}?matching_heuristics=True")
    own, stored = model.state_dict(), load_file(backbone)
    for name, tensor in stored.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(own[detectron2_model.place(name, task.architecture)], tensor), name


@pytest.mark.parametrize("which", PAPER)
def test_a_checkpoint_of_its_own_becomes_a_backbone(which: str, start: Given, tmp_path: Path) -> None:
    """`method: weights` with a fine-tuned detector: C5 is in the heads of some."""
    model = Detectron2Detection(task_of(**PAPER[which]), start).model
    torch.save({"model": model.state_dict()}, tmp_path / "model_final.pth")
    net = build_backbone(R50)
    state, prefix, unused = translate(read_state(tmp_path / "model_final.pth"), net.state_dict(), tmp_path)
    assert prefix == "Detectron2's names" and unused
    stored = load_file(start.weights)
    assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())
