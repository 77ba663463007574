"""The detector trains all of its weights, and fits its image size."""

from __future__ import annotations

import pytest
import torch

from mls.config.experiment import Backbone
from mls.config.transfers import TorchvisionDetector
from mls.models.backbone import build_backbone, feature_maps
from mls.transfer.torchvision import FIRST_STRIDE, TorchvisionDetection, anchor_sizes


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


def test_bf16_is_for_the_pyramid_alone(config: Backbone, task: TorchvisionDetector) -> None:
    bf16 = TorchvisionDetection.build(task.model_copy(update={"precision": "bf16"}), config, classes=3).backbone.eval()
    fp32 = TorchvisionDetection.build(task, config, classes=3).backbone.eval()
    fp32.load_state_dict(bf16.state_dict())
    images = torch.rand(1, 3, 40, 40)
    half, full = bf16(images), fp32(images)
    assert list(half) == ["0", "1", "2", "3", "pool"]
    assert {value.dtype for value in half.values()} == {torch.float32}
    assert not torch.equal(half["0"], full["0"])
    torch.testing.assert_close(half["0"], full["0"], atol=0.1, rtol=0.1)


def test_boxes_alone(config: Backbone, task: TorchvisionDetector) -> None:
    detector = TorchvisionDetection.build(task.model_copy(update={"kind": "detection"}), config, classes=3)
    target = {"boxes": torch.tensor([[4.0, 4.0, 20.0, 20.0]]), "labels": torch.tensor([1])}
    losses = detector.train()([torch.rand(3, 40, 40)] * 2, [target] * 2)
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert set(detector.eval()([torch.rand(3, 40, 40)])[0]) == {"boxes", "labels", "scores"}
