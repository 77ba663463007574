"""Cityscapes: official names, splits and label ids; any other file is an error that names it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mls.config.datasets import CityscapesDataset
from mls.data.cityscapes import label_ids, read_listing
from mls.data.image_store import ImageStore
from mls.data.ingest import load_records
from mls.data.listing import Listing
from mls.data.writer import Record, write_store
from mls.download.reader import Reader
from mls.runtime.errors import MlsError

FRAMES = {
    "train": ["aachen/aachen_000000_000019", "aachen/aachen_000001_000019", "zurich/zurich_000000_000019"],
    "val": ["lindau/lindau_000000_000019"],
    "test": ["berlin/berlin_000000_000019"],
}
W, H = 8, 4
SECOND = FRAMES["train"][1]


def save(path: Path, pixels: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def labels_of(root: Path, frame: str, split: str = "train") -> Path:
    return root / "gtFine" / split / f"{frame}_gtFine_labelIds.png"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small official tree: road above, a different label id per image below, two pixels of the car's bonnet."""
    number = 7
    for split, frames in FRAMES.items():
        for frame in frames:
            save(tmp_path / "leftImg8bit" / split / f"{frame}_leftImg8bit.png", np.full((H, W, 3), number, np.uint8))
            ids = np.full((H, W), 7, dtype=np.uint8)
            ids[2:] = number
            ids[3, :2] = 1
            save(labels_of(tmp_path, frame, split), ids)
            save(tmp_path / "gtFine" / split / f"{frame}_gtFine_instanceIds.png", ids.astype(np.uint16) * 1000)
            number += 1
    return tmp_path


def listed(root: Path, **config: Any) -> Listing:
    return read_listing(CityscapesDataset(source="cityscapes", **config), Reader(root))


def loaded(root: Path, **config: Any) -> tuple[list[Record], list[dict[str, str]]]:
    excluded: list[dict[str, str]] = []
    dataset = CityscapesDataset(source="cityscapes", **{"max_excluded": 1.0, **config})
    reader = Reader(root)
    return list(load_records(read_listing(dataset, reader), reader, excluded, dataset, 2)), excluded


