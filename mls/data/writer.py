"""Write a store: turn records in final order into the files that `mls.data.image_store` lists.

write_store(out, records, classes=["disc", "star"], multi_label=True, excluded=[])
"""

from __future__ import annotations

import hashlib
import io
import json
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from mls.data.image_store import INDEX, LABELLED, LABELS, MASKS, SPLITS, Format


@dataclass(slots=True)
class Record:
    """One image on its way into a store."""

    name: str
    """Path relative to the source's root, or a generated name."""
    split: str
    data: bytes
    """The encoded image file; for a raw store, its pixels: uint8 (H, W, 3), RGB."""
    width: int
    height: int
    classes: list[int]
    """Sorted class indices."""
    annotations: Sequence[dict[str, Any]]
    """COCO annotations without ``id`` and ``image_id``, which the store assigns; ``category_id`` is class index + 1."""
    sha256: str = ""
    """Of ``data``; computed unless the source already has it."""
    mask: bytes | None = None
    """Class of each pixel, or `IGNORE`; see `encode_mask`."""

    def __post_init__(self) -> None:
        """Hash the data if needed."""
        self.sha256 = self.sha256 or hashlib.sha256(self.data).hexdigest()


def encode_jpeg(pixels_HWC: NDArray[np.uint8]) -> bytes:
    """Encode RGB pixels (uint8) as a JPEG of quality 95 without chroma subsampling (4:4:4)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def encode_mask(mask_HW: NDArray[np.uint8]) -> bytes:
    """Encode class indices (uint8) as an 8-bit grey PNG; equal masks give equal bytes."""
    buffer = io.BytesIO()
    Image.fromarray(mask_HW).save(buffer, "PNG")
    return buffer.getvalue()


def write_store(
    out: Path,
    records: Iterable[Record],
    classes: Sequence[str],
    multi_label: bool,
    excluded: list[dict[str, str]],
    format: Format = "jpeg",
) -> None:
    """Write the files of a data artifact; only the index is held in memory.

    Args:
        out: an existing folder.
        records: in final order: split (as in `SPLITS`), then name.
        classes: names, by class index.
        multi_label: whether an image may have any number of classes (otherwise exactly one).
        excluded: ``{"name", "reason"}`` of images left out, and ``{"name", "object", "reason"}`` of degenerate objects
            (`mls.data.listing.Listing`); read after the last record, so the records' source may still fill it.
        format: what the records' ``data`` are.

    Raises:
        ValueError: the records are out of order, or contradict themselves (a bug in the source's code).
    """
    # Arrays of integers: Python objects would take most of the memory that this function needs. `INDEX` decides the
    # columns' order and types, hence the bytes of index.parquet, which are part of the artifact.
    index: dict[str, Any] = {"offset": array("q"), "length": array("q"), "width": array("i"), "height": array("i")}
    index |= {"name": [], "sha256": [], "split": []}
    masks = {name: array("q") for name in MASKS.names}
    labels, ends = array("i"), array("i", [0])
    last = (-1, "")
    count = 0
    with (out / "images.bin").open("wb") as images, (out / "annotations.json").open("w", encoding="utf-8") as coco:
        coco.write('{"annotations": [')
        for row, record in enumerate(records):
            place = (SPLITS.index(record.split), record.name)
            if place <= last:
                raise ValueError(f"record {record.split}/{record.name} comes after {last[1]}")
            last = place
            _check(record, format)
            written = (images.tell(), images.write(record.data))
            _append(index, *written, record.width, record.height, record.name, record.sha256, record.split)
            labels.extend(record.classes)
            ends.append(len(labels))
            if record.mask is not None:
                with (out / "masks.bin").open("ab") as file:
                    _append(masks, row, file.tell(), file.write(record.mask))
            for annotation in record.annotations:
                coco.write(",\n" if count else "\n")
                count += 1
                coco.write(_dumps({**annotation, "id": count, "image_id": row}))
        coco.write('\n],\n"categories": ')
        coco.write(_dumps([{"id": i + 1, "name": name} for i, name in enumerate(classes)]))
        coco.write(',\n"images": [')
        for row, (name, width, height) in enumerate(zip(index["name"], index["width"], index["height"], strict=True)):
            coco.write(",\n" if row else "\n")
            coco.write(_dumps({"id": row, "file_name": name, "width": width, "height": height}))
        coco.write("\n]}\n")
    pq.write_table(pa.table(index, schema=INDEX), out / "index.parquet")
    listed = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(labels, pa.int32()))
    rows = {"image": np.arange(len(listed)), "split": index["split"], "classes": listed}
    pq.write_table(pa.table(rows, schema=LABELS), out / "labels.parquet")
    if masks["image"]:
        pq.write_table(pa.table(dict(masks), schema=MASKS), out / "masks.parquet")
    if format != "jpeg":
        (out / "store.json").write_text(_dumps({"format": format}) + "\n", encoding="utf-8")
    names = {"classes": list(classes), "multi_label": multi_label}
    (out / "classes.json").write_text(_dumps(names) + "\n", encoding="utf-8")
    left_out = sorted(excluded, key=lambda item: item["name"])
    (out / "excluded.json").write_text(json.dumps(left_out, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _append(columns: dict[str, Any], *values: object) -> None:
    for column, value in zip(columns.values(), values, strict=True):
        column.append(value)


def _check(record: Record, format: Format) -> None:
    if record.split not in LABELLED and (record.classes or record.annotations or record.mask is not None):
        raise ValueError(f"record {record.name} is {record.split}, but has classes, annotations or a mask")
    if format == "raw" and len(record.data) != 3 * record.width * record.height:
        raise ValueError(
            f"record {record.name}: {len(record.data)} bytes are not {record.width} x {record.height} raw pixels"
        )


_dumps = json.JSONEncoder(sort_keys=True, allow_nan=False).encode
