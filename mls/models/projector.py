"""The projector f of Eq. 5: from the backbone's pooled feature g to the embedding z."""

from __future__ import annotations

from torch import nn


def build_projector(feature_dim: int, projection_dim: int) -> nn.Sequential:
    """MoCo-v2's MLP: Linear, ReLU, Linear, no batch norm (the paper: "mostly follow MoCo-v2")."""
    return nn.Sequential(nn.Linear(feature_dim, feature_dim), nn.ReLU(), nn.Linear(feature_dim, projection_dim))
