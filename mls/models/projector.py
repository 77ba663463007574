"""What stands on a backbone while it is trained: projectors and predictors, of which nothing is kept.

Shapes: B images, M slots of each, G features, d embedding dimensions, H x W cells of a map.
"""

from __future__ import annotations

from torch import Tensor, nn

from mls.models.batchnorm import MaskedBatchNorm


def build_projector(feature_dim: int, projection_dim: int) -> nn.Sequential:
    """MoCo-v2's MLP: Linear, ReLU, Linear, no batch norm (the paper: "mostly follow MoCo-v2")."""
    return nn.Sequential(nn.Linear(feature_dim, feature_dim), nn.ReLU(), nn.Linear(feature_dim, projection_dim))


def build_dense_projector(feature_dim: int, projection_dim: int) -> nn.Sequential:
    """DenseCL's: `build_projector` at each cell of a map (B, G, H, W), with weights of its own."""
    return nn.Sequential(nn.Conv2d(feature_dim, feature_dim, 1), nn.ReLU(), nn.Conv2d(feature_dim, projection_dim, 1))


def build_byol_mlp(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """BYOL's projector and predictor: Linear, batch norm, ReLU, Linear without bias (arXiv 2006.07733, section 3.3)."""
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, out_dim, bias=False),
    )


def build_pixel_projector(feature_dim: int, hidden_dim: int, projection_dim: int) -> nn.Sequential:
    """SlotCon's, at each cell of a map: three layers with batch norm and GELU, weights of a truncated normal (0.02)."""
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
    """SlotCon's predictor: the same three layers for slots; batch norm sees only the slots that are valid."""

    def __init__(self, projection_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(
            nn.Linear(a, b)
            for a, b in ((projection_dim, hidden_dim), (hidden_dim, hidden_dim), (hidden_dim, projection_dim))
        )
        self.norms = nn.ModuleList(MaskedBatchNorm(hidden_dim) for _ in range(2))
        self.act = nn.GELU()
        self.apply(_small)

    def forward(self, slots_BMd: Tensor, valid_BM: Tensor) -> Tensor:
        """Map slots to predictions (B, M, d); what comes of slots that are not valid means nothing."""
        x = self.linears[0](slots_BMd)
        for norm, linear in zip(self.norms, self.linears[1:], strict=True):
            x = linear(self.act(norm(x, valid_BM)))
        return x


def _small(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
