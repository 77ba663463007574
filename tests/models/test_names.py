"""Names of a ResNet's tensors in other projects."""

from __future__ import annotations

import pytest
from torch import nn

from mls.config.experiment import Backbone
from mls.models.backbone import build_backbone
from mls.models.names import to_detectron2, to_sequential

NAMES = list(build_backbone(Backbone(name="resnet50", width=0.125)).state_dict())


def test_each_tensor_has_a_name_of_its_own() -> None:
    assert (
        len({to_detectron2(name) for name in NAMES})
        == len({to_sequential(name) for name in NAMES})
        == len(NAMES)
        == 318
    )


def test_a_sequential_of_the_children_has_these_names() -> None:
    net = build_backbone(Backbone(name="resnet50", width=0.125))
    children = nn.Sequential(*list(net.children())[:-1])
    assert [to_sequential(name) for name in NAMES] == list(children.state_dict())


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
