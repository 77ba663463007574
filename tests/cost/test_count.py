"""Counted operations and memory against hand calculations, real steps and published figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mls.config.experiment import Backbone, Pretrain
from mls.config.probes import LinearProbe
from mls.config.transfers import Detectron2Detector, SemanticTransfer, TorchvisionDetector, TransferSection
from mls.cost.computed import CONTEXT
from mls.cost.count import Step, count_step, counted
from mls.cost.detectors import padded_side
from mls.cost.devices import RESNET50, read_devices
from mls.cost.networks import Sizes, extraction_step, pretraining_step, sizes_of, transfer_sizes, transfer_step
from mls.cost.rates import read_recorded
from mls.methods.method import Pair, build_method
from mls.models.backbone import build_backbone, feature_dims, save_backbone
from mls.transfer.interface import Given
from mls.transfer.pspnet import PSPNet
from mls.transfer.torchvision import TorchvisionDetection
from tests.transfer.support import make_record, write_records

R50 = Backbone()
SMALL = Backbone(name="resnet18", width=0.25, stem="small")
TINY = {"dataset": "x", "batch_size": 2, "rois": 48}
ZOO: dict[str, Any] = {"kind": "instance", "norm": "FrozenBN", "freeze_at": 2}


def resnet50_macs() -> int:
    """Multiply-adds of ResNet-50's convolutions at 224 pixels, by hand: side^2 x channels in x out x kernel."""
    total = 112**2 * 3 * 64 * 49
    before = 64
    for blocks, width, side in ((3, 64, 56), (4, 128, 28), (6, 256, 14), (3, 512, 7)):
        for block in range(blocks):
            wide = side * (2 if block == 0 and width > 64 else 1)  # torchvision's stride is in the 3x3 convolution
            total += wide**2 * before * width + side**2 * (9 * width * width + width * 4 * width)
            total += side**2 * before * 4 * width if block == 0 else 0
            before = 4 * width
    return total


def test_resnet50_is_counted_as_by_hand() -> None:
    assert resnet50_macs() == pytest.approx(4.09e9, rel=0.01)
    forward = extraction_step(LinearProbe(kind="linear", dataset="x"), R50)
    assert forward.operations == 2 * resnet50_macs()
    first = 2 * 112**2 * 3 * 64 * 49  # its input needs no gradient
    step = count_step(8, lambda: build_backbone(R50), lambda net: net(torch.empty(8, 3, 224, 224)).sum())
    assert step.operations == 6 * resnet50_macs() - first == pytest.approx(RESNET50, rel=1e-3)


def mlp(real: bool) -> Step:
    """A step of two layers on 8 vectors."""
    net = nn.Sequential(nn.Linear(100, 1000), nn.ReLU(), nn.Linear(1000, 10))
    if real:
        return counted(8, lambda: net(torch.randn(8, 100)).sum())
    return count_step(8, lambda: net.to("meta"), lambda one: one(torch.empty(8, 100)).sum())


def test_memory_is_what_is_alive_at_once() -> None:
    found = mlp(real=False)
    assert found == mlp(real=True)
    gradients = 4 * (100 * 1000 + 1000 + 1000 * 10 + 10)
    assert gradients < 8 * found.memory < 2 * gradients + 8 * 4 * 4 * 1000  # a gradient exists twice while it is kept


def test_bf16_takes_half_of_the_activations() -> None:
    config = Pretrain.model_validate(
        {"dataset": "x", "batch_size": 64, "augment": {"crop": 64}, "backbone": SMALL.model_dump()}
    )
    half, full = (pretraining_step(config.model_copy(update={"precision": name})) for name in ("bf16", "fp32"))
    assert half.operations == full.operations
    assert 0.45 < half.memory / full.memory < 0.65


@pytest.mark.parametrize("method", ["moco", "mls", "densecl", "byol", "slotcon"])
def test_a_pretraining_step_is_counted_as_it_runs(method: str) -> None:
    config = Pretrain.model_validate(
        {
            "dataset": "x",
            "method": method,
            "batch_size": 8,
            "precision": "fp32",
            "backbone": {"name": "resnet18", "width": 0.125, "stem": "small"},
            "augment": {"crop": 32},
            "moco": {"queue_size": 64, "projection_dim": 16, "bn_splits": 1},
            "byol": {"hidden_dim": 32, "projection_dim": 16},
            "slotcon": {"hidden_dim": 32, "projection_dim": 16, "prototypes": 8},
        }
    )
    boxes_VB4, flips_VB = torch.tensor([0, 0, 9, 9]).expand(2, 8, 4), torch.zeros(2, 8, dtype=torch.bool)
    pair = Pair(torch.randn(8, 3, 32, 32), torch.randn(8, 3, 32, 32), torch.arange(8), boxes_VB4, flips_VB, None, 1.0)
    model = build_method(config)
    real, found = counted(8, lambda: model(pair)["loss"]), pretraining_step(config)
    assert found.operations == real.operations
    assert found.memory == pytest.approx(real.memory, rel=0.3)


def real_step(kind: type[Any], task: TransferSection, layout: Backbone, folder: Path) -> tuple[Step, Sizes]:
    """A step of a detector on two images with many objects, on the CPU."""
    torch.manual_seed(0)
    save_backbone(build_backbone(layout), folder / "backbone.safetensors")
    records = [make_record("train", i, instances=14) for i in range(3)] + [make_record("test", i) for i in range(2)]
    store = write_records(folder / "data", records)
    transfer = kind(task, Given(store, layout, folder / "backbone.safetensors", 1000, torch.device("cpu"), print))
    transfer.model.train()
    batch = next(transfer.batches(range(1), 1))
    return counted(2, lambda: sum(transfer.losses(batch).values(), Tensor([0.0]))[0]), sizes_of(transfer.model)


