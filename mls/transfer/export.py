"""Export a finished backbone as a file that torchvision, timm or Detectron2 loads, and check it by loading it there.

    export_backbone(config, Path("backbone.safetensors"), "detectron2", Path("mls.pth"), log)

torchvision and timm read ``.safetensors`` or ``.pth`` with the names that both use, without a classifier. Detectron2
reads a ``.pth``: its checkpointer takes ``MODEL.WEIGHTS: mls.pth?matching_heuristics=True`` for a network with RGB
images in pretraining's normalisation and ``RESNETS.STRIDE_IN_1X1: False``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import cast

import timm
import torch
import torchvision.models
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from mls.config.experiment import Backbone
from mls.config.transfers import Detectron2Detector
from mls.models.backbone import feature_maps, load_backbone
from mls.models.names import COUNTER, few, to_detectron2
from mls.runtime.errors import MlsError
from mls.runtime.files import atomic_file
from mls.transfer.convert import prove
from mls.transfer.detectron2_install import require_detectron2

FORMATS = {"torchvision": (".safetensors", ".pth"), "timm": (".safetensors", ".pth"), "detectron2": (".pth",)}
"""Format -> file endings that it allows, the usual one first."""


def export_backbone(config: Backbone, weights: Path, form: str, out: Path, log: Callable[[str], None]) -> None:
    """Write a backbone for another library, after checking that its features of one image are equal there.

    Args:
        config: the layout of the backbone.
        weights: its ``backbone.safetensors``.
        form: one of `FORMATS`.
        out: the file to write; its ending decides the file format.
        log: takes a line.

    Raises:
        MlsError: the library has no such network, or does not read this ending; features differ.
    """
    if out.suffix not in FORMATS[form]:
        raise MlsError(f"{out}: {form} reads {' or '.join(FORMATS[form])}; give -o a name with this ending")
    if form != "torchvision":
        refuse_other_networks(config, form)
    state = load_file(weights)
    if form == "detectron2":
        state = {to_detectron2(name): tensor for name, tensor in state.items() if not name.endswith(COUNTER)}
    check(config, weights, form, state, log)
    with atomic_file(out) as file:
        if out.suffix == ".safetensors":
            file.write(save(state))
        else:
            torch.save({"model": state} if form == "detectron2" else state, file)
    log(f"{out}: {len(state)} tensors in {form}'s names")


def refuse_other_networks(config: Backbone, form: str) -> None:
    """Check that timm or Detectron2 has a network of this layout.

    Raises:
        MlsError: it has not; says which it has.
    """
    if config.width != 1.0 or config.stem != "imagenet":
        raise MlsError(
            f"{form} has no {config.name} of width {config.width:g} with stem {config.stem}: its networks have width 1 "
            "and stem imagenet; --format torchvision keeps the names, for a network of your own"
        )


def check(config: Backbone, weights: Path, form: str, state: dict[str, Tensor], log: Callable[[str], None]) -> None:
    """Load the tensors into the other library's network, and compare the features of one random image.

    Raises:
        MlsError: a tensor is missing or surplus there, or features differ.
    """
    source = load_backbone(config, weights).eval().double()
    # Random pixels will do: both networks get the same ones, and an export then needs no data artifact.
    image_BCHW = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)).double()
    if form == "detectron2":
        try:
            require_detectron2("not compared with Detectron2's own network")
        except MlsError as error:
            log(str(error))
            return
        from mls.transfer.detectron2 import Detectron2Detection

        task = Detectron2Detector(kind="detection", backend="detectron2", dataset="none")
        net = Detectron2Detection.build(task, config, classes=1).get_submodule("backbone.bottom_up")
    elif form == "timm":
        net = timm.create_model(config.name, num_classes=0)
    elif config.width == 1.0 and config.stem == "imagenet":
        net = torchvision.models.get_model(config.name)
        net.fc = nn.Identity()
    else:
        log(f"torchvision has no {config.name} of width {config.width:g} with stem {config.stem}: nothing to compare")
        return
    try:
        differ = itertools.chain(*net.load_state_dict(state, strict=False))
    except RuntimeError as error:
        raise MlsError(f"{form}'s {config.name} does not take the tensors: {error}") from error
    if wrong := sorted(name for name in differ if not name.endswith(COUNTER)):
        raise MlsError(f"{form}'s {config.name} has different tensors: {few(wrong)}")
    net.eval().double()
    with torch.inference_mode():
        expected = list(feature_maps(source, image_BCHW).values())
        found = list(net(image_BCHW).values()) if form == "detectron2" else maps_like_ours(net, image_BCHW)
    prove(expected, found, log)


def maps_like_ours(net: nn.Module, image_BCHW: Tensor) -> list[Tensor]:
    """Return C2 to C5 of a ResNet of torchvision or of timm; timm names the activation differently."""
    if not hasattr(net, "relu"):
        net.relu = net.get_submodule("act1")
    return list(feature_maps(cast(ResNet, net), image_BCHW).values())
