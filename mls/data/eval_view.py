"""Prepare images for evaluation: one square view each, normalised as in pretraining.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from mls.config.views import Interpolation
from mls.data.augment import normalisation


def square(
    image_CHW: Tensor,
    side: int,
    resize: int | None = None,
    fit: Literal["crop", "squash"] = "crop",
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """Resize an image to a square (antialiased).

    Args:
        image_CHW: uint8 (3, H, W).
        side: of the square, pixels.
        resize: shorter side before the square is made, pixels; default: ``side`` before a crop, no such step before
            ``squash``.
        fit: ``crop`` keeps the aspect ratio and cuts out the centre; ``squash`` keeps the whole image and distorts it.
        interpolation: of each resize.

    Returns:
        uint8 (3, side, side).
    """
    scale = partial(functional.resize, interpolation=InterpolationMode(interpolation), antialias=True)
    if fit == "squash":
        image_CHW = scale(image_CHW, [resize]) if resize else image_CHW
        return scale(image_CHW, [side, side]).contiguous()
    image_CHW = scale(image_CHW, [resize or side])
    cropped: Tensor = functional.center_crop(image_CHW, [side, side]).contiguous()
    return cropped


def normalise(images_BCHW: Tensor, device: torch.device) -> Tensor:
    """Move images to the device and normalise them as in pretraining.

    Args:
        images_BCHW: uint8.
        device: where the result lies.

    Returns:
        float32 (B, C, H, W), channels last.
    """
    mean_C11, std_C11 = normalisation(device, torch.float32)
    images_BCHW = images_BCHW.to(device, non_blocking=True).float().div_(255).sub_(mean_C11).div_(std_C11)
    return images_BCHW.contiguous(memory_format=torch.channels_last)
