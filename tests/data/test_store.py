"""The store gives back what was written, byte for byte, in any process."""

from __future__ import annotations

import io
import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mls.data.store import Record, Store, write_store
from mls.errors import MlsError


def png(width: int, height: int, seed: int, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def make_records() -> list[Record]:
    box = {"category_id": 2, "bbox": [1, 1, 3, 2], "area": 6, "iscrowd": 0, "segmentation": [[1, 1, 4, 1, 4, 3]]}
    return [
        Record("a.png", "train", png(8, 6, 0), 8, 6, [0, 1], [box, {**box, "category_id": 1}]),
        Record("b.png", "train", png(5, 7, 1), 5, 7, [], []),
        Record("c.png", "val", png(4, 4, 2), 4, 4, [1], [box]),
        Record("a2.png", "test", png(9, 3, 3), 9, 3, [0], [{**box, "category_id": 1, "iscrowd": 1}]),
    ]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    write_store(
        tmp_path,
        iter(make_records()),
        ["cat", "dog"],
        True,
        [{"name": "z", "reason": "r"}, {"name": "y", "reason": "r"}],
    )
    return Store(tmp_path)


def test_roundtrip(store: Store) -> None:
    assert len(store) == 4
    assert (store.classes, store.multi_label) == (["cat", "dog"], True)
    assert store.split("train").tolist() == [0, 1] and store.split("train").dtype == np.int64
    assert store.split("val").tolist() == [2] and store.split("test").tolist() == [3]
    assert store.labels([3, 0, 1]).tolist() == [[True, False], [True, True], [False, False]]
    for row, record in enumerate(make_records()):
        image = store.decode(row)
        expected = np.asarray(Image.open(io.BytesIO(record.data)))
        assert image.dtype == torch.uint8 and np.array_equal(image.permute(1, 2, 0).numpy(), expected)
        assert store.size(row) == (record.width, record.height) and store.name(row) == record.name


def test_files(store: Store) -> None:
    data = (store.path / "images.bin").read_bytes()
    index = pq.read_table(store.path / "index.parquet").to_pylist()
    for entry, record in zip(index, make_records(), strict=True):
        assert data[entry["offset"] : entry["offset"] + entry["length"]] == record.data
        assert entry["sha256"] == record.sha256
    assert [item["name"] for item in json.loads((store.path / "excluded.json").read_text())] == ["y", "z"]
    coco = json.loads((store.path / "annotations.json").read_text())
    assert [a["id"] for a in coco["annotations"]] == [1, 2, 3, 4]
    assert [a["image_id"] for a in coco["annotations"]] == [0, 0, 2, 3]
    assert coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert pq.read_table(store.path / "labels.parquet")["classes"].to_pylist() == [[0, 1], [], [1], [0]]


def test_ground_truth_holds_one_split(store: Store) -> None:
    truth = store.ground_truth("test")
    assert truth["images"] == [{"id": 3, "file_name": "a2.png", "width": 9, "height": 3}]
    assert [(a["id"], a["image_id"], a["iscrowd"]) for a in truth["annotations"]] == [(4, 3, 1)]
    with pytest.raises(ValueError, match="validation"):
        store.split("validation")


def test_two_makings_are_equal_bytes(store: Store, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_store(
        other, make_records(), ["cat", "dog"], True, [{"name": "y", "reason": "r"}, {"name": "z", "reason": "r"}]
    )
    names = ["annotations.json", "classes.json", "excluded.json", "images.bin", "index.parquet", "labels.parquet"]
    assert sorted(file.name for file in other.iterdir()) == names
    for name in names:
        assert (other / name).read_bytes() == (store.path / name).read_bytes(), name


def test_images_are_written_as_they_come(tmp_path: Path) -> None:
    """Only the index may wait in memory: each image's bytes must be on their way before the next is made."""
    flushed = []

    def records() -> object:
        for i in range(50):
            flushed.append((tmp_path / "images.bin").stat().st_size)
            yield Record(f"{i:02d}", "train", bytes(100_000), 1, 1, [], [])

    write_store(tmp_path, records(), ["a"], True, [])  # type: ignore[arg-type]
    assert all(size >= 100_000 * (i - 1) for i, size in enumerate(flushed))


def test_wrong_order_is_refused(tmp_path: Path) -> None:
    records = make_records()
    with pytest.raises(ValueError, match=r"train/a\.png comes after c\.png"):
        write_store(tmp_path, [records[2], records[0]], ["cat", "dog"], True, [])


def test_pickles_small_and_decodes_after(store: Store) -> None:
    before = store.decode(0)
    pickled = pickle.dumps(store)
    assert len(pickled) < 1000
    assert torch.equal(pickle.loads(pickled).decode(0), before)


def test_mapping_warns_of_nothing(store: Store) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # torchvision's decoders
        store.decode(0)


@pytest.mark.parametrize("bad", [b"nonsense", png(8, 8, 0)[:60]])
def test_decoding_error_names_the_image(tmp_path: Path, bad: bytes) -> None:
    write_store(tmp_path, [Record("photos/bad.png", "train", bad, 8, 8, [], [])], ["a"], True, [])
    with pytest.raises(MlsError, match=r"^photos/bad\.png does not decode: (?!.*\.cpp)"):
        Store(tmp_path).decode(0)


def test_grey_sixteen_bit_and_rotated_images_become_rgb(tmp_path: Path) -> None:
    grey16, rotated = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.full((4, 6), 0x8012, dtype=np.uint16)).save(grey16, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    Image.new("RGB", (6, 4)).save(rotated, "JPEG", exif=exif)
    images = {"a": grey16.getvalue(), "b": rotated.getvalue(), "c": png(6, 4, 0, "RGBA")}
    write_store(tmp_path, [Record(k, "train", v, 1, 1, [], []) for k, v in images.items()], ["a"], True, [])
    store = Store(tmp_path)
    assert store.decode(0).shape == (3, 4, 6) and store.decode(0).unique().tolist() == [0x80]
    assert store.decode(1).shape == (3, 6, 4)
    assert store.decode(2).shape == (3, 4, 6)
