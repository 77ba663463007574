"""The class of each pixel: as stored, or drawn from instances."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mls.data.image_store import IGNORE, ImageStore
from mls.data.writer import Record, encode_mask
from mls.runtime.errors import MlsError
from mls.transfer.index_masks import IndexMasks
from tests.transfer.semantic_support import CLASSES as MASKED
from tests.transfer.semantic_support import masked_record, painted, write_masked
from tests.transfer.support import CLASSES, make_record, write_records

BACKGROUND = len(CLASSES)


def boxes_record(*boxes: tuple[int, int, int, int, int, bool], split: str = "test") -> Record:
    """A grey image of 20 x 10 pixels with rectangles: category, x, y, width, height, crowd."""
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (90, 90, 90)).save(buffer, "PNG")
    annotations: list[dict[str, Any]] = []
    for category, x, y, w, h, crowd in boxes:
        corners = [float(v) for v in (x, y, x + w, y, x + w, y + h, x, y + h)]
        shape: Any = [corners]
        if crowd:  # COCO's: run lengths, not compressed, down the columns
            mask_HW = np.zeros((10, 20), dtype=np.uint8)
            mask_HW[y : y + h, x : x + w] = 1
            flat = mask_HW.flatten(order="F")
            ends = [*(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
            counts = np.diff([0, *ends]).tolist()
            shape = {"size": [10, 20], "counts": counts if flat[0] == 0 else [0, *counts]}
        annotations.append(
            {
                "category_id": category,
                "bbox": [float(v) for v in (x, y, w, h)],
                "area": float(w * h),
                "iscrowd": int(crowd),
                "segmentation": shape,
            }
        )
    return Record(split, split, buffer.getvalue(), 20, 10, sorted({a[0] - 1 for a in boxes}), annotations)


def test_stored_masks_are_used_unchanged(tmp_path: Path) -> None:
    masks = [painted(i) for i in range(3)]
    records = [masked_record("train", masks[i], with_mask=i != 1) for i in range(3)]
    store = write_masked(tmp_path / "data", [*records, masked_record("test", masks[0])])
    found = IndexMasks(store, "train")
    assert found.rows == [0, 2] and len(found) == 2  # an image without a mask is left out
    assert found.classes == MASKED
    for row in found.rows:
        assert found.of(row).dtype == torch.uint8
        assert np.array_equal(found.of(row).numpy(), masks[row])
    assert IndexMasks(store, "train+test").rows == [0, 2, 3]


def test_smaller_instances_lie_on_top_and_crowds_hide_all(tmp_path: Path) -> None:
    small, large, crowd = (2, 3, 2, 4, 3, False), (1, 1, 1, 10, 6, False), (3, 5, 0, 12, 3, True)
    expected = np.full((10, 20), BACKGROUND, dtype=np.uint8)
    expected[1:7, 1:11] = 0
    expected[2:5, 3:7] = 1
    expected[0:3, 5:17] = IGNORE
    for number, order in enumerate(([small, large, crowd], [crowd, large, small])):
        store = write_records(tmp_path / f"{number}", [boxes_record(*order)])
        masks = IndexMasks(store, "test")
        assert masks.classes == [*CLASSES, "background"]
        assert np.array_equal(masks.of(0).numpy(), expected)


def test_images_without_instances_are_background(store: ImageStore) -> None:
    masks = IndexMasks(store, "train")
    assert masks.rows == list(range(9))
    assert torch.equal(masks.of(7), torch.full((40, 40), BACKGROUND, dtype=torch.uint8))
    only_crowd = masks.of(8)
    assert set(only_crowd.unique().tolist()) == {BACKGROUND, IGNORE}
    of_rows = IndexMasks(store, "train+test")
    assert of_rows.rows == list(range(14))
    assert set(of_rows.of(9).unique().tolist()) - {BACKGROUND} <= set(range(len(CLASSES)))


def test_empty_split_is_an_error(tmp_path: Path, store: ImageStore) -> None:
    with pytest.raises(MlsError, match="split 'val' of this dataset is empty"):
        IndexMasks(store, "val")
    masked = write_masked(tmp_path / "masked", [masked_record("train", painted(0))])
    with pytest.raises(MlsError, match="split 'test' of this dataset is empty"):
        IndexMasks(masked, "test")
    assert IndexMasks(masked, "train+val").rows == [0]


def test_no_masks_at_all_is_an_error(tmp_path: Path) -> None:
    records = [make_record("train", 0), make_record("test", 1), make_record("test", 2, instances=0)]
    for annotation in records[1].annotations:
        annotation["segmentation"] = []
    store = write_records(tmp_path / "boxes", records)
    assert len(IndexMasks(store, "train")) == 1
    with pytest.raises(MlsError, match=r"split 'test' of this dataset holds no masks; .* needs index masks, or inst"):
        IndexMasks(store, "test")
    unmasked = [masked_record("train", painted(0)), masked_record("test", painted(1), with_mask=False)]
    with pytest.raises(MlsError, match="split 'test' of this dataset holds no masks"):
        IndexMasks(write_masked(tmp_path / "masked", unmasked), "test")


def test_mask_of_another_size_is_an_error(tmp_path: Path) -> None:
    record = masked_record("train", painted(0))
    record.mask = encode_mask(painted(0, 40, 48))
    masks = IndexMasks(write_masked(tmp_path / "data", [record]), "train")
    with pytest.raises(MlsError, match=r"0000\.png: its mask has 40 x 48 pixels, but the image has 48 x 32; correct"):
        masks.of(0)


def test_unknown_class_is_an_error(tmp_path: Path) -> None:
    wrong = painted(0)
    wrong[3, 4] = 9
    record = masked_record("train", painted(0))
    record.mask = encode_mask(wrong)
    masks = IndexMasks(write_masked(tmp_path / "data", [record]), "train")
    with pytest.raises(MlsError, match=r"0000\.png: its mask holds class 9, but classes are 0 to 3; correct"):
        masks.of(0)


def test_too_many_classes_are_an_error(store: ImageStore) -> None:
    store.classes = [f"{number}" for number in range(255)]  # and background
    with pytest.raises(MlsError, match="256 classes do not fit into index masks"):
        IndexMasks(store, "train")
