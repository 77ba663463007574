"""The features of a data set under one backbone: extracted once, read by every classifier.

    write(out, store, {"train": features_ND, ...})               # the features stage
    features = FeatureSet(Path("artifacts/features/3f2a91c4d0"))
    train = features.images("train")                             # or ("train", "val"): one after the other
    train.features_ND, train.truth_NC, train.ignored_NC

| file | what |
|---|---|
| ``features.npy`` | float32 or float16 (N, D), one row per image |
| ``images.parquet`` | per image: ``image`` (row of the data artifact), name, split, classes, ignored (class indices) |
| ``classes.json`` | names of the classes; whether an image may have several |

Shape legend: N images, D features, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mls.data.image_store import ImageStore
from mls.metrics import Truth
from mls.probe.columns import IMAGE, LABELS, listed, unlisted
from mls.runtime.errors import MlsError

Features = NDArray[np.floating[Any]]
"""float16 or float32 (N, D)."""
BLOCK = 2**22
"""Numbers in a block of features: 2,048 images of 2,048 features, 32 MiB as float64."""
SCHEMA = pa.schema([*IMAGE, *LABELS])


@dataclass(frozen=True)
class Images:
    """Images of one or more splits: their features and labels."""

    rows_N: NDArray[np.int64]
    """Rows of the data artifact."""
    names: list[str]
    features_ND: Features
    """Part of the file, memory-mapped: read it in `blocks`, and no second copy of all is in memory."""
    truth_NC: Truth
    ignored_NC: Truth
    """Classes that count neither for nor against an image, see `mls.data.image_store.ImageStore.ignored`."""
    classes: list[str]
    multi_label: bool
    """Whether an image may have several classes."""


class Parts(NamedTuple):
    """The splits of a data set, as features."""

    train: Images
    val: Images
    evaluated: Images
    """Test, or val again with ``test: false``."""


class FeatureSet:
    """A features artifact, open for reading."""

    def __init__(self, path: Path) -> None:
        """Read everything but the features, which are memory-mapped.

        Args:
            path: the artifact's folder (checked by ``mls.pipeline.artifact.open_artifact``).
        """
        about = json.loads((path / "classes.json").read_text(encoding="utf-8"))
        self.classes: list[str] = about["classes"]
        self.multi_label: bool = about["multi_label"]
        # "c" maps privately: torch takes arrays only if they can be written
        self._features_ND = np.load(path / "features.npy", mmap_mode="c", allow_pickle=False)
        self._images = pq.read_table(path / "images.parquet", schema=SCHEMA)

    def images(self, *splits: str) -> Images:
        """Return the images of some splits, one split after the other."""
        of_split = self._images["split"].to_numpy(zero_copy_only=False)
        places = np.concatenate([np.flatnonzero(of_split == split) for split in splits])
        table = self._images.take(pa.array(places))
        truth_NC, ignored_NC = (unlisted(table, name, len(self.classes)) for name in ("classes", "ignored"))
        rows_N, names = table["image"].to_numpy(), table["name"].to_pylist()
        whole = len(places) and (np.diff(places) == 1).all()  # as `write` leaves them
        features_ND = self._features_ND[places[0] : places[-1] + 1] if whole else self._features_ND[places]
        return Images(rows_N, names, features_ND, truth_NC, ignored_NC, self.classes, self.multi_label)


def write(out: Path, store: ImageStore, features: Mapping[str, Features]) -> None:
    """Write a features artifact's files.

    Args:
        out: its folder.
        store: the data set.
        features: split -> features of all its images.
    """
    rows_N = np.concatenate([store.split(split) for split in features])
    names = [store.name(int(row)) for row in rows_N]
    splits = [split for split, part_ND in features.items() for _ in part_ND]
    columns = [rows_N, names, splits, listed(store.labels(rows_N)), listed(store.ignored(rows_N))]
    pq.write_table(pa.table(columns, schema=SCHEMA), out / "images.parquet")
    first_ND = next(iter(features.values()))
    header = {"descr": first_ND.dtype.str, "fortran_order": False, "shape": (len(rows_N), first_ND.shape[1])}
    with (out / "features.npy").open("wb") as file:  # np.save would need all splits in one array
        np.lib.format.write_array_header_1_0(file, header)
        for part_ND in features.values():
            part_ND.tofile(file)
    about = {"classes": store.classes, "multi_label": store.multi_label}
    (out / "classes.json").write_text(json.dumps(about, sort_keys=True) + "\n", encoding="utf-8")


def blocks(images: int, width: int, numbers: int | None = None) -> Iterator[slice]:
    """Yield the rows of each block of images.

    Args:
        images: their number.
        width: numbers in memory per image.
        numbers: that a block may hold; default: `BLOCK`.
    """
    size = max(1, (numbers or BLOCK) // max(1, width))
    return (slice(start, start + size) for start in range(0, images, size))


def count_not_finite(features_ND: Features) -> int:
    """Return the number of images with a feature that is NaN or infinite."""
    return sum(int((~np.isfinite(features_ND[rows])).any(axis=1).sum()) for rows in blocks(*features_ND.shape))


def check_finite(features_ND: Features, split: str) -> None:
    """Reject features that no classifier can use.

    Raises:
        MlsError: says how many images of which split are affected.
    """
    if bad := count_not_finite(features_ND):
        raise MlsError(
            f"the backbone's features of {bad} of {len(features_ND)} {split} images are NaN or infinite; "
            "its pretraining diverged or its weights are damaged: look at the run's curves.csv, or lower its lr"
        )
