"""Nothing is lost silently when weights are converted; a different network is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mls.config.experiment import Backbone
from mls.data.image_store import ImageStore
from mls.models.backbone import build_backbone, feature_maps, save_backbone
from mls.runtime.errors import DeterministicError, MlsError
from mls.transfer.convert import TOLERANCE, as_pretrained, first_pixels, load, prove
from mls.transfer.export import export_backbone, maps_like_ours

NAMES = list(build_backbone(Backbone(name="resnet50", width=0.125)).state_dict())


def test_timm_has_torchvisions_names() -> None:
    assert set(timm.create_model("resnet50", num_classes=0).state_dict()) == set(NAMES)


class Larger(nn.Module):
    """A body with a new part."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.head = nn.Linear(3, 1)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, 2) for name, tensor in model.state_dict().items() if "body" in name}


def test_every_tensor_is_accounted_for(log: list[str]) -> None:
    model = Larger()
    load(model, state_of(model), {"head.": "head"}, log.append)
    assert torch.equal(model.state_dict()["body.0.weight"], torch.full((3, 2), 2.0))
    assert log == ["backbone loaded: 7 of 7 tensors match, 0 missing, 0 unexpected; new, as expected: head 2"]


def test_counters_need_no_place(log: list[str]) -> None:
    model = Larger()
    load(model, state_of(model) | {"body.9.num_batches_tracked": torch.tensor(1)}, {"head.": "head"}, log.append)
    assert "7 of 7" in log[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"body.0.weight": None}, "6 of 6 tensors match; .* missing: body.0.weight"),
        ({"body.0.wait": torch.zeros(1)}, r"7 of 8 tensors match; no place for: body.0.wait"),
        ({"body.0.weight": torch.zeros(3, 5)}, "6 of 7 tensors match; .* different shape: body.0.weight"),
    ],
)
def test_nothing_is_loaded_if_anything_is_wrong(change: dict[str, Tensor | None], message: str, log: list[str]) -> None:
    model = Larger()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {n: t for n, t in (state_of(model) | change).items() if t is not None}
    with pytest.raises(DeterministicError, match=f"nothing was loaded: {message}"):
        load(model, state, {"head.": "head"}, log.append)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_an_undeclared_new_part_is_refused(log: list[str]) -> None:
    model = Larger()
    with pytest.raises(DeterministicError, match=r"missing: head.weight, head.bias"):
        load(model, state_of(model), {}, log.append)


def test_a_missing_part_of_the_backbone_is_not_taken_for_a_new_one(log: list[str]) -> None:
    model = Larger()
    state = {name: tensor for name, tensor in state_of(model).items() if not name.startswith("body.1")}
    with pytest.raises(DeterministicError, match=r"missing: body.1.weight"):
        load(model, state, {"body.1.": "", "body.": "body", "head.": "head"}, log.append)


def maps(net: nn.Module, image_BCHW: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        return list(feature_maps(net.eval().double(), image_BCHW.double()).values())


@pytest.fixture
def net() -> nn.Module:
    return build_backbone(Backbone(name="resnet18", width=0.125, stem="small"))


def test_equal_backbones_are_equal(net: nn.Module, store: ImageStore, log: list[str]) -> None:
    image = as_pretrained(first_pixels(store, 0))
    assert image.shape == (1, 3, 32, 32)
    prove(maps(net, image), maps(net, image), log.append)
    assert log[0].startswith("features of one image are equal in both backbones, C2 to C5: greatest difference 0.0e+00")


@pytest.mark.parametrize("tensor", ["layer3.1.conv1.weight", "layer3.0.bn1.running_mean", "layer3.0.bn2.running_var"])
def test_a_changed_tensor_is_detected(net: nn.Module, store: ImageStore, log: list[str], tensor: str) -> None:
    """Batch norms' statistics too, which a training would overwrite and an evaluation would not."""
    image = as_pretrained(first_pixels(store, 0))
    before = maps(net, image)
    net.state_dict()[tensor].add_(0.05)
    with pytest.raises(DeterministicError, match=r"different features: C4 of one image differs by"):
        prove(before, maps(net, image), log.append)


def test_swapped_channels_are_detected(net: nn.Module, store: ImageStore, log: list[str]) -> None:
    image = as_pretrained(first_pixels(store, 0))
    with pytest.raises(DeterministicError, match=r"different features: C2"):
        prove(maps(net, image), maps(net, image.flip(1)), log.append)


def test_the_tolerance_is_exact(log: list[str]) -> None:
    one = torch.tensor([[1.0, -4.0]])
    prove([one], [one + 3.9 * TOLERANCE], log.append)
    with pytest.raises(DeterministicError, match="differs by"):
        prove([one], [one + 4.1 * TOLERANCE], log.append)
    with pytest.raises(DeterministicError, match="not finite"):
        prove([one / 0], [one], log.append)
    with pytest.raises(DeterministicError, match="differs by nan"):
        prove([one], [one * float("nan")], log.append)
    with pytest.raises(DeterministicError, match=r"\(1, 1\) instead of \(1, 2\)"):
        prove([one], [one[:, :1]], log.append)


@pytest.fixture
def resnet18(tmp_path: Path) -> Path:
    file = tmp_path / "backbone.safetensors"
    net = build_backbone(Backbone(name="resnet18"))
    with torch.no_grad():  # statistics that a lost batch norm would show
        for name, tensor in net.state_dict().items():
            if "running" in name:
                tensor.uniform_(0.5, 1.5)
    save_backbone(net, file)
    return file


@pytest.mark.parametrize(
    ("form", "name"), [("torchvision", "a.safetensors"), ("timm", "a.pth"), ("timm", "a.safetensors")]
)
def test_export(form: str, name: str, resnet18: Path, tmp_path: Path, log: list[str]) -> None:
    config, out = Backbone(name="resnet18"), tmp_path / name
    export_backbone(config, resnet18, form, out, log.append)
    assert "features of one image are equal" in log[0] and "120 tensors" in log[1]
    state = load_file(out) if out.suffix == ".safetensors" else torch.load(out, weights_only=True)
    net = timm.create_model("resnet18", num_classes=0)
    net.load_state_dict(state)
    original = build_backbone(config)
    original.load_state_dict(load_file(resnet18))
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(maps_like_ours(net.eval().double(), image), maps(original, image))


@pytest.mark.parametrize(
    ("config", "form", "name", "message"),
    [
        (Backbone(name="resnet18"), "timm", "a.bin", r"timm reads .safetensors or .pth"),
        (Backbone(name="resnet18"), "detectron2", "a.pkl", "detectron2 reads .pth"),
        (Backbone(name="resnet18", width=0.5), "timm", "a.pth", "no resnet18 of width 0.5 with stem imagenet"),
        (Backbone(name="resnet18", stem="small"), "detectron2", "a.pth", "width 1 with stem small"),
        (Backbone(name="resnet34"), "timm", "a.pth", "does not fit resnet34"),
    ],
)
def test_impossible_exports_are_refused(
    config: Backbone, form: str, name: str, message: str, resnet18: Path, tmp_path: Path, log: list[str]
) -> None:
    with pytest.raises(MlsError, match=message):
        export_backbone(config, resnet18, form, tmp_path / name, log.append)
    assert not (tmp_path / name).exists()
