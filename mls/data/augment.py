"""MoCo-v2's augmentation in two halves: crops on the CPU, everything else in batches on the training device.

The random numbers of a view come from a stream of its own, `mls.runtime.streams.views`. They depend on nothing else, so
workers keep no random state and a resumed run repeats the uninterrupted one.

Shapes: B images, C = 3 channels, H x W pixels, U = `DRAWS` uniform numbers per view.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import AutoAugment, InterpolationMode
from torchvision.transforms.v2.functional import resize_image, resized_crop_image

from mls.config.views import Augment, Interpolation
from mls.runtime import streams

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB, pixels in [0, 1]
STD = (0.229, 0.224, 0.225)
RATIO = (3 / 4, 4 / 3)
"""Range of a crop's width / height [torchvision RandomResizedCrop]."""
ATTEMPTS = 10
"""Tries to fit a crop into the image; after them the central crop is taken [torchvision]."""
GRAY = (0.2989, 0.587, 0.114)
"""ITU-R 601 weights, as torchvision's ``rgb_to_grayscale``."""

# Columns of the uniform draws: two per attempt (area, ratio), then one or more per operation.
TOP, LEFT, FLIP, JITTER, GRAYED, BLUR, SIGMA = range(2 * ATTEMPTS, 2 * ATTEMPTS + 7)
FACTORS = slice(SIGMA + 1, SIGMA + 5)
ORDER = slice(SIGMA + 5, SIGMA + 9)
SOLARIZE, AUTO, POLICY = range(SIGMA + 9, SIGMA + 12)  # added later, so last: the others keep their numbers
DRAWS = POLICY + 1
CROP = slice(LEFT + 1)
"""Columns that decide the box."""


def draw(seed: int, epoch: int, rows: NDArray[np.int64], view: int, *attempt: int) -> NDArray[np.float64]:
    """Return the uniform numbers of one view of each image: float64 (B, U) in [0, 1).

    Args:
        seed: of the run.
        epoch: counts from 0.
        rows: of the store, int64 (B,).
        view: 0 or 1, or `mls.runtime.streams.LOCAL` and up.
        attempt: nothing, or one number that selects different draws for the same view.
    """
    return np.stack([streams.views(seed, epoch, int(row), view, *attempt).random(DRAWS) for row in rows])


def crop_boxes(u_BU: NDArray[np.float64], size_B2: NDArray[np.int64], scale: list[float]) -> NDArray[np.int64]:
    """Return the boxes of random resized crops: int64 (B, 4) top, left, height, width in pixels.

    The rule is that of torchvision's ``RandomResizedCrop``: the area share is uniform in ``scale``, the aspect ratio
    log-uniform in `RATIO`. If none of `ATTEMPTS` tries fits, the largest central crop within `RATIO` is taken.

    Args:
        u_BU: draws of `draw`.
        size_B2: image width and height, pixels.
        scale: smallest and largest area share.
    """
    # Boxes are rounded as torchvision rounds them, so that crops have the same distribution. Sides are rounded to the
    # nearest pixel (np.round and Python's round both take halves to even). Offsets are floored: u < 1, so
    # floor(u * (n + 1)) gives each of 0 .. n the same chance, as torchvision's randint does. Rounding u * n would
    # make the two ends half as likely.
    width_B1, height_B1 = size_B2[:, :1].astype(np.float64), size_B2[:, 1:].astype(np.float64)
    area_BA = width_B1 * height_B1 * (scale[0] + u_BU[:, 0 : 2 * ATTEMPTS : 2] * (scale[1] - scale[0]))
    log_low, log_high = np.log(RATIO[0]), np.log(RATIO[1])
    ratio_BA = np.exp(log_low + u_BU[:, 1 : 2 * ATTEMPTS : 2] * (log_high - log_low))
    w_BA, h_BA = np.round(np.sqrt(area_BA * ratio_BA)), np.round(np.sqrt(area_BA / ratio_BA))
    fits_BA = (w_BA > 0) & (w_BA <= width_B1) & (h_BA > 0) & (h_BA <= height_B1)
    first_B = fits_BA.argmax(1)
    rows = np.arange(len(u_BU))
    width, height = width_B1[:, 0], height_B1[:, 0]
    fallback_w = np.where(width / height > RATIO[1], np.round(height * RATIO[1]), width)
    fallback_h = np.where(width / height < RATIO[0], np.round(width / RATIO[0]), height)
    found = fits_BA.any(1)
    w = np.where(found, w_BA[rows, first_B], fallback_w)
    h = np.where(found, h_BA[rows, first_B], fallback_h)
    top = np.where(found, np.floor(u_BU[:, TOP] * (height - h + 1)), np.floor((height - h) / 2))
    left = np.where(found, np.floor(u_BU[:, LEFT] * (width - w + 1)), np.floor((width - w) / 2))
    return np.stack([top, left, h, w], axis=1).astype(np.int64)


