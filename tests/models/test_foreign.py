"""Checkpoints from elsewhere: each layout loads in full, and what is not one network of our shape is refused."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mls.config.experiment import Backbone, Pretrain
from mls.config.methods import Weights
from mls.models.backbone import build_backbone
from mls.models.foreign import PARTNERS, load_weights, translate
from mls.models.names import to_detectron2, to_sequential
from mls.models.weights_file import read_tensors
from mls.runtime.errors import DeterministicError, MlsError
from mls.runtime.files import sha256

SHAPE = Backbone(name="resnet18", width=0.125)
HEAD = {"fc.weight": torch.zeros(2, 2)}


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


def other(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A different network of the same shape, as the momentum network of each method is."""
    return {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}


def nested(keys: str, state: dict[str, Tensor]) -> dict[str, Any]:
    """Put a state dict into mappings."""
    out: dict[str, Any] = state
    for key in reversed(keys.split(".")):
        out = {key: out}
    return out


def numbered(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{to_sequential(name)}": value for name, value in state.items()}


LAYOUTS: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "torchvision": lambda s: s | HEAD,
    "torchvision, nested": lambda s: {"state_dict": s | HEAD, "epoch": 3},
    "MoCo": lambda s: {
        "epoch": 1,
        "arch": "resnet18",
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.03}]},
        "state_dict": prefixed(s | HEAD, "module.encoder_q.")
        | prefixed(other(s), "module.encoder_k.")
        | {"module.queue": torch.zeros(3, 4)},
    },
    "MoCo v3": lambda s: {
        "state_dict": prefixed(s, "module.base_encoder.") | prefixed(other(s), "module.momentum_encoder.")
    },
    "SimSiam": lambda s: {"state_dict": prefixed(s, "module.encoder.") | {"module.encoder.fc.0.weight": torch.ones(1)}},
    "Barlow Twins": lambda s: {"model": prefixed(s, "module.backbone."), "epoch": 1},
    "solo-learn, old": lambda s: {"state_dict": prefixed(s, "encoder.")},
    "ORL": lambda s: {
        "state_dict": prefixed(s, "online_net.0.") | prefixed(other(s), "target_net.0.") | prefixed(s, "backbone.")
    },
    "PixPro": lambda s: {
        "opt": Namespace(arch="resnet50"),
        "model": prefixed(s, "module.encoder.") | prefixed(other(s), "module.encoder_k."),
    },
    "DenseCL, extracted": lambda s: {"state_dict": prefixed(s, "backbone.") | {"meta": torch.zeros(1)}},
    "DenseCL, training": lambda s: {
        "state_dict": prefixed(s, "encoder_q.0.") | prefixed(other(s), "encoder_k.0.") | prefixed(s, "backbone.")
    },
    "VISSL": lambda s: nested("classy_state_dict.base_model.model.trunk", prefixed(s, "_feature_blocks.")),
    "DINO, its teacher": lambda s: {"teacher": prefixed(s, "backbone."), "args": Namespace(arch="resnet50")},
    "lightly": lambda s: {"state_dict": numbered(s, "backbone.") | {"projection_head.0.weight": torch.zeros(2)}},
    "a Sequential": lambda s: numbered(s, ""),
    "without counters": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
}


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return dict(build_backbone(SHAPE).state_dict())


