"""Checkpoints from elsewhere: each layout loads in full; damaged ones are rejected with a reason."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mls.config.experiment import Backbone, Pretrain
from mls.config.methods import Weights
from mls.models.backbone import build_backbone
from mls.models.foreign import load_weights, read_state, translate
from mls.models.names import to_detectron2
from mls.runtime.errors import DeterministicError, MlsError
from mls.runtime.files import sha256

SHAPE = Backbone(name="resnet18", width=0.125)
HEAD = {"fc.weight": torch.zeros(2, 2)}


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


LAYOUTS: dict[str, Any] = {
    "torchvision": lambda s: s | HEAD,
    "torchvision, nested": lambda s: {"state_dict": s | HEAD, "epoch": 3},
    "MoCo": lambda s: {
        "epoch": 1,
        "arch": "resnet18",
        "state_dict": prefixed(s | HEAD, "module.encoder_q.")
        | prefixed({k: v + 1 for k, v in s.items() if v.is_floating_point()}, "module.encoder_k.")
        | {"module.queue": torch.zeros(3, 4)},
    },
    "DenseCL, extracted": lambda s: {"state_dict": prefixed(s, "backbone.") | {"meta": torch.zeros(1)}},
    "DenseCL, training": lambda s: {"state_dict": prefixed(s, "encoder_q.0.") | prefixed(s, "encoder_k.0.")},
    "without counters": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
}


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return dict(build_backbone(SHAPE).state_dict())


def load(file: Path, monkeypatch: pytest.MonkeyPatch, backbone: Backbone = SHAPE) -> dict[str, Tensor]:
    monkeypatch.setenv("MLS_WEIGHTS", str(file.parent))
    weights = Weights(file=file.name, sha256=sha256(file))
    config = Pretrain(method="weights", backbone=backbone, weights=weights)
    return dict(load_weights(config, lambda message: None).state_dict())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_loads_every_tensor(
    layout: str, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(LAYOUTS[layout](state), tmp_path / "w.pth")
    loaded = load(tmp_path / "w.pth", monkeypatch)
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_safetensors_load_too(state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(state, tmp_path / "w.safetensors")
    loaded = load(tmp_path / "w.safetensors", monkeypatch)
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_a_missing_tensor_is_named(state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del state["layer3.0.conv1.weight"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(DeterministicError, match=r"lacks 1 of \d+ backbone tensors: layer3\.0\.conv1\.weight"):
        load(tmp_path / "w.pth", monkeypatch)


def test_another_width_is_named(state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(DeterministicError, match=r"does not fit pretrain\.backbone: conv1\.weight \(8, 3, 7, 7\)"):
        load(tmp_path / "w.pth", monkeypatch, Backbone(name="resnet18", width=0.25))


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("kind", ["pickle", "text", "cut short", "bad safetensors"])
def test_hostile_and_broken_files_are_rejected(
    kind: str, state: dict[str, Tensor], in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = in_tmp / ("w.safetensors" if kind == "bad safetensors" else "w.pth")
    if kind == "pickle":
        file.write_bytes(pickle.dumps({"state_dict": Hostile()}))
    elif kind == "cut short":
        torch.save(state, file)
        file.write_bytes(file.read_bytes()[:1000])
    else:
        file.write_text("not weights")
    with pytest.raises(DeterministicError, match="can't be read as plain tensors"):
        load(file, monkeypatch)
    assert not (in_tmp / "executed").exists()


def test_a_missing_or_different_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLS_WEIGHTS", str(tmp_path))
    config = Pretrain(method="weights", backbone=SHAPE, weights=Weights(file="w.pth", sha256="0" * 64))
    with pytest.raises(MlsError, match="MLS_WEIGHTS"):
        load_weights(config, lambda message: None)
    (tmp_path / "w.pth").write_bytes(b"other")
    with pytest.raises(MlsError, match="but the experiment names"):
        load_weights(config, lambda message: None)


@pytest.mark.parametrize("prefix", ["", "backbone.", "backbone.bottom_up."])
def test_detectron2_checkpoints_load_under_any_prefix(tmp_path: Path, prefix: str) -> None:
    """C5 may be in the heads; tensors outside the ResNet are not used."""
    net = build_backbone(SHAPE)
    place = {"layer4": "roi_heads."} if prefix == "backbone." else {}
    state = {
        f"{place.get(name.split('.')[0], prefix)}{to_detectron2(name)}": tensor
        for name, tensor in net.state_dict().items()
    }
    torch.save({"model": {**state, "roi_heads.box_head.fc1.weight": torch.zeros(2)}}, tmp_path / "d2.pth")
    wanted = build_backbone(SHAPE).state_dict()
    found, named, unused = translate(read_state(tmp_path / "d2.pth"), wanted, tmp_path / "d2.pth")
    assert named == "Detectron2's names" and unused == ["roi_heads.box_head.fc1.weight"]
    assert all(torch.equal(found[name], tensor) for name, tensor in net.state_dict().items())


def test_a_different_network_is_rejected_with_what_it_holds(tmp_path: Path) -> None:
    torch.save(
        {"model": {"patch_embed.proj.weight": torch.zeros(2), "blocks.0.norm1.bias": torch.zeros(2)}},
        tmp_path / "vit.pth",
    )
    wanted = build_backbone(SHAPE).state_dict()
    with pytest.raises(DeterministicError, match=r"lacks .* tensors: conv1.weight.*it holds: patch_embed.proj"):
        translate(read_state(tmp_path / "vit.pth"), wanted, tmp_path / "vit.pth")
