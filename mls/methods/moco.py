"""MoCo-v2: InfoNCE between a query and its key, against a queue of earlier keys (Eq. 1 of the paper).

Shapes: B images of this rank, N of the global batch, X views or local crops of them, D dictionary entries, G backbone
and d embedding dimensions, C channels, H x W pixels.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mls.methods.method import Embedded, Method, Pair, Queries, keys_of
from mls.methods.momentum import shuffled
from mls.models.precision import at_least_float32
from mls.models.projector import build_projector
from mls.runtime.collectives import own


def info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Return InfoNCE (Eq. 1), averaged over the batch, in natural logarithms.

    ``-log( exp(q.k / t) / (exp(q.k / t) + sum_i exp(q.queue_i / t)) )``

    Args:
        q: queries (B, d), L2-normalised.
        k: the key of each query (B, d), L2-normalised, without gradient.
        queue: negatives (D, d), L2-normalised.
        temperature: t > 0; the cosines are divided by it here.

    Returns:
        A scalar, float32 (float64 for float64 inputs).

    Raises:
        RuntimeError: the shapes do not fit (from torch).
    """
    positive_B1 = (q * k).sum(1, keepdim=True)
    negative_BD = q @ queue.T
    logits = at_least_float32(torch.cat([positive_B1, negative_BD], dim=1)) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device))


class MoCo(Method[Embedded]):
    """MoCo-v2, the contrastive base of MLS (https://arxiv.org/abs/2003.04297)."""

    gradient_terms: ClassVar = {"info_nce": "nce"}

    def build_heads(self, feature_dim: int) -> int:
        """Set MoCo-v2's projector."""
        self.projector = build_projector(feature_dim, self.config.moco.projection_dim)
        return self.config.moco.projection_dim

    def embed(self, pair: Pair) -> Embedded:
        """Run both encoders; normalise in float32 whatever the autocast."""
        query = self._encode_queries(pair.query_BCHW)
        # on their own: other sizes can't share a batch, and batch norm has its groups among them alone
        local = None if pair.local_XCHW is None else self._encode_queries(pair.local_XCHW)
        g_NG, z_Nd = shuffled(self._encode_keys, pair.key_BCHW, pair.key_order_N)
        z_Nd = F.normalize(z_Nd, dim=1)
        keys = keys_of(pair, g_NG, z_Nd)
        return Embedded(
            g_query_BG=query.g_XG, z_query_Bd=query.z_Xd, z_key_Bd=own(z_Nd), keys=keys, epoch=pair.epoch, local=local
        )

    def _encode_queries(self, query_XCHW: Tensor) -> Queries:
        g_XG = self.backbone(query_XCHW)
        z_Xd = self.projector(g_XG)
        return Queries(at_least_float32(g_XG), F.normalize(at_least_float32(z_Xd), dim=1))

    def _encode_keys(self, key_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        g_BG = self.key_backbone(key_BCHW)
        return at_least_float32(g_BG), at_least_float32(self.key_projector(g_BG))

    def losses(self, e: Embedded) -> dict[str, Tensor]:
        """Return InfoNCE against the dictionary's Q_z, over all queries."""
        e = e.all_queries()
        loss = info_nce(e.z_query_Bd, e.z_key_Bd, self.dictionary.z_Dd, self.config.moco.temperature)
        return {"loss": loss, "info_nce": loss}