def load(
    file: Path, monkeypatch: pytest.MonkeyPatch, backbone: Backbone = SHAPE, prefix: str | None = None
) -> dict[str, Tensor]:
    monkeypatch.setenv("MLS_WEIGHTS", str(file.parent))
    weights = Weights(file=file.name, sha256=sha256(file), prefix=prefix)
    config = Pretrain(method="weights", backbone=backbone, weights=weights)
    return dict(load_weights(config, lambda message: None).state_dict())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_loads_every_tensor(
    layout: str, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(LAYOUTS[layout](state), tmp_path / "w.pth")
    loaded = load(tmp_path / "w.pth", monkeypatch)
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_any_width_are_read(
    dtype: torch.dtype, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    torch.save(theirs, tmp_path / "w.pth")
    loaded = load(tmp_path / "w.pth", monkeypatch)
    assert all(torch.equal(loaded[name], value.to(loaded[name].dtype)) for name, value in theirs.items())


TWO: dict[str, tuple[str, str]] = {
    "DINO": ("teacher.backbone", "student.module.backbone"),
    "SlotCon": ("model.module.encoder_k", "model.module.encoder_q"),
    "lightly's MoCo": ("backbone_momentum", "backbone"),
    "timm's average": ("state_dict_ema", "state_dict"),
    "a bare network": ("", "ema"),
}


@pytest.mark.parametrize("which", TWO)
def test_two_networks_that_fit_are_named_and_prefix_chooses(
    which: str, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = TWO[which]
    both = prefixed(state, f"{first}." if first else "") | prefixed(other(state), f"{second}.")
    torch.save(both, tmp_path / "w.pth")
    with pytest.raises(
        DeterministicError, match=r"several networks .*; choose one with pretrain\.weights\.prefix"
    ) as error:
        load(tmp_path / "w.pth", monkeypatch)
    assert repr(first) in str(error.value) and repr(second) in str(error.value)
    for prefix, tensors in ((first, state), (second, other(state)), (f"{second}.", other(state))):
        loaded = load(tmp_path / "w.pth", monkeypatch, prefix=prefix)
        assert all(torch.equal(loaded[name], value) for name, value in tensors.items())


def test_the_first_parts_of_a_prefix_are_enough(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"teacher": prefixed(state, "backbone."), "teachers": other(state)}, tmp_path / "w.pth")
    assert torch.equal(load(tmp_path / "w.pth", monkeypatch, prefix="teacher")["conv1.weight"], state["conv1.weight"])
    with pytest.raises(DeterministicError, match=r"lacks .* below pretrain\.weights\.prefix 'student'"):
        load(tmp_path / "w.pth", monkeypatch, prefix="student")


@pytest.mark.parametrize("momentum", PARTNERS)
def test_a_momentum_network_is_loaded_if_prefix_names_it(
    momentum: str, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = prefixed(state, f"{PARTNERS[momentum]}.") | prefixed(other(state), f"{momentum}.")
    torch.save(both, tmp_path / "w.pth")
    loaded = [load(tmp_path / "w.pth", monkeypatch, prefix=prefix)["conv1.weight"] for prefix in (None, momentum)]
    assert torch.equal(loaded[0], state["conv1.weight"]) and torch.equal(loaded[1], state["conv1.weight"] + 1)


def test_another_shape_beside_the_backbone_is_passed_over(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student may be distilled from a wider teacher."""
    wide = dict(build_backbone(Backbone(name="resnet18", width=0.25)).state_dict())
    torch.save({"teacher": wide, "student": state}, tmp_path / "w.pth")
    assert torch.equal(load(tmp_path / "w.pth", monkeypatch)["conv1.weight"], state["conv1.weight"])


def test_a_deeper_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNet-34 has all tensors of ResNet-18, in the same shapes."""
    deeper = dict(build_backbone(Backbone(name="resnet34", width=0.125)).state_dict())
    for layout in ("MoCo", "lightly"):
        torch.save(LAYOUTS[layout](deeper), tmp_path / "w.pth")
        with pytest.raises(DeterministicError, match=r"deeper network .* nothing would use \S+\.2\.conv1\.weight"):
            load(tmp_path / "w.pth", monkeypatch)


WRONG: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "integer": (lambda t: t.to(torch.int8), "cpu strided int8"),
    "complex": (lambda t: t.to(torch.complex64), "cpu strided complex64"),
    "boolean": (lambda t: t > 0, "cpu strided bool"),
    "sparse": (lambda t: t.to_sparse(), "cpu sparse_coo float32"),
    "NaN": (lambda t: t * float("nan"), "NaN or infinite"),
    "too large": (lambda t: t.double() + 1e300, "NaN or infinite"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_other_than_finite_floats_are_refused_by_name(
    kind: str, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = WRONG[kind]
    torch.save(state | {"layer3.0.conv1.weight": change(state["layer3.0.conv1.weight"])}, tmp_path / "w.pth")
    with pytest.raises(DeterministicError, match=rf"w\.pth: layer3\.0\.conv1\.weight .*{message}"):
        load(tmp_path / "w.pth", monkeypatch)


def test_a_key_that_is_no_text_is_passed_over(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyed: dict[Any, Any] = {**state, 0: torch.ones(1)}
    torch.save(keyed, tmp_path / "w.pth")
    assert torch.equal(load(tmp_path / "w.pth", monkeypatch)["conv1.weight"], state["conv1.weight"])


def test_a_missing_tensor_is_named(state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del state["layer3.0.conv1.weight"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(DeterministicError, match=r"lacks 1 of \d+ backbone tensors: layer3\.0\.conv1\.weight"):
        load(tmp_path / "w.pth", monkeypatch)


def test_another_width_is_named(state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(DeterministicError, match=r"does not fit pretrain\.backbone: conv1\.weight \(8, 3, 7, 7\)"):
        load(tmp_path / "w.pth", monkeypatch, Backbone(name="resnet18", width=0.25))


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
    found, network, unused = translate(read_tensors(tmp_path / "d2.pth"), wanted, tmp_path / "d2.pth")
    assert network.scheme == "Detectron2's" and unused == ["model.roi_heads.box_head.fc1.weight"]
    assert all(torch.equal(found[name], tensor) for name, tensor in net.state_dict().items())


def test_a_different_network_is_rejected_with_what_it_holds(tmp_path: Path) -> None:
    torch.save(
        {"model": {"patch_embed.proj.weight": torch.zeros(2), "blocks.0.norm1.bias": torch.zeros(2)}},
        tmp_path / "vit.pth",
    )
    wanted = build_backbone(SHAPE).state_dict()
    with pytest.raises(DeterministicError, match=r"lacks .* tensors: conv1.weight.*it holds: model.patch_embed.proj"):
        translate(read_tensors(tmp_path / "vit.pth"), wanted, tmp_path / "vit.pth")
