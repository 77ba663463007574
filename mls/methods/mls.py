"""MLS: multi-label self-supervised learning (ICCV 2023), MoCo-v2 plus a multi-label loss (Eq. 6-10).

Two dictionaries in equal order hold the same keys: Q_g their pooled backbone features, Q_z their
projections. The k entries of Q_g nearest to an image's own backbone feature become its positive
pseudo-labels; Q_z are the classifiers; a binary cross-entropy over all D entries is added to InfoNCE.

What the paper ablates or leaves open is a switch of ``mls.experiment.params.Mls``.

Shapes: B images, D dictionary entries, G backbone and d embedding dimensions.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mls.experiment.params import Mls
from mls.methods.moco import Embedded, MoCo, at_least_float32

Terms = Literal["bce", "bce_pos", "knn", "none"]
Reduction = Literal["mean", "sum", "balanced", "positives"]


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
    scores_BD = at_least_float32(g) @ at_least_float32(queue_g).T
    nearest_Bk = scores_BD.topk(k, dim=1).indices
    return torch.zeros_like(scores_BD, dtype=torch.bool).scatter_(1, nearest_Bk, True)


def multi_label_loss(
    logits: Tensor, labels: Tensor, temperature: float, terms: Terms = "bce", reduction: Reduction = "mean"
) -> Tensor:
    """Return the multi-label loss (Eq. 9) or one of its variants (Table 6), averaged over the batch.

    With s the sigmoid, p the logits, y the labels, per image:

    - ``bce``: ``-(1/D) sum_i [ y_i log s(p_i / t) + (1 - y_i) log(1 - s(p_i / t)) ]`` (Eq. 9)
    - ``bce_pos``: its first half alone, ``-(1/D) sum_i y_i log s(p_i / t)`` (Table 6, "BCE-pos")
    - ``knn``: ``-(1/k) sum_i y_i log softmax(p / t)_i``, always that mean (Table 6, "kNN"; the ancestor's loss)
    - ``none``: 0

    Args:
        logits: cosines p = z . Q_z (B, D) (Eq. 8); the temperature is applied here.
        labels: bool (B, D) of `pseudo_labels`, k true per row.
        temperature: t > 0; the paper's is InfoNCE's.
        terms: which loss.
        reduction: of ``bce`` and ``bce_pos`` over the dictionary: ``mean`` divides by D (Eq. 9), ``sum``
            does not, ``balanced`` adds the mean over the positives and the mean over the negatives,
            ``positives`` divides by k.

    Returns:
        A scalar, float32 (float64 for float64 logits), in natural logarithms.

    Raises:
        ValueError: an unknown term or reduction.
    """
    scaled_BD = at_least_float32(logits) / temperature
    y_BD = labels.to(scaled_BD.dtype)
    if terms == "none":
        return scaled_BD.new_zeros(())
    if terms == "knn":
        log_p_BD = F.log_softmax(scaled_BD, dim=1)
        return -((log_p_BD * y_BD).sum(1) / y_BD.sum(1)).mean()
    if terms not in ("bce", "bce_pos"):
        raise ValueError(f"terms must be bce, bce_pos, knn or none, not {terms!r}")
    positive_B = -(F.logsigmoid(scaled_BD) * y_BD).sum(1)
    negative_B = -(F.logsigmoid(-scaled_BD) * (1 - y_BD)).sum(1) if terms == "bce" else torch.zeros_like(positive_B)
    if reduction == "mean":
        return ((positive_B + negative_B) / labels.shape[1]).mean()
    if reduction == "sum":
        return (positive_B + negative_B).mean()
    if reduction == "balanced":
        negatives_B = (1 - y_BD).sum(1).clamp(min=1)
        return (positive_B / y_BD.sum(1) + negative_B / negatives_B).mean()
    if reduction == "positives":
        return ((positive_B + negative_B) / y_BD.sum(1)).mean()
    raise ValueError(f"reduction must be mean, sum, balanced or positives, not {reduction!r}")


def weight_at(config: Mls, epoch: float) -> float:
    """Return lambda of Eq. 10 at an epoch: 0 while InfoNCE warms up alone, then a line to ``weight``."""
    past = epoch - config.warmup_epochs
    if past < 0:
        return 0.0
    return config.weight * min(1.0, past / config.ramp_epochs) if config.ramp_epochs else config.weight


class MLS(MoCo):
    """MoCo-v2 with the multi-label loss, weighted by lambda (Eq. 10)."""

    def losses(self, e: Embedded) -> dict[str, Tensor]:
        """InfoNCE, the multi-label loss, and their sum ``loss = info_nce + lambda * multi_label``."""
        info_nce = super().losses(e)["info_nce"]
        labels_BD, logits_BD = self.classify(e)
        chosen = self.config.mls
        multi_label = multi_label_loss(
            logits_BD, labels_BD, self.config.moco.temperature, chosen.terms, chosen.reduction
        )
        loss = info_nce + weight_at(chosen, e.epoch) * multi_label
        return {"loss": loss, "info_nce": info_nce, "multi_label": multi_label}

    def classify(self, e: Embedded) -> tuple[Tensor, Tensor]:
        """Return pseudo-labels (Eq. 7) and logits (Eq. 8), both (B, D), in the spaces that are asked for."""
        chosen = self.config.mls
        old = (self.dictionary.g_DG, self.dictionary.z_Dd)
        new = old if chosen.enqueue == "after" else self.dictionary.snapshot_with(e.keys)
        g_DG, z_Dd = new
        on_backbone = chosen.label_space == "backbone"
        query, entries = (e.g_query_BG, g_DG) if on_backbone else (e.z_query_Bd, z_Dd)
        labels_BD = pseudo_labels(query, entries, chosen.topk)
        g_DG, z_Dd = old if chosen.enqueue == "split" else new
        if chosen.logit_space == "backbone":
            return labels_BD, F.normalize(e.g_query_BG, dim=1) @ g_DG.T
        return labels_BD, e.z_query_Bd @ z_Dd.T