@pytest.mark.parametrize("kind", ["instance", "detection"])
def test_a_torchvision_detector_is_counted_as_it_runs(kind: Any, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"image_size": 256, "fpn_channels": 64, "head_channels": 128, "proposals": 200}
    task = TorchvisionDetector.model_validate({**TINY, **sizes, "kind": kind})
    layout = Backbone(name="resnet18", width=0.5)
    real, bytes_ = real_step(TorchvisionDetection, task, layout, tmp_path)
    found = transfer_step(task, layout, 3, 256)
    assert found.operations == pytest.approx(real.operations, rel=0.05)
    assert found.memory == pytest.approx(real.memory, rel=0.3)
    assert transfer_sizes(task, layout, 3) == bytes_


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "instance"},
        {"kind": "instance", "box_head": "2fc", "head_norm": "none"},
        {"kind": "detection", "architecture": "c4"},
        {"kind": "instance", "architecture": "c4", "norm": "FrozenBN", "freeze_at": 2},
    ],
)
def test_a_detectron2_detector_is_counted_as_it_runs(changes: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("detectron2", reason="needs detectron2 (README: Detectron2)")
    from mls.transfer.detectron2 import Detectron2Detection

    own = {"backend": "detectron2", "reference_batch": 2, "train_sizes": [128], "test_size": 128, "max_size": 128}
    task, layout = Detectron2Detector.model_validate({**TINY, **own, **changes}), R50
    real, bytes_ = real_step(Detectron2Detection, task, layout, tmp_path)
    found = transfer_step(task, layout, 3, 128)
    assert found.operations == pytest.approx(real.operations, rel=0.05)
    assert found.memory == pytest.approx(real.memory, rel=0.3)
    assert transfer_sizes(task, layout, 3) == pytest.approx(bytes_, rel=1e-3)


def test_pspnet_is_counted_as_it_runs() -> None:
    task = SemanticTransfer(
        kind="semantic", dataset="x", crop=[64, 96], output_stride=16, head_channels=16, pools=[1, 2]
    )
    net = PSPNet(build_backbone(SMALL), feature_dims(SMALL), task, 5)
    truth_BHW = torch.zeros(2, 64, 96, dtype=torch.int64)

    def run() -> Tensor:
        return torch.stack(
            [F.cross_entropy(found, truth_BHW) for found in net(torch.randn(2, 3, 64, 96)).values()]
        ).sum()

    real, found = counted(2, run), transfer_step(task, SMALL, 5, 0)
    assert found.operations == real.operations  # the small stem's stages are 2 to 16 pixels apart: nothing is dilated
    assert found.memory == pytest.approx(real.memory, rel=0.3)


def zoo(changes: dict[str, Any], images: int) -> tuple[Step, Sizes]:
    """A detector of Detectron2's model zoo, whose batch norms are constants and whose first stages are frozen."""
    task = Detectron2Detector.model_validate({"backend": "detectron2", "dataset": "x", **ZOO, **changes})
    return transfer_step(task, R50, 80, padded_side(800, images, grouped=True)), transfer_sizes(task, R50, 80)


FPN = {"box_head": "2fc", "fpn_norm": "none", "head_norm": "none"}
C4 = {"architecture": "c4", "extra_norm": False}


def test_computed_speeds_are_within_a_factor_of_two_of_the_published_ones() -> None:
    """The stated share of the V100's peak is ResNet-50's; nothing is fitted to these figures."""
    rows = {row["measured"]: float(row["images_per_s"]) for row in read_recorded()}
    moco = pretraining_step(Pretrain(dataset="x", method="moco")).operations
    counted_operations = {
        "moco-v2": moco,
        "Mask R-CNN R50-FPN 1x": zoo(FPN, 16)[0].operations,
        "Mask R-CNN R50-C4 1x": zoo(C4, 16)[0].operations,
    }
    rate = read_devices()["V100"].rate("fp32")
    for name, operations in counted_operations.items():
        assert 1 / 2 < rate / operations / rows[name] < 2, name


@pytest.mark.parametrize(("changes", "published"), [(FPN, 3.4), (C4, 5.2)])
def test_the_zoos_memory_is_met_within_30_percent(changes: dict[str, Any], published: float) -> None:
    """MODEL_ZOO.md of Detectron2 (02b5c4e), "train mem (GB)", with two images on each GPU."""
    step, sizes = zoo(changes, 2)
    found = CONTEXT + sizes.state + 2 * sizes.trained + 2 * step.memory
    assert found / 1e9 == pytest.approx(published, rel=0.3)


def test_every_device_has_its_figures_and_sources() -> None:
    devices = read_devices()
    assert {"3090", "V100", "A100", "H100", "H200", "cpu"} <= set(devices)
    for name, device in devices.items():
        assert device.source and device.differs and device.basis in ("published", "computed", "measured"), name
        for precision, peak in device.peak.items():
            assert 0.05 < device.rate(precision) / peak < 0.6, name
        assert name in device.note() and device.source in device.note()
    assert devices["A100"].rate("bf16") == pytest.approx(2470 * 24.29e9)


@pytest.mark.parametrize("architecture", ["fpn", "c4"])
def test_bf16_takes_less_memory_and_as_many_operations(architecture: str) -> None:
    task = {"kind": "instance", "backend": "detectron2", "dataset": "coco", "architecture": architecture}
    whole, half = (
        transfer_step(Detectron2Detector.model_validate({**task, "precision": precision}), R50, 80, 320)
        for precision in ("fp32", "bf16")
    )
    assert half.operations == pytest.approx(whole.operations, rel=1e-6)
    assert half.memory < 0.95 * whole.memory, "backbone and FPN; other heads stay float32"
