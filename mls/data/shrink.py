"""Images in another form than their source's: shrunk, as pixels, or both; annotations and masks with them.

    record = prepare(record, image_CHW, short_side=256, format="jpeg")

Shrunk pixels are stored raw without a JPEG between. Nothing is ever
enlarged: what is small enough keeps its bytes (format jpeg).

| what | how it is shrunk |
|---|---|
| pixels | torchvision's ``resize`` of uint8, bilinear, antialiased; then JPEG of quality 95, 4:4:4, or raw |
| boxes, polygons, areas | multiplied by new / old size, to a thousandth of a pixel |
| RLEs, masks | the nearest pixel; RLEs are compressed then, whatever they were |

Shape legend: C = 3 channels (RGB), H height, W width.
"""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, resize

from mls.data.image_store import Format, decode_mask
from mls.data.validator import encode
from mls.data.writer import Record, encode_mask
from mls.runtime.errors import MlsError

JPEG_QUALITY = 95
DECIMALS = 3
"""Of shrunk coordinates and areas."""
Size = tuple[int, int]
Values = TypeVar("Values", bound=np.generic)


def prepare(record: Record, image_CHW: Tensor, short_side: int | None, format: Format) -> Record:
    """Return a record as the store is to keep it.

    Args:
        record: its ``data`` are an image file.
        image_CHW: that file decoded, uint8 (3, H, W).
        short_side: greatest length of the shorter side, pixels; None: every image keeps its size.
        format: ``raw`` turns ``data`` into pixels; ``jpeg`` leaves those of images alone that keep their size.

    Raises:
        MlsError: an annotation's RLE is not one of this image; names the image.
    """
    old = (record.width, record.height)
    new = shrunk_size(old, short_side)
    if new == old and format == "jpeg":
        return record
    if new != old:
        image_CHW = resize(image_CHW, [new[1], new[0]], interpolation=InterpolationMode.BILINEAR, antialias=True)
        mask = None if record.mask is None else encode_mask(nearest(decode_mask(record.mask), new))
        annotations = [shrunk_annotation(item, old, new, record.name) for item in record.annotations]
        record = replace(record, annotations=annotations, mask=mask)
    data = _pixels(image_CHW).tobytes() if format == "raw" else _jpeg(image_CHW)
    return replace(record, data=data, width=new[0], height=new[1], sha256="")  # computed of the new data


def shrunk_size(size: Size, short_side: int | None) -> Size:
    """Width and height with the shorter side at ``short_side``, the longer one rounded; never larger than before."""
    shorter = min(size)
    if short_side is None or shorter <= short_side:
        return size
    width, height = (short_side if side == shorter else round(side * short_side / shorter) for side in size)
    return width, height


def shrunk_annotation(item: dict[str, Any], old: Size, new: Size, name: str) -> dict[str, Any]:
    """One COCO annotation (``bbox``, ``area``, ``segmentation``) for an image whose size changes from old to new.

    Raises:
        MlsError: its RLE is not one of an image of the old size; ``name`` says of which.
    """
    x, y = new[0] / old[0], new[1] / old[1]
    segmentation = item["segmentation"]
    if isinstance(segmentation, list):
        segmentation = [_scaled(polygon, x, y) for polygon in segmentation]
    else:
        segmentation = _shrunk_rle(segmentation, old, new, name)
    return {
        **item,
        "bbox": _scaled(item["bbox"], x, y),
        "area": round(item["area"] * x * y, DECIMALS),
        "segmentation": segmentation,
    }


def nearest(values_HW: NDArray[Values], size: Size) -> NDArray[Values]:
    """Resize to width and height; each new pixel takes the old one that its centre lies in."""
    rows, columns = (
        ((np.arange(wanted) + 0.5) * (given / wanted)).astype(np.int64)
        for wanted, given in zip(size[::-1], values_HW.shape, strict=True)
    )
    return values_HW[np.ix_(rows, columns)]


def _scaled(values: list[float], x: float, y: float) -> list[float]:
    """Numbers that are x and y (or width and height) in turn."""
    return [round(value * (y if i % 2 else x), DECIMALS) for i, value in enumerate(values)]


def _shrunk_rle(segmentation: dict[str, Any], old: Size, new: Size, name: str) -> dict[str, Any]:
    compressed = encode(segmentation, *old) if segmentation["size"] == [old[1], old[0]] else None
    if compressed is None:
        raise MlsError(f"{name} has an annotation whose RLE is not one of {old[0]} x {old[1]} px; it can't be shrunk")
    code = rle.encode(np.asfortranarray(nearest(rle.decode(compressed), new)))
    return {"size": [new[1], new[0]], "counts": code["counts"].decode("ascii")}


def _pixels(image_CHW: Tensor) -> NDArray[np.uint8]:
    pixels_HWC: NDArray[np.uint8] = image_CHW.permute(1, 2, 0).numpy()
    return pixels_HWC


def _jpeg(image_CHW: Tensor) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(_pixels(image_CHW)))
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
