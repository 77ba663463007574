"""Load batches of two views for pretraining. A batch depends only on images, config, seed and step.

    views = TwoViews(store, config, seed=0)
    for batch in batches(views, start=120, workers=2): ...

Protocol of the workers: a dataset item is a whole batch, and its index is the optimiser step. The main process sends
step numbers to the workers in turn; a worker computes that step's images, boxes and draws from the step number, decodes
each image once and cuts its crops. The `DataLoader` yields batches in the order of the steps, whichever worker is done
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
from mls.data.augment import (
    ATTEMPTS,
    AUTO,
    CROP,
    POLICY,
    auto_augment,
    crop,
    crop_boxes,
    draw,
    share_of,
    shared_area,
)
from mls.data.image_store import ImageStore
from mls.data.resident import Resident
from mls.runtime import streams
from mls.runtime.errors import MlsError
from mls.runtime.signals import SIGNALS


class View(NamedTuple):
    """One view of each image of a batch."""

    u_BU: NDArray[np.float64]
    box_B4: NDArray[np.int64]


class LocalBatch(NamedTuple):
    """Local crops, L of each image, before colour augmentation."""

    crops_BLCHW: Tensor | None
    """uint8; None with ``resident: cuda``."""
    draws_BLU: Tensor
    boxes_BL4: Tensor


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
    local: LocalBatch | None = None
    """With ``augment.local_crops``."""


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
        chosen = self.config.augment
        first = self._draw(epoch, picked, 0, chosen.scale)
        second = self._draw(epoch, picked, 1, chosen.scale, chosen.overlap, first.box_B4)
        views, local = [first, second], chosen.local_crops
        views += [
            self._draw(epoch, picked, streams.LOCAL + i, local.scale, local.overlap, second.box_B4)
            for i in range(local.count)
        ]
        crops, local_crops = (None, None) if self.config.resident == "cuda" else self._crops(rows, views)
        draws_VBU, boxes_VB4 = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*views, strict=True))
        return ViewBatch(
            crops,
            draws_VBU[:2],
            torch.from_numpy(rows.astype(np.int64)),
            boxes_VB4[:2],
            LocalBatch(local_crops, draws_VBU[2:].transpose(0, 1), boxes_VB4[2:].transpose(0, 1))
            if local.count
            else None,
        )

    def _draw(
        self,
        epoch: int,
        picked: NDArray[np.int64],
        view: int,
        scale: list[float],
        overlap: float = 0.0,
        other_B4: NDArray[np.int64] | None = None,
    ) -> View:
        """Draw a view of each image; draw its crop again if less than ``overlap`` of its area lies within another crop.

        It is drawn up to `ATTEMPTS` more times; if none overlaps enough, the first draw stays. The code of SlotCon
        (arXiv 2205.15288, ``get_params_conditioned``), and of the paper's ancestor before it, differs in two points: it
        counts the first draw as one of its ten tries, and after the last it accepts one more draw whatever its overlap.

        Args:
            epoch: of the batch.
            picked: indices of its images in ``rows``.
            view: of `draw`.
            scale: smallest and largest area share.
            overlap: a share of the crop's area.
            other_B4: top, left, height, width of the crops that it must overlap.

        Returns:
            Draws and boxes; where a crop was drawn again, the draws give the box too.
        """
        u_BU = draw(self.seed, epoch, self.rows[picked], view)
        box_B4 = crop_boxes(u_BU, self.sizes_N2[picked], scale)
        if other_B4 is None:
            return View(u_BU, box_B4)
        short = np.flatnonzero(shared_area(other_B4, box_B4) < overlap)
        for attempt in range(1, ATTEMPTS + 1):
            if not len(short):
                break
            redrawn_SU = draw(self.seed, epoch, self.rows[picked[short]], view, attempt)
            redrawn_S4 = crop_boxes(redrawn_SU, self.sizes_N2[picked[short]], scale)
            enough_S = shared_area(other_B4[short], redrawn_S4) >= overlap
            taken = short[enough_S]
            box_B4[taken], u_BU[taken, CROP] = redrawn_S4[enough_S], redrawn_SU[enough_S, CROP]
            short = short[~enough_S]
        return View(u_BU, box_B4)

    def _crops(self, rows: NDArray[np.int64], views: list[View]) -> tuple[Tensor, Tensor]:
        """Decode each image once; cut both views, uint8 (V, B, C, H, W), and the local crops, (B, L, C, h, w).

        The images come from the store or from memory (``resident: cpu``). Both give the same pixels and go through the
        same `crop`, so the crops are bit-identical.
        """
        chosen, images = self.config.augment, len(rows)
        crops_VBCHW = torch.empty((2, images, 3, chosen.crop, chosen.crop), dtype=torch.uint8)
        local_size = chosen.local_crops.size
        local_BLCHW = torch.empty((images, len(views) - 2, 3, local_size, local_size), dtype=torch.uint8)
        places = [*crops_VBCHW, *local_BLCHW.transpose(0, 1)]
        for i, row in enumerate(rows):
            image_CHW = self._images.decode(int(row))
            for v, (view, place_BCHW) in enumerate(zip(views, places, strict=True)):
                crop_CHW = crop(image_CHW, view.box_B4[i], place_BCHW.shape[-1], chosen.interpolation)
                if view.u_BU[i, AUTO] < share_of(chosen.auto_augment_p, int(v == 1)):
                    crop_CHW = auto_augment(crop_CHW, view.u_BU[i, POLICY])
                place_BCHW[i] = crop_CHW
        return crops_VBCHW, local_BLCHW

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
