"""The prepared data set: all images in one file, read by row number through a memory map.

    store = ImageStore(Path("artifacts/data/3f2a91c4d0"))
    rows = store.split("train")                 # row numbers
    image_CHW = store.decode(int(rows[0]))      # uint8 RGB
    target_NC = store.labels(rows)              # bool
    ignored_NC = store.ignored(rows)            # bool: VOC's "only difficult ones"
    mask_HW = store.mask(int(rows[0]))          # uint8 class indices, 255 = ignore; if store.has_masks

| file | what |
|---|---|
| ``images.bin`` | image files end to end; in a raw store, pixels: uint8 (H, W, 3), RGB |
| ``index.parquet`` | for each image: offset and length there, size, name, split, sha256 of the stored bytes |
| ``labels.parquet``, ``classes.json`` | class indices of each image, names of the classes |
| ``annotations.json`` | COCO's format, one annotation per line (`mls.data.annotations`) |
| ``excluded.json`` | images that were left out, and objects without a box or mask to learn, with reasons |
| ``masks.bin``, ``masks.parquet`` | only if any image has a mask: grey PNGs end to end; image, offset, length |
| ``store.json`` | only if images are not kept as files: ``{"format": "raw"}`` |

`mls.data.writer` writes these files. Rows are sorted by split (train, val, test, unlabeled), then by name.

Shape legend: N images, C classes (or the three channels of an image), H height, W width.
"""

from __future__ import annotations

import io
import json
import mmap
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from mls.data.annotations import Annotations
from mls.runtime.errors import MlsError

if TYPE_CHECKING:  # torch takes seconds to import, and naming and hashing files does not need it
    import torch

# Arrow's own allocator takes three times the memory that an index needs, and keeps it.
pa.set_memory_pool(pa.system_memory_pool())

SPLITS = ("train", "val", "test", "unlabeled")
LABELLED = SPLITS[:3]
"""All except ``unlabeled``, whose images only pretraining reads: they have neither classes nor annotations."""
IGNORE = 255
"""In a mask: the pixel belongs to no class and is not evaluated."""
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


def decode_mask(data: bytes) -> NDArray[np.uint8]:
    """Undo `encode_mask`: uint8 (H, W).

    Raises:
        OSError, SyntaxError: the bytes are not a PNG, or damaged.
    """
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return np.array(image, dtype=np.uint8)


