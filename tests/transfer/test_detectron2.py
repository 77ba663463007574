"""Detectron2's models start from the pretrained weights, train, and resume bit for bit.

Skipped where Detectron2 is not installed; ``mls doctor`` says how to.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mls.config.experiment import Backbone, Execution
from mls.config.transfers import Detectron2Detector
from mls.data.augment import MEAN
from mls.models.backbone import build_backbone, save_backbone
from mls.runtime.errors import DeterministicError, Interrupted
from mls.transfer.interface import Given
from tests.transfer.support import R50, live, make_record, stopped, terminate, write_records

pytest.importorskip("detectron2", reason="needs detectron2 (README: Detectron2)")

from mls.transfer import detectron2, detectron2_model
from mls.transfer.detectron2 import Detectron2Detection
from tests.transfer.detectron2_support import PAPER, run, task_of

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
    s3l = detectron2_model.make_config(task_of(box_head="2fc", head_norm="none"), R50, num_classes=80).MODEL
    assert (s3l.RESNETS.NORM, s3l.FPN.NORM, s3l.ROI_BOX_HEAD.NORM, s3l.ROI_MASK_HEAD.NORM) == ("BN", "BN", "", "")
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
def test_a_wrong_tensor_is_detected(
    architecture: str, tensor: str, start: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(file: Path) -> dict[str, Tensor]:
        state = load_file(file)
        state[tensor] = state[tensor] + 0.1
        return state

    monkeypatch.setattr("mls.transfer.detector.load_file", wrong)
    with pytest.raises(DeterministicError, match="the converted backbone gives different features"):
        Detectron2Detection(task_of(architecture=architecture), start)


def test_swapped_channels_are_detected(start: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectron2_model, "MEAN", MEAN[::-1])
    with pytest.raises(DeterministicError, match="different features: C2"):
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
def test_resumed_equals_uninterrupted(which: str, start: Given, execution: Execution, tmp_path: Path) -> None:
    task = task_of(**PAPER[which])
    whole = run(start, task, execution, tmp_path / "whole")
    with stopped(Detectron2Detection, 1, terminate), pytest.raises(Interrupted):
        run(start, task, execution, tmp_path / "parts")
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["checkpoint-000000002.pt"]
    parts = run(start, task, execution, tmp_path / "parts")
    expected, found = whole.model.state_dict(), parts.model.state_dict()
    assert all(torch.equal(expected[key], found[key]) for key in expected)  # precise statistics included
    assert whole.predict(1, "test") == parts.predict(1, "test")


@pytest.mark.parametrize("architecture", ["fpn", "c4"])
def test_bf16_changes_the_backbone_only_by_its_rounding(
    architecture: str, start: Given, execution: Execution, tmp_path: Path
) -> None:
    found = []
    for precision in ("fp32", "bf16"):
        task = task_of(architecture=architecture, precision=precision, iterations=1, precise_bn=0)
        torch.manual_seed(0)  # of the new parts
        model = Detectron2Detection(task, start).model
        with torch.no_grad():
            maps = model.backbone(torch.linspace(-2, 2, 3 * 64 * 64).view(1, 3, 64, 64))
            found.append([*maps.values()] + ([model.roi_heads.res5(maps["res4"])] if architecture == "c4" else []))
    for fp32, bf16 in zip(*found, strict=True):
        assert bf16.dtype == torch.float32
        assert 0 < float((fp32 - bf16).abs().max() / fp32.abs().max()) < 0.05
    transfer, _ = live(Detectron2Detection, task, start, execution, tmp_path / "work")  # with bf16, to a finite loss
    assert all(value.dtype == torch.float32 for value in transfer.model.parameters())


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


def test_precise_statistics_use_as_many_images_at_any_batch_size(start: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    transfer = Detectron2Detection(task_of(batch_size=2, reference_batch=8, precise_bn=3), start)
    counted: list[int] = []
    monkeypatch.setattr(detectron2, "precise_statistics", lambda model, batches: counted.extend(map(len, batches)))
    transfer.finish(1, "test")
    assert counted == [2] * 12


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
    batches = [*transfer.plan(range(30))]
    assert [*transfer.plan(range(20, 30))] == batches[20:]
    assert all(len({index < 3 for index, _, _ in batch}) == 1 for batch in batches)
    epochs = [sorted(index for batch in batches for index, _, epoch in batch if epoch == one) for one in range(8)]
    assert all(epoch == list(range(6)) for epoch in epochs)


def test_samples_depend_only_on_the_seed(start: Given) -> None:
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
