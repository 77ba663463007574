"""Batches of two views for pretraining, in an order that is a function of seed and step alone.

    for step, batch in batches(store, config, seed=0, start=120, workers=2): ...

One item of the dataset is one whole batch: a worker decodes each image once and crops it twice.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mls.config.experiment import Pretrain
from mls.data.augment import ATTEMPTS, CROP, crop, crop_boxes, draw, shared_area
from mls.data.image_store import ImageStore
from mls.data.resident import Resident
from mls.runtime.errors import MlsError
from mls.runtime.signals import SIGNALS

ORDER_STREAM = 2
"""Third word of the order's counter; views use 0 and 1 in the fourth."""


class ViewBatch(NamedTuple):
    """Crops of both views before colour augmentation."""

    crops_VBCHW: Tensor | None
    """uint8, V = 2 views; None where the images are on the GPU, which then cuts them."""
    draws_VBU: Tensor
    """float64 uniforms that decide everything else (see ``mls.data.augment``)."""
    rows_B: Tensor
    """int64 rows of the store."""
    boxes_VB4: Tensor
    """int64 top, left, height, width of each crop, pixels of the stored image."""


@dataclass
class TwoViews(Dataset[ViewBatch]):
    """``dataset[step]`` is the batch of that optimiser step: this rank's contiguous block of the global one."""

    store: ImageStore
    config: Pretrain
    seed: int
    rank: int = 0
    world: int = 1
    threads: int = 1
    """That decode what is to be resident."""

    def __post_init__(self) -> None:
        self.rows = np.concatenate([self.store.split("train"), self.store.split("unlabeled")])
        self.sizes_N2 = np.array([self.store.size(int(row)) for row in self.rows], dtype=np.int64)
        self.steps_per_epoch = len(self.rows) // self.config.batch_size
        if self.steps_per_epoch == 0:
            raise MlsError(
                f"pretrain.batch_size {self.config.batch_size} is more than the {len(self.rows)} train images"
            )
        if self.config.batch_size % self.world:
            raise MlsError(f"{self.world} ranks do not divide pretrain.batch_size {self.config.batch_size} evenly")
        self._order: tuple[int, NDArray[np.int64]] = (-1, self.rows)
        self._images: ImageStore | Resident = self.store
        if self.config.resident == "cpu":
            self._images = Resident(self.store, self.rows, self.threads)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run; the last, incomplete batch of an epoch is dropped."""
        return self.steps_per_epoch * self.config.epochs

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> ViewBatch:
        epoch, place = divmod(step, self.steps_per_epoch)
        size = self.config.batch_size // self.world
        start = place * self.config.batch_size + self.rank * size
        picked = self._epoch_order(epoch)[start : start + size]
        rows = self.rows[picked]
        draws = [draw(self.seed, epoch, rows, view) for view in (0, 1)]
        boxes = [crop_boxes(u, self.sizes_N2[picked], self.config.augment.scale) for u in draws]
        self._make_overlap(epoch, picked, boxes, draws[1])
        return ViewBatch(
            None if self.config.resident == "cuda" else self._crops(rows, boxes),
            torch.from_numpy(np.stack(draws)),
            torch.from_numpy(rows.astype(np.int64)),
            torch.from_numpy(np.stack(boxes)),
        )

    def _make_overlap(
        self, epoch: int, picked: NDArray[np.int64], boxes: list[NDArray[np.int64]], u_BU: NDArray[np.float64]
    ) -> None:
        """Draw second crops anew, in place, while less than ``augment.overlap`` of them lies within the first.

        Up to `ATTEMPTS` times; a crop that never overlaps enough stays as first drawn. This is SlotCon's rule
        (arXiv 2205.15288, ``get_params_conditioned`` of its code), which lets the first draw count as one of ten and
        draws once more, whatever comes, after the last.

        Args:
            epoch: of the batch.
            picked: places of its images in ``rows``.
            boxes: top, left, height, width (B, 4) of the first and the second view.
            u_BU: draws of the second view; the columns of a crop are replaced with it, so that they still give the box.
        """
        first_B4, second_B4 = boxes
        least, scale = self.config.augment.overlap, self.config.augment.scale
        short = np.flatnonzero(shared_area(first_B4, second_B4) < least)
        for attempt in range(1, ATTEMPTS + 1):
            if not len(short):
                return
            anew_SU = draw(self.seed, epoch, self.rows[picked[short]], 1, attempt)
            anew_S4 = crop_boxes(anew_SU, self.sizes_N2[picked[short]], scale)
            enough_S = shared_area(first_B4[short], anew_S4) >= least
            taken = short[enough_S]
            second_B4[taken], u_BU[taken, CROP] = anew_S4[enough_S], anew_SU[enough_S, CROP]
            short = short[~enough_S]

    def _crops(self, rows: NDArray[np.int64], boxes: list[NDArray[np.int64]]) -> Tensor:
        """Decode each image once, crop it twice: uint8 (V, B, C, H, W)."""
        side = self.config.augment.crop
        crops_VBCHW = torch.empty((2, len(rows), 3, side, side), dtype=torch.uint8)
        for i, row in enumerate(rows):
            image_CHW = self._images.decode(int(row))
            for view in (0, 1):
                crops_VBCHW[view, i] = crop(image_CHW, boxes[view][i], side)
        return crops_VBCHW

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        if self._order[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch, 0, ORDER_STREAM))
            self._order = (epoch, rng.permutation(len(self.rows)))
        return self._order[1]


def batches(views: TwoViews, start: int, workers: int) -> Iterator[ViewBatch]:
    """Yield the batches of steps ``start``, ``start + 1``, ... to the end of the run."""
    loader = DataLoader(
        views,
        batch_size=None,
        sampler=range(start, views.steps),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_initialized(),  # by the method on it: not where a GPU is there but not used
        worker_init_fn=leave_signals_to_the_job,
        generator=torch.Generator(),  # else each epoch would draw a base seed from the global one
    )
    return iter(loader)


def leave_signals_to_the_job(worker: int) -> None:
    """Workers ignore what is sent to the whole group: the job saves, then stops them itself."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
