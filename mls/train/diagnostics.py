"""Diagnostics of a pretraining step for ``curves.csv``, and a watch over the curves for collapse.

    values = diagnose(method, row_B, labels_RC)     # after the method's forward, before its `finish_step`
    watch = CollapseWatch(curves)                   # on resume: rows that were evaluated before
    if message := watch.message(curves[-1]):
        context.log(message)

They show what the losses do not: does the method learn, and do its pseudo-labels mean anything? Nothing here waits for
the device (no value is read on the host). Values are float32 scalars on it, without gradient. Undefined values are NaN,
which the means of the curves leave out.

Shapes: B queries, D dictionary entries, G backbone and d embedding dimensions, C classes, R rows of the store.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mls.methods.method import Embedded, Method


@torch.no_grad()
def diagnose(method: Method[Any], row_B: Tensor, labels_RC: Tensor | None) -> dict[str, Tensor]:
    """Return scalars on the device by name, NaN where undefined (a dictionary without keys, say).

    All of them look at the dictionary without this batch's keys: with ``enqueue: before`` or ``split`` a query's own
    key is a positive too, and would always agree. With several ranks each sees its own queries, and the log has the
    mean over ranks.

    Args:
        method: after its forward, before `finish_step`.
        row_B: the batch's rows in the store.
        labels_RC: ground truth of every row, bool; None if the dataset has none.

    Returns:
        ``accuracy`` of InfoNCE; ``filled``, the share of the dictionary that is keys; mean and standard deviation of
        the cosines g.Q_g and z.Q_z; ``queue_mean``, the length of Q_z's mean; ``alignment`` and ``uniformity`` of z;
        `gradients`; with labels also ``agreement``, the share of positives that share a class with their query, and
        ``agreement_base``, that share among all entries.
    """
    e, dictionary = method.embedded, method.dictionary
    if e is None:
        raise RuntimeError("diagnose needs a forward before it")
    known_D = dictionary.known_D
    g_mean, g_std = score_mean_std(F.normalize(e.g_query_BG, dim=1) @ dictionary.g_DG.T, known_D)
    z_mean, z_std = score_mean_std(e.z_query_Bd @ dictionary.z_Dd.T, known_D)
    out = {
        "accuracy": contrast_accuracy(e.z_query_Bd, e.z_key_Bd, dictionary.z_Dd),
        "filled": known_D.float().mean(),
        "g_mean": g_mean,
        "g_std": g_std,
        "z_mean": z_mean,
        "z_std": z_std,
        "queue_mean": mean_direction(dictionary.z_Dd, known_D),
        "alignment": alignment(e.z_query_Bd, e.z_key_Bd),
        "uniformity": uniformity(e.z_query_Bd),
        **gradients(method, e),
    }
    if labels_RC is not None:
        positives_BD = method.positives(e, dictionary.g_DG, dictionary.z_Dd)
        entry_labels_DC = labels_RC[dictionary.row_D.clamp(min=0)]
        out["agreement"], out["agreement_base"] = label_agreement(
            positives_BD, known_D, labels_RC[row_B], entry_labels_DC
        )
    return out


def gradients(method: Method[Any], e: Embedded) -> dict[str, Tensor]:
    """Return how hard each of the method's `gradient_terms` pulls at an embedding, and whether two pull the same way.

    The gradient is of an image's own term (not of the mean over the batch) with respect to its normalised z, projected
    onto the tangent of the sphere, since normalisation removes any move along z. lambda is not in it.

    Returns:
        ``grad_<name>`` of each term that reads z, the mean norm over the batch; with two terms also ``grad_cosine``,
        their mean cosine, -1 to 1.
    """
    if not method.gradient_terms:
        return {}
    z_Bd = e.z_query_Bd.detach().requires_grad_()

    def tangential(loss: Tensor) -> Tensor:
        (grad_Bd,) = torch.autograd.grad(loss, z_Bd, retain_graph=True)
        grad_Bd = grad_Bd * len(z_Bd)
        return grad_Bd - (grad_Bd * z_Bd).sum(1, keepdim=True) * z_Bd

    with torch.enable_grad(), torch.autocast(z_Bd.device.type, enabled=False):
        losses = method.losses(replace(e, g_query_BG=e.g_query_BG.detach(), z_query_Bd=z_Bd, local=None))
        pulls = {
            f"grad_{name}": tangential(losses[term])
            for term, name in method.gradient_terms.items()
            if term in losses and losses[term].requires_grad
        }
    out = {name: pull_Bd.norm(dim=1).mean() for name, pull_Bd in pulls.items()}
    if len(pulls) == 2:
        one_Bd, other_Bd = pulls.values()
        out["grad_cosine"] = F.cosine_similarity(one_Bd, other_Bd).mean()
    return {name: value.detach() for name, value in out.items()}


def contrast_accuracy(q_Bd: Tensor, k_Bd: Tensor, queue_Dd: Tensor) -> Tensor:
    """Return the share of queries that are nearer to their own key than to every queue entry (InfoNCE's top-1).

    Args:
        q_Bd: queries, L2-normalised.
        k_Bd: the key of each query, L2-normalised.
        queue_Dd: negatives, L2-normalised; a tie with one of them is a miss.
    """
    with torch.autocast(q_Bd.device.type, enabled=False):
        q_Bd, k_Bd, queue_Dd = q_Bd.float(), k_Bd.float(), queue_Dd.float()
        margin_B = (q_Bd * k_Bd).sum(1) - (q_Bd @ queue_Dd.T).amax(1)
    # NaN > 0 is false, so a non-finite step would count as a miss.
    return torch.where(margin_B.isnan(), math.nan, (margin_B > 0).float()).mean()


def score_mean_std(scores_BD: Tensor, known_D: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and (population) standard deviation of the scores of known entries over all queries.

    Args:
        scores_BD: cosines of queries and dictionary entries.
        known_D: bool, which entries are keys; random initial directions would only add noise.
    """
    scores_BD = scores_BD.float()
    count = known_D.sum() * len(scores_BD)
    mean = torch.where(known_D, scores_BD, 0.0).sum() / count
    variance = torch.where(known_D, (scores_BD - mean).square(), 0.0).sum() / count
    return mean, variance.sqrt()


def mean_direction(queue_Dd: Tensor, known_D: Tensor) -> Tensor:
    """Return the length of the mean of the known entries, 0 (spread) to 1 (all alike); squared, their mean cosine.

    Args:
        queue_Dd: entries, L2-normalised.
        known_D: bool, which entries are keys; without any the result is NaN.
    """
    return (torch.where(known_D[:, None], queue_Dd.float(), 0.0).sum(0) / known_D.sum()).norm()


def alignment(q_Bd: Tensor, k_Bd: Tensor) -> Tensor:
    """Return the mean squared distance between a query and its own key, 0 to 4 (Wang & Isola 2020, alpha = 2).

    Args:
        q_Bd: queries, L2-normalised.
        k_Bd: the key of each query, L2-normalised.
    """
    return (q_Bd.float() - k_Bd.float()).square().sum(1).mean()


def uniformity(z_Bd: Tensor) -> Tensor:
    """Return ``log mean exp(-2 |z_i - z_j|^2)`` over the pairs i < j, -8 to 0; lower is more uniform.

    Wang & Isola 2020, t = 2. About -4 for random directions in many dimensions, 0 if all are the same.

    Args:
        z_Bd: embeddings, L2-normalised.
    """
    with torch.autocast(z_Bd.device.type, enabled=False):
        return torch.pdist(z_Bd.float()).square().mul(-2).exp().mean().log()


def label_agreement(
    positives_BD: Tensor, known_D: Tensor, labels_BC: Tensor, entry_labels_DC: Tensor
) -> tuple[Tensor, Tensor]:
    """Return how often a pseudo-label is right, and how often a random one would be.

    A query and an entry agree if their images share at least one ground-truth label; images without labels never do.

    Args:
        positives_BD: bool pseudo-labels of the queries.
        known_D: bool, which entries are keys; pairs with others are not counted.
        labels_BC: bool ground truth of the queries' images.
        entry_labels_DC: bool ground truth of the entries' images; ignored for entries that are not known.

    Returns:
        Share of agreeing pairs among the positive ones (NaN if no positive entry is known), and among all pairs of a
        query and a known entry (NaN if no entry is known).
    """
    # Counts of shared labels are small whole numbers: exact in float32, and positive in any precision.
    agrees_BD = labels_BC.float() @ entry_labels_DC.float().T > 0
    pairs_BD = positives_BD & known_D
    agreement = (pairs_BD & agrees_BD).sum() / pairs_BD.sum()
    base_rate = (known_D & agrees_BD).sum() / (known_D.sum() * len(agrees_BD))
    return agreement, base_rate


class CollapseWatch:
    """Reports once that the embeddings have collapsed, and once that they have recovered.

    Only rows with a full dictionary count: cosines with random directions are near 0 whatever the encoder does.
    """

    FULL = 1 - 1e-6
    """The dictionary is full from this ``filled`` on: a GPU may round a mean of ones down by a digit."""
    MEAN = 0.95
    """Collapsed above this mean of z.Q_z: images point the same way."""
    STD = 0.01
    """Collapsed below this standard deviation of z.Q_z; random directions of 256 dimensions have 0.0625."""
    RECOVERED_MEAN = 0.9
    """Recovered below this mean (and above `RECOVERED_STD`); the gap keeps a run at the limit from flickering."""
    RECOVERED_STD = 0.02
    """Recovered above this standard deviation (and below `RECOVERED_MEAN`)."""

    def __init__(self, rows: Iterable[Mapping[str, float]] = ()) -> None:
        """Start after some rows of the curves, whose messages were reported before."""
        self.collapsed = False
        for row in rows:
            self.message(row)

    def message(self, row: Mapping[str, float]) -> str | None:
        """Return a line for the log if a finished row of the curves changes the state, else None.

        Args:
            row: reads ``epoch``, ``filled`` (share of the dictionary that is keys), ``z_mean`` and ``z_std`` (of the
                cosines z.Q_z); with one that is missing or NaN the state stays.
        """
        epoch, filled, mean, std = (row.get(name, math.nan) for name in ("epoch", "filled", "z_mean", "z_std"))
        values = f"epoch {epoch:g}: z.Q_z has mean {mean:.3f} and standard deviation {std:.4f}"
        if not self.collapsed and filled >= self.FULL and (mean > self.MEAN or std < self.STD):
            self.collapsed = True
            return (
                f"{values}: the embeddings have collapsed, different images get nearly the same embedding; "
                "try a lower optimizer.lr; where the method reads them, a lower mls.weight, a longer mls.warmup_epochs "
                "or a higher moco.momentum"
            )
        if self.collapsed and filled >= self.FULL and mean < self.RECOVERED_MEAN and std > self.RECOVERED_STD:
            self.collapsed = False
            return f"{values}: the embeddings have recovered, different images get different embeddings again"
        return None
