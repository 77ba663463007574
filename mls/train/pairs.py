"""From a loaded batch to a method's input: augmented views on the device, and the order of the keys.

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
    batch: ViewBatch,
    views: TwoViews,
    config: Pretrain,
    step: int,
    device: torch.device,
    resident: Resident | None = None,
) -> Pair:
    """Return a method's input for one step.

    Args:
        batch: from the loader.
        views: the data set that made the batch.
        config: of the run.
        step: counts from 0.
        device: where the method is.
        resident: cuts the crops if the batch has none (``pretrain.resident: cuda``).

    Raises:
        ValueError: neither the batch nor ``resident`` has the images.
    """

    def view(v: int) -> Tensor:
        if batch.crops_VBCHW is not None:
            crops_BCHW = batch.crops_VBCHW[v].to(device, non_blocking=True)
        elif resident is not None:
            side, interpolation = config.augment.crop, config.augment.interpolation
            crops_BCHW = resident.crops(batch.rows_B, batch.boxes_VB4[v], side, interpolation)
        else:
            raise ValueError("a batch without crops needs resident images")
        augmented_BCHW = ColourAugment(config.augment, v)(crops_BCHW, batch.draws_VBU[v])
        return augmented_BCHW.contiguous(memory_format=layout_of(config))

    order_N = key_order(views.seed, step, config.batch_size) if config.moco.bn_splits > 1 else None
    return Pair(
        query_BCHW=view(0),
        key_BCHW=view(1),
        row_B=batch.rows_B.to(device, non_blocking=True),
        boxes_VB4=batch.boxes_VB4.to(device, non_blocking=True),
        flips_VB=flips(config.augment, batch.draws_VBU).to(device, non_blocking=True),
        key_order_N=None if order_N is None else order_N.to(device, non_blocking=True),
        epoch=step / views.steps_per_epoch,
    )


def layout_of(config: Pretrain) -> torch.memory_format:
    """Memory format of images and convolutions."""
    return torch.channels_last if config.channels_last else torch.contiguous_format
