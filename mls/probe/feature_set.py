"""The features of a data set under one backbone: extracted once, read by every classifier.

    write(out, store, {"train": (rows_N, features_ND), ...})     # the features stage
    features = FeatureSet(Path("artifacts/features/3f2a91c4d0"))
    train = features.images("train")                             # or ("train", "val"): one after the other
    train.features_ND, train.truth_NC, train.ignored_NC

| file | what |
|---|---|
| ``features.npy`` | float32 (N, D), one row an image |
| ``images.parquet`` | of each: ``image`` (row of the data artifact), name, split, classes, ignored (class indices) |
| ``classes.json`` | names of the classes; whether an image may have several |

Shape legend: N images, D features, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mls.data.image_store import ImageStore

SCHEMA = pa.schema(
    {
        "image": pa.int64(),
        "name": pa.string(),
        "split": pa.string(),
        "classes": pa.list_(pa.int32()),
        "ignored": pa.list_(pa.int32()),
    }
)


@dataclass(frozen=True)
class Images:
    """Images of one or more splits: their features, and what is true of them."""

    rows_N: NDArray[np.int64]
    """Rows of the data artifact."""
    names: list[str]
    features_ND: NDArray[np.float32]
    truth_NC: NDArray[np.bool_]
    ignored_NC: NDArray[np.bool_]
    """Classes that count neither for nor against an image, see `mls.data.image_store.ImageStore.ignored`."""


class Parts(NamedTuple):
    """The splits of a data set, as features."""

    train: Images
    val: Images
    judged: Images
    """Test, or val again with ``test: false``."""


class FeatureSet:
    """A features artifact, open for reading."""

    def __init__(self, path: Path) -> None:
        """Read all but the features, which are mapped.

        Args:
            path: the artifact's folder (checked by ``mls.pipeline.artifact.open_artifact``).
        """
        names = json.loads((path / "classes.json").read_text(encoding="utf-8"))
        self.classes: list[str] = names["classes"]
        self.multi_label: bool = names["multi_label"]
        self._features_ND = np.load(path / "features.npy", mmap_mode="r", allow_pickle=False)
        self._images = pq.read_table(path / "images.parquet", schema=SCHEMA)

    def images(self, *splits: str) -> Images:
        """Return the images of some splits, one split after the other."""
        of_split = self._images["split"].to_numpy(zero_copy_only=False)
        places = np.concatenate([np.flatnonzero(of_split == split) for split in splits])
        table = self._images.take(pa.array(places))
        return Images(
            table["image"].to_numpy(),
            table["name"].to_pylist(),
            self._features_ND[places],
            to_bool(table["classes"].to_pylist(), len(self.classes)),
            to_bool(table["ignored"].to_pylist(), len(self.classes)),
        )


def write(out: Path, store: ImageStore, features: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float32]]]) -> None:
    """Write a features artifact's files.

    Args:
        out: its folder.
        store: the data set.
        features: split -> rows and their features.
    """
    columns: dict[str, list[object]] = {name: [] for name in SCHEMA.names}
    for split, (rows, _) in features.items():
        columns["image"] += rows.tolist()
        columns["name"] += [store.name(int(row)) for row in rows]
        columns["split"] += [split] * len(rows)
        columns["classes"] += to_indices(store.labels(rows))
        columns["ignored"] += to_indices(store.ignored(rows))
    pq.write_table(pa.table(columns, schema=SCHEMA), out / "images.parquet")
    np.save(out / "features.npy", np.concatenate([part_ND for _, part_ND in features.values()]))
    names = {"classes": store.classes, "multi_label": store.multi_label}
    (out / "classes.json").write_text(json.dumps(names, sort_keys=True) + "\n", encoding="utf-8")


def to_indices(target_NC: NDArray[np.bool_]) -> list[list[int]]:
    """Class indices of each image, ascending."""
    return [np.flatnonzero(target_C).tolist() for target_C in target_NC]


def to_bool(indices: list[list[int]], classes: int) -> NDArray[np.bool_]:
    """Undo `to_indices`: bool (N, C)."""
    target_NC = np.zeros((len(indices), classes), dtype=bool)
    for target_C, found in zip(target_NC, indices, strict=True):
        target_C[found] = True
    return target_NC
