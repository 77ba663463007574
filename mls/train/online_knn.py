"""An online judge of the backbone: the dictionary's labelled entries classify the validation images.

    knn = OnlineKnn(store, image_size=224, device=device)
    if knn.available:
        share = knn.score(method.key_backbone, method.dictionary.g_DG, method.dictionary.row_D)

The dictionary already holds features of train images, so no pass over train is needed: a score costs one
pass over at most `IMAGES` validation images. It tells how a run is going; it is not the probe's number,
since entries come from random crops, through encoders of slightly different age, with the batch norm
statistics of training. Labels are only read to judge, never to train.

Shapes: B images of a batch, N validation images, D dictionary entries, G feature dimensions, K neighbours,
C classes (or the three channels of an image), H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from mls.data.augment import MEAN, STD
from mls.data.eval_view import square
from mls.data.image_store import ImageStore
from mls.metrics import mean_average_precision, top1

IMAGES = 1000
"""Validation images at most: 150 MB of memory at 224 pixels, a few seconds of decoding, once."""
K = 20
"""Neighbours that vote."""
TEMPERATURE = 0.07
"""A vote weighs exp(cosine / this) [lineage: the kNN monitor of Wu et al. 2018]."""
BATCH = 64


class OnlineKnn:
    """Weighted k-nearest-neighbour classification of validation images by dictionary entries."""

    def __init__(self, store: ImageStore, image_size: int, device: torch.device) -> None:
        """Choose the images, evenly spaced over the validation rows; decodes none yet.

        Args:
            store: holds the images and labels that the dictionary's rows refer to.
            image_size: side of the square that the backbone sees, pixels; see `mls.data.eval_view.square`.
            device: where the backbone and the dictionary are.
        """
        self.store, self.image_size, self.device = store, image_size, device
        self.labelled = len(store) - len(store.split("unlabeled"))  # these come last
        rows = store.split("val")
        count = min(IMAGES, len(rows))
        self.rows = rows[np.arange(count) * len(rows) // max(count, 1)]
        self._crops_NCHW: Tensor | None = None

    @cached_property
    def available(self) -> bool:
        """Whether there is a validation image with a label to judge by, and a train image with one to learn from.

        Looks at every label once; asking again costs nothing.
        """
        return bool(self.store.labels(self.rows).any() and self.store.labels(self.store.split("train")).any())

    @torch.no_grad()
    def score(self, backbone: nn.Module, g_DG: Tensor, row_D: Tensor) -> float:
        """Classify the validation images; changes nothing and draws no random number.

        Args:
            backbone: maps normalised images to pooled features (B, G), on the device; runs in evaluation mode
                and in float32, and gets back the training flag of each of its modules.
            g_DG: features of the dictionary's entries, L2-normalised.
            row_D: int64 row in the store of each entry's image; negative where there is none (a random entry).

        Returns:
            mAP of a multi-label store, top-1 accuracy of a single-label one, 0 to 1; NaN where it is not
            `available`, no entry is known, or a feature is not finite.

        Raises:
            MlsError: names the image that does not decode.
        """
        known_D = (row_D >= 0) & (row_D < self.labelled)
        k = min(K, int(known_D.sum()))
        if not k or not self.available:
            return math.nan
        parts: list[NDArray[np.float32]] = []
        with _evaluating(backbone), torch.autocast(self.device.type, enabled=False):
            for features_BG in self._features(backbone):
                cosine_BD = features_BG @ g_DG.float().T
                cosine_BK, nearest_BK = cosine_BD.masked_fill(~known_D, -math.inf).topk(k, dim=1)
                weights_BK = torch.softmax(cosine_BK / TEMPERATURE, dim=1).cpu().numpy()
                labels_BKC = self.store.labels(row_D[nearest_BK].cpu().numpy())
                parts.append((weights_BK[:, :, None] * labels_BKC).sum(axis=1))
        scores_NC = np.concatenate(parts)
        if not np.isfinite(scores_NC).all():
            return math.nan
        measure = mean_average_precision if self.store.multi_label else top1
        return measure(scores_NC, self.store.labels(self.rows))

    def _features(self, backbone: nn.Module) -> Iterator[Tensor]:
        """Yield the L2-normalised features of the images, float32 (B, G)."""
        mean_C11, std_C11 = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (MEAN, STD))
        for crops_BCHW in self._crops().split(BATCH):
            images_BCHW = crops_BCHW.to(self.device).float() / 255
            yield F.normalize(backbone((images_BCHW - mean_C11) / std_C11).float(), dim=1)

    def _crops(self) -> Tensor:
        """Return the images as uint8 (N, C, H, W) on the CPU, decoded on the first call."""
        if self._crops_NCHW is None:
            self._crops_NCHW = torch.stack([square(self.store.decode(int(row)), self.image_size) for row in self.rows])
        return self._crops_NCHW


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode; give every part back its own flag, whatever it was."""
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in flags:
            part.training = training
