"""The one decoder: what the data stage checks an image with is what every later stage reads it with.

    image_CHW = decode(bytes_N, "train2017/000000391895.jpg")     # uint8 RGB, or MlsError

Shape legend: N encoded bytes, C = 3 channels (RGB), H height, W width.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from mls.errors import MlsError


def decode(data_N: Tensor, name: str) -> Tensor:
    """Decode a JPEG, PNG, WebP or one-frame GIF.

    Args:
        data_N: the encoded file, uint8 (N,).
        name: used in errors.

    Returns:
        uint8 (3, H, W), RGB, EXIF orientation applied. Not always contiguous: a JPEG's pixels lie
        as (H, W, 3) in memory.

    Raises:
        MlsError: the bytes are no image of these formats, or are cut short.
    """
    try:
        image: Tensor = decode_image(data_N, ImageReadMode.RGB, apply_exif_orientation=True)
    except RuntimeError as error:
        # torchvision puts its build machine's file and line before the reason
        reason = re.sub(r"^.*\.cpp:\d+, ", "", str(error).splitlines()[0])
        raise MlsError(f"{name} does not decode: {reason}") from error
    if image.dtype == torch.uint16:  # 16-bit PNG: the high byte is the 8-bit picture
        image = (image.to(torch.int32) >> 8).to(torch.uint8)
    if image.ndim != 3:
        raise MlsError(f"{name} does not decode: it holds {image.shape[0]} frames, not one picture")
    return image


def size_of(data: bytes, name: str) -> tuple[int, int]:
    """Decode a whole file to prove that it can be; return its (width, height) in pixels.

    Raises:
        MlsError: as `decode`.
    """
    if not data:
        raise MlsError(f"{name} does not decode: the file is empty")
    image_CHW = decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), name)
    return image_CHW.shape[2], image_CHW.shape[1]
