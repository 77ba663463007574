"""Load batches of two views for pretraining. A batch depends only on images, config, seed and step.

    views = TwoViews(store, config, seed=0)
    for batch in batches(views, start=120, workers=2): ...

Protocol of the workers: a dataset item is a whole batch, and its index is the optimiser step. The main process sends
step numbers to the workers in turn; a worker computes that step's images, boxes and draws from the step number, decodes
each image once and crops it twice. The `DataLoader` yields batches in the order of the steps, whichever worker is done
first. Workers keep no state between steps except caches, so their number changes no batch, and a run resumed at any
step needs only that step's number.
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
from mls.runtime import streams
from mls.runtime.errors import MlsError
from mls.runtime.signals import SIGNALS


class ViewBatch(NamedTuple):
    """Crops of both views before colour augmentation."""

    crops_VBCHW: Tensor | None
    """uint8, V = 2 views; None with ``resident: cuda``, where the GPU cuts the crops."""
    draws_VBU: Tensor
    """float64 uniform numbers that decide everything else (see ``mls.data.augment``)."""
    rows_B: Tensor
    """int64 rows of the store."""
    boxes_VB4: Tensor
    """int64 top, left, height, width of each crop, pixels of the stored image."""


@dataclass
class TwoViews(Dataset[ViewBatch]):
    """Pretraining batches by step: ``views[step]`` is this rank's part of that step's global batch.

    The images of an epoch are a permutation of ``rows`` that depends on the seed and the epoch. Each step takes the
    next ``batch_size`` of them, and each rank takes a contiguous block of those, in order of rank. Ranks therefore
    never share an image in a step, and their batches joined in order are the batch of a run with one rank.

    Raises:
        MlsError: the batch is larger than the set, the ranks do not divide it, or resident images do not fit.
    """

    store: ImageStore
    config: Pretrain
    seed: int
    rank: int = 0
    world: int = 1
    threads: int = 1
    """Threads that decode resident images."""

    def __post_init__(self) -> None:
        self.rows = np.concatenate([self.store.split("train"), self.store.split("unlabeled")])
        self.sizes_N2 = self.store.sizes_N2[self.rows]
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
        """Optimiser steps of the whole run. The last batch of an epoch is dropped if it is incomplete."""
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
        """Draw a second crop again, in place, if less than ``augment.overlap`` of its area lies within the first.

        It is drawn up to `ATTEMPTS` more times; if none overlaps enough, the first draw stays. SlotCon's code
        (arXiv 2205.15288, ``get_params_conditioned``) differs in two points: it counts the first draw as one of its ten
        tries, and after the last it accepts one more draw whatever its overlap.

        Args:
            epoch: of the batch.
            picked: indices of its images in ``rows``.
            boxes: top, left, height, width (B, 4) of the first and the second view.
            u_BU: draws of the second view; the crop's columns are replaced too, so that the draws still give the box.
        """
        first_B4, second_B4 = boxes
        least, scale = self.config.augment.overlap, self.config.augment.scale
        short = np.flatnonzero(shared_area(first_B4, second_B4) < least)
        for attempt in range(1, ATTEMPTS + 1):
            if not len(short):
                return
            redrawn_SU = draw(self.seed, epoch, self.rows[picked[short]], 1, attempt)
            redrawn_S4 = crop_boxes(redrawn_SU, self.sizes_N2[picked[short]], scale)
            enough_S = shared_area(first_B4[short], redrawn_S4) >= least
            taken = short[enough_S]
            second_B4[taken], u_BU[taken, CROP] = redrawn_S4[enough_S], redrawn_SU[enough_S, CROP]
            short = short[~enough_S]

    def _crops(self, rows: NDArray[np.int64], boxes: list[NDArray[np.int64]]) -> Tensor:
        """Decode each image once and crop it twice: uint8 (V, B, C, H, W).

        The images come from the store or from memory (``resident: cpu``). Both give the same pixels and go through the
        same `crop`, so the crops are bit-identical.
        """
        side, interpolation = self.config.augment.crop, self.config.augment.interpolation
        crops_VBCHW = torch.empty((2, len(rows), 3, side, side), dtype=torch.uint8)
        for i, row in enumerate(rows):
            image_CHW = self._images.decode(int(row))
            for view in (0, 1):
                crops_VBCHW[view, i] = crop(image_CHW, boxes[view][i], side, interpolation)
        return crops_VBCHW

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        """Return the epoch's permutation of ``rows``.

        It is a function of the seed and the epoch, not a shuffle of the previous order: prefetching workers may already
        be in the next epoch, and each computes the order for itself. Every rank computes the same one.
        """
        if self._order[0] != epoch:
            self._order = (epoch, streams.order(self.seed, epoch).permutation(len(self.rows)))
        return self._order[1]


def batches(views: TwoViews, start: int, workers: int) -> Iterator[ViewBatch]:
    """Return an iterator over the batches of steps ``start``, ``start + 1``, ... to the end of the run.

    Args:
        views: the dataset.
        start: first step, counts from 0 over the whole run.
        workers: processes that load; 0 loads in this process.
    """
    loader = DataLoader(
        views,
        batch_size=None,  # an item is already a batch
        sampler=range(start, views.steps),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_initialized(),  # true once the method is on the GPU; an unused GPU does not count
        worker_init_fn=leave_signals_to_the_job,
        generator=torch.Generator(),  # otherwise making the iterator would advance torch's global generator
    )
    return iter(loader)


def leave_signals_to_the_job(worker: int) -> None:
    """Ignore stop signals in a worker.

    A terminal or scheduler signals the whole process group. The job must still get batches until it has saved; then it
    stops its workers itself.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
