"""Diagnostics of a pretraining step for ``curves.csv``, and a watch over the curves for collapse.

    accuracy = contrast_accuracy(z_query_Bd, z_key_Bd, dictionary.z_Dd)
    z_mean, z_std = score_mean_std(logits_BD, dictionary.known_D)
    agreement, base_rate = label_agreement(positives_BD, dictionary.known_D, labels_BC, entry_labels_DC)
    watch = CollapseWatch(curves)               # on resume: rows that were evaluated before
    if message := watch.message(curves[-1]):
        context.log(message)

The functions need no gradient, never wait for the device (no value is read on the host), and return float32 scalars
on it. Undefined values are NaN, which the means of the curves leave out.

Shapes: B queries, D dictionary entries, d embedding dimensions, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


@torch.no_grad()
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


@torch.no_grad()
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


@torch.no_grad()
def mean_direction(queue_Dd: Tensor, known_D: Tensor) -> Tensor:
    """Return the length of the mean of the known entries, 0 (spread) to 1 (all alike); squared, their mean cosine.

    Args:
        queue_Dd: entries, L2-normalised.
        known_D: bool, which entries are keys; without any the result is NaN.
    """
    return (torch.where(known_D[:, None], queue_Dd.float(), 0.0).sum(0) / known_D.sum()).norm()


@torch.no_grad()
def alignment(q_Bd: Tensor, k_Bd: Tensor) -> Tensor:
    """Return the mean squared distance between a query and its own key, 0 to 4 (Wang & Isola 2020, alpha = 2).

    Args:
        q_Bd: queries, L2-normalised.
        k_Bd: the key of each query, L2-normalised.
    """
    return (q_Bd.float() - k_Bd.float()).square().sum(1).mean()


@torch.no_grad()
def uniformity(z_Bd: Tensor) -> Tensor:
    """Return ``log mean exp(-2 |z_i - z_j|^2)`` over the pairs i < j, -8 to 0; lower is more uniform.

    Wang & Isola 2020, t = 2. About -4 for random directions in many dimensions, 0 if all are the same.

    Args:
        z_Bd: embeddings, L2-normalised.
    """
    with torch.autocast(z_Bd.device.type, enabled=False):
        return torch.pdist(z_Bd.float()).square().mul(-2).exp().mean().log()


@torch.no_grad()
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
