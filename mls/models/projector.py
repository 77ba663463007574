"""Heads on a backbone during pretraining: projectors and predictors, dropped afterwards.

Shapes: B images, M slots of each, G features, d embedding dimensions, H x W cells of a map.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from mls.models.batchnorm import MaskedBatchNorm


def build_projector(feature_dim: int, projection_dim: int) -> nn.Sequential:
    """Return MoCo-v2's MLP: Linear, ReLU, Linear, no batch norm (the paper: "mostly follow MoCo-v2")."""
    return nn.Sequential(nn.Linear(feature_dim, feature_dim), nn.ReLU(), nn.Linear(feature_dim, projection_dim))


def build_dense_projector(feature_dim: int, projection_dim: int) -> nn.Sequential:
    """Return DenseCL's projector: `build_projector` at each cell of a map (B, G, H, W), with its own weights."""
    return nn.Sequential(nn.Conv2d(feature_dim, feature_dim, 1), nn.ReLU(), nn.Conv2d(feature_dim, projection_dim, 1))


def build_byol_mlp(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Return BYOL's projector or predictor: Linear, batch norm, ReLU, Linear without bias (arXiv 2006.07733, 3.3)."""
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, out_dim, bias=False),
    )


def build_pixel_projector(feature_dim: int, hidden_dim: int, projection_dim: int) -> nn.Sequential:
    """Return SlotCon's projector at each cell of a map: three layers with batch norm and GELU, initialised small."""
    head = nn.Sequential(
        nn.Conv2d(feature_dim, hidden_dim, 1),
        nn.BatchNorm2d(hidden_dim),
        nn.GELU(),
        nn.Conv2d(hidden_dim, hidden_dim, 1),
        nn.BatchNorm2d(hidden_dim),
        nn.GELU(),
        nn.Conv2d(hidden_dim, projection_dim, 1),
    )
    head.apply(_small)
    return head


class SlotPredictor(nn.Module):
    """SlotCon's predictor: the same three layers for slots; batch norm sees only the valid slots."""

    def __init__(self, projection_dim: int, hidden_dim: int) -> None:
        super().__init__()
        dims = (projection_dim, hidden_dim, hidden_dim, projection_dim)
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))
        self.norms = nn.ModuleList(MaskedBatchNorm(hidden_dim) for _ in range(2))
        self.act = nn.GELU()
        self.apply(_small)

    def forward(self, slots_BMd: Tensor, valid_BM: Tensor) -> Tensor:
        """Map slots to predictions (B, M, d); those of invalid slots are meaningless."""
        x = self.linears[0](slots_BMd)
        for norm, linear in zip(self.norms, self.linears[1:], strict=True):
            x = linear(self.act(norm(x, valid_BM)))
        return x


def _small(module: nn.Module) -> None:
    """Initialise a layer by a truncated normal of 0.02, its bias by 0 [the authors' code]."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
