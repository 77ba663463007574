"""DenseCL: MoCo-v2 with a second InfoNCE between matching cells of two views (https://arxiv.org/abs/2011.09157).

The backbone's last map has S cells. Each cell of the query view is matched to the cell of the key view whose backbone
feature is nearest; their dense projections are a positive pair. The negatives are dense projections of earlier images,
pooled over their cells, in a separate dictionary.

Shapes: B images of this rank, N of the global batch, D dictionary entries, S cells of a map, G backbone and d
embedding dimensions, C channels, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mls.config.experiment import Pretrain
from mls.methods.method import Embedded, Method, Pair, keys_of
from mls.methods.moco import info_nce
from mls.methods.momentum import shuffled
from mls.models.precision import at_least_float32
from mls.models.projector import build_dense_projector, build_projector
from mls.runtime.collectives import own


@torch.no_grad()
def match(query_BGS: Tensor, key_BGS: Tensor) -> Tensor:
    """Return for each cell of the query the cell of the key with the highest cosine (Eq. 4 of DenseCL).

    Args:
        query_BGS: backbone features of the query's cells, any scale.
        key_BGS: backbone features of the key's cells, any scale.

    Returns:
        int64 (B, S); among equals the first.
    """
    return (F.normalize(query_BGS, dim=1).transpose(1, 2) @ F.normalize(key_BGS, dim=1)).argmax(2)


def dense_info_nce(q_BdS: Tensor, k_BdS: Tensor, match_BS: Tensor, queue_Dd: Tensor, temperature: float) -> Tensor:
    """Return InfoNCE of matched cells, averaged over cells and batch (Eq. 2 of DenseCL).

    Args:
        q_BdS: dense projections of the query's cells, L2-normalised.
        k_BdS: dense projections of the key's cells, L2-normalised, without gradient.
        match_BS: which cell of the key is the positive of each cell of the query.
        queue_Dd: negatives, L2-normalised.
        temperature: t > 0.

    Returns:
        A scalar in natural logarithms, float32 (float64 for float64 inputs).
    """
    positive_BdS = k_BdS.gather(2, match_BS[:, None].expand_as(q_BdS))
    return info_nce(
        q_BdS.transpose(1, 2).flatten(0, 1), positive_BdS.transpose(1, 2).flatten(0, 1), queue_Dd, temperature
    )


@dataclass(frozen=True)
class DenseEmbedded(Embedded):
    """Adds the maps and dense projections of a pair."""

    map_query_BGS: Tensor
    map_key_BGS: Tensor
    dense_query_BdS: Tensor
    dense_key_BdS: Tensor
    dense_Nd: Tensor
    """Pooled dense projections of the global batch's keys, L2-normalised, as they will be enqueued."""


class DenseCL(Method[DenseEmbedded]):
    """MoCo-v2 with dense contrast."""

    followed = ("backbone", "projector", "dense_projector")
    dense_Dd: Tensor
    """Negatives of the dense term, in the dictionary's order."""

    def __init__(self, config: Pretrain) -> None:
        super().__init__(config)
        entries = torch.randn(config.moco.queue_size, config.moco.projection_dim)
        self.register_buffer("dense_Dd", F.normalize(entries, dim=1))

    def build_heads(self, feature_dim: int) -> int:
        """Set MoCo-v2's projector, and its twin for cells."""
        dim = self.config.moco.projection_dim
        self.projector = build_projector(feature_dim, dim)
        self.dense_projector = build_dense_projector(feature_dim, dim)
        return dim

    def embed(self, pair: Pair) -> DenseEmbedded:
        """Run both encoders to their maps, and both projectors on them."""
        map_query_BGS, z_query_Bd, dense_query_BdS = self._encode(pair.query_BCHW, "")
        map_NGS, z_Nd, dense_NdS = shuffled(lambda x: self._encode(x, "key_"), pair.key_BCHW, pair.key_order_N)
        z_Nd = F.normalize(z_Nd, dim=1)
        return DenseEmbedded(
            g_query_BG=map_query_BGS.mean(2),
            z_query_Bd=F.normalize(z_query_Bd, dim=1),
            z_key_Bd=own(z_Nd),
            keys=keys_of(pair, map_NGS.mean(2), z_Nd),
            epoch=pair.epoch,
            map_query_BGS=map_query_BGS.detach(),
            map_key_BGS=own(map_NGS),
            dense_query_BdS=F.normalize(dense_query_BdS, dim=1),
            dense_key_BdS=own(F.normalize(dense_NdS, dim=1)),
            dense_Nd=F.normalize(dense_NdS.mean(2), dim=1),
        )

    def _encode(self, x_BCHW: Tensor, prefix: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return map, projection and dense projections, by the online or (prefix ``key_``) the key encoder."""
        backbone, projector, dense = (self.get_submodule(f"{prefix}{name}") for name in self.followed)
        map_BGhw = self.map_of(backbone, x_BCHW)
        z_Bd, dense_Bdhw = projector(map_BGhw.mean((2, 3))), dense(map_BGhw)
        return at_least_float32(map_BGhw).flatten(2), at_least_float32(z_Bd), at_least_float32(dense_Bdhw).flatten(2)

    def losses(self, e: DenseEmbedded) -> dict[str, Tensor]:
        """Return ``(1 - lambda) info_nce + lambda dense`` (Eq. 3 of DenseCL)."""
        temperature, weight = self.config.moco.temperature, self.config.densecl.weight
        single = info_nce(e.z_query_Bd, e.z_key_Bd, self.dictionary.z_Dd, temperature)
        matched_BS = match(e.map_query_BGS, e.map_key_BGS)
        dense = dense_info_nce(e.dense_query_BdS, e.dense_key_BdS, matched_BS, self.dense_Dd, temperature)
        return {"loss": (1 - weight) * single + weight * dense, "info_nce": single, "dense": dense}

    @torch.no_grad()
    def finish_step(self, finite: Tensor) -> None:
        """Write the dense keys, then do what every method does."""
        if self.embedded is not None:  # before the keys are enqueued: that moves the pointer
            self.dictionary.write(self.dense_Dd, self.embedded.dense_Nd, finite)
        super().finish_step(finite)
