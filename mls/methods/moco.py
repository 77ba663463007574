"""MoCo-v2: InfoNCE between a query and its key, against a queue of earlier keys (Eq. 1 of the paper).

Shapes: B images of this rank, N of the global batch, D dictionary entries, G backbone and d embedding
dimensions, C channels, H x W pixels.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mls.experiment.params import Pretrain
from mls.methods.dictionary import Dictionary, Keys
from mls.methods.momentum import shuffled, update_key_encoder
from mls.models.backbone import build_backbone, feature_dims
from mls.models.batchnorm import split_batch_norm
from mls.models.projector import build_projector
from mls.train.distributed import gather, own, world


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
        RuntimeError: shapes that do not fit, from torch.
    """
    positive_B1 = (q * k).sum(1, keepdim=True)
    negative_BD = q @ queue.T
    logits = at_least_float32(torch.cat([positive_B1, negative_BD], dim=1)) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device))


def at_least_float32(x: Tensor) -> Tensor:
    """Leave autocast's half precision: losses and labels are computed in float32 (float64 stays)."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Pair(NamedTuple):
    """What one step is fed: two views of each image of this rank, and what the step needs besides."""

    query_BCHW: Tensor
    """v1 of Eq. 3, normalised."""
    key_BCHW: Tensor
    """v2 of Eq. 3, normalised."""
    row_B: Tensor
    """int64 row of each image in the store."""
    key_box_B4: Tensor
    """int64 top, left, height, width of each key view, pixels of the stored image."""
    key_order_N: Tensor | None
    """The keys' permutation over the batch norm groups, equal on all ranks; None with one group."""
    epoch: float
    """Epochs trained so far, with fraction."""


class Embedded(NamedTuple):
    """What the encoders make of a pair; all but ``g_query`` and ``z_query`` without gradient."""

    g_query_BG: Tensor
    """Pooled backbone features of the query view, raw (Eq. 4)."""
    z_query_Bd: Tensor
    """Their L2-normalised projections (Eq. 5)."""
    z_key_Bd: Tensor
    """The key of each query: L2-normalised projection by the key encoder."""
    keys: Keys
    """Keys of the global batch, as they will be enqueued."""
    epoch: float


class MoCo(nn.Module):
    """One training step is ``losses = method(pair)``, ``losses["loss"].backward()``, the optimiser's
    step, and ``method.finish_step(finite)``.

    Q_g, the dictionary of backbone features, is kept here too, although InfoNCE reads Q_z alone: with
    it every run tells whether its neighbours share labels, and MLS adds nothing but a loss.
    """

    def __init__(self, config: Pretrain) -> None:
        super().__init__()
        self.config = config
        feature_dim = feature_dims(config.backbone)[-1]
        self.backbone = build_backbone(config.backbone)
        self.projector = build_projector(feature_dim, config.moco.projection_dim)
        self.key_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.dictionary = Dictionary(config.moco.queue_size, feature_dim, config.moco.projection_dim)
        if config.moco.bn_splits > 1:
            split_batch_norm(self, config.moco.bn_splits // world())
        elif world() > 1:
            self.backbone = nn.SyncBatchNorm.convert_sync_batchnorm(self.backbone)
            self.key_backbone = nn.SyncBatchNorm.convert_sync_batchnorm(self.key_backbone)
        self.embedded: Embedded | None = None

    def embed(self, pair: Pair) -> Embedded:
        """Run both encoders; normalisation is in float32 whatever the autocast."""
        g_query_BG = self.backbone(pair.query_BCHW)
        z_query_Bd = self.projector(g_query_BG)
        g_NG, z_Nd = shuffled(self._encode_keys, pair.key_BCHW, pair.key_order_N)
        z_Nd = F.normalize(z_Nd, dim=1)
        keys = Keys(F.normalize(g_NG, dim=1), z_Nd, gather(pair.row_B), gather(pair.key_box_B4))
        return Embedded(
            at_least_float32(g_query_BG),
            F.normalize(at_least_float32(z_query_Bd), dim=1),
            own(z_Nd),
            keys,
            pair.epoch,
        )

    def _encode_keys(self, key_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        g_BG = self.key_backbone(key_BCHW)
        return at_least_float32(g_BG), at_least_float32(self.key_projector(g_BG))

    def losses(self, e: Embedded) -> dict[str, Tensor]:
        """Return the method's losses by name; ``loss`` is what is minimised. Reads the dictionary, changes nothing."""
        loss = info_nce(e.z_query_Bd, e.z_key_Bd, self.dictionary.z_Dd, self.config.moco.temperature)
        return {"loss": loss, "info_nce": loss}

    def forward(self, pair: Pair) -> dict[str, Tensor]:
        """Losses of one batch of view pairs; ``embedded`` stays for `finish_step` and the diagnostics."""
        self.embedded = self.embed(pair)
        with torch.autocast(pair.query_BCHW.device.type, enabled=False):
            return self.losses(self.embedded)

    @torch.no_grad()
    def finish_step(self, finite: Tensor) -> None:
        """After the optimiser's step: move the key encoder, enqueue this batch's keys.

        Args:
            finite: bool scalar on the device; where false, nothing changes.

        Raises:
            RuntimeError: no forward came before.
        """
        if self.embedded is None:
            raise RuntimeError("finish_step without a forward before it")
        for online, key in ((self.backbone, self.key_backbone), (self.projector, self.key_projector)):
            update_key_encoder(online, key, self.config.moco.momentum, finite)
        self.dictionary.enqueue(self.embedded.keys, finite)
        self.embedded = None