def shared_area(first_B4: NDArray[np.int64], second_B4: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of each second box's area that lies within the first box: float64 (B,) in [0, 1].

    Args:
        first_B4: top, left, height, width, pixels.
        second_B4: likewise, of the same images.
    """
    start_B2 = np.maximum(first_B4[:, :2], second_B4[:, :2])
    end_B2 = np.minimum(first_B4[:, :2] + first_B4[:, 2:], second_B4[:, :2] + second_B4[:, 2:])
    common_B: NDArray[np.float64] = (end_B2 - start_B2).clip(0).prod(1) / second_B4[:, 2:].prod(1)
    return common_B


def flips(config: Augment, draws_VBU: Tensor) -> Tensor:
    """Return which views are mirrored left to right: bool (V, B)."""
    return draws_VBU[..., FLIP] < config.flip_p


def crop(image_CHW: Tensor, box_4: NDArray[np.int64], side: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """Cut a box out of an image and resize it to a square (antialiased).

    Args:
        image_CHW: uint8.
        box_4: top, left, height, width, pixels.
        side: of the square, pixels.
        interpolation: of the resize.

    Returns:
        uint8 (C, side, side).
    """
    top, left, height, width = (int(v) for v in box_4)
    mode = InterpolationMode(interpolation)
    return resized_crop_image(image_CHW, top, left, height, width, [side, side], mode, antialias=True)


def auto_augment(image_CHW: Tensor, u: float) -> Tensor:
    """Apply a random sub-policy of AutoAugment's ImageNet policy, uint8 (C, H, W) to the same.

    torchvision draws from torch's global generator; here it begins from ``u``, uniform in [0, 1), and is put back.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(u * 2**53))
        augmented_CHW: Tensor = AutoAugment()(image_CHW)
    return augmented_CHW


def share_of(shares: float | list[float], view: int) -> float:
    """Return the probability of an operation for a view, 0 or 1."""
    return shares[view] if isinstance(shares, list) else shares


def plain_crop(
    image_CHW: Tensor,
    u_U: NDArray[np.float64],
    shorter: int,
    side: int,
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """Resize an image (antialiased), then cut out a random square: torchvision's ``Resize``, ``RandomCrop``.

    Args:
        image_CHW: uint8.
        u_U: draws of `draw`; each position of the square has the same chance.
        shorter: length of the resized image's shorter side, pixels; at least ``side``.
        side: of the square, pixels.
        interpolation: of the resize.

    Returns:
        uint8 (C, side, side).
    """
    image_CHW = resize_image(image_CHW, [shorter], InterpolationMode(interpolation), antialias=True)
    top, left = (int(u * (n - side + 1)) for u, n in zip(u_U[[TOP, LEFT]], image_CHW.shape[1:], strict=True))
    return image_CHW[:, top : top + side, left : left + side].contiguous()


@dataclass(frozen=True)
class ColourAugment:
    """Jitter, grey, blur, solarise, flip and normalise a batch; each image follows its own draws."""

    config: Augment
    view: int
    """0 or 1: the views may have different probabilities."""

    def __call__(self, image_BCHW: Tensor, u_BU: Tensor) -> Tensor:
        """Return normalised views (B, C, H, W) in torch's default dtype (float32).

        Operations and their parameters follow torchvision: ``ColorJitter`` (random order, values
        clamped to [0, 1] after each), ``RandomGrayscale``, ``GaussianBlur`` (reflected border,
        radius 3 sigma_max), ``RandomSolarize`` (threshold 128 of 256), ``RandomHorizontalFlip``, ``Normalize``.

        Args:
            image_BCHW: uint8, on the training device.
            u_BU: draws of `draw`, on the CPU. numpy selects the images of each operation there, so the host never
                waits for the device to count them.
        """
        batch, u = _Sorted(image_BCHW.to(torch.get_default_dtype()).div_(255)), u_BU.numpy()
        # images that AutoAugment has changed are only flipped and normalised
        coloured_B = u[:, AUTO] >= share_of(self.config.auto_augment_p, self.view)
        self._jitter(batch, u, coloured_B & (u[:, JITTER] < self.config.jitter_p))
        grey = batch.first(coloured_B & (u[:, GRAYED] < self.config.gray_p))
        grey.copy_(_grey(grey).expand_as(grey))
        blurred = batch.first(coloured_B & (u[:, BLUR] < share_of(self.config.blur_p, self.view)))
        low, high = self.config.blur_sigma
        sigma_B = batch.of(low + u[:, SIGMA] * (high - low))[: len(blurred)]
        blurred.copy_(blur(blurred, sigma_B, radius=int(np.ceil(3 * high))))
        if solarize_p := share_of(self.config.solarize_p, self.view):  # most recipes do not; sorting would copy
            _solarize(batch.first(coloured_B & (u[:, SOLARIZE] < solarize_p)))
        flipped = batch.first(flips(self.config, u_BU).numpy())
        flipped.copy_(flipped.flip(-1))
        mean, std = normalisation(image_BCHW.device, batch.x_BCHW.dtype)
        return batch.restored().sub_(mean).div_(std)

    def _jitter(self, batch: _Sorted, u_BU: NDArray[np.float64], chosen_B: NDArray[np.bool_]) -> None:
        """Change brightness, contrast, saturation and hue of the chosen images, in a random order per image."""
        change_B4 = (2 * u_BU[:, FACTORS] - 1) * np.array(self.config.jitter)
        order_B4 = u_BU[:, ORDER].argsort(1)
        operations = (_brightness, _contrast, _saturation, _hue)
        for place in range(4):
            turn_B = np.where(chosen_B, order_B4[:, place], 4)  # 4: the image is not jittered
            batch.sort(turn_B)
            change_B = batch.of(np.take_along_axis(change_B4, order_B4[:, place, None], 1)[:, 0])[:, None, None, None]
            start = 0
            for index, count in enumerate(np.bincount(turn_B, minlength=4)[:4]):
                if count and self.config.jitter[index]:
                    operations[index](batch.x_BCHW[start : start + count], change_B[start : start + count])
                start += count


class _Sorted:
    """A batch that is reordered so that the images of one operation are adjacent.

    An operation then works in place on a slice. The jitter sorts once for all four operations at a position of their
    order. This is several times faster than to gather and scatter the images of each operation.
    """

    def __init__(self, x_BCHW: Tensor) -> None:
        self.x_BCHW = x_BCHW
        self._image_B = np.arange(len(x_BCHW))
        """Original index of the image at each position."""

    def sort(self, key_B: NDArray[Any]) -> None:
        """Sort by a key per image, given in the original order."""
        order_B = key_B[self._image_B].argsort(kind="stable")
        self._image_B = self._image_B[order_B]
        self.x_BCHW = self.x_BCHW.index_select(0, torch.from_numpy(order_B).to(self.x_BCHW.device, non_blocking=True))

    def first(self, taken_B: NDArray[np.bool_]) -> Tensor:
        """Move the selected images to the front and return a view of them."""
        self.sort(~taken_B)
        return self.x_BCHW[: np.count_nonzero(taken_B)]

    def of(self, value_B: NDArray[np.float64]) -> Tensor:
        """Return one value per image, in the current order and on the device."""
        ordered_B = torch.from_numpy(value_B[self._image_B])
        return ordered_B.to(self.x_BCHW.device, self.x_BCHW.dtype, non_blocking=True)

    def restored(self) -> Tensor:
        """Return the batch in its original order."""
        self.sort(np.arange(len(self._image_B)))
        return self.x_BCHW


@cache
def normalisation(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (C, 1, 1); cached, so they are copied to a device once."""
    mean, std = (torch.tensor(v, dtype=dtype, device=device)[:, None, None] for v in (MEAN, STD))
    return mean, std


def _brightness(x_BCHW: Tensor, change: Tensor) -> None:
    x_BCHW.mul_(1 + change).clamp_(0, 1)


def _contrast(x_BCHW: Tensor, change: Tensor) -> None:
    mean = _grey(x_BCHW).mean((1, 2, 3), keepdim=True)
    x_BCHW.sub_(mean).mul_(1 + change).add_(mean).clamp_(0, 1)


def _saturation(x_BCHW: Tensor, change: Tensor) -> None:
    grey = _grey(x_BCHW)
    x_BCHW.sub_(grey).mul_(1 + change).add_(grey).clamp_(0, 1)


def _grey(x_BCHW: Tensor) -> Tensor:
    r, g, b = x_BCHW.split(1, dim=1)
    return GRAY[0] * r + GRAY[1] * g + GRAY[2] * b


def _hue(x_BCHW: Tensor, change: Tensor) -> None:
    """Turn the hue by ``change`` (share of the circle, at most one half); HSV value and saturation stay the same.

    Conditions are factors of 0 or 1. On a CPU this takes half the time of ``where`` and ``%`` and gives the same bits.
    """
    r, g, b = x_BCHW.split(1, dim=1)
    value = torch.maximum(torch.maximum(r, g), b)
    chroma = value - torch.minimum(torch.minimum(r, g), b)
    scale = torch.eq(chroma, 0, out=torch.empty_like(chroma)).add_(chroma)  # 1 where grey
    is_r = torch.eq(value, r, out=torch.empty_like(value))
    is_g = torch.eq(value, g, out=torch.empty_like(value)).mul_(1 - is_r)
    is_b = (1 - is_r).sub_(is_g)
    sector = ((g - b).div_(scale)).mul_(is_r)
    sector.add_((b - r).div_(scale).add_(2).mul_(is_g)).add_((r - g).div_(scale).add_(4).mul_(is_b))
    offset = torch.arange(5, 0, -2, dtype=x_BCHW.dtype, device=x_BCHW.device)[:, None, None]  # made there: no copy
    k = sector.add_(6 * change) + offset
    turns = torch.ge(k, 6, out=torch.empty_like(k))
    turns.add_(torch.ge(k, 12, out=torch.empty_like(k))).sub_(torch.lt(k, 0, out=torch.empty_like(k)))
    k.sub_(turns, alpha=6)  # modulo 6
    torch.sub(value, torch.minimum(k, 4 - k).clamp_(0, 1).mul_(chroma), out=x_BCHW)


def _solarize(x_BCHW: Tensor) -> None:
    """Invert pixels of at least 0.5, by taking the minimum of each pixel and its inverse."""
    torch.minimum(x_BCHW, 1 - x_BCHW, out=x_BCHW)


def blur(x_BCHW: Tensor, sigma_B: Tensor, radius: int) -> Tensor:
    """Blur each image with its own Gaussian (separable, borders reflected).

    Args:
        x_BCHW: floating point.
        sigma_B: standard deviations, pixels.
        radius: of the kernel, pixels; reduced if the image is too small to reflect that many.

    Returns:
        (B, C, H, W), same dtype.
    """
    if not len(x_BCHW):
        return x_BCHW
    count, channels, height, width = x_BCHW.shape
    radius = min(radius, height - 1, width - 1)
    taps = torch.arange(-radius, radius + 1, device=x_BCHW.device, dtype=x_BCHW.dtype)
    kernel_BT = torch.exp(-0.5 * (taps / sigma_B.to(x_BCHW.dtype)[:, None]) ** 2)
    kernel_BT = (kernel_BT / kernel_BT.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    x = F.pad(x_BCHW, (radius,) * 4, mode="reflect").reshape(1, count * channels, height + 2 * radius, -1)
    x = F.conv2d(x, kernel_BT[:, None, :, None], groups=count * channels)
    x = F.conv2d(x, kernel_BT[:, None, None, :], groups=count * channels)
    return x.reshape(count, channels, height, width)
