"""The prepared data set: all images in one file, read by row number through a memory map.

    write_store(out, records, classes=["disc", "star"], multi_label=True, excluded=[])
    store = Store(Path("artifacts/data/3f2a91c4d0"))
    rows = store.split("train")                 # row numbers
    image_CHW = store.decode(int(rows[0]))      # uint8 RGB
    target_NC = store.labels(rows)              # bool

Rows are sorted by split (train, val, test), then by name. Shape legend: N images, C classes (or
the three channels of an image), H height, W width.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:  # torch takes seconds to import; naming and hashing files does without it
    import torch

SPLITS = ("train", "val", "test")

INDEX = pa.schema(
    {
        "offset": pa.int64(),
        "length": pa.int64(),
        "width": pa.int32(),
        "height": pa.int32(),
        "name": pa.string(),
        "sha256": pa.string(),
        "split": pa.string(),
    }
)
LABELS = pa.schema({"image": pa.int64(), "split": pa.string(), "classes": pa.list_(pa.int32())})


@dataclass
class Record:
    """One image on its way into a store."""

    name: str
    """Path relative to the source's root, or a generated name."""
    split: str
    data: bytes
    """The encoded image file."""
    width: int
    height: int
    classes: list[int]
    """Sorted class indices."""
    annotations: list[dict[str, Any]]
    """COCO annotations less ``id`` and ``image_id``, which the store assigns; ``category_id`` is class index + 1."""
    sha256: str = ""
    """Of ``data``; computed where the source has not done so already."""

    def __post_init__(self) -> None:
        """Compute what is not given."""
        self.sha256 = self.sha256 or hashlib.sha256(self.data).hexdigest()


def write_store(
    out: Path,
    records: Iterable[Record],
    classes: Sequence[str],
    multi_label: bool,
    excluded: list[dict[str, str]],
) -> None:
    """Write the files of a data artifact; only the index is ever held in memory.

    Args:
        out: an existing folder.
        records: in final order: split (train, val, test), then name.
        classes: names, by class index.
        multi_label: whether an image may have any number of classes (else exactly one).
        excluded: ``{"name", "reason"}`` of images left out; read after the last record, so the
            records' source may still fill it.

    Raises:
        ValueError: the records are out of order (a fault of the source's code).
    """
    index: dict[str, list[Any]] = {name: [] for name in INDEX.names}
    labels: list[list[int]] = []
    last = (-1, "")
    offset = count = 0
    with (out / "images.bin").open("wb") as images, (out / "annotations.json").open("w", encoding="utf-8") as coco:
        coco.write('{"annotations": [')
        for row, record in enumerate(records):
            place = (SPLITS.index(record.split), record.name)
            if place <= last:
                raise ValueError(f"record {record.split}/{record.name} comes after {last[1]}")
            last = place
            images.write(record.data)
            values = (offset, len(record.data), record.width, record.height, record.name, record.sha256, record.split)
            for column, value in zip(index.values(), values, strict=True):
                column.append(value)
            labels.append(record.classes)
            offset += len(record.data)
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
    rows = {"image": range(len(labels)), "split": index["split"], "classes": labels}
    pq.write_table(pa.table(rows, schema=LABELS), out / "labels.parquet")
    names = {"classes": list(classes), "multi_label": multi_label}
    (out / "classes.json").write_text(_dumps(names) + "\n", encoding="utf-8")
    left_out = sorted(excluded, key=lambda item: item["name"])
    (out / "excluded.json").write_text(json.dumps(left_out, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


class Store:
    """A data artifact, open for reading. It pickles as its path: worker processes open it anew."""

    def __init__(self, path: Path) -> None:
        """Read the index; images are mapped when the first one is asked for.

        Args:
            path: the artifact's folder (checked by ``mls.experiment.artifact.open_artifact``).
        """
        self.path = path
        names = json.loads((path / "classes.json").read_text(encoding="utf-8"))
        self.classes: list[str] = names["classes"]
        self.multi_label: bool = names["multi_label"]
        index = pq.read_table(path / "index.parquet", schema=INDEX)
        self._offsets, self._lengths, self._widths, self._heights = (
            index[name].to_numpy() for name in ("offset", "length", "width", "height")
        )
        self._names: list[str] = index["name"].to_pylist()
        self._splits = np.array(index["split"].to_pylist(), dtype=str)

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        """Pickle the path alone."""
        return Store, (self.path,)

    def __len__(self) -> int:
        """Count the images of all splits."""
        return len(self._names)

    def split(self, name: str) -> np.ndarray:
        """Rows of ``train``, ``val`` or ``test``: int64 (N,), ascending."""
        if name not in SPLITS:
            raise ValueError(f"split {name!r} is none of {', '.join(SPLITS)}")
        return np.flatnonzero(self._splits == name).astype(np.int64)

    def decode(self, row: int) -> torch.Tensor:
        """Return one image: uint8 (3, H, W), RGB, EXIF orientation applied; decoded from the mapped bytes.

        Raises:
            MlsError: names the image whose bytes do not decode.
        """
        from mls.data.decode import decode

        start = int(self._offsets[row])
        return decode(self._bytes[start : start + int(self._lengths[row])], self._names[row])

    def labels(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """Return the classes of some rows: bool (N, C)."""
        return self._labels[np.asarray(rows, dtype=np.int64)]

    def name(self, row: int) -> str:
        """Path of an image relative to its source's root, or its generated name."""
        return self._names[row]

    def size(self, row: int) -> tuple[int, int]:
        """Width and height of an image, pixels, without decoding it."""
        return int(self._widths[row]), int(self._heights[row])

    def ground_truth(self, split: str) -> dict[str, Any]:
        """Return the annotations of one split as a COCO dictionary; an image's ``id`` is its row."""
        coco: dict[str, Any] = json.loads((self.path / "annotations.json").read_text(encoding="utf-8"))
        rows = set(self.split(split).tolist())
        coco["images"] = [image for image in coco["images"] if image["id"] in rows]
        coco["annotations"] = [item for item in coco["annotations"] if item["image_id"] in rows]
        return coco

    @cached_property
    def _bytes(self) -> torch.Tensor:
        """All of ``images.bin`` as a tensor over a read-only map: slices of it copy nothing."""
        import torch

        with (self.path / "images.bin").open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():  # torch warns that it can't mark memory read-only; nothing here writes
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            return torch.frombuffer(mapped, dtype=torch.uint8)

    @cached_property
    def _labels(self) -> np.ndarray:
        classes = pq.read_table(self.path / "labels.parquet", schema=LABELS)["classes"].to_pylist()
        target_NC = np.zeros((len(self), len(self.classes)), dtype=bool)
        for row, indices in enumerate(classes):
            target_NC[row, indices] = True
        return target_NC
