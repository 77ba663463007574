"""The ResNet that all stages share: torchvision's network and names, with a width and a small stem.

backbone = build_backbone(Backbone(name="resnet18", width=0.5, stem="small"))
features_BC = backbone(images_BCHW)     # pooled
maps = feature_maps(backbone, images)   # {"0": C2, ..., "3": C5}
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from mls.config.experiment import Backbone
from mls.models.names import few
from mls.runtime.errors import MlsError

LAYOUTS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}
LAYERS = ("layer1", "layer2", "layer3", "layer4")
"""The four stages, C2-C5 of a feature pyramid, by torchvision's names."""


def stage_planes(config: Backbone) -> list[int]:
    """Return the planes of the four stages at the configured width, multiples of 8."""
    return [max(8, round(planes * config.width / 8) * 8) for planes in (64, 128, 256, 512)]


def build_backbone(config: Backbone) -> ResNet:
    """Return a randomly initialised ResNet whose output is the pooled feature (``fc`` is the identity).

    Initialisation is torchvision's own (He normal, fan out), drawn from torch's global generator.
    """
    block, blocks = LAYOUTS[config.name]
    planes = stage_planes(config)
    net = ResNet(block, list(blocks), num_classes=1)
    if config.width != 1.0:
        net.inplanes = planes[0]
        net.conv1 = nn.Conv2d(3, planes[0], kernel_size=7, stride=2, padding=3, bias=False)
        net.bn1 = nn.BatchNorm2d(planes[0])
        for i, stride in enumerate((1, 2, 2, 2)):
            setattr(net, f"layer{i + 1}", net._make_layer(block, planes[i], blocks[i], stride=stride))
    if config.stem == "small":
        net.conv1 = nn.Conv2d(3, planes[0], kernel_size=3, stride=2, padding=1, bias=False)
        net.maxpool = nn.Identity()
    net.fc = nn.Identity()
    for module in net.modules():  # what was replaced above gets torchvision's initialisation too
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


def feature_dims(config: Backbone) -> list[int]:
    """Return the channels of the four stages C2-C5; the last is the dimension of the pooled feature."""
    return [planes * LAYOUTS[config.name][0].expansion for planes in stage_planes(config)]


def feature_maps(backbone: ResNet, images_BCHW: Tensor, last: str = LAYERS[-1]) -> OrderedDict[str, Tensor]:
    """Return the outputs of the stages up to ``last``, keyed ``"0"`` to ``"3"`` as torchvision's FPN expects."""
    x = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(images_BCHW))))
    maps: OrderedDict[str, Tensor] = OrderedDict()
    for i, layer in enumerate(LAYERS[: LAYERS.index(last) + 1]):
        x = getattr(backbone, layer)(x)
        maps[str(i)] = x
    return maps


def last_map(backbone: nn.Module, images_BCHW: Tensor) -> Tensor:
    """Return the output of the last stage (B, G, h, w), before the backbone's pooling."""
    return feature_maps(cast(ResNet, backbone), images_BCHW)["3"]


def save_backbone(backbone: nn.Module, path: Path) -> None:
    """Write the state dict in torchvision's names, sorted, contiguous, from the CPU."""
    state = {k: v.detach().cpu().contiguous().clone() for k, v in sorted(backbone.state_dict().items())}
    save_file(state, path)


def load_backbone(config: Backbone, path: Path) -> ResNet:
    """Build the backbone and load ``backbone.safetensors`` into it; every tensor must match.

    Raises:
        MlsError: names or shapes differ; lists them.
    """
    net, state = build_backbone(config), load_file(path)
    ours, theirs = ({name: t.shape for name, t in tensors.items()} for tensors in (net.state_dict(), state))
    if wrong := sorted({name for name, _ in ours.items() ^ theirs.items()}):
        raise MlsError(f"{path} does not fit {config.name} (width {config.width}, stem {config.stem}): {few(wrong)}")
    net.load_state_dict(state)
    return net


def channels_last(module: nn.Module) -> nn.Module:
    """Lay out the weights for fast convolutions; their values stay."""
    return module.to(memory_format=torch.channels_last)
