"""Our ResNet is torchvision's, in names and in numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision.models
from safetensors.torch import load_file

from mls.config.experiment import Backbone
from mls.models.backbone import build_backbone, feature_dims, feature_maps, load_backbone, save_backbone
from mls.runtime.errors import MlsError


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_full_width_equals_torchvisions_network(name: str) -> None:
    ours = build_backbone(Backbone(name=name)).eval()  # type: ignore[arg-type]
    theirs = getattr(torchvision.models, name)().eval()
    theirs.fc = torch.nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_width_and_stem_decide_the_dimensions(name: str, stem: str) -> None:
    config = Backbone(name=name, width=0.25, stem=stem)  # type: ignore[arg-type]
    net = build_backbone(config)
    images = torch.randn(2, 3, 64, 64)
    maps = feature_maps(net, images)
    assert [m.shape[1] for m in maps.values()] == feature_dims(config)
    first = 64 // (4 if stem == "imagenet" else 2)
    assert [m.shape[2] for m in maps.values()] == [first, first // 2, first // 4, first // 8]
    assert net(images).shape == (2, feature_dims(config)[-1])


def test_a_saved_backbone_loads_again(tmp_path: Path) -> None:
    config = Backbone(name="resnet18", width=0.125)
    net = build_backbone(config)
    save_backbone(net, tmp_path / "backbone.safetensors")
    again = load_backbone(config, tmp_path / "backbone.safetensors")
    for (name, a), (_, b) in zip(net.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert set(load_file(tmp_path / "backbone.safetensors")) == set(net.state_dict())
    with pytest.raises(MlsError, match="does not fit resnet34"):
        load_backbone(Backbone(name="resnet34", width=0.125), tmp_path / "backbone.safetensors")


def test_equal_seeds_give_equal_networks() -> None:
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(build_backbone(Backbone(name="resnet18", width=0.125, stem="small")).state_dict())
    assert all(torch.equal(nets[0][k], nets[1][k]) for k in nets[0])
