"""Align the feature maps of two views on the region that both show.

    region_VB4, overlaps_B = common_region(batch.boxes_VB4, flips(config, batch.draws_VBU))
    query_BCHW = align(query_BCHW, region_VB4[0], flips_VB[0])     # cell (i, j) of both maps now shows
    key_BCHW = align(key_BCHW, region_VB4[1], flips_VB[1])         # the same place in the image

This is the inverse augmentation of SlotCon (arXiv 2205.15288, section 3.1). The host never waits for the device.

Shapes: V = 2 views, B images, C channels, H x W cells of a map.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import roi_align


def common_region(boxes_VB4: Tensor, flips_VB: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the intersection of both crops lies in each view as the network sees it.

    SlotCon, arXiv 2205.15288, section 3.1.

    Args:
        boxes_VB4: int64 top, left, height, width of each crop, pixels of the stored image.
        flips_VB: bool, which views are mirrored (``mls.data.augment.flips``); on the same device.

    Returns:
        The regions and whether the crops overlap. Regions are x1, y1, x2, y2 (V, B, 4) as shares of the view's width
        and height after mirroring, in torch's default dtype. If the crops do not overlap, the region is the whole
        view, so that no later step divides by zero. Overlaps are bool (B,).
    """
    start_VB2, size_VB2 = boxes_VB4[..., :2].flip(-1), boxes_VB4[..., 2:].flip(-1)  # x, y
    end_VB2 = start_VB2 + size_VB2
    low_B2, high_B2 = start_VB2.amax(0), end_VB2.amin(0)
    overlaps_B = (high_B2 > low_B2).all(-1)
    low_VB2 = torch.where(overlaps_B[:, None], low_B2, start_VB2)
    high_VB2 = torch.where(overlaps_B[:, None], high_B2, end_VB2)
    from_left_VB2, from_right_VB2 = low_VB2 - start_VB2, end_VB2 - high_VB2
    x_VB = torch.where(flips_VB, from_right_VB2[..., 0], from_left_VB2[..., 0])
    corner_VB2 = torch.stack([x_VB, from_left_VB2[..., 1]], -1)
    region_VB4 = torch.cat([corner_VB2, corner_VB2 + high_VB2 - low_VB2], -1) / size_VB2.repeat(1, 1, 2)
    return region_VB4, overlaps_B


def align(maps_BCHW: Tensor, region_B4: Tensor, flip_B: Tensor) -> Tensor:
    """Resample a view's maps on a region of it and undo the mirroring: (B, C, H, W), differentiable in the maps.

    Sampling is bilinear, once at the centre of each output cell. Samples within half a cell of the view's edge take
    the edge's value. SlotCon, arXiv 2205.15288, section 3.1.

    Args:
        maps_BCHW: of the view as the network sees it. 16-bit maps are computed and returned in float32, because
            `roi_align` stores the image's index in the dtype of the boxes, and 16 bits do not hold every index.
        region_B4: x1, y1, x2, y2 of `common_region`, in [0, 1].
        flip_B: bool, which views are mirrored.
    """
    height, width = maps_BCHW.shape[-2:]
    maps_BCHW = maps_BCHW.to(torch.promote_types(maps_BCHW.dtype, torch.float32))
    x1, y1, x2, y2 = region_B4.to(maps_BCHW.dtype).unbind(-1)
    image_B = torch.arange(len(maps_BCHW), dtype=maps_BCHW.dtype, device=maps_BCHW.device)
    boxes_B5 = torch.stack([image_B, x1 * width, y1 * height, x2 * width, y2 * height], -1)
    # A region is at most as large as its view, so roi_align itself would also choose one sample per cell.
    aligned_BCHW: Tensor = roi_align(maps_BCHW, boxes_B5, (height, width), sampling_ratio=1, aligned=True)
    return torch.where(flip_B[:, None, None, None], aligned_BCHW.flip(-1), aligned_BCHW)
