"""Shrink images before they are stored, or turn them into pixels, or both; annotations and masks with them.

    record = transcode(record, image_CHW, short_side=256, format="jpeg")

A raw store gets the shrunk pixels themselves, without a JPEG step in between. No image is enlarged, and with format
jpeg small images keep their bytes.

| what | how it is shrunk |
|---|---|
| pixels | torchvision's ``resize`` of uint8, bilinear, antialiased; then JPEG of quality 95, 4:4:4, or raw |
| boxes, polygons, areas | multiplied by new / old size, to a thousandth of a pixel |
| RLEs, masks | the nearest pixel; shrunk RLEs are always compressed |

Shape legend: C = 3 channels (RGB), H height, W width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, resize

from mls.data.image_store import Format, decode_mask
from mls.data.masks import to_rle
from mls.data.writer import Record, encode_jpeg, encode_mask
from mls.runtime.errors import MlsError

DECIMALS = 3
"""Of shrunk coordinates and areas."""
Size = tuple[int, int]
Values = TypeVar("Values", bound=np.generic)


def transcode(record: Record, image_CHW: Tensor, short_side: int | None, format: Format) -> Record:
    """Return a record in the form that the store keeps.

    Args:
        record: its ``data`` are an image file.
        image_CHW: that file decoded, uint8 (3, H, W).
        short_side: maximum length of the shorter side, pixels; None: every image keeps its size.
        format: ``raw`` turns ``data`` into pixels; ``jpeg`` keeps the bytes of images that keep their size.

    Raises:
        MlsError: an annotation's RLE does not fit this image; names the image.
    """
    old = (record.width, record.height)
    new = shrunk_size(old, short_side)
    if new == old and format == "jpeg":
        return record
    if new != old:
        image_CHW = resize(image_CHW, [new[1], new[0]], interpolation=InterpolationMode.BILINEAR, antialias=True)
        mask = None if record.mask is None else encode_mask(resize_nearest(decode_mask(record.mask), new))
        annotations = [shrunk_annotation(item, old, new, record.name) for item in record.annotations]
        record = replace(record, annotations=annotations, mask=mask)
    pixels_HWC = np.ascontiguousarray(image_CHW.permute(1, 2, 0).numpy())
    data = pixels_HWC.tobytes() if format == "raw" else encode_jpeg(pixels_HWC)
    return replace(record, data=data, width=new[0], height=new[1], sha256="")  # Record hashes the new data


def shrunk_size(size: Size, short_side: int | None) -> Size:
    """Return width and height with the shorter side at ``short_side``, the longer one rounded; never enlarge."""
    shorter = min(size)
    if short_side is None or shorter <= short_side:
        return size
    width, height = (short_side if side == shorter else round(side * short_side / shorter) for side in size)
    return width, height


def shrunk_annotation(item: dict[str, Any], old: Size, new: Size, name: str) -> dict[str, Any]:
    """Scale a COCO annotation (``bbox``, ``area``, ``segmentation``) from an image's old size to its new one.

    Raises:
        MlsError: its RLE does not fit the old size; ``name`` is the image's, for the error.
    """
    x, y = new[0] / old[0], new[1] / old[1]
    segmentation = item["segmentation"]
    if isinstance(segmentation, list):
        segmentation = [_scaled(polygon, x, y) for polygon in segmentation]
    else:
        segmentation = _shrunk_rle(segmentation, old, new, name)
    area = round(item["area"] * x * y, DECIMALS)
    return {**item, "bbox": _scaled(item["bbox"], x, y), "area": area, "segmentation": segmentation}


def resize_nearest(values_HW: NDArray[Values], size: Size) -> NDArray[Values]:
    """Resize to width and height; each new pixel takes the value of the old pixel that its centre lies in."""
    rows, columns = (
        ((np.arange(wanted) + 0.5) * (given / wanted)).astype(np.int64)
        for wanted, given in zip(size[::-1], values_HW.shape, strict=True)
    )
    return values_HW[np.ix_(rows, columns)]


def _scaled(values: list[float], x: float, y: float) -> list[float]:
    """Scale numbers that are alternately x and y (or width and height)."""
    return [round(value * (y if i % 2 else x), DECIMALS) for i, value in enumerate(values)]


def _shrunk_rle(segmentation: dict[str, Any], old: Size, new: Size, name: str) -> dict[str, Any]:
    try:
        compressed = to_rle(segmentation, *old)
    except ValueError as error:
        raise MlsError(f"{name} has an annotation that can't be shrunk: {error}") from error
    code = rle.encode(np.asfortranarray(resize_nearest(rle.decode(compressed), new)))
    return {"size": [new[1], new[0]], "counts": code["counts"].decode("ascii")}
