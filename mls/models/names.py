"""Names of a ResNet's tensors in torchvision, timm and Detectron2.

torchvision and timm use the same names. Detectron2 puts batch norms inside the convolutions:

    conv1.weight                    stem.conv1.weight
    bn1.running_mean                stem.conv1.norm.running_mean
    layer2.0.bn3.weight             res3.0.conv3.norm.weight
    layer2.0.downsample.0.weight    res3.0.shortcut.weight
    layer2.0.downsample.1.bias      res3.0.shortcut.norm.bias
"""

from __future__ import annotations

import re
from collections.abc import Sequence

COUNTER = "num_batches_tracked"
"""Suffix of tensors that do not affect the result; frozen batch norms lack them."""

_STAGE = re.compile(r"layer(\d)\.(\d+)\.(?:conv(\d)|bn(\d)|downsample\.(\d))\.(\w+)")
_D2_PREFIX = re.compile(r"^(?:model\.)?(?:backbone\.bottom_up\.|backbone\.|roi_heads\.|)(?=stem\.|res\d\.)")


def to_detectron2(name: str) -> str:
    """Return Detectron2's name, within its ResNet, for torchvision's name of a tensor.

    Raises:
        ValueError: torchvision's ResNets have no such tensor.
    """
    if match := re.fullmatch(r"(conv|bn)1\.(\w+)", name):
        return f"stem.conv1.{'norm.' if match[1] == 'bn' else ''}{match[2]}"
    match = _STAGE.fullmatch(name)
    if match is None:
        raise ValueError(f"torchvision's ResNets have no tensor {name!r}")
    layer, block, conv, norm, downsample, leaf = match.groups()
    convolution = "shortcut" if downsample else f"conv{conv or norm}"
    return f"res{int(layer) + 1}.{block}.{convolution}.{'norm.' if norm or downsample == '1' else ''}{leaf}"


def within_resnet(name: str) -> str:
    """Return the name within Detectron2's ResNet of a tensor of a Detectron2 model; other names stay as they are."""
    return _D2_PREFIX.sub("", name)


def few(names: Sequence[str]) -> str:
    """Return the first names, and how many there are if some are left out."""
    return ", ".join(names[:5]) + (f", ... ({len(names)})" if len(names) > 5 else "") if names else "none"
