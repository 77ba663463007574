"""Random views of labelled images, in an order that is a function of seed and step alone, read ahead by threads.

    views = Views(store, store.split("train"), task, seed=1000)
    for batch in views.batches(range(start, views.steps), workers=2): ...

All of an epoch's images come once, in an order of its own, and one epoch follows another without a gap: every batch
is full, and one may begin in an epoch and end in the next. Nothing is dropped, sets smaller than a batch are trained
on too (an image then comes more than once in a batch, as another view each time), and no batch norm ever sees a
single image.

Shape legend: N images, B images of a batch, C classes (of an image: channels), U draws of a view.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
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

PREFETCH = 2
"""Batches that are prepared ahead."""

Loaded = tuple[Tensor, Tensor]


class LabelledBatch(NamedTuple):
    """Crops before flip and normalisation, and what is true of them."""

    crops_BCHW: Tensor
    """uint8."""
    draws_BU: Tensor
    """float64 uniforms that decide everything else (see ``mls.data.augment``)."""
    truth_BC: Tensor
    """bool."""
    kept_BC: Tensor
    """bool: the class counts for or against the image."""


class Views:
    """The images that are trained on."""

    def __init__(self, store: ImageStore, rows_N: NDArray[np.int64], task: TrainedProbe, seed: int) -> None:
        """Read sizes and labels; no image is read yet.

        Args:
            store: holds the images.
            rows_N: which of them are trained on; one at least.
            task: ``augment``, ``batch_size`` and ``epochs`` are read.
            seed: of order and views.
        """
        self.store, self.rows_N, self.task, self.seed = store, rows_N, task, seed
        self.sizes_N2 = np.array([store.size(int(row)) for row in rows_N], dtype=np.int64)
        self.truth_NC = torch.from_numpy(store.labels(rows_N))
        self.kept_NC = torch.from_numpy(~store.ignored(rows_N))

    def __len__(self) -> int:
        """Images that are trained on."""
        return len(self.rows_N)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training, at which ``epochs`` passes are over to within half a batch."""
        return max(1, round(self.task.epochs * len(self) / self.task.batch_size))

    def plan(self, step: int) -> list[tuple[int, int]]:
        """Index and epoch of each image of a batch."""
        planned = []
        for position in range(step * self.task.batch_size, (step + 1) * self.task.batch_size):
            epoch, place = divmod(position, len(self))
            planned.append((int(epoch_order(len(self), self.seed, epoch)[place]), epoch))
        return planned

    def load(self, index: int, epoch: int) -> Loaded:
        """Return an image's crop in an epoch, uint8 (3, S, S), and the draws (U,) of its view."""
        u_1U = draw(self.seed, epoch, self.rows_N[[index]], 0)
        box_14 = crop_boxes(u_1U, self.sizes_N2[[index]], self.task.augment.scale)
        image_CHW = self.store.decode(int(self.rows_N[index]))
        return crop(image_CHW, box_14[0], self.task.augment.crop), torch.from_numpy(u_1U[0])

    def batches(self, steps: range, workers: int) -> Generator[LabelledBatch, None, None]:
        """Yield the batches of some steps, prepared ahead by threads (decoding releases Python's lock).

        Args:
            steps: which ones.
            workers: threads; no effect on the batches.
        """
        with ThreadPoolExecutor(max(1, workers)) as pool:
            ahead: deque[tuple[list[int], list[Future[Loaded]]]] = deque()
            try:
                for step in steps:
                    planned = self.plan(step)
                    indices = [index for index, _ in planned]
                    ahead.append((indices, [pool.submit(self.load, index, epoch) for index, epoch in planned]))
                    if len(ahead) > PREFETCH:
                        yield self._batch(*ahead.popleft())
                while ahead:
                    yield self._batch(*ahead.popleft())
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _batch(self, indices: list[int], futures: list[Future[Loaded]]) -> LabelledBatch:
        crops, draws = zip(*[future.result() for future in futures], strict=True)
        return LabelledBatch(torch.stack(crops), torch.stack(draws), self.truth_NC[indices], self.kept_NC[indices])


@lru_cache(maxsize=4)
def epoch_order(images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of an epoch (N,), from a stream beside those of the views."""
    return np.random.default_rng((seed, epoch, 0, ORDER_STREAM)).permutation(images)
