"""The prepared data set: all images in one file, read by row number through a memory map.

    write_store(out, records, classes=["disc", "star"], multi_label=True, excluded=[])
    store = Store(Path("artifacts/data/3f2a91c4d0"))
    rows = store.split("train")                 # row numbers
    image_CHW = store.decode(int(rows[0]))      # uint8 RGB
    target_NC = store.labels(rows)              # bool
    mask_HW = store.mask(int(rows[0]))          # uint8 class indices, 255 = ignore; where store.has_masks

| file | what |
|---|---|
| ``images.bin`` | image files end to end; of a raw store, pixels: uint8 (H, W, 3), RGB |
| ``index.parquet`` | of each image: offset and length there, size, name, split, sha256 of the stored bytes |
| ``labels.parquet``, ``classes.json`` | class indices of each image, names of the classes |
| ``annotations.json`` | COCO's format, one annotation a line |
| ``excluded.json`` | images that were left out, with reasons |
| ``masks.bin``, ``masks.parquet`` | only if any image has a mask: grey PNGs end to end; image, offset, length |
| ``store.json`` | only if images are not kept as files: ``{"format": "raw"}`` |

Rows are sorted by split (train, val, test, unlabeled), then by name. Shape legend: N images, C classes (or
the three channels of an image), H height, W width.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import warnings
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from mls.errors import MlsError

if TYPE_CHECKING:  # torch takes seconds to import; naming and hashing files does without it
    import torch

# arrow's own allocator takes three times the memory that an index needs, and keeps it
pa.set_memory_pool(pa.system_memory_pool())

SPLITS = ("train", "val", "test", "unlabeled")
LABELLED = SPLITS[:3]
"""All but ``unlabeled``, whose images only pretraining reads: they have neither classes nor annotations."""
IGNORE = 255
"""In a mask: belongs to no class, counts for nothing."""
Format = Literal["jpeg", "raw"]
"""``jpeg``: images are files (of any kind that `mls.data.decode` reads); ``raw``: decoded pixels."""

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
MASKS = pa.schema({"image": pa.int64(), "offset": pa.int64(), "length": pa.int64()})


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
    annotations: list[dict[str, Any]]
    """COCO annotations less ``id`` and ``image_id``, which the store assigns; ``category_id`` is class index + 1."""
    sha256: str = ""
    """Of ``data``; computed where the source has not done so already."""
    mask: bytes | None = None
    """Class of each pixel, `IGNORE` for none; see `encode_mask`."""

    def __post_init__(self) -> None:
        """Compute what is not given."""
        self.sha256 = self.sha256 or hashlib.sha256(self.data).hexdigest()


def encode_mask(mask_HW: NDArray[np.uint8]) -> bytes:
    """Class indices (uint8) as an 8-bit grey PNG; equal masks give equal bytes."""
    buffer = io.BytesIO()
    Image.fromarray(mask_HW).save(buffer, "PNG")
    return buffer.getvalue()


def decode_mask(data: bytes) -> NDArray[np.uint8]:
    """Undo `encode_mask`: uint8 (H, W).

    Raises:
        OSError, SyntaxError: the bytes are no PNG, or damaged.
    """
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return np.array(image, dtype=np.uint8)


def write_store(
    out: Path,
    records: Iterable[Record],
    classes: Sequence[str],
    multi_label: bool,
    excluded: list[dict[str, str]],
    format: Format = "jpeg",
) -> None:
    """Write the files of a data artifact; only the index is ever held in memory.

    Args:
        out: an existing folder.
        records: in final order: split (as in `SPLITS`), then name.
        classes: names, by class index.
        multi_label: whether an image may have any number of classes (else exactly one).
        excluded: ``{"name", "reason"}`` of images left out; read after the last record, so the
            records' source may still fill it.
        format: what the records' ``data`` are.

    Raises:
        ValueError: the records are out of order, or contradict themselves (a fault of the source's code).
    """
    # integers in arrays: as Python objects they would take most of the memory that this function needs
    index: dict[str, Any] = {"offset": array("q"), "length": array("q"), "width": array("i"), "height": array("i")}
    index |= {"name": [], "sha256": [], "split": []}
    masks = {name: array("q") for name in MASKS.names}
    labels, ends = array("i"), array("i", [0])
    last = (-1, "")
    offset = count = 0
    with (out / "images.bin").open("wb") as images, (out / "annotations.json").open("w", encoding="utf-8") as coco:
        coco.write('{"annotations": [')
        for row, record in enumerate(records):
            place = (SPLITS.index(record.split), record.name)
            if place <= last:
                raise ValueError(f"record {record.split}/{record.name} comes after {last[1]}")
            last = place
            _check(record, format)
            images.write(record.data)
            values = (offset, len(record.data), record.width, record.height, record.name, record.sha256, record.split)
            for column, value in zip(index.values(), values, strict=True):
                column.append(value)
            labels.extend(record.classes)
            ends.append(len(labels))
            offset += len(record.data)
            if record.mask is not None:
                with (out / "masks.bin").open("ab") as file:
                    for name, value in zip(MASKS.names, (row, file.tell(), file.write(record.mask)), strict=True):
                        masks[name].append(value)
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


def _check(record: Record, format: Format) -> None:
    if record.split not in LABELLED and (record.classes or record.annotations or record.mask is not None):
        raise ValueError(f"record {record.name} is {record.split}, and yet has classes, annotations or a mask")
    if format == "raw" and len(record.data) != 3 * record.width * record.height:
        raise ValueError(
            f"record {record.name}: {len(record.data)} bytes are not {record.width} x {record.height} raw pixels"
        )


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
        self._raw = (path / "store.json").exists()
        self.has_masks = (path / "masks.parquet").exists()
        """Whether any image has a mask."""
        columns = [name for name in INDEX.names if name != "sha256"]
        index = pq.read_table(path / "index.parquet", columns=columns, schema=INDEX)
        self._offsets, self._lengths, self._widths, self._heights = (
            index[name].to_numpy() for name in ("offset", "length", "width", "height")
        )
        # names stay in arrow's buffer, splits are numbers: Python strings would be most of an open store's memory
        self._names = index["name"]
        self._splits = pc.index_in(index["split"], pa.array(SPLITS)).to_numpy().astype(np.int8)

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        """Pickle the path alone."""
        return Store, (self.path,)

    def __len__(self) -> int:
        """Count the images of all splits."""
        return len(self._offsets)

    def split(self, name: str) -> np.ndarray:
        """Rows of one of `SPLITS`: int64 (N,), ascending; none where a data set lacks it."""
        if name not in SPLITS:
            raise ValueError(f"split {name!r} is none of {', '.join(SPLITS)}")
        return np.flatnonzero(self._splits == SPLITS.index(name)).astype(np.int64)

    def decode(self, row: int) -> torch.Tensor:
        """Return one image: uint8 (3, H, W), RGB, EXIF orientation applied.

        It is decoded from the mapped bytes; of a raw store it is a view of them, and nothing is copied: it must not
        be written into. Its pixels then lie as (H, W, 3) in memory, like those of a decoded JPEG.

        Raises:
            MlsError: names the image whose bytes do not decode, or are not as many as its pixels.
        """
        start, length = int(self._offsets[row]), int(self._lengths[row])
        data_N = self._bytes[start : start + length]
        if not self._raw:
            from mls.data.decode import decode

            return decode(data_N, self.name(row))
        width, height = self.size(row)
        if len(data_N) != 3 * width * height:
            raise MlsError(
                f"{self.name(row)}: {self.path} holds {len(data_N)} bytes of it, and {width} x {height} raw pixels are "
                f"{3 * width * height}; the artifact is damaged: remove it, make it again"
            )
        return data_N.view(height, width, 3).permute(2, 0, 1)

    def mask(self, row: int) -> torch.Tensor:
        """Return the class of each pixel of one image: uint8 (H, W), `IGNORE` where there is none.

        Raises:
            MlsError: the image has no mask, or its mask is damaged.
        """
        import torch

        image, offset, length = self._masks
        place = int(np.searchsorted(image, row))
        if place == len(image) or image[place] != row:
            raise MlsError(
                f"{self.name(row)} has no mask in {self.path}; masks: {len(image):,} of {len(self):,} images"
            )
        with (self.path / "masks.bin").open("rb") as file:
            file.seek(int(offset[place]))
            data = file.read(int(length[place]))
        try:
            return torch.from_numpy(decode_mask(data))
        except (OSError, SyntaxError) as error:
            raise MlsError(
                f"{self.name(row)}: its mask in {self.path / 'masks.bin'} does not decode ({error}); the artifact is "
                "damaged: remove it, make it again"
            ) from error

    def labels(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """Return the classes of some rows: bool (N, C)."""
        return self._labels[np.asarray(rows, dtype=np.int64)]

    def name(self, row: int) -> str:
        """Path of an image relative to its source's root, or its generated name."""
        name: str = self._names[row].as_py()
        return name

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
    def _labels(self) -> NDArray[np.bool_]:
        classes = pq.read_table(self.path / "labels.parquet", columns=["classes"])["classes"].combine_chunks()
        target_NC = np.zeros((len(self), len(self.classes)), dtype=bool)
        rows = np.repeat(np.arange(len(self)), classes.value_lengths().to_numpy())
        target_NC[rows, classes.flatten().to_numpy()] = True
        return target_NC

    @cached_property
    def _masks(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Rows of the images that have masks, ascending; offsets and lengths in ``masks.bin``."""
        if not self.has_masks:
            nothing = np.zeros(0, dtype=np.int64)
            return nothing, nothing, nothing
        table = pq.read_table(self.path / "masks.parquet", schema=MASKS)
        return table["image"].to_numpy(), table["offset"].to_numpy(), table["length"].to_numpy()