class ImageStore:
    """A data artifact, open for reading. It pickles as its path: worker processes open it again."""

    def __init__(self, path: Path) -> None:
        """Read the index; images are mapped on first use.

        Args:
            path: the artifact's folder (checked by ``mls.pipeline.artifact.open_artifact``).
        """
        self.path = path
        names = json.loads((path / "classes.json").read_text(encoding="utf-8"))
        self.classes: list[str] = names["classes"]
        self.multi_label: bool = names["multi_label"]
        self._annotations = Annotations(path / "annotations.json")
        self._raw = (path / "store.json").exists()
        self.has_masks = (path / "masks.parquet").exists()
        """Whether any image has a mask."""
        columns = [name for name in INDEX.names if name != "sha256"]
        index = pq.read_table(path / "index.parquet", columns=columns, schema=INDEX)
        self._offsets, self._lengths = index["offset"].to_numpy(), index["length"].to_numpy()
        self.sizes_N2 = np.stack([index["width"], index["height"]], axis=1).astype(np.int64)
        """Width and height of every image, pixels."""
        # Names stay in Arrow's buffer, splits are numbers: Python strings would take most of an open store's memory.
        self._names = index["name"]
        self.splits_N = pc.index_in(index["split"], pa.array(SPLITS)).to_numpy().astype(np.int8)
        """Number of every image's split in `SPLITS`."""

    def __reduce__(self) -> tuple[type[ImageStore], tuple[Path]]:
        """Pickle only the path."""
        return ImageStore, (self.path,)

    def __len__(self) -> int:
        """Count the images of all splits."""
        return len(self._offsets)

    def split(self, name: str) -> np.ndarray:
        """Return the rows of one of `SPLITS`: int64 (N,), ascending; none if the data set lacks it."""
        if name not in SPLITS:
            raise ValueError(f"split {name!r} is none of {', '.join(SPLITS)}")
        return np.flatnonzero(self.splits_N == SPLITS.index(name)).astype(np.int64)

    def decode(self, row: int) -> torch.Tensor:
        """Return one image: uint8 (3, H, W), RGB, EXIF orientation applied.

        It is decoded from the mapped bytes; in a raw store it is a view of them, which must not be written to. Its
        pixels then lie as (H, W, 3) in memory, like those of a decoded JPEG.

        Raises:
            MlsError: names the image whose bytes do not decode, or are too few or too many for its pixels.
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
                f"{3 * width * height}; the artifact is damaged: remove it and make it again"
            )
        return data_N.view(height, width, 3).permute(2, 0, 1)

    def mask(self, row: int) -> torch.Tensor:
        """Return the class of each pixel of one image: uint8 (H, W), `IGNORE` if it belongs to none.

        Raises:
            MlsError: the image has no mask, or its mask is damaged.
        """
        import torch

        place = int(np.searchsorted(self.mask_rows, row))
        if row not in self.mask_rows[place : place + 1]:
            raise MlsError(
                f"{self.name(row)} has no mask in {self.path}; masks: {len(self.mask_rows):,} of {len(self):,} images"
            )
        with (self.path / "masks.bin").open("rb") as file:
            file.seek(self._masks["offset"][place].as_py())
            data = file.read(self._masks["length"][place].as_py())
        try:
            return torch.from_numpy(decode_mask(data))
        except (OSError, SyntaxError) as error:
            raise MlsError(
                f"{self.name(row)}: its mask in {self.path / 'masks.bin'} does not decode ({error}); the artifact is "
                "damaged: remove it and make it again"
            ) from error

    def labels(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """Return the classes of some rows: bool (N, C)."""
        return self._labels[np.asarray(rows, dtype=np.int64)]

    def ignored(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """Return the classes that are not evaluated on some rows: bool (N, C).

        These are the classes that only an image's ``difficult`` annotations have: VOC's classification benchmark leaves
        the image out of such a class's evaluation (0 in its ``<class>_<set>.txt``). Other sources have none.
        """
        return self._ignored[np.asarray(rows, dtype=np.int64)]

    def name(self, row: int) -> str:
        """Return an image's path relative to its source's root, or its generated name."""
        name: str = self._names[row].as_py()
        return name

    def size(self, row: int) -> tuple[int, int]:
        """Return an image's width and height, pixels, without decoding it."""
        width, height = self.sizes_N2[row].tolist()
        return width, height

    def annotations(self, row: int) -> list[dict[str, Any]]:
        """Return an image's annotations in COCO's format; ``image_id`` is its row."""
        return self._annotations.of(row)

    def annotations_of(self, *splits: str) -> Iterator[dict[str, Any]]:
        """Yield the annotations of some splits in the order of rows."""
        for split in sorted(splits, key=SPLITS.index):
            if len(rows := self.split(split)):
                yield from self._annotations.between(int(rows[0]), int(rows[-1]) + 1)

    def ground_truth(self, *splits: str) -> dict[str, Any]:
        """Return the annotations of some splits as a COCO dictionary; an image's ``id`` is its row."""
        rows = sorted(row for split in splits for row in self.split(split).tolist())
        sizes = zip(rows, self.sizes_N2[rows].tolist(), strict=True)
        return {
            "annotations": list(self.annotations_of(*splits)),
            "categories": [{"id": i, "name": name} for i, name in enumerate(self.classes, 1)],
            "images": [
                {"id": row, "file_name": self.name(row), "width": width, "height": height}
                for row, (width, height) in sizes
            ],
        }

    @cached_property
    def _bytes(self) -> torch.Tensor:
        """All of ``images.bin`` as a tensor over a read-only map; slicing it copies nothing."""
        import torch

        with (self.path / "images.bin").open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():  # torch warns that it can't mark memory read-only; nothing writes to it here
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
    def _ignored(self) -> NDArray[np.bool_]:
        target_NC = np.zeros((len(self), len(self.classes)), dtype=bool)
        with (self.path / "annotations.json").open("rb") as file:
            for line in file:  # one annotation per line, so COCO's 860,000, none of them difficult, are not parsed
                if b'"difficult": ' in line:
                    annotation = json.loads(line.strip().rstrip(b","))
                    if annotation["difficult"]:
                        target_NC[annotation["image_id"], annotation["category_id"] - 1] = True
        return target_NC & ~self._labels

    @cached_property
    def mask_rows(self) -> NDArray[np.int64]:
        """Rows of the images that have masks, ascending."""
        rows: NDArray[np.int64] = self._masks["image"].to_numpy()
        return rows

    @cached_property
    def _masks(self) -> pa.Table:
        return pq.read_table(self.path / "masks.parquet", schema=MASKS) if self.has_masks else MASKS.empty_table()
