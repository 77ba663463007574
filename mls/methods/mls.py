"""MLS: multi-label self-supervised learning (ICCV 2023), MoCo-v2 plus a multi-label loss (Eq. 6-10).

Two dictionaries in equal order hold the same keys: Q_g their pooled backbone features, Q_z their
projections. The k entries of Q_g nearest to an image's own backbone feature become its positive
pseudo-labels; Q_z are the classifiers; a binary cross-entropy over all D entries is added to InfoNCE.

What the paper ablates or leaves open is a switch of `mls.config.methods.Mls`.

Shapes: B images, D dictionary entries, G backbone and d embedding dimensions.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mls.config.methods import Mls
from mls.methods.method import Embedded, at_least_float32
from mls.methods.moco import MoCo
from mls.runtime.collectives import own

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
    return k_highest(at_least_float32(g) @ at_least_float32(queue_g).T, k)


def k_highest(scores_BD: Tensor, k: int) -> Tensor:
    """Mark the k highest scores of each row: bool (B, D)."""
    highest_Bk = scores_BD.topk(k, dim=1).indices
    return torch.zeros_like(scores_BD, dtype=torch.bool).scatter_(1, highest_Bk, True)


@torch.no_grad()
def true_neighbours(truth_BC: Tensor, entry_truth_DC: Tensor, known_D: Tensor, cosines_BD: Tensor, k: int) -> Tensor:
    """Return the k entries whose images have most ground-truth classes in common with the query's (``truth``).

    What pseudo-labels could be at best: an upper bound, not self-supervision.

    Args:
        truth_BC: bool, classes of the queries' images.
        entry_truth_DC: bool, classes of the entries' images.
        known_D: bool, which entries are keys; the others come last.
        cosines_BD: of g and Q_g; of entries that have equally much in common, the nearest count.
        k: positives per image, at most D.

    Returns:
        bool (B, D) with exactly k true per row: the highest intersection over union of the class sets.
    """
    common_BD = truth_BC.float() @ entry_truth_DC.float().T
    union_BD = truth_BC.sum(1, keepdim=True) + entry_truth_DC.sum(1) - common_BD
    # Of sets that have 223 classes together at most, two ratios differ by more than the cosines do here. Float32
    # would round the cosines away.
    scores_BD = common_BD.double() / union_BD.clamp(min=1) + 1e-5 * cosines_BD.double()
    return k_highest(torch.where(known_D, scores_BD, -1.0), k)


def multi_label_loss(
    logits: Tensor,
    labels: Tensor,
    temperature: float,
    terms: Terms = "bce",
    reduction: Reduction = "mean",
    bias: float = 0.0,
) -> Tensor:
    """Return the multi-label loss (Eq. 9) or one of its variants (Table 6), averaged over the batch.

    With s the sigmoid, p the logits (plus t times the bias), y the labels, per image:

    - ``bce``: ``-(1/D) sum_i [ y_i log s(p_i / t) + (1 - y_i) log(1 - s(p_i / t)) ]`` (Eq. 9)
    - ``bce_pos``: its first half alone, ``-(1/D) sum_i y_i log s(p_i / t)`` (Table 6, "BCE-pos")
    - ``knn``: ``-(1/k) sum_i y_i log softmax(p / t)_i``, always that mean (Table 6, "kNN"; the ancestor's loss)
    - ``none``: 0

    Args:
        logits: cosines p = z . Q_z (B, D) (Eq. 8), or those less their mean; the temperature is applied here.
        labels: bool (B, D) of `pseudo_labels`, k true per row.
        temperature: t > 0; the paper's is InfoNCE's.
        terms: which loss.
        reduction: of ``bce`` and ``bce_pos`` over the dictionary: ``mean`` divides by D (Eq. 9), ``sum``
            does not, ``balanced`` adds the mean over the positives and the mean over the negatives,
            ``positives`` divides by k.
        bias: of every classifier of ``bce`` and ``bce_pos``; the paper has none.

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
    scaled_BD = scaled_BD + bias
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

    truth_RC: Tensor | None = None
    """Classes of every row of the store, bool; read by ``label_space: truth`` alone."""

    def losses(self, e: Embedded) -> dict[str, Tensor]:
        """InfoNCE, the multi-label loss, and their sum ``loss = info_nce + lambda * multi_label``."""
        info_nce = super().losses(e)["info_nce"]
        labels_BD, logits_BD = self.classify(e)
        chosen = self.config.mls
        multi_label = multi_label_loss(
            logits_BD, labels_BD, self.config.moco.temperature, chosen.terms, chosen.reduction, self.bias
        )
        loss = info_nce + weight_at(chosen, e.epoch) * multi_label
        return {"loss": loss, "info_nce": info_nce, "multi_label": multi_label}

    @property
    def bias(self) -> float:
        """What is added to every logit: 0, or log(k / (D - k))."""
        k, size = self.config.mls.topk, self.config.moco.queue_size
        return math.log(k / (size - k)) if self.config.mls.bias == "prior" else 0.0

    def classify(self, e: Embedded) -> tuple[Tensor, Tensor]:
        """Return pseudo-labels (Eq. 7) and logits (Eq. 8, or centred), both (B, D), in the spaces asked for."""
        chosen = self.config.mls
        old = (self.dictionary.g_DG, self.dictionary.z_Dd)
        new = old if chosen.enqueue == "after" else self.dictionary.snapshot_with(e.keys)
        g_DG, z_Dd = new
        labels_BD = self.positives(e, g_DG, z_Dd)
        g_DG, z_Dd = old if chosen.enqueue == "split" else new
        if chosen.logit_space == "backbone":
            query, classifiers = F.normalize(e.g_query_BG, dim=1), g_DG
        else:
            query, classifiers = e.z_query_Bd, z_Dd
        if chosen.centre:
            classifiers = classifiers - classifiers.mean(0)
        return labels_BD, query @ classifiers.T

    def positives(self, e: Embedded, g_DG: Tensor, z_Dd: Tensor) -> Tensor:
        """Return pseudo-labels, bool (B, D), by these two dictionaries (``truth``: always the present ones)."""
        chosen = self.config.mls
        if chosen.label_space == "truth":
            return self._true_labels(e)
        if chosen.label_space == "backbone":
            return pseudo_labels(e.g_query_BG, g_DG, chosen.topk)
        return pseudo_labels(e.z_query_Bd, z_Dd, chosen.topk)

    def _true_labels(self, e: Embedded) -> Tensor:
        if self.truth_RC is None:
            raise RuntimeError("label_space is truth, and nobody gave truth_RC")
        dictionary, row_B = self.dictionary, own(e.keys.row_N)
        cosines_BD = F.normalize(e.g_query_BG, dim=1) @ dictionary.g_DG.T
        entry_truth_DC = self.truth_RC[dictionary.row_D.clamp(min=0)]
        k = self.config.mls.topk
        return true_neighbours(self.truth_RC[row_B], entry_truth_DC, dictionary.known_D, cosines_BD, k)
