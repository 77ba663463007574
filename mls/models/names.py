"""Names of a ResNet's tensors: torchvision's and timm's, Detectron2's, and those of a torch `Sequential`.

    torchvision                     Detectron2                       Sequential
    conv1.weight                    stem.conv1.weight                0.weight
    bn1.running_mean                stem.conv1.norm.running_mean     1.running_mean
    layer2.0.bn3.weight             res3.0.conv3.norm.weight         5.0.bn3.weight
    layer2.0.downsample.0.weight    res3.0.shortcut.weight           5.0.downsample.0.weight
    layer2.0.downsample.1.bias      res3.0.shortcut.norm.bias        5.0.downsample.1.bias

lightly's examples make a backbone of a ResNet's children with ``Sequential``, which numbers them in torchvision's
order: conv1, bn1, relu, maxpool, layer1 to layer4 (lightly-ai/lightly, examples/pytorch/moco.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

COUNTER = "num_batches_tracked"
"""Suffix of tensors that do not affect the result; frozen batch norms lack them."""
LONGEST = 5
"""Parts of the longest name: ``res3.0.shortcut.norm.bias``."""

_STAGE = re.compile(r"layer(\d)\.(\d+)\.(?:conv(\d)|bn(\d)|downsample\.(\d))\.(\w+)")
_CHILDREN = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}


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


def to_sequential(name: str) -> str:
    """Return the name within a ``Sequential`` of the ResNet's children."""
    child, _, rest = name.partition(".")
    return f"{_CHILDREN[child]}.{rest}"


SCHEMES: Mapping[str, Callable[[str], str]] = {
    "torchvision's": str,
    "Detectron2's": to_detectron2,
    "a Sequential's": to_sequential,
}
"""Whose names -> the function that turns torchvision's name into theirs."""


def few(names: Sequence[str]) -> str:
    """Return the first names on one line, and how many there are if some are left out.

    Names come from files, so they may be long, or hold line breaks and what no terminal can print.
    """
    shown = [name[:120] if name.isprintable() else ascii(name[:120]) for name in names[:5]]
    return ", ".join(shown) + (f", ... ({len(names)})" if len(names) > 5 else "") if names else "none"
