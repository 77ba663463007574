"""The store gives back what was written, byte for byte, in any process."""

from __future__ import annotations

import io
import json
import pickle
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mls.data.image_store import ImageStore
from mls.data.writer import Record, encode_mask, write_store
from mls.runtime.errors import MlsError


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
def store(tmp_path: Path) -> ImageStore:
    write_store(
        tmp_path,
        iter(make_records()),
        ["cat", "dog"],
        True,
        [{"name": "z", "reason": "r"}, {"name": "y", "reason": "r"}],
    )
    return ImageStore(tmp_path)


def test_a_store_returns_what_was_written(store: ImageStore) -> None:
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


def test_the_files_of_a_store(store: ImageStore) -> None:
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


def test_ground_truth_holds_one_split(store: ImageStore) -> None:
    truth = store.ground_truth("test")
    assert truth["images"] == [{"id": 3, "file_name": "a2.png", "width": 9, "height": 3}]
    assert [(a["id"], a["image_id"], a["iscrowd"]) for a in truth["annotations"]] == [(4, 3, 1)]
    with pytest.raises(ValueError, match="validation"):
        store.split("validation")


def test_writing_twice_gives_the_same_bytes(store: ImageStore, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_store(
        other, make_records(), ["cat", "dog"], True, [{"name": "y", "reason": "r"}, {"name": "z", "reason": "r"}]
    )
    names = ["annotations.json", "classes.json", "excluded.json", "images.bin", "index.parquet", "labels.parquet"]
    assert sorted(file.name for file in other.iterdir()) == names
    for name in names:
        assert (other / name).read_bytes() == (store.path / name).read_bytes(), name


def test_unlabeled_images_come_last_and_have_no_annotations(tmp_path: Path) -> None:
    extra = Record("0.png", "unlabeled", png(6, 4, 7), 6, 4, [], [])
    write_store(tmp_path, [*make_records(), extra], ["cat", "dog"], True, [])
    store = ImageStore(tmp_path)
    assert store.split("unlabeled").tolist() == [4] and store.split("test").tolist() == [3]
    assert store.labels([4]).tolist() == [[False, False]] and store.decode(4).shape == (3, 4, 6)
    assert store.ground_truth("unlabeled")["images"] == [{"id": 4, "file_name": "0.png", "width": 6, "height": 4}]
    changes: list[dict[str, Any]] = [{"classes": [0]}, {"annotations": [{"bbox": [0, 0, 1, 1]}]}, {"mask": b"x"}]
    for change in changes:
        with pytest.raises(ValueError, match=r"0\.png is unlabeled, but has"):
            write_store(tmp_path, [replace(extra, **change)], ["cat"], True, [])


def test_a_missing_split_is_empty(store: ImageStore) -> None:
    assert store.split("unlabeled").tolist() == [] and store.split("unlabeled").dtype == np.int64


def test_masks_are_stored_for_the_images_that_have_one(tmp_path: Path) -> None:
    """The other files do not change with them."""
    masks = {1: np.arange(35, dtype=np.uint8).reshape(7, 5), 3: np.full((3, 9), 255, dtype=np.uint8)}
    records = [replace(r, mask=encode_mask(masks[i]) if i in masks else None) for i, r in enumerate(make_records())]
    write_store(tmp_path, records, ["cat", "dog"], True, [])
    store = ImageStore(tmp_path)
    assert store.has_masks
    for row, mask_HW in masks.items():
        found_HW = store.mask(row)
        assert found_HW.dtype == torch.uint8 and np.array_equal(found_HW.numpy(), mask_HW)
    for row, name in ((0, "a"), (2, "c")):
        with pytest.raises(MlsError, match=rf"^{name}\.png has no mask in .*; masks: 2 of 4 images"):
            store.mask(row)
    without = tmp_path / "without"
    without.mkdir()
    write_store(without, make_records(), ["cat", "dog"], True, [])
    for file in without.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name
    assert torch.equal(pickle.loads(pickle.dumps(store)).mask(1), store.mask(1))
    with (tmp_path / "masks.bin").open("r+b") as damaged:
        damaged.write(bytes(30))
    with pytest.raises(MlsError, match=r"^b\.png: its mask in .*masks\.bin does not decode .*make it again"):
        store.mask(1)


def test_a_store_without_masks_says_so(store: ImageStore) -> None:
    assert not store.has_masks
    with pytest.raises(MlsError, match=r"^a\.png has no mask in .*; masks: 0 of 4 images"):
        store.mask(0)


def test_a_raw_store_returns_views_of_its_file(tmp_path: Path) -> None:
    """Its pixels are views of the file, in the memory layout of a decoded JPEG."""
    files = make_records()
    raw = [replace(r, data=np.asarray(Image.open(io.BytesIO(r.data))).tobytes(), sha256="") for r in files]
    write_store(tmp_path, raw, ["cat", "dog"], True, [], "raw")
    assert json.loads((tmp_path / "store.json").read_text()) == {"format": "raw"}
    assert (tmp_path / "images.bin").stat().st_size == sum(3 * r.width * r.height for r in files)
    store = ImageStore(tmp_path)
    whole = store.decode(0).untyped_storage().data_ptr()
    for row, record in enumerate(files):
        image_CHW = store.decode(row)
        assert np.array_equal(image_CHW.permute(1, 2, 0).numpy(), np.asarray(Image.open(io.BytesIO(record.data))))
        assert image_CHW.untyped_storage().data_ptr() == whole, "nothing is copied"
        assert image_CHW.permute(1, 2, 0).is_contiguous()
    assert torch.equal(pickle.loads(pickle.dumps(store)).decode(2), store.decode(2))


def test_raw_pixels_must_fit_the_size(tmp_path: Path) -> None:
    record = Record("a.png", "train", bytes(3 * 4 * 5), 4, 5, [], [])
    for wrong in (replace(record, data=bytes(59)), replace(record, width=5), replace(record, data=png(4, 5, 0))):
        with pytest.raises(ValueError, match=r"a\.png: \d+ bytes are not \d x 5 raw pixels"):
            write_store(tmp_path, [wrong], ["a"], True, [], "raw")
    write_store(tmp_path, [record], ["a"], True, [], "raw")
    table = pq.read_table(tmp_path / "index.parquet")
    pq.write_table(table.set_column(1, table.schema.field(1), [[57]]), tmp_path / "index.parquet")
    with pytest.raises(MlsError, match=r"^a\.png: .* holds 57 bytes of it, and 4 x 5 raw pixels are 60; "):
        ImageStore(tmp_path).decode(0)


def test_a_raw_store_cut_short_is_an_error(tmp_path: Path) -> None:
    write_store(tmp_path, [Record("a.png", "train", bytes(60), 4, 5, [], [])], ["a"], True, [], "raw")
    (tmp_path / "images.bin").write_bytes(bytes(50))
    with pytest.raises(MlsError, match="holds 50 bytes of it"):
        ImageStore(tmp_path).decode(0)


def test_images_are_written_one_by_one(tmp_path: Path) -> None:
    """Only the index is held in memory: each image's bytes are written before the next record is made."""
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


def test_a_store_pickles_as_its_path(store: ImageStore) -> None:
    before = store.decode(0)
    pickled = pickle.dumps(store)
    assert len(pickled) < 1000
    assert torch.equal(pickle.loads(pickled).decode(0), before)


def test_mapping_shows_no_warning(store: ImageStore) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # torchvision's decoders
        store.decode(0)


@pytest.mark.parametrize("bad", [b"nonsense", png(8, 8, 0)[:60]])
def test_decoding_error_names_the_image(tmp_path: Path, bad: bytes) -> None:
    write_store(tmp_path, [Record("photos/bad.png", "train", bad, 8, 8, [], [])], ["a"], True, [])
    with pytest.raises(MlsError, match=r"^photos/bad\.png does not decode: (?!.*\.cpp)"):
        ImageStore(tmp_path).decode(0)


def test_grey_sixteen_bit_and_rotated_images_become_rgb(tmp_path: Path) -> None:
    grey16, rotated = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.full((4, 6), 0x8012, dtype=np.uint16)).save(grey16, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    Image.new("RGB", (6, 4)).save(rotated, "JPEG", exif=exif)
    images = {"a": grey16.getvalue(), "b": rotated.getvalue(), "c": png(6, 4, 0, "RGBA")}
    write_store(tmp_path, [Record(k, "train", v, 1, 1, [], []) for k, v in images.items()], ["a"], True, [])
    store = ImageStore(tmp_path)
    assert store.decode(0).shape == (3, 4, 6) and store.decode(0).unique().tolist() == [0x80]
    assert store.decode(1).shape == (3, 6, 4)
    assert store.decode(2).shape == (3, 4, 6)
