"""Random views of labelled images, in an order and with crops that depend only on the seed and the step.

    views = Views(store, store.split("train"), task, seed=1000)
    for batch in views.batches(range(start, views.steps), workers=2): ...

Each epoch holds every image once, in its own order, and one epoch follows another without a gap: every batch is full,
and one may begin in an epoch and end in the next. So nothing is dropped, no batch norm ever sees a single image, and
sets smaller than a batch can be trained on too (an image then occurs more than once in a batch, each time as another
view).

Shape legend: N images, B images of a batch, C classes (of an image: channels), U draws of a view.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mls.config.probes import TrainedProbe
from mls.data.augment import crop, crop_boxes, draw
from mls.data.image_store import ImageStore
from mls.data.loader import ORDER_STREAM
from mls.train.finetune import places, read_ahead


class LabelledBatch(NamedTuple):
    """Crops before flip and normalisation, and their labels."""

    crops_BCHW: Tensor
    """uint8."""
    draws_BU: Tensor
    """float64 uniforms that decide everything else (see ``mls.data.augment``)."""
    truth_BC: Tensor
    """bool."""
    kept_BC: Tensor
    """bool: the class counts for or against the image."""


class Views:
    """The images that a classifier is trained on."""

    def __init__(self, store: ImageStore, rows_N: NDArray[np.int64], task: TrainedProbe, seed: int) -> None:
        """Read sizes and labels; no image is read yet.

        Args:
            store: holds the images.
            rows_N: rows of the images to train on; at least one.
            task: ``augment``, ``batch_size`` and ``epochs`` are read.
            seed: of order and views.
        """
        self.store, self.rows_N, self.task, self.seed = store, rows_N, task, seed
        self.sizes_N2 = np.array([store.size(int(row)) for row in rows_N], dtype=np.int64)
        self.truth_NC = torch.from_numpy(store.labels(rows_N))
        self.kept_NC = torch.from_numpy(~store.ignored(rows_N))

    def __len__(self) -> int:
        """Number of images to train on."""
        return len(self.rows_N)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training: ``epochs`` passes, rounded to whole batches."""
        return max(1, round(self.task.epochs * len(self) / self.task.batch_size))

    def plan(self, step: int) -> list[tuple[int, int]]:
        """Return index and epoch of each image of a batch."""
        return [
            (int(epoch_order(len(self), self.seed, epoch)[place]), epoch)
            for epoch, place in places(step, self.task.batch_size, len(self))
        ]

    def load(self, planned: tuple[int, int]) -> tuple[int, Tensor, Tensor]:
        """Return an image's index, its crop in an epoch, uint8 (3, S, S), and the draws (U,) of its view."""
        index, epoch = planned
        u_1U = draw(self.seed, epoch, self.rows_N[[index]], 0)
        box_14 = crop_boxes(u_1U, self.sizes_N2[[index]], self.task.augment.scale)
        image_CHW = self.store.decode(int(self.rows_N[index]))
        return index, crop(image_CHW, box_14[0], self.task.augment.crop), torch.from_numpy(u_1U[0])

    def batches(self, steps: range, workers: int) -> Generator[LabelledBatch]:
        """Yield the batches of some steps, prepared ahead by ``workers`` threads (no effect on the batches)."""
        for samples in read_ahead(map(self.plan, steps), self.load, workers):
            indices, crops, draws = map(list, zip(*samples, strict=True))
            yield LabelledBatch(torch.stack(crops), torch.stack(draws), self.truth_NC[indices], self.kept_NC[indices])


@lru_cache(maxsize=4)
def epoch_order(images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of an epoch's images, int64 (N,). Its random stream differs from those of the views."""
    return np.random.default_rng((seed, epoch, 0, ORDER_STREAM)).permutation(images)
