"""A tiny method and random view pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from mls.config.experiment import Backbone, Pretrain
from mls.config.methods import Mls, Moco
from mls.methods.method import Method, Pair

TRUE = torch.tensor(True)


def config(moco: dict[str, Any] | None = None, **mls: Any) -> Pretrain:
    """A dictionary of 12 entries, 3 positives, batch norm over the whole batch."""
    return Pretrain(
        backbone=Backbone(name="resnet18", width=0.125, stem="small"),
        moco=Moco(**{"queue_size": 12, "projection_dim": 8, "bn_splits": 1, **(moco or {})}),
        mls=Mls(**{"topk": 3, **mls}),
    )


def build(kind: type[Method[Any]], chosen: Pretrain | None = None, seed: int = 0) -> Any:
    """A method in training mode whose weights and dictionary follow from the seed."""
    torch.manual_seed(seed)
    return kind(chosen or config()).train()


def moved(method: Any) -> Any:
    """The same method with a key encoder that differs from the online one."""
    for name in method.followed:
        for p in getattr(method, f"key_{name}").parameters():
            p.data.add_(0.05 * torch.randn_like(p))
    return method


def pair(size: int = 4, epoch: float = 0.0, order: torch.Tensor | None = None, seed: int = 0, side: int = 16) -> Pair:
    """Random views of images 100, 101, ...; the last map of 16 x 16 pixels has one cell, that of 48 x 48 has 9."""
    generator = torch.Generator().manual_seed(seed)
    views = torch.randn(2, size, 3, side, side, generator=generator)
    rows = torch.arange(100, 100 + size)
    flips = torch.zeros(2, size, dtype=torch.bool)
    return Pair(views[0], views[1], rows, rows[:, None].repeat(2, 1, 4), flips, order, epoch)


def unit(*shape: int) -> torch.Tensor:
    """Random directions, float64."""
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=1)


def doubled(views: Pair) -> Pair:
    """The same views in float64."""
    return views._replace(query_BCHW=views.query_BCHW.double(), key_BCHW=views.key_BCHW.double())


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Of the parameters that have one, by name."""
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
