"""Training samples of a segmenter: images and index masks, resized, cropped and flipped alike; images recoloured.

    samples = Samples(IndexMasks(store, "train"), task, seed=1000)
    image_CHW, mask_HW = samples.load((0, False, 0))    # index, flip and epoch, as `plan_batch` gives them

The steps and their order are those of mmsegmentation's training pipeline for Cityscapes
(``configs/_base_/datasets/cityscapes.py``). Each sample has its own random stream, a function of seed, epoch and row,
so it does not depend on which thread loads it, or when.

Shape legend: C = 3 channels, H x W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from mls.config.transfers import SemanticTransfer
from mls.data.image_store import IGNORE
from mls.runtime import streams
from mls.transfer.index_masks import IndexMasks
from mls.transfer.order import Planned

RETRIES = 10
"""How often a crop that one class fills is drawn again; the last draw is kept in any case."""
BRIGHTNESS = 32 / 255
"""Largest change of the brightness, for pixels in [0, 1]."""
FACTORS = (0.5, 1.5)
"""Range of the factors of contrast and saturation."""
HUE = 36 / 360
"""Largest turn of the hue, as a share of the circle. SSD turns by 18 degrees; mmsegmentation adds 18 to OpenCV's 8-bit
hue, whose unit is 2 degrees."""

Sample = tuple[Tensor, Tensor]
"""A crop, uint8 (3, H, W), and its index mask, uint8 (H, W): as large as the task's crop, or as the resized image."""


class Samples:
    """The images to train on, with their masks."""

    def __init__(self, masks: IndexMasks, task: SemanticTransfer, seed: int) -> None:
        """Keep what is needed to load samples; no image is read yet.

        Args:
            masks: of the images to train on.
            task: ``scale``, ``crop``, ``class_share`` and ``photometric`` are read.
            seed: of all draws.
        """
        self.masks, self.task, self.seed = masks, task, seed

    def load(self, planned: Planned) -> Sample:
        """Return the sample of an image in an epoch."""
        index, flip, epoch = planned
        row = self.masks.rows[index]
        rng = streams.crop_and_colour(self.seed, epoch, row)
        low, high = self.task.scale
        image_CHW, mask_HW = resized(self.masks.store.decode(row), self.masks.of(row), float(rng.uniform(low, high)))
        down, across = draw_crop(mask_HW, self.task.crop, self.task.class_share, rng)
        image_CHW, mask_HW = image_CHW[:, down, across], mask_HW[down, across]
        if flip:
            image_CHW, mask_HW = image_CHW.flip(-1), mask_HW.flip(-1)
        if self.task.photometric:
            image_CHW = distorted(image_CHW, rng)
        return image_CHW, mask_HW


def resized(image_CHW: Tensor, mask_HW: Tensor, factor: float) -> Sample:
    """Resize an image (bilinear, not antialiased, as OpenCV does) and its mask (nearest: indices can't be averaged)."""
    size = [int(side * factor + 0.5) for side in mask_HW.shape]
    image_CHW = functional.resize(image_CHW, size, antialias=False)
    mask_1HW = functional.resize(mask_HW[None], size, interpolation=InterpolationMode.NEAREST_EXACT)
    return image_CHW, mask_1HW[0]


def draw_crop(mask_HW: Tensor, crop: list[int], class_share: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """Draw a crop that no class fills.

    Args:
        mask_HW: index mask.
        crop: height and width; where the image is smaller, all of it is taken.
        class_share: each class must have less than this share of the pixels that are not ignored; 1: no limit.
        rng: the sample's generator.

    Returns:
        Its rows and columns.
    """
    for attempt in range(RETRIES + 1):
        top, left = (int(rng.integers(max(side - cut, 0) + 1)) for side, cut in zip(mask_HW.shape, crop, strict=True))
        box = slice(top, top + crop[0]), slice(left, left + crop[1])
        if class_share == 1 or attempt == RETRIES:
            break
        pixels_K = torch.bincount(mask_HW[box].flatten(), minlength=IGNORE + 1)[:IGNORE]
        # 0 < 0 is false: a crop of only ignored pixels is drawn again too
        if pixels_K.max() < class_share * pixels_K.sum():
            break
    return box


def distorted(image_CHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue, each with probability one half, in SSD's order.

    Contrast (pixels times a factor) comes second or last. mmsegmentation's ``PhotoMetricDistortion``, with pixels
    that are rounded once, at the end, instead of after every operation.

    Args:
        image_CHW: uint8.
        rng: the sample's generator; the number of draws does not depend on their outcome.

    Returns:
        uint8.
    """
    brightness, contrast_first, contrast, saturation, hue = (bool(chosen) for chosen in rng.random(5) < 0.5)
    change, turn = (float(v) for v in rng.uniform(-1, 1, 2) * (BRIGHTNESS, HUE))
    multiple, saturated = (float(v) for v in rng.uniform(*FACTORS, 2))
    x_CHW = image_CHW.float().div_(255)
    if brightness:
        x_CHW = x_CHW.add_(change).clamp_(0, 1)
    if contrast and contrast_first:
        x_CHW = x_CHW.mul_(multiple).clamp_(0, 1)
    if saturation:
        x_CHW = with_saturation(x_CHW, saturated)
    if hue:
        x_CHW = functional.adjust_hue(x_CHW, turn)
    if contrast and not contrast_first:
        x_CHW = x_CHW.mul_(multiple).clamp_(0, 1)
    return x_CHW.mul_(255).round_().to(torch.uint8)


def with_saturation(x_CHW: Tensor, factor: float) -> Tensor:
    """Multiply the saturation of HSV, at most up to 1; hue and value stay.

    Args:
        x_CHW: RGB in [0, 1].
        factor: at least 0; 0 turns a pixel into a grey as bright as its brightest channel.
    """
    value_1HW = x_CHW.amax(dim=0, keepdim=True)
    chroma_1HW = value_1HW - x_CHW.amin(dim=0, keepdim=True)
    # Saturation is chroma / value, and each channel's distance from the value is proportional to it. So scaling these
    # distances scales the saturation; value / chroma is the factor at which it reaches 1.
    limit_1HW = value_1HW / chroma_1HW.clamp(min=1e-12)
    return (value_1HW - (value_1HW - x_CHW) * limit_1HW.clamp(max=factor)).clamp_(0, 1)
