"""From a loaded batch to what a method is fed: augmented views on the device, and the keys' order.

Shapes: V = 2 views, B images of this rank, N of the global batch, C channels, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mls.config.experiment import Pretrain
from mls.data.augment import ColourAugment, flips
from mls.data.loader import TwoViews, ViewBatch
from mls.data.resident import Resident
from mls.methods.method import Pair
from mls.methods.momentum import key_order


def pair_of(
    batch: ViewBatch, views: TwoViews, step: int, device: torch.device, resident: Resident | None = None
) -> Pair:
    """Return what a step's method is fed: the batch's crops as augmented views on the device, and the keys' order.

    Args:
        batch: of the loader.
        views: what it was made by.
        step: counts from 0.
        device: where the method is.
        resident: cuts the crops where the batch brings none (``pretrain.resident: cuda``).
    """
    config = views.config

    def view(v: int) -> Tensor:
        if batch.crops_VBCHW is not None:
            crops_BCHW = batch.crops_VBCHW[v].to(device, non_blocking=True)
        elif resident is not None:
            crops_BCHW = resident.crops(batch.rows_B, batch.boxes_VB4[v], config.augment.crop)
        else:
            raise ValueError("a batch without crops needs resident images")
        augmented_BCHW = ColourAugment(config.augment, v)(crops_BCHW, batch.draws_VBU[v])
        return augmented_BCHW.contiguous(memory_format=layout_of(config))

    query_BCHW, key_BCHW = view(0), view(1)
    order_N = None
    if config.moco.bn_splits > 1:
        order_N = key_order(views.seed, step, config.batch_size).to(device, non_blocking=True)
    rows_B = batch.rows_B.to(device, non_blocking=True)
    boxes_VB4 = batch.boxes_VB4.to(device, non_blocking=True)
    flips_VB = flips(config.augment, batch.draws_VBU).to(device, non_blocking=True)
    return Pair(query_BCHW, key_BCHW, rows_B, boxes_VB4, flips_VB, order_N, step / views.steps_per_epoch)


def layout_of(config: Pretrain) -> torch.memory_format:
    """How images and convolutions lie in memory."""
    return torch.channels_last if config.channels_last else torch.contiguous_format