def test_official_classes() -> None:
    """Order and label ids as in cityscapesscripts' labels.py, by train id 0 to 18."""
    assert list(label_ids().values()) == [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert list(label_ids()).index("person") == 11 and list(label_ids()).index("train") == 16


def test_official_val_becomes_test(root: Path) -> None:
    listing = listed(root, val_share=0.3, seed=1)
    by_split: dict[str, list[str]] = {}
    for entry in listing.entries:
        by_split.setdefault(entry.split, []).append(entry.name)
    assert {split: len(names) for split, names in by_split.items()} == {"train": 2, "val": 1, "test": 1}
    assert by_split["test"] == ["leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png"]
    assert not any("berlin" in entry.name for entry in listing.entries), "official test has no labels"
    assert listing.multi_label and len(listing.classes) == 19
    assert len({tuple(e.name for e in listed(root, seed=s).entries if e.split == "val") for s in range(9)}) > 1


def test_masks_are_stored_as_class_indices(root: Path, tmp_path: Path) -> None:
    records, excluded = loaded(root)
    out = tmp_path / "store"
    out.mkdir()
    write_store(out, records, list(label_ids()), True, excluded)
    store = ImageStore(out)
    assert store.has_masks and len(store) == 4 and not excluded
    rows = {store.name(row).split("/")[-1].removesuffix("_leftImg8bit.png"): row for row in range(4)}
    # below: 7 road, 8 sidewalk, 9 parking (no class), 10 rail track (no class)
    for frame, classes in (
        ("aachen_000000_000019", [0]),
        ("aachen_000001_000019", [0, 1]),
        ("zurich_000000_000019", [0]),
    ):
        assert np.flatnonzero(store.labels([rows[frame]])[0]).tolist() == classes
    mask_HW = store.mask(rows["aachen_000001_000019"]).numpy()
    assert mask_HW.dtype == np.uint8 and mask_HW.shape == (H, W)
    assert mask_HW.tolist() == [[0] * W, [0] * W, [1] * W, [255] * 2 + [1] * (W - 2)]
    assert store.mask(rows["zurich_000000_000019"])[2:].unique().tolist() == [255]


def test_label_files_count_into_the_digest(root: Path) -> None:
    """Also if their image is excluded: `mls data pin` hashes everything that is listed."""
    (root / f"leftImg8bit/train/{SECOND}_leftImg8bit.png").write_bytes(b"nonsense")
    config = CityscapesDataset(source="cityscapes", max_excluded=1.0)
    reader, pinned = Reader(root), Reader(root)
    listing = read_listing(config, reader)
    assert len(list(load_records(listing, reader, [], config, 2))) == 3
    for entry in listing.entries:
        assert entry.mask
        pinned.read(entry.name)
        pinned.read(entry.mask)
    assert reader.digest() == pinned.digest() and reader.digest()["files"] == 8


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


GOOD = png(np.full((H, W), 7, dtype=np.uint8))
BAD_LABELS: dict[str, tuple[bytes, str]] = {
    "RGB": (png(np.zeros((H, W, 3), dtype=np.uint8)), "is not 8-bit grey (its mode is RGB)"),
    "16 bits": (png(np.zeros((H, W), dtype=np.uint16)), "is not 8-bit grey (its mode is I;16)"),
    "1 bit": (png(np.zeros((H, W), dtype=bool)), "is not 8-bit grey (its mode is 1)"),
    "another size": (png(np.zeros((W, H), dtype=np.uint8)), "is 4 x 8 px, but the image is 8 x 4"),
    "another id": (
        png(np.array([[7] * W] * (H - 1) + [[34, 255] + [7] * (W - 2)], np.uint8)),
        "holds 34, 255, which no",
    ),
    "empty": (b"", "is no PNG, or damaged"),
    "cut short": (GOOD[:-20], "is no PNG, or damaged"),
    "bits changed": (GOOD[:45] + bytes([GOOD[45] ^ 1]) + GOOD[46:], "is no PNG, or damaged"),
    "a picture": (b"GIF89a" + bytes(20), "is no PNG, or damaged"),
}


@pytest.mark.parametrize("kind", BAD_LABELS)
def test_an_unusable_label_file_excludes_its_image(root: Path, kind: str) -> None:
    data, reason = BAD_LABELS[kind]
    labels_of(root, SECOND).write_bytes(data)
    records, excluded = loaded(root)
    assert len(records) == 3
    (item,) = excluded
    assert item["name"] == f"leftImg8bit/train/{SECOND}_leftImg8bit.png"
    assert item["reason"].startswith(f"has a label file, gtFine/train/{SECOND}_gtFine_labelIds.png, that {reason}")
    with pytest.raises(MlsError, match=r"max_excluded = 0\.01 of 4 images"):
        loaded(root, max_excluded=0.01)


def test_every_official_id_is_known(root: Path) -> None:
    labels_of(root, SECOND).write_bytes(png(np.arange(34, dtype=np.uint8).clip(max=33)[: H * W].reshape(H, W)))
    (record,) = [record for record in loaded(root)[0] if SECOND in record.name]
    assert record.classes == [i for i, value in enumerate(label_ids().values()) if value < H * W]


def test_files_that_do_not_pair_are_named(root: Path) -> None:
    labels_of(root, SECOND).unlink()
    with pytest.raises(
        MlsError, match=rf"gtFine/train/{SECOND}_gtFine_labelIds\.png is missing; is the data set compl"
    ):
        listed(root)
    (root / f"leftImg8bit/train/{FRAMES['train'][2]}_leftImg8bit.png").unlink()
    with pytest.raises(
        MlsError, match=rf"{SECOND}_gtFine_labelIds\.png is missing, and 1 more; is the data set complete"
    ):
        listed(root)


@pytest.mark.parametrize(
    "name",
    ["aachen/aachen_000000_leftImg8bit.png", "aachen/zurich_000000_000019_leftImg8bit.png", "aachen/_leftImg8bit.png"],
)
def test_other_names_are_refused(root: Path, name: str) -> None:
    (root / "leftImg8bit/train" / name).write_bytes(b"")
    with pytest.raises(MlsError, match=r"is not named <city>_<sequence>_<frame>_leftImg8bit\.png"):
        listed(root)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_split_is_named(root: Path, split: str) -> None:
    (root / "leftImg8bit" / split).rename(root / "elsewhere")
    with pytest.raises(
        MlsError, match=rf"{split} holds no <city>/\*_leftImg8bit\.png; unpack leftImg8bit_trainvaltest\.zip"
    ):
        listed(root)


def test_one_train_image_is_too_few(root: Path) -> None:
    for frame in FRAMES["train"][1:]:
        labels_of(root, frame).unlink()
        (root / f"leftImg8bit/train/{frame}_leftImg8bit.png").unlink()
    with pytest.raises(MlsError, match="train needs two images"):
        listed(root)


def test_masks_shrink_with_their_images(root: Path) -> None:
    """Two pixels by two become one; the labels stay those of the whole mask."""
    for name in (f"leftImg8bit/train/{SECOND}_leftImg8bit.png", f"gtFine/train/{SECOND}_gtFine_labelIds.png"):
        with Image.open(root / name) as image:
            image.resize((16 * W, 16 * H), Image.Resampling.NEAREST).save(root / name)
    (record,) = [record for record in loaded(root, short_side=2 * 16)[0] if SECOND in record.name]
    assert (record.width, record.height) == (4 * 16, 2 * 16) and record.mask
    with Image.open(io.BytesIO(record.mask)) as image:
        mask_HW = np.asarray(image)
    assert mask_HW.shape == (32, 64) and mask_HW[::8, ::8].tolist() == [[0] * 8, [0] * 8, [1] * 8, [255] * 2 + [1] * 6]
    assert record.classes == [0, 1]
