"""What the log shows of a step besides its losses: does the method learn, and do its pseudo-labels mean anything?

Shapes: B images, D dictionary entries, G backbone and d embedding dimensions, C classes, R rows of the store.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mls.methods.diagnostics import (
    alignment,
    contrast_accuracy,
    label_agreement,
    mean_direction,
    score_mean_std,
    uniformity,
)
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
        losses = method.losses(replace(e, g_query_BG=e.g_query_BG.detach(), z_query_Bd=z_Bd))
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
