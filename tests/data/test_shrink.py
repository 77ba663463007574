"""Shrunk and raw images show what the source shows, and annotations and masks go with them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from mls.config.datasets import ScenesDataset
from mls.data import scenes
from mls.data.check import check_artifact
from mls.data.decode import decode
from mls.data.image_store import Format, ImageStore, decode_mask
from mls.data.masks import run_lengths
from mls.data.shrink import resize_nearest, shrunk_annotation, shrunk_size, transcode
from mls.data.writer import Record, encode_mask, write_store
from mls.runtime.errors import MlsError


def picture(width: int, height: int, kind: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    """A smooth picture with an edge."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([255 * x / width, 255 * y / height, 255 * (x > y)], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture(60, 40, exif=exif)


def decoded(data: bytes) -> Tensor:
    return decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), "it")


def record(data: bytes, *annotations: dict[str, Any], mask: bytes | None = None, name: str = "a.jpg") -> Record:
    _, height, width = decoded(data).shape
    return Record(name, "train", data, width, height, [0], list(annotations), mask=mask)


def kept(record: Record, short_side: int | None, format: Format) -> Record:
    return transcode(record, decoded(record.data), short_side, format)


FILES: dict[str, bytes] = {
    "JPEG": picture(60, 40),
    "PNG": picture(60, 40, "PNG"),
    "grey JPEG": picture(60, 40, mode="L"),
    "palette PNG": picture(60, 40, "PNG", "P"),
    "alpha": picture(60, 40, "PNG", "RGBA"),
    "CMYK": picture(60, 40, mode="CMYK"),
    "turned by EXIF": turned(),
    "one pixel": picture(1, 1),
}


@pytest.mark.parametrize("kind", FILES)
def test_raw_pixels_are_those_of_the_decoder(kind: str, tmp_path: Path) -> None:
    raw = kept(record(FILES[kind]), None, "raw")
    write_store(tmp_path, [raw], ["a"], True, [], "raw")
    image_CHW = ImageStore(tmp_path).decode(0)
    assert torch.equal(image_CHW, decoded(FILES[kind]))
    assert image_CHW.dtype == torch.uint8 and image_CHW.permute(1, 2, 0).is_contiguous()
    assert raw.sha256 != record(FILES[kind]).sha256 and (tmp_path / "images.bin").read_bytes() == raw.data


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind != "one pixel"])
def test_shrunk_pixels_are_torchvisions(kind: str) -> None:
    expected_CHW = resize(decoded(FILES[kind]), [24, 36] if kind != "turned by EXIF" else [36, 24], antialias=True)
    raw = kept(record(FILES[kind]), 24, "raw")
    assert raw.data == expected_CHW.permute(1, 2, 0).contiguous().numpy().tobytes()
    assert (raw.height, raw.width) == expected_CHW.shape[1:]
    jpeg = kept(record(FILES[kind]), 24, "jpeg")
    assert jpeg.data == kept(record(FILES[kind]), 24, "jpeg").data and jpeg.data.startswith(b"\xff\xd8")
    with Image.open(io.BytesIO(jpeg.data)) as image:
        assert image.size == (jpeg.width, jpeg.height) == (raw.width, raw.height)
        assert not image.getexif(), "or it would be turned twice"
    assert (decoded(jpeg.data).float() - expected_CHW.float()).abs().mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "turned by EXIF"])
def test_what_is_small_enough_keeps_its_bytes(kind: str) -> None:
    given = record(FILES[kind])
    for short_side in (None, 40, 4000):
        assert kept(given, short_side, "jpeg") is given
    assert kept(given, 4000, "raw").data == kept(given, None, "raw").data
    assert kept(given, 39, "jpeg").data != given.data


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((640, 480), 256, (341, 256)),  # 341.33
        ((480, 640), 256, (256, 341)),
        ((500, 375), 128, (171, 128)),  # 170.67
        ((300, 300), 16, (16, 16)),
        ((300, 300), None, (300, 300)),
        ((17, 4000), 16, (16, 3765)),
        ((16, 4000), 16, (16, 4000)),
    ],
)
def test_sizes(size: tuple[int, int], short_side: int | None, expected: tuple[int, int]) -> None:
    assert shrunk_size(size, short_side) == expected


def test_boxes_areas_and_polygons_scale() -> None:
    item = {
        "category_id": 3,
        "bbox": [10, 20, 30, 5],
        "area": 150,
        "iscrowd": 0,
        "difficult": 1,
        "segmentation": [[10, 20, 40, 20, 40.5, 25], []],
    }
    new = shrunk_annotation(item, (100, 50), (50, 20), "a.jpg")
    assert new == {
        **item,
        "bbox": [5, 8, 15, 2],
        "area": 30,
        "segmentation": [[5, 8, 20, 8, 20.25, 10], []],
    }
    assert item["bbox"] == [10, 20, 30, 5], "the given one stays"


def rle_of(mask_HW: np.ndarray[Any, Any], compressed: bool) -> dict[str, Any]:
    code = rle.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    text = code["counts"].decode()
    return {"size": list(mask_HW.shape), "counts": text if compressed else run_lengths(text)}


