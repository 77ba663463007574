"""Masks of single objects in COCO's format: checked, then decoded by pycocotools.

    code = to_rle(segmentation, width, height)      # compressed run lengths, or ValueError: what is wrong
    rle.area(code)                                  # 0: it covers no pixel

pycocotools trusts what it is given: with wrong run lengths it reads memory beyond the mask, and it allocates memory for
every pixel between two points of a polygon, however far they lie from the image.
"""

from __future__ import annotations

from typing import Any

from pycocotools import mask as rle

from mls.data.listing import BOX_SLACK, overhang

LONGEST = 7
"""Characters of a compressed number, five bits each: more than a mask of 2^31 pixels needs."""
Segmentation = list[list[float]] | dict[str, Any]
"""COCO's polygons, or a run-length code whose counts are a list or compressed."""


def polygons(segmentation: list[list[float]]) -> list[list[float]]:
    """Return the polygons with at least three points; Detectron2 drops the others too."""
    return [polygon for polygon in segmentation if len(polygon) >= 6]


def to_rle(segmentation: Any, width: int, height: int) -> Any:
    """Turn the polygons or the RLE of an object into one compressed RLE.

    Polygons of fewer than three points, which official COCO may hold, cover nothing.

    Raises:
        ValueError: it is neither, or contradicts itself or the image's size; says what is wrong.
    """
    try:
        if isinstance(segmentation, list):
            return _draw(segmentation, width, height)
        size, counts = segmentation["size"], segmentation["counts"]
        if list(size) != [height, width]:
            raise ValueError(f"an RLE of size {str(size)[:40]}, but the image is [{height}, {width}]")
        runs = run_lengths(counts) if isinstance(counts, str) else counts
        if not all(type(run) is int and run >= 0 for run in runs):
            raise ValueError("an RLE with a run that is no length")
        if sum(runs) != width * height:
            raise ValueError(f"an RLE of {sum(runs):,} pixels, but the image has {width * height:,}")
        if isinstance(counts, str):
            return {"size": [height, width], "counts": counts.encode("ascii")}
        return rle.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    except (TypeError, KeyError, OverflowError) as error:
        raise ValueError("neither a list of polygons nor an RLE") from error


def _draw(segmentation: list[list[float]], width: int, height: int) -> Any:
    """Return the union of polygons."""
    for polygon in segmentation:
        if len(polygon) % 2:
            raise ValueError(f"a polygon of {len(polygon)} numbers, so one is missing: they are x and y in turn")
        xs, ys = polygon[::2], polygon[1::2]
        over = overhang(min(xs), min(ys), max(xs), max(ys), width, height) if polygon else 0
        if not over <= BOX_SLACK:
            raise ValueError(f"a polygon that reaches {over:,.1f} px over the edge of the image, {width} x {height}")
    if drawn := polygons(segmentation):
        return rle.merge(rle.frPyObjects(drawn, height, width))
    return rle.frPyObjects({"size": [height, width], "counts": [width * height]}, height, width)


def run_lengths(counts: str) -> list[int]:
    """Decode COCO's compressed ``counts`` into the lengths of the runs, zeros first (as pycocotools' rleFrString).

    Raises:
        ValueError: the text ends within a number, or holds a character that no number has.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        six = ord(character) - 48
        if not 0 <= six < 64:
            raise ValueError(f"an RLE that does not decode: {character!r} is not part of a number")
        value |= (six & 31) << shift
        shift += 5
        if not six & 32:  # the last five bits of a number; their highest is its sign
            value -= (six & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))  # from the fourth run on: a difference
            value = shift = 0
        elif shift == 5 * LONGEST:
            raise ValueError("an RLE that does not decode: it holds a number of more than 32 bits")
    if shift:
        raise ValueError("an RLE that does not decode: it ends within a number")
    return runs
