"""FCN's head is MoCo's: two dilated convolutions, and nothing beside it in training."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from mls.config.experiment import Backbone
from mls.models.backbone import build_backbone, feature_dims, feature_maps
from mls.transfer.fcn import FCN
from mls.transfer.pspnet import dilate
from tests.transfer.semantic_support import tiny_task
from tests.transfer.test_pspnet import randomise_norms


def test_the_head_computes_what_moco_says() -> None:
    """Against plain functions of the same weights."""
    torch.manual_seed(0)
    config = Backbone(name="resnet18", width=0.125, stem="small")
    backbone = build_backbone(config)
    dilate(backbone, 4, 2)
    net = FCN(backbone, feature_dims(config), tiny_task(head="fcn"), classes=5).eval()
    randomise_norms(net)
    images, weights = torch.randn(2, 3, 40, 56), net.state_dict()
    x = feature_maps(net.backbone, images)["3"]
    for conv in (0, 3):
        x = F.conv2d(x, weights[f"head.{conv}.weight"], padding=6, dilation=6)
        keys = ("running_mean", "running_var", "weight", "bias")
        x = F.relu(F.batch_norm(x, *(weights[f"head.{conv + 1}.{key}"] for key in keys)))
    x = F.conv2d(x, weights["head.7.weight"], weights["head.7.bias"])
    expected = F.interpolate(x, size=(40, 56), mode="bilinear", align_corners=False)
    found = net(images)
    torch.testing.assert_close(found["out"], expected)
    assert list(found) == list(net.train()(images)) == ["out"]
    assert weights["head.0.weight"].shape == (8, feature_dims(config)[3], 3, 3)
