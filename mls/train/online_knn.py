"""Online evaluation of the backbone: the dictionary's labelled entries classify the validation images.

    knn = OnlineKnn(store, image_size=224, device=device)
    if knn.available:
        share = knn.score(method.key_backbone, method.dictionary.g_DG, method.dictionary.row_D)

The dictionary already holds features of train images, so no pass over train is needed: a score costs one pass over at
most `IMAGES` validation images. It shows how a run is going, and differs from the probe's number: entries come from
random crops, through encoders of slightly different age, with the batch norm statistics of training. Labels are only
read to evaluate, never to train.

Shapes: B images of a batch, N validation images, D dictionary entries, G feature dimensions, K neighbours,
C classes (or the three channels of an image), H height, W width.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from mls.data.eval_view import normalise, square
from mls.data.image_store import ImageStore
from mls.metrics import Truth, mean_average_precision, told_apart, top1

IMAGES = 1000
"""Maximum number of validation images: 150 MB of memory at 224 pixels, and once a few seconds of decoding."""
VOTERS = 20
"""Neighbours that vote."""
VOTE_TEMPERATURE = 0.07
"""A vote weighs exp(cosine / this) [lineage: the kNN monitor of Wu et al. 2018]."""
FORWARD_BATCH = 64
"""Images per forward pass."""


class OnlineKnn:
    """Weighted k-nearest-neighbour classification of validation images by dictionary entries."""

    def __init__(self, store: ImageStore, image_size: int, device: torch.device) -> None:
        """Choose the images, evenly spaced over the validation rows, without decoding them.

        Args:
            store: images and labels that the dictionary's rows refer to.
            image_size: side of the square that the backbone sees, pixels; see `mls.data.eval_view.square`.
            device: where the backbone and the dictionary are.
        """
        self.store, self.image_size, self.device = store, image_size, device
        self.labelled = len(store) - len(store.split("unlabeled"))  # these come last
        rows = store.split("val")
        count = min(IMAGES, len(rows))
        self.rows = rows[np.arange(count) * len(rows) // max(count, 1)]

    @cached_property
    def available(self) -> bool:
        """Whether some validation image and some train image have a label, and others not if they may have several.

        Reads every label once.
        """
        if self.store.multi_label:
            return bool(self._apart_C.any())
        return bool(self.store.labels(self.rows).any() and self.store.labels(self.store.split("train")).any())

    @cached_property
    def _apart_C(self) -> Truth:
        """Which classes of a multi-label store have images with and without them in train and among the validation
        images: mAP is the mean over these.
        """
        return told_apart(self.store.labels(self.store.split("train"))) & told_apart(self.store.labels(self.rows))

    @torch.no_grad()
    def score(self, backbone: nn.Module, g_DG: Tensor, row_D: Tensor) -> float:
        """Classify the validation images; changes nothing and draws no random number.

        Args:
            backbone: maps normalised images to pooled features (B, G), on the device. It runs in evaluation mode and
                in float32, and returns to training mode if it was in it.
            g_DG: features of the dictionary's entries, L2-normalised.
            row_D: int64 row in the store of each entry's image; negative for a random entry.

        Returns:
            mAP of a multi-label store, top-1 accuracy of a single-label one, 0 to 1; NaN if it is not `available`, no
            entry is known, or a feature is not finite.

        Raises:
            MlsError: an image does not decode; names it.
        """
        known_D = (row_D >= 0) & (row_D < self.labelled)
        k = min(VOTERS, int(known_D.sum()))
        if not k or not self.available:
            return math.nan
        parts: list[NDArray[np.float32]] = []
        training = backbone.training
        backbone.eval()
        try:
            with torch.autocast(self.device.type, enabled=False):
                for crops_BCHW in self._crops_NCHW.split(FORWARD_BATCH):
                    images_BCHW = normalise(crops_BCHW, self.device).contiguous()
                    cosine_BD = F.normalize(backbone(images_BCHW).float(), dim=1) @ g_DG.float().T
                    cosine_BK, nearest_BK = cosine_BD.masked_fill(~known_D, -math.inf).topk(k, dim=1)
                    weights_BK = torch.softmax(cosine_BK / VOTE_TEMPERATURE, dim=1).cpu().numpy()
                    labels_BKC = self.store.labels(row_D[nearest_BK].cpu().numpy())
                    parts.append((weights_BK[:, :, None] * labels_BKC).sum(axis=1))
        finally:
            backbone.train(training)
        scores_NC = np.concatenate(parts)
        if not np.isfinite(scores_NC).all():
            return math.nan
        truth_NC = self.store.labels(self.rows)
        if not self.store.multi_label:
            return top1(scores_NC, truth_NC)
        return mean_average_precision(scores_NC[:, self._apart_C], truth_NC[:, self._apart_C])

    @cached_property
    def _crops_NCHW(self) -> Tensor:
        """The images as uint8 on the CPU, decoded on first use."""
        return torch.stack([square(self.store.decode(int(row)), self.image_size) for row in self.rows])
