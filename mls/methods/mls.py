"""MLS: multi-label self-supervised learning (ICCV 2023), MoCo-v2 plus a multi-label loss (Eq. 6-10).

Two dictionaries in equal order hold the same keys: Q_g their pooled backbone features, Q_z their
projections. The k entries of Q_g nearest to an image's own backbone feature become its positive
pseudo-labels; Q_z are the classifiers; a binary cross-entropy over all D entries is added to InfoNCE.

Labels and logits read the same snapshot of the dictionaries, before this batch's keys are enqueued
(the clean reading of the equations; the paper's text doesn't say), so an image's own key is not in it.

Shapes: B images, D dictionary entries, G backbone and d embedding dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mls.experiment.params import Pretrain
from mls.methods.moco import Embedded, MoCo
from mls.methods.momentum import Queue
from mls.models.backbone import feature_dims


@torch.no_grad()
def pseudo_labels(g: Tensor, queue_g: Tensor, k: int) -> Tensor:
    """Return y = IsTopk(g . Q_g) (Eq. 7).

    Args:
        g: backbone features of the queries (B, G); their scale does not matter.
        queue_g: dictionary (D, G), L2-normalised.
        k: positives per image, at most D.

    Returns:
        bool (B, D) with exactly k true per row; no gradient.

    Raises:
        ValueError: k is not in 1..D.
    """
    if not 1 <= k <= len(queue_g):
        raise ValueError(f"k must be in 1..{len(queue_g)} (the dictionary's size), not {k}")
    scores_BD = g.float() @ queue_g.float().T
    nearest_Bk = scores_BD.topk(k, dim=1).indices
    return torch.zeros_like(scores_BD, dtype=torch.bool).scatter_(1, nearest_Bk, True)


def multi_label_loss(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the multi-label loss (Eq. 9): mean over the dictionary, then over the batch.

    ``-(1/D) sum_i [ y_i log s(p_i / t) + (1 - y_i) log(1 - s(p_i / t)) ]``, s the sigmoid.

    Args:
        logits: cosines p = z . Q_z (B, D) (Eq. 8); the temperature is applied here.
        labels: bool (B, D) of `pseudo_labels`.
        temperature: t > 0, the paper's is InfoNCE's.

    Returns:
        A float32 scalar.
    """
    return F.binary_cross_entropy_with_logits(logits.float() / temperature, labels.float())


class MLS(MoCo):
    """MoCo-v2 with a second dictionary and the multi-label loss, weighted by lambda (Eq. 10)."""

    def __init__(self, config: Pretrain) -> None:
        super().__init__(config)
        self.queue_g = Queue(config.moco.queue_size, feature_dims(config.backbone)[-1])

    def losses(self, e: Embedded) -> dict[str, Tensor]:
        """InfoNCE, the multi-label loss, and their sum ``loss = info_nce + lambda * multi_label``."""
        info_nce = super().losses(e)["info_nce"]
        labels_BD = pseudo_labels(e.g_query_BG, self.queue_g.entries_Dd, self.config.mls.topk)
        logits_BD = e.z_query_Bd @ self.queue_z.entries_Dd.T
        multi_label = multi_label_loss(logits_BD, labels_BD, self.config.moco.temperature)
        loss = info_nce + self.config.mls.weight * multi_label
        return {"loss": loss, "info_nce": info_nce, "multi_label": multi_label}

    def enqueue(self, e: Embedded) -> None:
        """Both dictionaries take the same keys in the same order."""
        super().enqueue(e)
        self.queue_g.enqueue(e.g_key_BG)
