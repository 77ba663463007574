"""Weighted k-nearest-neighbour classification by cosine: train images vote, val chooses k.

    probe = fit_ks(train, val, ks=[10, 20], temperature=0.07)
    scores_NC = probe.scores(test_ND)       # shares of the vote, float32

A neighbour's vote weighs exp(cosine / temperature) [Wu et al., arXiv 1805.01978; DINO's ks and temperature], and the
score of a class is the share of its neighbours in the weight of all k. Multi-label sets vote the same way and are
evaluated by mAP. A train image for which a class is ignored votes as an image without it.

Among equally near neighbours the lower row counts first. Cosines are summed in float64 and rounded to float32,
so equal images are equally near wherever they lie, and nothing depends on the size of a block.
A feature of zeros has no direction: its cosine with everything is 0.

Shape legend: N train images, M other images, B of a block of these, D features, C classes, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mls.metrics import Scores, Truth
from mls.probe.feature_set import Images
from mls.probe.linear import Features, Weights, measure_of, one_blas_thread, trained_classes
from mls.runtime.errors import MlsError

BLOCK = 2**22
"""Numbers that an array of a block may hold: 32 MiB of float64 per thread."""

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class KnnFit:
    """The voters, and the number of neighbours with the best value on val."""

    unit_ND: Weights
    """Directions of the train images."""
    train_NC: Truth
    temperature: float
    k: int
    candidates: dict[int, float]
    """k -> mAP or top-1 on val, a share."""
    untrained: list[str]
    """Classes with one score for every image, since train holds no positive or no negative of them."""
    threads: int

    def scores(self, features_MD: Features) -> Scores:
        """Return the share of each class in the vote of the k nearest, float32 (M, C)."""
        return vote(self.unit_ND, self.train_NC, features_MD, [self.k], self.temperature, self.threads)[0]


def fit_ks(train: Images, val: Images, *, ks: Sequence[int], temperature: float, threads: int = 1) -> KnnFit:
    """Keep the k with the best mAP (multi-label) or top-1 on val; on a tie the smaller k wins.

    Args:
        train: N images that vote.
        val: M images to choose by.
        ks: candidates for the number of neighbours.
        temperature: a vote weighs exp(cosine / this).
        threads: blocks of images that are classified at a time; no effect on the result.

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
    unit_ND = directions(train.features_ND)
    ascending = sorted(set(ks))
    votes = vote(unit_ND, train.truth_NC, val.features_ND, ascending, temperature, threads)
    candidates = {k: measure(scores_MC) for k, scores_MC in zip(ascending, votes, strict=True)}
    k = max(ascending, key=candidates.__getitem__)
    return KnnFit(unit_ND, train.truth_NC, temperature, k, candidates, untrained, threads)


def vote(
    unit_ND: Weights, train_NC: Truth, features_MD: Features, ks: Sequence[int], temperature: float, threads: int
) -> list[Scores]:
    """Return the scores, float32 (M, C), of each of the ascending ks."""

    def classify(block_BD: Features) -> list[Scores]:
        cosine_BK, row_BK = nearest(cosines(block_BD, unit_ND), ks[-1])
        # relative to the nearest neighbour, so that exp does not overflow at any temperature
        weight_BK = np.exp((cosine_BK - cosine_BK[:, :1]).astype(np.float64) / temperature)
        votes_BC = np.zeros((len(block_BD), train_NC.shape[1]))
        scores: list[Scores] = []
        for begin, end in zip([0, *ks], ks, strict=False):
            added_B1K = weight_BK[:, None, begin:end]
            votes_BC += (added_B1K @ train_NC[row_BK[:, begin:end]].astype(np.float64))[:, 0]
            scores.append((votes_BC / weight_BK[:, :end].sum(axis=1, keepdims=True)).astype(np.float32))
        return scores

    width = max(len(unit_ND), ks[-1] * train_NC.shape[1])
    blocks = over_blocks(classify, [features_MD], width, threads)
    return [np.concatenate(parts) for parts in zip(*blocks, strict=True)]


def over_blocks(work: Callable[..., Any], of_images: Sequence[Any], width: int, threads: int) -> list[Any]:
    """Return the result of ``work`` for each block of images, in their order.

    Args:
        work: gets a block's part of each array.
        of_images: arrays with a row per image.
        width: numbers in memory per image; it sets the size of a block.
        threads: blocks that are processed at a time.
    """
    size = max(1, BLOCK // width)
    blocks = [[array[start : start + size] for array in of_images] for start in range(0, len(of_images[0]), size)]
    with one_blas_thread(), ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda block: work(*block), blocks))


def directions(features_ND: Features) -> Weights:
    """Return features scaled to length 1, float64; zeros stay zeros."""
    wide_ND = features_ND.astype(np.float64)
    length_N1 = np.linalg.norm(wide_ND, axis=1, keepdims=True)
    unit_ND: Weights = wide_ND / np.where(length_N1 > 0, length_N1, 1.0)
    return unit_ND


def cosines(features_BD: Features, unit_ND: Weights) -> NDArray[np.float32]:
    """Return cosines with N directions, float32 (B, N); the module says why they are rounded."""
    return (directions(features_BD) @ unit_ND.T).astype(np.float32)


def nearest(cosine_BN: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], Rows]:
    """Return the k greatest cosines in descending order and their rows, (B, K); on a tie the lower row first.

    Cosine and row are packed into one integer that sorts like the pair. No two are equal, and sorting integers is
    several times faster than a stable sort of floats.
    """
    n = cosine_BN.shape[1]
    bits_BN = (cosine_BN + np.float32(0)).view(np.int32).astype(np.int64)  # + 0: turns -0 into 0
    ordered_BN = np.where(bits_BN < 0, bits_BN ^ 0x7FFFFFFF, bits_BN)  # IEEE 754: the bits of negatives sort downwards
    packed_BN = (ordered_BN << 32) | (n - 1 - np.arange(n))
    if k < n:
        packed_BN = np.partition(packed_BN, n - k, axis=1)[:, n - k :]
    packed_BN.sort(axis=1)
    row_BK = n - 1 - (packed_BN[:, ::-1] & 0xFFFFFFFF)
    return np.take_along_axis(cosine_BN, row_BK, axis=1), row_BK
