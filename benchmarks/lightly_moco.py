"""The peer: MoCo-v2 put together from lightly's parts as its documentation does, fed by its own data path.

feed = loader(Path("photos"), crop=64, batch=64, workers=2)
peer = Peer("resnet18", precision="fp32")
for step, batch in enumerate(feed): peer.step(batch)
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torchvision
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.moco_transform import MoCoV2Transform
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

QUEUE, PROJECTION, TEMPERATURE, MOMENTUM = 4096, 128, 0.2, 0.995


def loader(folder: Path, crop: int, batch: int, workers: int) -> Any:
    """Batches of two views without end, all of it done by lightly's transforms in the workers."""
    dataset = LightlyDataset(str(folder), transform=MoCoV2Transform(input_size=crop))
    endless = RandomSampler(dataset, replacement=True, num_samples=10**9)  # no epoch ends while the clock runs
    return DataLoader(dataset, batch_size=batch, sampler=endless, num_workers=workers)


class Peer:
    """Encoders, head, memory bank and optimiser of one run."""

    def __init__(self, backbone: str, precision: str) -> None:
        """``fp32`` is what lightly's example does; ``bf16`` adds autocast and channels-last to it."""
        network = getattr(torchvision.models, backbone)()
        dim = network.fc.in_features
        self.bf16 = precision == "bf16"
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.layout = torch.channels_last if self.bf16 else torch.contiguous_format
        backbone_only = nn.Sequential(*list(network.children())[:-1])
        self.backbone = backbone_only.to(self.device).to(memory_format=self.layout)
        self.head = MoCoProjectionHead(dim, dim, PROJECTION).to(self.device)
        self.key_backbone, self.key_head = copy.deepcopy(self.backbone), copy.deepcopy(self.head)
        deactivate_requires_grad(self.key_backbone)
        deactivate_requires_grad(self.key_head)
        self.criterion = NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(QUEUE, PROJECTION)).to(self.device)
        parameters = [*self.backbone.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=0.06, momentum=0.9, weight_decay=1e-4)

    def step(self, batch: Any) -> None:
        """One optimiser step on a batch of `loader`."""
        query_BCHW, key_BCHW = (view.to(self.device, memory_format=self.layout, non_blocking=True) for view in batch[0])
        update_momentum(self.backbone, self.key_backbone, m=MOMENTUM)
        update_momentum(self.head, self.key_head, m=MOMENTUM)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            query_Bd = self._embed(self.backbone, self.head, query_BCHW)
            with torch.no_grad():
                key_Bd = self._embed(self.key_backbone, self.key_head, key_BCHW)
        loss = self.criterion(query_Bd.float(), key_Bd.float())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @staticmethod
    def _embed(backbone: nn.Module, head: nn.Module, x_BCHW: Tensor) -> Tensor:
        embedded: Tensor = head(backbone(x_BCHW).flatten(start_dim=1))
        return embedded
