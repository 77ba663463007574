"""Keep decoded images in memory, for sets that fit: ``pretrain.resident: cpu | cuda``.

    images = Resident(store, rows, threads=4)           # cpu: decode each image once, not once per epoch
    image_CHW = images.decode(int(rows[0]))             # the same pixels as store.decode, a view
    on_gpu = images.to(torch.device("cuda"))            # cuda: cut crops there, in batches
    crops_BCHW = on_gpu.crops(rows_B, boxes_B4, side=224)

``cpu`` changes no bit of a crop: only the source of the pixels differs, and the loader crops them with the same code.
It is therefore not part of the id. ``cuda`` computes the same antialiased crop from the same boxes, but in floating
point, where torchvision uses fixed point. Bilinear crops are rounded once, torchvision's after each axis: pixels differ
by at most one level. Bicubic ones are rounded after each axis too: one pixel in 200 differs by one level, very few by
two. So ``cuda`` is part of the id.

Shapes: R rows of the store, N bytes of all pixels, B crops, C = 3 channels, H x W pixels of the largest box of a batch,
S = side.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from mls.config.views import Interpolation
from mls.data.image_store import ImageStore
from mls.runtime.errors import MlsError
from mls.runtime.progress import Bar
from mls.runtime.ranks import ranks

AT_ONCE = 2**25
"""Pixels to cut at a time, with each box padded to the largest: about 1.2 GiB of memory."""


class Resident:
    """Pixels of some rows of a store: uint8 RGB, one image after another. Worker processes share this memory."""

    def __init__(self, store: ImageStore, rows: NDArray[np.int64], threads: int) -> None:
        """Decode the images.

        Args:
            store: holds the images.
            rows: to decode, int64.
            threads: that decode.

        Raises:
            MlsError: the images do not fit in the free memory, or one does not decode.
        """
        self._width_R, self._height_R = torch.from_numpy(store.sizes_N2).unbind(1)
        bytes_N = 3 * store.sizes_N2[rows].prod(1)
        size = int(bytes_N.sum())
        self._offset_R = torch.zeros(len(store), dtype=torch.int64)
        self._offset_R[torch.from_numpy(rows)] = torch.from_numpy(bytes_N.cumsum() - bytes_N)
        # each rank keeps its own copy
        check_fits(size * ranks().local_world, psutil.virtual_memory().available, "memory")
        self._pixels_N = torch.empty(size, dtype=torch.uint8)
        with ThreadPoolExecutor(threads) as pool, Bar("decode", len(rows)) as bar:

            def fill(row: int) -> None:
                self.decode(row).copy_(store.decode(row))

            for _ in pool.map(fill, rows.tolist()):
                bar.advance(1, 1)

    def decode(self, row: int) -> Tensor:
        """Return a view of one image: uint8 (3, H, W).

        Its pixels lie as (H, W, 3) in memory, like those of a decoded JPEG, so that torch resizes both in the same way.
        """
        start, height, width = int(self._offset_R[row]), int(self._height_R[row]), int(self._width_R[row])
        return self._pixels_N[start : start + 3 * height * width].view(height, width, 3).permute(2, 0, 1)

    def to(self, device: torch.device) -> Resident:
        """Move the pixels to a device, in place; crops are then cut there.

        Raises:
            MlsError: the pixels do not fit in the GPU's free memory.
        """
        if device.type == "cuda":
            check_fits(len(self._pixels_N), torch.cuda.mem_get_info(device)[0], "GPU memory")
        for name, value in vars(self).items():
            setattr(self, name, value.to(device))
        return self

    def crops(self, row_B: Tensor, boxes_B4: Tensor, side: int, interpolation: Interpolation = "bilinear") -> Tensor:
        """Cut boxes and resize them to squares (antialiased), on the device of the pixels.

        Args:
            row_B: int64 rows of the store, on the CPU.
            boxes_B4: int64 top, left, height, width, pixels; within the images, on the CPU.
            side: of the result, pixels.
            interpolation: of the resize.

        Returns:
            uint8 (B, 3, S, S), on the device of the pixels.
        """
        height, width = (int(n) for n in boxes_B4[:, 2:].amax(0))  # on the CPU: the host does not wait for the device
        at_once = max(1, AT_ONCE // (height * width))
        chunks = zip(row_B.split(at_once), boxes_B4.split(at_once), strict=True)
        return torch.cat([self._crops(row, boxes, side, interpolation) for row, boxes in chunks])

    def _crops(self, row_B: Tensor, boxes_B4: Tensor, side: int, interpolation: Interpolation) -> Tensor:
        device = self._pixels_N.device
        height, width = (int(n) for n in boxes_B4[:, 2:].amax(0))
        top_B, left_B, height_B, width_B = boxes_B4.to(device, non_blocking=True).unbind(1)
        row_B = row_B.to(device, non_blocking=True)
        # Boxes are padded to the largest one. The padding repeats a box's last row and column, so that it stays within
        # the image, and it has weight 0. Pixels outside the box have no influence, just as in
        # `mls.data.augment.crop`, which cuts before it resizes.
        y_BH = top_B[:, None] + torch.arange(height, device=device).minimum(height_B[:, None] - 1)
        x_BW = left_B[:, None] + torch.arange(width, device=device).minimum(width_B[:, None] - 1)
        pixel_BHW = y_BH[:, :, None] * self._width_R[row_B][:, None, None] + x_BW[:, None, :]
        byte_BHW = self._offset_R[row_B][:, None, None] + 3 * pixel_BHW
        channel_C = torch.arange(3, device=device)
        image_BCHW = self._pixels_N[byte_BHW[:, None] + channel_C[:, None, None]].float()
        rows_BSH = resize_weights(height_B, height, side, interpolation)[:, None]
        columns_BSW = resize_weights(width_B, width, side, interpolation)[:, None]
        if interpolation == "bicubic":  # it overshoots: torchvision resizes along rows first, and clamps after that too
            resized_BCSS = rows_BSH @ (image_BCHW @ columns_BSW.transpose(-1, -2)).round_().clamp_(0, 255)
        else:
            resized_BCSS = rows_BSH @ image_BCHW @ columns_BSW.transpose(-1, -2)
        return resized_BCSS.round_().clamp_(0, 255).to(torch.uint8)


def resize_weights(length_B: Tensor, longest: int, side: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """Return the weights of an antialiased resize along one axis: float32 (B, side, longest).

    The filters are those of PIL and torchvision: a triangle, which reaches one output pixel to either side, or Keys'
    cubic with a = -0.5, which reaches two; or as many input pixels, if these are larger. Input beyond ``length_B`` has
    weight 0; the other weights sum to 1.

    Args:
        length_B: length of each crop along the axis, pixels.
        longest: padded length, pixels.
        side: pixels of the result.
        interpolation: the filter.
    """
    scale_B = length_B.float() / side
    centre_BS = (torch.arange(side, device=length_B.device) + 0.5) * scale_B[:, None]
    place_L = torch.arange(longest, device=length_B.device)
    distance_BSL = (place_L + 0.5 - centre_BS[:, :, None]).abs() / scale_B.clamp(min=1)[:, None, None]
    filtered_BSL = (1 - distance_BSL).clamp(min=0) if interpolation == "bilinear" else cubic(distance_BSL)
    weight_BSL = filtered_BSL * (place_L < length_B[:, None])[:, None, :]
    return weight_BSL / weight_BSL.sum(-1, keepdim=True)


def cubic(distance: Tensor) -> Tensor:
    """Return Keys' cubic with a = -0.5, elementwise, of distances of at least 0."""
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def check_fits(needed: int, free: int, where: str) -> None:
    """Check that decoded pixels fit in memory.

    Args:
        needed: bytes of the pixels.
        free: bytes available.
        where: name of the memory, for the message.

    Raises:
        MlsError: they do not fit; the message gives both sizes and the remedy.
    """
    if needed > free:
        raise MlsError(
            f"pretrain.resident: the decoded train images take {needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB "
            f"of {where} are free; set short_side in the dataset's entry, or resident: no"
        )
