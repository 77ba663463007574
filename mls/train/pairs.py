"""From a loaded batch to a method's input: augmented views on the device, and the order of the keys.

Shapes: V = 2 views, B images of this rank, N of the global batch, X = B L local crops, C channels, H x W pixels.
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

    chosen = config.augment

    def view(v: int, crops: Tensor | None, side: int, row_B: Tensor, box_B4: Tensor, u_BU: Tensor) -> Tensor:
        if crops is not None:
            crops_BCHW = crops.to(device, non_blocking=True)
        elif resident is not None:
            crops_BCHW = resident.crops(row_B, box_B4, side, chosen.interpolation)
        else:
            raise ValueError("a batch without crops needs resident images")
        return ColourAugment(chosen, v)(crops_BCHW, u_BU).contiguous(memory_format=layout_of(config))

    def whole(v: int) -> Tensor:
        crops_BCHW = None if batch.crops_VBCHW is None else batch.crops_VBCHW[v]
        return view(v, crops_BCHW, chosen.crop, batch.rows_B, batch.boxes_VB4[v], batch.draws_VBU[v])

    def local() -> Tensor | None:
        if batch.local is None:
            return None
        crops_XCHW = None if batch.local.crops_BLCHW is None else batch.local.crops_BLCHW.flatten(0, 1)
        row_X = batch.rows_B.repeat_interleave(chosen.local_crops.count)
        box_X4, u_XU = batch.local.boxes_BL4.flatten(0, 1), batch.local.draws_BLU.flatten(0, 1)
        return view(0, crops_XCHW, chosen.local_crops.size, row_X, box_X4, u_XU)

    order_N = key_order(views.seed, step, config.batch_size) if config.moco.bn_splits > 1 else None
    return Pair(
        query_BCHW=whole(0),
        key_BCHW=whole(1),
        row_B=batch.rows_B.to(device, non_blocking=True),
        boxes_VB4=batch.boxes_VB4.to(device, non_blocking=True),
        flips_VB=flips(config.augment, batch.draws_VBU).to(device, non_blocking=True),
        key_order_N=None if order_N is None else order_N.to(device, non_blocking=True),
        epoch=step / views.steps_per_epoch,
        local_XCHW=local(),
    )


def layout_of(config: Pretrain) -> torch.memory_format:
    """Memory format of images and convolutions."""
    return torch.channels_last if config.channels_last else torch.contiguous_format
