"""Images on their way into a store: in order, hashed once, proven, excluded with a reason, a few at a time."""

from __future__ import annotations

import io
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mls.config.datasets import FolderDataset
from mls.data.image_store import IGNORE
from mls.data.ingest import load_records, read_mask
from mls.data.listing import Entry, Listing
from mls.data.writer import Record
from mls.download.reader import Reader
from mls.runtime.errors import MlsError

COUNT = 40


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i in range(COUNT):
        Image.new("RGB", (30 + i, 20), (i, 0, 0)).save(tmp_path / f"{i:02d}.png")
    return tmp_path


def listing_of(*entries: Entry, **changes: Any) -> Listing:
    all_of_them = [Entry(f"{i:02d}.png", "train", [0], []) for i in range(COUNT)]
    return Listing(["a"], True, list(entries) or all_of_them, **changes)


def load(root: Path, listing: Listing, threads: int = 2, **config: Any) -> tuple[list[Record], list[dict[str, str]]]:
    excluded: list[dict[str, str]] = []
    dataset = FolderDataset(source="folder", **{"max_excluded": 1.0, **config})
    return list(load_records(listing, Reader(root), excluded, dataset, threads)), excluded


@pytest.mark.parametrize("threads", [1, 7])
def test_order_bytes_and_digest(root: Path, threads: int) -> None:
    reader = Reader(root)
    config = FolderDataset(source="folder")
    records = list(load_records(listing_of(), reader, [], config, threads))
    assert [record.name for record in records] == [f"{i:02d}.png" for i in range(COUNT)]
    assert all(record.data == (root / record.name).read_bytes() for record in records)
    assert [record.width for record in records] == [30 + i for i in range(COUNT)]
    hashed = Reader(root)
    for record in records:
        hashed.read(record.name)
    assert reader.digest() == hashed.digest()


def test_the_digest_is_of_the_sources_files_whatever_is_kept(root: Path) -> None:
    digests = []
    for options in ({}, {"short_side": 16}, {"format": "raw"}):
        reader = Reader(root)
        config = FolderDataset(source="folder", **options)
        records = list(load_records(listing_of(), reader, [], config, 2))
        digests.append((reader.digest(), sum(len(record.data) for record in records)))
    assert digests[0][0] == digests[1][0] == digests[2][0]
    assert digests[2][1] == sum(3 * 20 * (30 + i) for i in range(COUNT))
    assert len({size for _, size in digests}) == 3


def test_few_images_are_read_ahead(root: Path) -> None:
    """However slow the writer is, only a few images per thread are read ahead."""
    read: list[str] = []

    class Counting(Reader):
        def read(self, name: str) -> tuple[bytes, str]:
            read.append(name)
            return super().read(name)

    records = load_records(listing_of(), Counting(root), [], FolderDataset(source="folder"), 2)
    for done in range(1, 11):
        next(records)
        assert len(read) <= done + 4 * 2
    threads = threading.active_count()
    records.close()  # type: ignore[attr-defined]
    assert threading.active_count() < threads and len(read) < COUNT


def test_excluded_images_have_a_reason(root: Path) -> None:
    (root / "bad.png").write_bytes(b"nonsense")
    segmentation = {"size": [20, 30], "counts": [1, 2]}
    crowd = {"category_id": 1, "bbox": [0, 0, 1, 1], "area": 1, "iscrowd": 1, "segmentation": segmentation}
    listing = listing_of(
        Entry("00.png", "train", [0], [crowd], (30, 20)),
        Entry("01.png", "train", [0], [], (30, 20)),
        Entry("02.png", "train", [0], [], (32, 20)),
        Entry("bad.png", "train", [0], []),
    )
    records, excluded = load(root, listing, short_side=16)
    assert [(record.name, record.width, record.height) for record in records] == [("02.png", 26, 16)]
    assert [item["name"] for item in excluded] == ["00.png", "01.png", "bad.png"]
    assert excluded[0]["reason"] == "has an annotation that can't be shrunk: an RLE of 3 pixels, but the image has 600"
    assert excluded[1]["reason"] == "is 31 x 20 px, but its annotations are for 30 x 20"
    assert excluded[2]["reason"].startswith("does not decode: ")
    with pytest.raises(MlsError, match=r"max_excluded = 0\.5 of 4 images.*00\.png has an ann.*01\.png is 31.*bad"):
        load(root, listing, short_side=16, max_excluded=0.5)


def test_a_file_that_vanishes_is_an_error(root: Path) -> None:
    with pytest.raises(MlsError, match=r"gone\.png can't be read"):
        load(root, listing_of(Entry("gone.png", "train", [], [])))
    with pytest.raises(MlsError, match=r"labels\.png can't be read"):
        load(root, listing_of(Entry("00.png", "train", [], [], mask="labels.png"), values={0: 0}))


def test_label_files_become_masks(root: Path) -> None:
    ids_HW = np.full((20, 30), 9, dtype=np.uint8)
    ids_HW[5:, 3:] = 4
    ids_HW[:, 0] = 0
    Image.fromarray(ids_HW).save(root / "labels.png")
    listing = listing_of(Entry("00.png", "val", [], [], mask="labels.png"), values={0: IGNORE, 4: 1, 9: 0, 7: 2})
    for options, factor in (({}, 1), ({"format": "raw"}, 1), ({"short_side": 16}, 16 / 20)):
        (record,), excluded = load(root, listing, **options)
        assert record.classes == [0, 1] and record.mask and not excluded
        with Image.open(io.BytesIO(record.mask)) as image:
            assert image.mode == "L" and image.size == (record.width, record.height) == (30 * factor, 20 * factor)
            assert np.unique(np.asarray(image)).tolist() == [0, 1, IGNORE]


def test_a_label_file_that_claims_a_huge_size_is_not_decoded() -> None:
    """Its size is compared before memory is allocated."""
    buffer = io.BytesIO()
    Image.new("L", (2, 2)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = (9000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(MlsError, match=r"^it is 9000 x 9000 px, but the image is 2 x 2"):
        read_mask(bytes(data), (2, 2), {0: 0}, "it")
