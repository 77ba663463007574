"""Which entries of the dictionary are an image's positives (Eq. 7).

Shapes: B images, D dictionary entries, G backbone dimensions, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mls.models.precision import at_least_float32


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
    """Return the k entries whose images share most ground-truth classes with the query's (``label_space: truth``).

    The best that pseudo-labels could be: an oracle upper bound, not self-supervised.

    Args:
        truth_BC: bool, classes of the queries' images.
        entry_truth_DC: bool, classes of the entries' images.
        known_D: bool, which entries are keys; the others come last.
        cosines_BD: of g and Q_g; they order entries that share equally much.
        k: positives per image, at most D.

    Returns:
        bool (B, D) with exactly k true per row: the highest intersection over union of the class sets.
    """
    common_BD = truth_BC.float() @ entry_truth_DC.float().T
    union_BD = truth_BC.sum(1, keepdim=True) + entry_truth_DC.sum(1) - common_BD
    # The cosines only break ties: two ratios of sets with at most 223 classes in their union differ by more than
    # 2e-5. In float32 the cosines would be rounded away.
    scores_BD = common_BD.double() / union_BD.clamp(min=1) + 1e-5 * cosines_BD.double()
    return k_highest(torch.where(known_D, scores_BD, -1.0), k)
