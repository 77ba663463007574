"""A torchvision detector starts from the pretrained weights, sees boxes and masks in the right places, and learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mls.config.experiment import Backbone, Execution
from mls.config.transfers import TorchvisionDetector
from mls.data.image_store import ImageStore
from mls.models.backbone import build_backbone, feature_maps
from mls.runtime.errors import DeterministicError, MlsError
from mls.train.finetune import finetune
from mls.transfer.instances import TrainingInstances
from mls.transfer.interface import Given
from mls.transfer.torchvision import FIRST_STRIDE, TorchvisionDetection, anchor_sizes
from tests.transfer.support import live, make_record, write_records


def test_weights_are_loaded_and_counted(given: Given, task: TorchvisionDetector, log: list[str]) -> None:
    torch.manual_seed(99)  # another state than the one the weights were drawn from
    body = TorchvisionDetection(task, given).model.get_submodule("backbone.body").state_dict()
    stored = load_file(given.weights)
    assert set(body) == set(stored)
    assert all(torch.equal(body[key], stored[key]) for key in stored)
    count = len(stored)
    assert log[0].startswith(f"backbone loaded: {count} of {count} tensors match, 0 missing, 0 unexpected; new")
    assert "FPN 16, RPN 6, heads" in log[0]
    assert "features of one image are equal in both backbones, C2 to C5" in log[1]


def test_other_weights_are_refused(given: Given, task: TorchvisionDetector) -> None:
    wide = replace(given, config=Backbone(name="resnet18", width=0.25, stem="small"))
    with pytest.raises(MlsError, match=r"nothing was loaded: .* different shape: backbone.body"):
        TorchvisionDetection(task, wide)


def test_diverged_weights_are_refused(given: Given, task: TorchvisionDetector) -> None:
    state = load_file(given.weights)
    state["layer2.0.conv1.weight"].fill_(float("nan"))
    save_file(state, given.weights)
    with pytest.raises(DeterministicError, match=r"not finite \(C3\): check whether the pretraining diverged"):
        TorchvisionDetection(task, given)


def test_swapped_channels_are_detected(
    given: Given, task: TorchvisionDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TorchvisionDetection.build

    def build(*args: Any) -> Any:
        detector = original(*args)
        detector.transform.image_mean.reverse()
        return detector

    monkeypatch.setattr(TorchvisionDetection, "build", staticmethod(build))
    with pytest.raises(DeterministicError, match="the converted backbone gives different features: C2"):
        TorchvisionDetection(task, given)


def test_a_gradient_that_is_not_finite_stops_before_the_update(
    given: Given, task: TorchvisionDetector, execution: Execution, tmp_path: Path
) -> None:
    """Its loss is finite: it would be in a checkpoint before the next loss is seen."""
    transfer = TorchvisionDetection(task, given)
    transfer.model.roi_heads.box_predictor.cls_score.weight.register_hook(lambda grad: grad * float("inf"))
    before = {name: value.clone() for name, value in transfer.model.named_parameters()}
    with pytest.raises(DeterministicError, match="the gradient is not finite at step 0 of 6"):
        finetune(transfer, execution=execution, work=tmp_path, log=given.log, name="test")
    assert all(torch.equal(before[name], value) for name, value in transfer.model.named_parameters())
    assert not list(tmp_path.glob("checkpoint*"))


def test_threads_change_no_prediction(given: Given, task: TorchvisionDetector) -> None:
    transfer = TorchvisionDetection(task, given)
    assert transfer.predict(1, "test") == transfer.predict(3, "test")


def test_the_detectors_random_numbers_do_not_depend_on_the_comparison(given: Given, task: TorchvisionDetector) -> None:
    torch.manual_seed(5)
    first = TorchvisionDetection(task, given)
    after = torch.rand(3)
    torch.manual_seed(5)
    second = TorchvisionDetection(task, given)
    assert torch.equal(torch.rand(3), after)
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))


def test_instances_leave_out_crowds_and_empty_images(store: ImageStore) -> None:
    assert list(TrainingInstances(store, "train", masks=True)) == list(range(7))
    assert len(store.split("train")) == 9


@pytest.mark.parametrize(("kind", "needs"), [("instance", "boxes and masks"), ("detection", "boxes")])
def test_no_instances_is_an_error(
    tmp_path: Path, given: Given, task: TorchvisionDetector, kind: str, needs: str
) -> None:
    task = task.model_copy(update={"kind": kind})
    empty = [make_record("train", 1, instances=0), make_record("test", 2)]
    with pytest.raises(MlsError, match=rf"split 'train' of this dataset holds no instances.*needs {needs}"):
        TorchvisionDetection(task, replace(given, store=write_records(tmp_path / "a", empty)))
    blind = [make_record("train", 1), make_record("test", 2, instances=0)]
    with pytest.raises(MlsError, match=rf"test split of this dataset holds no instances; .*needs {needs}"):
        TorchvisionDetection(task, replace(given, store=write_records(tmp_path / "b", blind)))
    with pytest.raises(MlsError, match="the test split of this dataset is empty"):
        TorchvisionDetection(task, replace(given, store=write_records(tmp_path / "c", [make_record("train", 1)])))


def test_boxes_without_masks_suffice_only_for_detection(
    tmp_path: Path, given: Given, task: TorchvisionDetector
) -> None:
    records = [make_record(split, number) for split in ("train", "test") for number in range(3)]
    for record in records:
        for annotation in record.annotations:
            annotation["segmentation"] = []
    bare = replace(given, store=write_records(tmp_path / "bare", records))
    with pytest.raises(MlsError, match="holds boxes, but no masks; the task 'detection' needs no masks"):
        TorchvisionDetection(task, bare)
    assert TorchvisionDetection(task.model_copy(update={"kind": "detection"}), bare).train_images == 3


def test_flip_mirrors_image_boxes_and_masks(given: Given, task: TorchvisionDetector) -> None:
    transfer = TorchvisionDetection(task, given)
    image, target = transfer.load_sample((0, False, 0))
    flipped, mirrored = transfer.load_sample((0, True, 0))
    assert torch.equal(flipped, image.flip(-1))
    for boxes, masks in ((target["boxes"], target["masks"]), (mirrored["boxes"], mirrored["masks"])):
        assert masks.shape == (2, 40, 40)  # one from a polygon, one from a run-length code
        for box, mask in zip(boxes.int().tolist(), masks, strict=True):
            ys, xs = torch.where(mask == 1)
            assert [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] == box


def test_eight_images_are_learned_by_heart(
    tmp_path: Path, given: Given, task: TorchvisionDetector, execution: Execution
) -> None:
    """AP50 above 50 on the images that it was trained on, after a few hundred steps."""
    records = [make_record(split, number, like="train") for split in ("train", "test") for number in range(8)]
    learner = replace(given, store=write_records(tmp_path / "eight", records))
    longer = {"epochs": 150, "batch_size": 4, "lr": 0.006, "warmup_steps": 100}
    larger = {"image_size": 64, "fpn_channels": 16, "head_channels": 64, "rois": 32, "proposals": 50}
    task = task.model_copy(update=longer | larger)
    transfer, _ = live(TorchvisionDetection, task, learner, execution, tmp_path / "work")
    assert transfer.total == 300
    metrics = transfer.score(transfer.predict(1, "test"))
    assert metrics["box_AP50"] > 50 and metrics["mask_AP50"] > 50, metrics


def test_everything_is_trained(config: Backbone, task: TorchvisionDetector) -> None:
    detector = TorchvisionDetection.build(task, config, classes=3)
    assert all(parameter.requires_grad for parameter in detector.parameters())
    before = detector.backbone.body.bn1.running_mean.clone()
    target = {
        "boxes": torch.tensor([[4.0, 4.0, 20.0, 20.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 40, 40, dtype=torch.uint8),
    }
    losses = detector.train()([torch.rand(3, 40, 40)] * 2, [target] * 2)
    torch.stack(list(losses.values())).sum().backward()
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
    without = [name for name, parameter in detector.named_parameters() if parameter.grad is None]
    assert without == []
    assert not torch.equal(before, detector.backbone.body.bn1.running_mean)  # BatchNorm is not frozen


def test_anchors_follow_the_image_size() -> None:
    assert anchor_sizes(800, "imagenet") == [32, 64, 128, 256, 512]
    assert anchor_sizes(400, "imagenet") == [16, 32, 64, 128, 256]
    assert min(anchor_sizes(64, "small")) >= 4


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_strides_are_those_of_the_stem(stem: str) -> None:
    net = build_backbone(Backbone(name="resnet18", width=0.125, stem=stem))  # type: ignore[arg-type]
    sides = [m.shape[-1] for m in feature_maps(net.eval(), torch.zeros(1, 3, 64, 64)).values()]
    assert sides == [64 // (FIRST_STRIDE[stem] * 2**level) for level in range(4)]


def test_only_the_pyramid_runs_in_bf16(config: Backbone, task: TorchvisionDetector) -> None:
    bf16 = TorchvisionDetection.build(task.model_copy(update={"precision": "bf16"}), config, classes=3).backbone.eval()
    fp32 = TorchvisionDetection.build(task, config, classes=3).backbone.eval()
    fp32.load_state_dict(bf16.state_dict())
    images = torch.rand(1, 3, 40, 40)
    half, full = bf16(images), fp32(images)
    assert list(half) == ["0", "1", "2", "3", "pool"]
    assert {value.dtype for value in half.values()} == {torch.float32}
    assert not torch.equal(half["0"], full["0"])
    torch.testing.assert_close(half["0"], full["0"], atol=0.1, rtol=0.1)


def test_detection_has_no_masks(config: Backbone, task: TorchvisionDetector) -> None:
    detector = TorchvisionDetection.build(task.model_copy(update={"kind": "detection"}), config, classes=3)
    target = {"boxes": torch.tensor([[4.0, 4.0, 20.0, 20.0]]), "labels": torch.tensor([1])}
    losses = detector.train()([torch.rand(3, 40, 40)] * 2, [target] * 2)
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert set(detector.eval()([torch.rand(3, 40, 40)])[0]) == {"boxes", "labels", "scores"}
