"""A tiny store of coloured rectangles and a tiny detector's task."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mls.config.experiment import Backbone, Execution
from mls.config.transfers import TorchvisionDetector
from mls.data.image_store import ImageStore
from mls.models.backbone import build_backbone, save_backbone
from mls.transfer.interface import Given
from tests.transfer.support import R50, SIDE, make_store


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """Seven usable train images, five test images."""
    return make_store(tmp_path / "data")


@pytest.fixture
def config() -> Backbone:
    """The smallest backbone."""
    return Backbone(name="resnet18", width=0.125, stem="small")


@pytest.fixture
def weights(tmp_path: Path, config: Backbone) -> Path:
    """Its weights, written as a pretraining artifact holds them."""
    file = tmp_path / "backbone.safetensors"
    torch.manual_seed(0)
    save_backbone(build_backbone(config), file)
    return file


@pytest.fixture
def task() -> TorchvisionDetector:
    """A detector that trains in milliseconds: six steps of two images."""
    return TorchvisionDetector(
        kind="instance",
        dataset="rectangles",
        image_size=SIDE,
        epochs=12 / 7,
        batch_size=2,
        lr=0.01,
        warmup_steps=2,
        fpn_channels=8,
        head_channels=16,
        rois=8,
        proposals=20,
    )


@pytest.fixture
def execution() -> Execution:
    """One thread of each kind, on the CPU."""
    return Execution(threads=1, workers=1, device="cpu", checkpoint_every=100)


@pytest.fixture
def log() -> list[str]:
    """Lines of the log."""
    return []


@pytest.fixture
def given(store: ImageStore, config: Backbone, weights: Path, log: list[str]) -> Given:
    """What a transfer starts from."""
    return Given(store, config, weights, 1000, torch.device("cpu"), log.append)


@pytest.fixture(scope="session")
def resnet50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a ResNet-50 whose batch norms have statistics of their own."""
    torch.manual_seed(0)
    net = build_backbone(R50)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith(("running_mean", "bias")):
                tensor.normal_(0, 0.05)
            if name.endswith("running_var"):
                tensor.uniform_(0.8, 1.2)
    file = tmp_path_factory.mktemp("resnet50") / "backbone.safetensors"
    save_backbone(net, file)
    return file


@pytest.fixture
def start(store: ImageStore, resnet50: Path, log: list[str]) -> Given:
    """What a transfer of a ResNet-50 starts from."""
    return Given(store, R50, resnet50, 1000, torch.device("cpu"), log.append)
