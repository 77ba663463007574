"""What the log tells of a step besides its losses: is the method learning, and do its pseudo-labels mean anything?

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
from mls.methods.mls import MLS, pseudo_labels
from mls.methods.moco import MoCo

NEIGHBOURS = 20
"""k of the label agreement of a method that has none of its own [the paper's]."""


@torch.no_grad()
def diagnose(method: Method[Any], row_B: Tensor, labels_RC: Tensor | None) -> dict[str, Tensor]:
    """Return scalars on the device by name, NaN where undefined (a dictionary without keys, say).

    Args:
        method: after its forward, before `finish_step`: the dictionary does not hold this batch's keys.
        row_B: the batch's rows in the store.
        labels_RC: ground truth of every row, bool; None where the dataset has none.

    Returns:
        ``accuracy`` of InfoNCE; ``filled``, the share of the dictionary that is keys; mean and standard
        deviation of the cosines g.Q_g and z.Q_z; ``queue_mean``, the length of Q_z's mean; ``alignment`` and
        ``uniformity`` of z; of MoCo-v2 and MLS what `gradients` tells; with labels also
        ``agreement``, the share of pseudo-positives that share a class with their query, and
        ``agreement_base``, that share among all entries. Always of the dictionary without this batch's keys:
        with ``enqueue: before`` or ``split`` a query's own key is a label too, and would agree by itself.
        With several ranks each sees its own queries, and the log has the mean over ranks.
    """
    e, dictionary = method.embedded, method.dictionary
    if e is None:
        raise RuntimeError("diagnose without a forward before it")
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
    }
    if isinstance(method, MoCo):
        out |= gradients(method, e)
    if labels_RC is not None:
        if isinstance(method, MLS):
            positives_BD = method.positives(e, dictionary.g_DG, dictionary.z_Dd)
        else:
            positives_BD = pseudo_labels(e.g_query_BG, dictionary.g_DG, min(NEIGHBOURS, len(known_D)))
        entry_labels_DC = labels_RC[dictionary.row_D.clamp(min=0)]
        out["agreement"], out["agreement_base"] = label_agreement(
            positives_BD, known_D, labels_RC[row_B], entry_labels_DC
        )
    return out


def gradients(method: MoCo, e: Embedded) -> dict[str, Tensor]:
    """Return how hard each term pulls at an embedding, and whether they pull the same way.

    Of an image's own terms (not their mean over the batch), with respect to its normalised z, tangential to the
    sphere: along z nothing moves. Mean over the batch; lambda is not in it.

    Returns:
        ``grad_nce`` and, of MLS with a term that reads z, ``grad_ml``, norms; ``grad_cosine`` of the two, -1 to 1.
        Nothing of a method that has another loss in the place of InfoNCE.
    """
    z_Bd = e.z_query_Bd.detach().requires_grad_()

    def tangential(loss: Tensor) -> Tensor:
        (grad_Bd,) = torch.autograd.grad(loss, z_Bd, retain_graph=True)
        grad_Bd = grad_Bd * len(z_Bd)
        return grad_Bd - (grad_Bd * z_Bd).sum(1, keepdim=True) * z_Bd

    device = z_Bd.device.type
    with torch.enable_grad(), torch.autocast(device, enabled=False):
        losses = method.losses(replace(e, g_query_BG=e.g_query_BG.detach(), z_query_Bd=z_Bd))
        if "info_nce" not in losses:
            return {}
        nce_Bd = tangential(losses["info_nce"])
        out = {"grad_nce": nce_Bd.norm(dim=1).mean()}
        if "multi_label" in losses and losses["multi_label"].requires_grad:
            ml_Bd = tangential(losses["multi_label"])
            out["grad_ml"] = ml_Bd.norm(dim=1).mean()
            out["grad_cosine"] = F.cosine_similarity(nce_Bd, ml_Bd).mean()
    return {name: value.detach() for name, value in out.items()}
