"""Weighted k-nearest-neighbour classification by cosine: train images vote, val chooses k.

    probe = fit_ks(train, val, ks=[10, 20], temperature=0.07)
    scores_NC = probe.scores(test_ND)       # shares of the vote, float32

A neighbour's vote weighs exp(cosine / temperature) [Wu et al., arXiv 1805.01978; DINO's ks and temperature], and the
score of a class is the share of its neighbours in the weight of all k. Multi-label sets vote the same way and are
evaluated by mAP. A train image for which a class is ignored votes as an image without it.

Among equally near neighbours the lower row counts first. Cosines are summed in float64 and rounded to float32,
so equal images are equally near wherever they lie, and nothing depends on the size of a block.
A feature of zeros has no direction: its cosine with everything is 0.

Shape legend: N train images (the gallery), M other images, B of a block of these, G of a block of the gallery,
D features, C classes, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mls.metrics import Scores, Truth
from mls.probe.feature_set import Features, Images, blocks
from mls.probe.fitting import measure_of, trained_classes
from mls.runtime.errors import MlsError
from mls.runtime.progress import Bar

COSINES = 2**25
"""Numbers that an array of a block of images may hold: 256 MiB as integers. Each block reads the whole gallery."""
CPU = torch.device("cpu")


class Gallery:
    """Images among which others look for the nearest."""

    def __init__(self, features_ND: Features, device: torch.device) -> None:
        """Move them to the device; on a CPU they stay where they are, in memory or in a mapped file."""
        self.features_ND = torch.from_numpy(features_ND).to(device)
        lengths = [lengths_of(self.features_ND[rows].double()) for rows in blocks(*features_ND.shape)]
        self.length_N = torch.cat(lengths)

    def __len__(self) -> int:
        return len(self.length_N)

    def cosines(self, features_BD: Features) -> Tensor:
        """Return the cosines of some images with all of the gallery, float32 (B, N); the module says why float32."""
        wide_BD = torch.from_numpy(features_BD).to(self.length_N).double()
        unit_BD = wide_BD / lengths_of(wide_BD)[:, None]
        cosine_BN = torch.empty(len(unit_BD), len(self), device=self.length_N.device)
        for rows in blocks(*self.features_ND.shape):
            cosine_BN[:, rows] = unit_BD @ self.features_ND[rows].double().T / self.length_N[rows]
        return cosine_BN


def lengths_of(wide_BD: Tensor) -> Tensor:
    """Return the length of each feature, (B,), or 1 if that is 0."""
    length_B = wide_BD.norm(dim=1)
    return torch.where(length_B > 0, length_B, 1.0)


@dataclass(frozen=True)
class KnnFit:
    """The voters, and the number of neighbours with the best value on val."""

    gallery: Gallery
    train_NC: Truth
    temperature: float
    k: int
    candidates: dict[int, float]
    """k -> mAP or top-1 on val, a share."""
    untrained: list[str]
    """Classes with one score for every image, since train holds no positive or no negative of them."""
    name: str

    def scores(self, features_MD: Features) -> Scores:
        """Return the share of each class in the vote of the k nearest, float32 (M, C)."""
        return vote(self.gallery, self.train_NC, features_MD, [self.k], self.temperature, self.name)[0]


def fit_ks(
    train: Images,
    val: Images,
    *,
    ks: Sequence[int],
    temperature: float,
    device: torch.device = CPU,
    name: str = "knn",
) -> KnnFit:
    """Keep the k with the best mAP (multi-label) or top-1 on val; on a tie the smaller k wins.

    Args:
        train: N images that vote.
        val: M images to choose by.
        ks: candidates for the number of neighbours.
        temperature: a vote weighs exp(cosine / this).
        device: where neighbours are looked for.
        name: of the progress bars.

    Raises:
        MlsError: features are not finite; a k is above the number of train images; no class has both positives and
            negatives in train, or none of these in val.
    """
    trained, untrained = trained_classes(train.truth_NC, np.ones_like(train.truth_NC), train.classes)
    measure = measure_of(train, val, trained)
    if max(ks) > len(train.truth_NC):
        raise MlsError(
            f"ks: {max(ks)} neighbours can't be found among the {len(train.truth_NC)} train images; lower it"
        )
    gallery = Gallery(train.features_ND, device)
    ascending = sorted(set(ks))
    votes = vote(gallery, train.truth_NC, val.features_ND, ascending, temperature, name)
    candidates = {k: measure(scores_MC) for k, scores_MC in zip(ascending, votes, strict=True)}
    k = max(ascending, key=candidates.__getitem__)
    return KnnFit(gallery, train.truth_NC, temperature, k, candidates, untrained, name)


def vote(
    gallery: Gallery, train_NC: Truth, features_MD: Features, ks: Sequence[int], temperature: float, name: str
) -> list[Scores]:
    """Return the scores, float32 (M, C), of each of the ascending ks."""
    voters_NC = torch.from_numpy(train_NC).to(gallery.length_N.device)

    def classify(block_BD: Features) -> list[Scores]:
        cosine_BK, row_BK = nearest(gallery.cosines(block_BD), ks[-1])
        # relative to the nearest neighbour, so that exp does not overflow at any temperature
        weight_BK = ((cosine_BK - cosine_BK[:, :1]).double() / temperature).exp()
        votes_BC = weight_BK.new_zeros(len(block_BD), train_NC.shape[1])
        scores: list[Scores] = []
        for begin, end in zip([0, *ks], ks, strict=False):
            added_B1K = weight_BK[:, None, begin:end]
            votes_BC += (added_B1K @ voters_NC[row_BK[:, begin:end]].double())[:, 0]
            scores.append((votes_BC / weight_BK[:, :end].sum(1, keepdim=True)).float().cpu().numpy())
        return scores

    width = max(len(gallery), ks[-1] * train_NC.shape[1])
    parts = over_blocks(classify, [features_MD], width, name)
    return [np.concatenate(of_k) for of_k in zip(*parts, strict=True)]


def over_blocks(work: Callable[..., Any], of_images: Sequence[Any], width: int, name: str) -> list[Any]:
    """Return the result of ``work`` for each block of images, in their order.

    Args:
        work: gets a block's part of each array.
        of_images: arrays with a row per image.
        width: numbers in memory per image; it sets the size of a block.
        name: of the progress bar.
    """
    images, results = len(of_images[0]), []
    with Bar(name, images) as bar:
        for rows in blocks(images, width, COSINES):
            parts = [array[rows] for array in of_images]
            results.append(work(*parts))
            bar.advance(len(parts[0]), count=len(parts[0]))
    return results


def nearest(cosine_BN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k greatest cosines in descending order and their rows, (B, K); on a tie the lower row first.

    Cosine and row are packed into one integer that sorts like the pair. No two are equal, and sorting integers is
    several times faster than a stable sort of floats.
    """
    n = cosine_BN.shape[1]
    packed_BN = (cosine_BN + 0.0).view(torch.int32).long()  # + 0: turns -0 into 0
    packed_BN = torch.where(packed_BN < 0, packed_BN ^ 0x7FFFFFFF, packed_BN)  # IEEE 754: negatives sort downwards
    packed_BN = packed_BN.bitwise_left_shift_(32).add_(torch.arange(n - 1, -1, -1, device=cosine_BN.device))
    if k < n:
        packed_BN = packed_BN.topk(k, dim=1).values
    elif packed_BN.device.type == "cpu":
        packed_BN.numpy().sort(axis=1)  # in place; ten times as fast as torch's
        packed_BN = packed_BN.flip(1)
    else:
        packed_BN = packed_BN.sort(dim=1, descending=True).values
    row_BK = n - 1 - (packed_BN & 0xFFFFFFFF)
    return cosine_BN.gather(1, row_BK), row_BK
