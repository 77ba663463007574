"""MLS: multi-label self-supervised learning (ICCV 2023), MoCo-v2 plus a multi-label loss (Eq. 6-10).

Two dictionaries hold the same keys in the same order: Q_g their pooled backbone features, Q_z their projections. The k
entries of Q_g nearest to an image's own backbone feature become its positive pseudo-labels; the entries of Q_z are the
classifiers; a binary cross-entropy over all D entries is added to InfoNCE.

What the paper ablates or leaves open is a switch of `mls.config.methods.Mls`.

Shapes: B images, D dictionary entries, G backbone and d embedding dimensions, C classes, R rows of the store.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mls.config.methods import Mls
from mls.methods.method import Embedded
from mls.methods.moco import MoCo
from mls.methods.pseudo_labels import pseudo_labels, true_neighbours
from mls.models.precision import at_least_float32
from mls.runtime.collectives import own
from mls.runtime.errors import MlsError

Terms = Literal["bce", "bce_pos", "knn", "none"]
Reduction = Literal["mean", "sum", "balanced", "positives"]


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
    - ``bce_pos``: only its first half, ``-(1/D) sum_i y_i log s(p_i / t)`` (Table 6, "BCE-pos")
    - ``knn``: ``-(1/k) sum_i y_i log softmax(p / t)_i``, whatever the reduction (Table 6, "kNN"; the ancestor's loss)
    - ``none``: 0

    Args:
        logits: cosines p = z . Q_z (B, D) (Eq. 8), or those less their mean; the temperature is applied here.
        labels: bool (B, D) from `pseudo_labels`, k true per row.
        temperature: t > 0; the paper uses InfoNCE's.
        terms: which loss.
        reduction: of ``bce`` and ``bce_pos`` over the dictionary: ``mean`` divides by D (Eq. 9), ``sum``
            does not, ``balanced`` adds the mean over the positives and the mean over the negatives,
            ``positives`` divides by k.
        bias: of every classifier in ``bce`` and ``bce_pos``; the paper has none.

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
    if reduction == "balanced":
        negatives_B = (1 - y_BD).sum(1).clamp(min=1)
        return (positive_B / y_BD.sum(1) + negative_B / negatives_B).mean()
    divisors: dict[str, int | Tensor] = {"mean": labels.shape[1], "sum": 1, "positives": y_BD.sum(1)}
    if reduction not in divisors:
        raise ValueError(f"reduction must be mean, sum, balanced or positives, not {reduction!r}")
    return ((positive_B + negative_B) / divisors[reduction]).mean()


def weight_at(config: Mls, epoch: float) -> float:
    """Return lambda of Eq. 10 at an epoch: 0 while only InfoNCE trains, then a linear rise to ``weight``."""
    past = epoch - config.warmup_epochs
    if past < 0:
        return 0.0
    return config.weight * min(1.0, past / config.ramp_epochs) if config.ramp_epochs else config.weight


class MLS(MoCo):
    """MoCo-v2 with the multi-label loss, weighted by lambda (Eq. 10)."""

    gradient_terms: ClassVar = {"info_nce": "nce", "multi_label": "ml"}
    truth_RC: Tensor | None = None
    """Classes of every row of the store, bool; only read by ``label_space: truth``."""

    def losses(self, e: Embedded) -> dict[str, Tensor]:
        """Return InfoNCE, the multi-label loss, and their sum ``loss = info_nce + lambda * multi_label``.

        A local crop is a query like any other: its labels come from its own feature.
        """
        e = e.all_queries()
        info_nce = super().losses(e)["info_nce"]
        labels_BD, logits_BD = self.classify(e)
        chosen = self.config.mls
        multi_label = multi_label_loss(
            logits_BD, labels_BD, self.config.moco.temperature, chosen.terms, chosen.reduction, self.bias
        )
        loss = info_nce + weight_at(chosen, e.epoch) * multi_label
        return {"loss": loss, "info_nce": info_nce, "multi_label": multi_label}

    def scheduled_at(self, epoch: float) -> dict[str, float]:
        """Return ``weight``, lambda of Eq. 10."""
        return {"weight": weight_at(self.config.mls, epoch)}

    def use_labels(self, labels_RC: Tensor | None) -> None:
        """Keep the ground truth for ``label_space: truth``.

        Raises:
            MlsError: it is needed, and missing.
        """
        if self.config.mls.label_space == "truth":
            if labels_RC is None:
                raise MlsError("pretrain.mls.label_space is 'truth', but not every train image has labels")
            self.truth_RC = labels_RC

    @property
    def bias(self) -> float:
        """What is added to every logit: 0, or log(k / (D - k))."""
        k, size = self.config.mls.topk, self.config.moco.queue_size
        return math.log(k / (size - k)) if self.config.mls.bias == "prior" else 0.0

    def classify(self, e: Embedded) -> tuple[Tensor, Tensor]:
        """Return pseudo-labels (Eq. 7) and logits (Eq. 8, or centred), both (B, D), in the configured spaces."""
        chosen = self.config.mls
        old = (self.dictionary.g_DG, self.dictionary.z_Dd)
        new = old if chosen.enqueue == "after" else self.dictionary.snapshot_with(e.keys)
        labels_BD = self.positives(e, *new)
        g_DG, z_Dd = old if chosen.enqueue == "split" else new
        if chosen.logit_space == "backbone":
            query, classifiers = F.normalize(e.g_query_BG, dim=1), g_DG
        else:
            query, classifiers = e.z_query_Bd, z_Dd
        if chosen.centre:
            classifiers = classifiers - classifiers.mean(0)
        return labels_BD, query @ classifiers.T

    def positives(self, e: Embedded, g_DG: Tensor, z_Dd: Tensor) -> Tensor:
        """Return pseudo-labels, bool (B, D), from Q_g or Q_z (``truth``: always from the present dictionary)."""
        chosen = self.config.mls
        if chosen.label_space == "truth":
            return self._true_labels(e)
        if chosen.label_space == "backbone":
            return pseudo_labels(e.g_query_BG, g_DG, chosen.topk)
        return pseudo_labels(e.z_query_Bd, z_Dd, chosen.topk)

    def _true_labels(self, e: Embedded) -> Tensor:
        if self.truth_RC is None:
            raise RuntimeError("label_space 'truth' needs use_labels first")
        dictionary, row_B = self.dictionary, own(e.keys.row_N)
        local = len(e.g_query_BG) // len(row_B) - 1
        row_B = torch.cat([row_B, row_B.repeat_interleave(local)])
        cosines_BD = F.normalize(e.g_query_BG, dim=1) @ dictionary.g_DG.T
        entry_truth_DC = self.truth_RC[dictionary.row_D.clamp(min=0)]
        k = self.config.mls.topk
        return true_neighbours(self.truth_RC[row_B], entry_truth_DC, dictionary.known_D, cosines_BD, k)
