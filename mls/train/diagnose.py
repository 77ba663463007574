"""What the log tells of a step besides its losses: is the method learning, and do its pseudo-labels mean anything?

Shapes: B images, D dictionary entries, G backbone and d embedding dimensions, C classes, R rows of the store.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mls.methods.diagnostics import alignment, contrast_accuracy, label_agreement, score_mean_std, uniformity
from mls.methods.mls import MLS, pseudo_labels
from mls.methods.moco import MoCo

NEIGHBOURS = 20
"""k of the label agreement of a method that has none of its own [the paper's]."""


@torch.no_grad()
def diagnose(method: MoCo, row_B: Tensor, labels_RC: Tensor | None) -> dict[str, Tensor]:
    """Return scalars on the device by name, NaN where undefined (a dictionary without keys, say).

    Args:
        method: after its forward, before `finish_step`: the dictionary does not hold this batch's keys.
        row_B: the batch's rows in the store.
        labels_RC: ground truth of every row, bool; None where the dataset has none. Nothing is trained on it.

    Returns:
        ``accuracy`` of InfoNCE; ``filled``, the share of the dictionary that is keys; mean and standard
        deviation of the cosines g.Q_g and z.Q_z; ``alignment`` and ``uniformity`` of z; with labels also
        ``agreement``, the share of the k nearest entries that share a class with their query, and
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
        "alignment": alignment(e.z_query_Bd, e.z_key_Bd),
        "uniformity": uniformity(e.z_query_Bd),
    }
    if labels_RC is not None:
        query, entries, k = e.g_query_BG, dictionary.g_DG, min(NEIGHBOURS, len(known_D))
        if isinstance(method, MLS):
            k = method.config.mls.topk
            if method.config.mls.label_space == "projection":
                query, entries = e.z_query_Bd, dictionary.z_Dd
        positives_BD = pseudo_labels(query, entries, k)
        entry_labels_DC = labels_RC[dictionary.row_D.clamp(min=0)]
        out["agreement"], out["agreement_base"] = label_agreement(
            positives_BD, known_D, labels_RC[row_B], entry_labels_DC
        )
    return out
