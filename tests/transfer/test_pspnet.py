"""Dilation keeps what the network computes; the heads are PSPNet's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet50

from mls.config.experiment import Backbone
from mls.config.transfers import SemanticTransfer
from mls.models.backbone import build_backbone, feature_dims, feature_maps
from mls.runtime.errors import MlsError
from mls.transfer.pspnet import PSPNet, dilate
from mls.transfer.torchvision import FIRST_STRIDE
from tests.transfer.semantic_support import tiny_task


def randomise_norms(net: nn.Module) -> None:
    """Statistics as if it had been trained: at the initial ones a batch norm does nothing."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias, std=0.1)


@pytest.mark.parametrize(
    ("output_stride", "replaced"), [(8, [False, True, True]), (16, [False, False, True]), (32, [False] * 3)]
)
def test_dilated_resnet50_is_torchvisions(output_stride: int, replaced: list[bool]) -> None:
    torch.manual_seed(0)
    ours = build_backbone(Backbone(name="resnet50", width=1.0, stem="imagenet")).eval()
    randomise_norms(ours)
    theirs = resnet50(weights=None, replace_stride_with_dilation=replaced).eval()
    left_over = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert left_over.missing_keys == ["fc.weight", "fc.bias"] and not left_over.unexpected_keys
    dilate(ours, output_stride, 4)

    def shapes(net: nn.Module) -> list[Any]:
        convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
        return [(conv.stride, conv.padding, conv.dilation) for conv in convs]

    assert shapes(ours) == shapes(theirs)
    images = torch.randn(1, 3, 65, 96)
    with torch.inference_mode():
        pairs = zip(feature_maps(ours, images).values(), feature_maps(theirs, images).values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("stem", "output_stride"), [("imagenet", s) for s in (4, 8, 16, 32)] + [("small", s) for s in (4, 8, 16)]
)
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_dilation_adds_cells_between_the_existing_ones(name: Any, stem: Any, output_stride: int) -> None:
    torch.manual_seed(0)
    plain = build_backbone(Backbone(name=name, width=0.25, stem=stem)).eval()
    randomise_norms(plain)
    dilated = copy.deepcopy(plain)
    dilate(dilated, output_stride, FIRST_STRIDE[stem])
    images = torch.randn(2, 3, 65, 102)
    with torch.inference_mode():
        before, after = (list(feature_maps(net, images).values()) for net in (plain, dilated))
    for level, (old, new) in enumerate(zip(before, after, strict=True)):
        natural = FIRST_STRIDE[stem] * 2**level
        stride = min(natural, output_stride)
        assert new.shape[2:] == (-(-65 // stride), -(-102 // stride))
        step = natural // stride
        torch.testing.assert_close(new[..., ::step, ::step], old, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("stem", "output_stride", "possible"), [("small", 32, "2, 4, 8, 16"), ("imagenet", 2, "4, 8")])
def test_impossible_stride_is_an_error(stem: Any, output_stride: int, possible: str) -> None:
    backbone = build_backbone(Backbone(name="resnet18", width=0.125, stem=stem))
    with pytest.raises(MlsError, match=rf"output_stride {output_stride}: .* lie {possible}.* choose one"):
        dilate(backbone, output_stride, FIRST_STRIDE[stem])


def build(task: SemanticTransfer, classes: int = 5) -> PSPNet:
    config = Backbone(name="resnet18", width=0.125, stem="small")
    backbone = build_backbone(config)
    dilate(backbone, task.output_stride, 2)
    return PSPNet(backbone, feature_dims(config), task, classes)


def test_heads_compute_what_the_paper_says() -> None:
    """Against plain functions of the same weights."""
    torch.manual_seed(0)
    net = build(tiny_task(pools=[1, 2, 3, 6], dropout=0.9)).eval()  # dropout does nothing here
    randomise_norms(net)
    images = torch.randn(2, 3, 40, 56)
    maps = feature_maps(net.backbone, images)
    weights = net.state_dict()

    def block(x: Tensor, name: str, first: int) -> Tensor:
        conv, norm = f"{name}.{first}", f"{name}.{first + 1}"
        x = F.conv2d(x, weights[f"{conv}.weight"], padding=weights[f"{conv}.weight"].shape[-1] // 2)
        statistics = (weights[f"{norm}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(x, *statistics))

    c5 = maps["3"]
    joined = [c5]
    for number, side in enumerate((1, 2, 3, 6)):
        small = block(F.adaptive_avg_pool2d(c5, side), f"pooled.{number}", 1)
        joined.append(F.interpolate(small, size=c5.shape[2:], mode="bilinear", align_corners=False))
    x = block(torch.cat(joined, 1), "head", 0)
    x = F.conv2d(x, weights["head.4.weight"], weights["head.4.bias"])
    expected = F.interpolate(x, size=(40, 56), mode="bilinear", align_corners=False)
    found = net(images)
    assert list(found) == ["out"]
    torch.testing.assert_close(found["out"], expected)

    x = F.conv2d(block(maps["2"], "aux", 0), weights["aux.4.weight"], weights["aux.4.bias"])
    auxiliary = net.aux(maps["2"])
    torch.testing.assert_close(auxiliary, x)
    assert weights["pooled.0.1.weight"].shape[0] == 8 and weights["aux.0.weight"].shape[0] == 4


def test_initialisation_is_mmsegmentations() -> None:
    torch.manual_seed(0)
    net = build(tiny_task(head_channels=256), classes=19)
    for classifier in (net.head[4], net.aux[4]):
        assert isinstance(classifier, nn.Conv2d) and classifier.bias is not None
        assert float(classifier.weight.detach().std()) == pytest.approx(0.01, rel=0.1)
        assert not classifier.bias.any()
    conv = net.head[0]
    assert isinstance(conv, nn.Conv2d) and conv.bias is None
    assert float(conv.weight.detach().std()) == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.05)


def test_training_gives_both_heads_and_drops_whole_channels() -> None:
    torch.manual_seed(0)
    net = build(tiny_task(dropout=0.5)).train()
    dropped: list[Tensor] = []
    net.head[3].register_forward_hook(lambda module, args, out: dropped.append(out))
    found = net(torch.randn(2, 3, 24, 32))
    assert {name: tuple(logits.shape) for name, logits in found.items()} == dict.fromkeys(
        ("out", "aux"), (2, 5, 24, 32)
    )
    silent = (dropped[0] == 0).flatten(2).all(2)
    assert 0 < int(silent.sum()) < silent.numel()
    assert not torch.equal(net(torch.ones(2, 3, 24, 32))["out"], net(torch.ones(2, 3, 24, 32))["out"])


def test_bf16_stays_inside_the_network() -> None:
    torch.manual_seed(0)
    net = build(tiny_task(precision="bf16")).train()
    inside: list[torch.dtype] = []
    for part in (net.backbone.layer4[1].conv2, net.pooled[0], net.head, net.aux):
        part.register_forward_hook(lambda module, args, out: inside.append(out.dtype))
    found = net(torch.randn(2, 3, 24, 32))
    assert inside == [torch.bfloat16] * 4
    assert {logits.dtype for logits in found.values()} == {torch.float32}