@pytest.mark.parametrize("compressed", [True, False])
def test_rles_scale_by_the_nearest_pixel(compressed: bool) -> None:
    mask_HW = np.zeros((40, 60), dtype=np.uint8)
    mask_HW[8:20, 30:60] = 1
    item = {"category_id": 1, "bbox": [30, 8, 30, 12], "area": 360, "iscrowd": 1}
    new = shrunk_annotation({**item, "segmentation": rle_of(mask_HW, compressed)}, (60, 40), (30, 20), "a.jpg")
    assert new["segmentation"]["size"] == [20, 30] and isinstance(new["segmentation"]["counts"], str)
    small_HW = rle.decode({**new["segmentation"], "counts": new["segmentation"]["counts"].encode()})
    assert np.array_equal(small_HW, mask_HW[1::2, 1::2])
    assert new["bbox"] == [15, 4, 15, 6] and new["area"] == small_HW.sum() == 90 and new["iscrowd"] == 1


BAD_RLES: dict[str, Any] = {
    "too short": {"size": [40, 60], "counts": [10, 20]},
    "too long": {"size": [40, 60], "counts": [0, 40 * 60 + 1]},
    "below zero": {"size": [40, 60], "counts": [40 * 60 + 1, -1]},
    "compressed, too short": {**rle_of(np.ones((40, 5)), True), "size": [40, 60]},
    "compressed, too long": {**rle_of(np.ones((40, 61)), True), "size": [40, 60]},
    "compressed, empty": {"size": [40, 60], "counts": ""},
    "compressed, cut": {"size": [40, 60], "counts": "o"},
    "nonsense": {"size": [40, 60], "counts": "ü"},
    "another size": rle_of(np.ones((60, 40)), True),
}


@pytest.mark.parametrize("kind", BAD_RLES)
def test_an_rle_of_another_image_is_named(kind: str) -> None:
    item = {"category_id": 1, "bbox": [0, 0, 9, 9], "area": 1, "iscrowd": 1, "segmentation": BAD_RLES[kind]}
    with pytest.raises(MlsError, match=r"^a\.jpg has an annotation that can't be shrunk: an RLE (of|that|with)"):
        kept(record(FILES["JPEG"], item), 20, "jpeg")
    assert kept(record(FILES["JPEG"], item), None, "raw").annotations == [item], (
        "an image that keeps its size keeps its annotations unread"
    )


def test_run_lengths_are_pycocotools() -> None:
    rng = np.random.default_rng(0)
    for share in (0.0, 0.001, 0.1, 0.5, 0.999, 1.0):
        mask_HW = (rng.random((70, 90)) < share).astype(np.uint8)
        mask_HW[0, 0] = share > 0.5
        runs = rle_of(mask_HW, compressed=False)
        again = rle.frPyObjects(runs, 70, 90)
        assert sum(runs["counts"]) == 70 * 90 and np.array_equal(rle.decode(again), mask_HW)


def test_masks_take_the_nearest_pixel() -> None:
    mask_HW = np.arange(40 * 60, dtype=np.int64).reshape(40, 60) % 19
    mask_HW[:, :7] = 255
    mask = mask_HW.astype(np.uint8)
    new = kept(record(FILES["JPEG"], mask=encode_mask(mask)), 20, "jpeg")
    assert new.mask and np.array_equal(decode_mask(new.mask), mask[1::2, 1::2])
    assert np.array_equal(resize_nearest(mask, (90, 60))[::3, ::3], mask[::2, ::2]), (
        "a third of the way, whole pixels agree"
    )
    assert resize_nearest(mask, (60, 40)) is not mask and np.array_equal(resize_nearest(mask, (60, 40)), mask)


@pytest.mark.parametrize("format", ["jpeg", "raw"])
def test_shrunk_scenes_are_clean(format: Format, tmp_path: Path) -> None:
    config = ScenesDataset(source="scenes", train=24, val=8, test=8, size=96)
    drawn = list(scenes.records(config))
    shrunk = [kept(one, 48, format) for one in drawn]
    write_store(tmp_path, shrunk, scenes.CLASSES, True, [], format)
    report = check_artifact(tmp_path, "scenes")
    assert report.contradictions == [] and report.sizes_23.tolist() == [[48] * 3] * 2
    store = ImageStore(tmp_path)
    assert store.decode(39).shape == (3, 48, 48)
    for old, new in zip(drawn, shrunk, strict=True):
        for before, after in zip(old.annotations, new.annotations, strict=True):
            code = {**after["segmentation"], "counts": after["segmentation"]["counts"].encode()}
            assert after["area"] == pytest.approx(before["area"] / 4, abs=1e-3)
            assert abs(int(rle.area(code)) - after["area"]) < 0.25 * after["area"] + 4
    assert (tmp_path / "store.json").exists() == (format == "raw")


def test_duplicates_are_found_in_a_raw_store(tmp_path: Path) -> None:
    same = [record(FILES["PNG"], name=name) for name in ("a.png", "b.png")]
    same[1].split = "test"
    write_store(tmp_path, [kept(one, 24, "raw") for one in same], ["a"], True, [], "raw")
    assert [finding.what for finding in check_artifact(tmp_path, "x").contradictions] == [
        "images of test that are also in train, byte for byte"
    ]
    assert json.loads((tmp_path / "store.json").read_text()) == {"format": "raw"}
