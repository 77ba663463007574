"""MoCo-v2: InfoNCE between a query and its key, against a queue of earlier keys (Eq. 1 of the paper).

Shapes: B images, D queue entries, d embedding dimensions, C channels, H x W pixels.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mls.experiment.params import Pretrain
from mls.methods.momentum import Queue, update_key_encoder
from mls.models.backbone import build_backbone, feature_dims
from mls.models.projector import build_projector


def info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Return InfoNCE (Eq. 1), averaged over the batch.

    ``-log( exp(q.k / t) / (exp(q.k / t) + sum_i exp(q.queue_i / t)) )``

    Args:
        q: queries (B, d), L2-normalised.
        k: the key of each query (B, d), L2-normalised, without gradient.
        queue: negatives (D, d), L2-normalised.
        temperature: t > 0.

    Returns:
        A float32 scalar.
    """
    positive_B1 = (q * k).sum(1, keepdim=True)
    negative_BD = q @ queue.T
    logits = torch.cat([positive_B1, negative_BD], dim=1).float() / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device))


class Embedded(NamedTuple):
    """What the encoders make of a pair of views; all but ``g_query`` and ``z_query`` without gradient."""

    g_query_BG: Tensor
    """Pooled backbone features of the query view, raw (Eq. 4), float32."""
    z_query_Bd: Tensor
    """Their L2-normalised projections (Eq. 5), float32."""
    g_key_BG: Tensor
    """L2-normalised pooled features of the key view, by the key encoder (Eq. 6)."""
    z_key_Bd: Tensor
    """L2-normalised projections of the key view, by the key encoder (Eq. 6)."""


class MoCo(nn.Module):
    """One training step is ``losses = method(query, key)``, ``losses["loss"].backward()``, the
    optimiser's step, and ``method.finish_step()``."""

    def __init__(self, config: Pretrain) -> None:
        super().__init__()
        self.config = config
        feature_dim = feature_dims(config.backbone)[-1]
        self.backbone = build_backbone(config.backbone)
        self.projector = build_projector(feature_dim, config.moco.projection_dim)
        self.key_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.queue_z = Queue(config.moco.queue_size, config.moco.projection_dim)
        self._keys: Embedded | None = None

    def embed(self, query_BCHW: Tensor, key_BCHW: Tensor) -> Embedded:
        """Run both encoders; projections and normalisation are in float32 whatever the autocast."""
        g_query_BG = self.backbone(query_BCHW)
        z_query_Bd = self.projector(g_query_BG)
        with torch.no_grad():
            g_key_BG = self.key_backbone(key_BCHW)
            z_key_Bd = self.key_projector(g_key_BG)
        return Embedded(
            g_query_BG.float(),
            F.normalize(z_query_Bd.float(), dim=1),
            F.normalize(g_key_BG.float(), dim=1),
            F.normalize(z_key_Bd.float(), dim=1),
        )

    def losses(self, e: Embedded) -> dict[str, Tensor]:
        """Return the method's losses by name; ``loss`` is what is minimised. Queues are read, not changed."""
        loss = info_nce(e.z_query_Bd, e.z_key_Bd, self.queue_z.entries_Dd, self.config.moco.temperature)
        return {"loss": loss, "info_nce": loss}

    def forward(self, query_BCHW: Tensor, key_BCHW: Tensor) -> dict[str, Tensor]:
        """Losses of one batch of view pairs; remembers the keys for `finish_step`."""
        embedded = self.embed(query_BCHW, key_BCHW)
        self._keys = embedded
        with torch.autocast(query_BCHW.device.type, enabled=False):
            return self.losses(embedded)

    @torch.no_grad()
    def finish_step(self) -> None:
        """After the optimiser's step: move the key encoder, enqueue this batch's keys."""
        if self._keys is None:
            raise RuntimeError("finish_step without a forward before it")
        update_key_encoder(self.backbone, self.key_backbone, self.config.moco.momentum)
        update_key_encoder(self.projector, self.key_projector, self.config.moco.momentum)
        self.enqueue(self._keys)
        self._keys = None

    def enqueue(self, e: Embedded) -> None:
        """Put the batch's keys into the queues."""
        self.queue_z.enqueue(e.z_key_Bd)
