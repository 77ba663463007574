"""BYOL: each view predicts the moving average's projection of the other view (https://arxiv.org/abs/2006.07733).

There are no negatives. The dictionary is filled as in every method, but only the log reads it; there, z is the
prediction from the first view.

Shapes: B images of this rank, N of the global batch, G backbone and d embedding dimensions, C channels, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mls.methods.method import Embedded, Method, Pair, keys_of
from mls.methods.momentum import rising_momentum
from mls.models.precision import at_least_float32
from mls.models.projector import build_byol_mlp
from mls.runtime.collectives import gather


def prediction_loss(p: Tensor, z: Tensor) -> Tensor:
    """Return ``|p - z|^2 = 2 - 2 p.z``, averaged over the batch (Eq. 2 of BYOL, for one direction).

    Args:
        p: predictions (B, d), L2-normalised.
        z: targets (B, d), L2-normalised, without gradient.

    Returns:
        A scalar from 0 to 4.
    """
    return 2 - 2 * (p * z).sum(1).mean()


@dataclass(frozen=True)
class Predicted(Embedded):
    """Adds the other direction of a pair; both L2-normalised."""

    p_key_Bd: Tensor
    """Prediction of the second view by the online network."""
    z_query_target_Bd: Tensor
    """Projection of the first view by the moving average."""


class BYOL(Method[Predicted]):
    """Bootstrap your own latent."""

    negatives = False

    def build_heads(self, feature_dim: int) -> int:
        """Set BYOL's projector and predictor."""
        chosen = self.config.byol
        self.projector = build_byol_mlp(feature_dim, chosen.hidden_dim, chosen.projection_dim)
        self.predictor = build_byol_mlp(chosen.projection_dim, chosen.hidden_dim, chosen.projection_dim)
        return chosen.projection_dim

    def momentum_at(self, epoch: float) -> float:
        """Return m, which rises to 1."""
        return rising_momentum(self.config.byol.momentum, epoch / self.config.epochs)

    def embed(self, pair: Pair) -> Predicted:
        """Run both networks on both views, each view with its own batch statistics."""
        (g_query_BG, p_query_Bd), (_, p_key_Bd) = (self._predict(x) for x in (pair.query_BCHW, pair.key_BCHW))
        (_, target_query_Bd), (g_BG, z_Bd) = (self._target(x) for x in (pair.query_BCHW, pair.key_BCHW))
        keys = keys_of(pair, gather(g_BG), gather(z_Bd))
        return Predicted(
            g_query_BG=g_query_BG,
            z_query_Bd=p_query_Bd,
            z_key_Bd=z_Bd,
            keys=keys,
            epoch=pair.epoch,
            p_key_Bd=p_key_Bd,
            z_query_target_Bd=target_query_Bd,
        )

    def _predict(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        g_BG = self.backbone(x_BCHW)
        p_Bd = self.predictor(self.projector(g_BG))
        return at_least_float32(g_BG), F.normalize(at_least_float32(p_Bd), dim=1)

    @torch.no_grad()
    def _target(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        g_BG = self.key_backbone(x_BCHW)
        return at_least_float32(g_BG), F.normalize(at_least_float32(self.key_projector(g_BG)), dim=1)

    def losses(self, e: Predicted) -> dict[str, Tensor]:
        """Return the sum of both directions."""
        loss = prediction_loss(e.z_query_Bd, e.z_key_Bd) + prediction_loss(e.p_key_Bd, e.z_query_target_Bd)
        return {"loss": loss, "prediction": loss}
