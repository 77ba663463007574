"""torchvision's and Detectron2's names of a ResNet's tensors."""

from __future__ import annotations

import pytest

from mls.config.experiment import Backbone
from mls.models.backbone import build_backbone
from mls.models.names import to_detectron2, within_resnet

NAMES = list(build_backbone(Backbone(name="resnet50", width=0.125)).state_dict())


@pytest.mark.parametrize("prefix", ["", "backbone.", "backbone.bottom_up.", "model.backbone.bottom_up.", "roi_heads."])
def test_each_tensor_has_a_name_of_its_own_whatever_the_prefix(prefix: str) -> None:
    converted = [to_detectron2(name) for name in NAMES]
    assert len(set(converted)) == len(NAMES) == 318
    assert [within_resnet(f"{prefix}{name}") for name in converted] == converted


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var"),
        ("layer1.0.conv1.weight", "res2.0.conv1.weight"),
        ("layer3.5.bn2.num_batches_tracked", "res4.5.conv2.norm.num_batches_tracked"),
        ("layer4.0.downsample.0.weight", "res5.0.shortcut.weight"),
        ("layer4.0.downsample.1.bias", "res5.0.shortcut.norm.bias"),
    ],
)
def test_detectron2s_name_of_each_kind_of_tensor(ours: str, theirs: str) -> None:
    assert to_detectron2(ours) == theirs


@pytest.mark.parametrize("name", ["fc.weight", "layer1.0.conv1", "blocks.0.attn.qkv.weight"])
def test_tensors_outside_the_resnet_have_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="ResNets have no tensor"):
        to_detectron2(name)


@pytest.mark.parametrize("name", ["roi_heads.box_head.fc1.weight", "backbone.fpn_output2.weight", "pixel_mean"])
def test_tensors_outside_the_resnet_keep_their_name(name: str) -> None:
    assert within_resnet(name) == name
