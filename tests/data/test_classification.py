"""The seven single-label sets: splits, labels, and what is missing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mls.config import catalog
from mls.data.classification import CLASSES, read_listing
from mls.download.reader import Reader
from mls.runtime.errors import MlsError
from tests.data.classification_support import (
    MAKERS,
    config_of,
    labels,
    make_cub200,
    make_dtd,
    make_flowers102,
    make_pets,
    read,
)

pytestmark = pytest.mark.usefixtures("any_flowers")


@pytest.mark.parametrize(
    ("source", "counts"),
    [
        ("flowers102", {"train": 2, "val": 2, "test": 3}),
        ("pets", {"train": 33, "val": 4, "test": 37}),
        ("dtd", {"train": 47, "val": 47, "test": 47}),
        ("aircraft", {"train": 2, "val": 2, "test": 2}),
        ("cars", {"train": 3, "val": 1, "test": 4}),
        ("cub200", {"train": 2, "val": 1, "test": 1}),
        ("indoor67", {"train": 60, "val": 7, "test": 67}),
    ],
)
def test_splits_order_and_digest(tmp_path: Path, source: str, counts: dict[str, int]) -> None:
    MAKERS[source](tmp_path)
    reader = Reader(tmp_path)
    listing = read_listing(config_of(source), reader)
    assert not listing.multi_label
    assert len(listing.classes) == len(set(listing.classes)) == CLASSES[source]
    assert Counter(e.split for e in listing.entries) == counts
    order = [(("train", "val", "test").index(e.split), e.name) for e in listing.entries]
    assert order == sorted(order)
    assert all(len(e.classes) == 1 and not e.annotations and (tmp_path / e.name).is_file() for e in listing.entries)
    # every file but the images decides labels or splits, and so belongs to what identifies the set
    others = {p for p in tmp_path.rglob("*") if p.suffix in (".txt", ".mat")}
    assert reader.digest()["files"] == len(others)


def test_labels_are_those_of_the_files(tmp_path: Path) -> None:
    for source, make in MAKERS.items():
        make(tmp_path / source)
    found = {source: labels(read(tmp_path / source, source)) for source in MAKERS}
    flowers = found["flowers102"]
    assert [flowers[f"image_0000{i}.jpg"] for i in (1, 2, 3)] == ["passion flower", "pink primrose", "blackberry lily"]
    assert (found["pets"]["breed_01_1.jpg"], found["pets"]["breed_37_137.jpg"]) == ("Breed 01", "Breed 37")
    assert found["dtd"]["texture46_val.jpg"] == "texture46"
    assert (found["aircraft"]["00011.jpg"], found["aircraft"]["00020.jpg"]) == ("Variant 07/B", "Variant 99/B")
    cars = read(tmp_path / "cars", "cars")
    assert {e.name: e.classes[0] for e in cars.entries}["stanford_cars/cars_train/00002.jpg"] == 195
    assert {e.name: e.classes[0] for e in cars.entries}["stanford_cars/cars_test/00002.jpg"] == 1
    assert found["cub200"] == {
        "a_1.jpg": "001.Bird",
        "b_2.jpg": "001.Bird",
        "c_3.jpg": "200.Bird",
        "d_4.jpg": "002.Bird",
    }
    assert found["indoor67"]["Test pí_66.jpg"] == "room66"


def test_official_splits_are_kept(tmp_path: Path) -> None:
    make_flowers102(tmp_path / "f")
    make_cub200(tmp_path / "c")
    split = {Path(e.name).name: e.split for e in read(tmp_path / "f", "flowers102", val_share=0.9).entries}
    assert [i for i in range(1, 8) if split[f"image_0000{i}.jpg"] == "val"] == [2, 4], "an official val is val"
    assert [Path(e.name).name for e in read(tmp_path / "c", "cub200").entries if e.split == "test"] == ["a_1.jpg"]


def test_val_is_drawn_from_the_sorted_train_images(tmp_path: Path) -> None:
    make_pets(tmp_path)

    def val(**keys: Any) -> set[str]:
        return {e.name for e in read(tmp_path, "pets", **keys).entries if e.split == "val"}

    first = val()
    assert val() == first != val(seed=1)
    assert len(val(val_share=0.5)) == 18
    listed = tmp_path / "oxford-iiit-pet/annotations/trainval.txt"
    listed.write_text("\n".join(reversed(listed.read_text().splitlines())) + "\n")
    assert val() == first, "the order of lines does not matter"


@pytest.mark.parametrize("source", MAKERS)
def test_an_empty_root_names_what_is_missing(tmp_path: Path, source: str) -> None:
    with pytest.raises(MlsError) as caught:
        read(tmp_path, source)
    assert str(caught.value).startswith(f"{tmp_path}: no ")
    for archive in catalog.needed(config_of(source)):
        for path in archive.gives:
            assert f"no {path}" in str(caught.value)


def test_a_missing_label_file_is_named(tmp_path: Path) -> None:
    make_dtd(tmp_path)
    (tmp_path / "dtd/dtd/labels/val1.txt").unlink()
    with pytest.raises(MlsError, match=r"no dtd/dtd/labels/val1.txt below it; is this the folder"):
        read(tmp_path, "dtd")


FIRST = {
    "flowers102": "flowers-102/jpg/image_00001.jpg",
    "pets": "oxford-iiit-pet/images/breed_37_137.jpg",
    "dtd": "dtd/dtd/images/texture00/texture00_val.jpg",
    "aircraft": "fgvc-aircraft-2013b/data/images/00010.jpg",
    "cars": "stanford_cars/cars_test/00004.jpg",
    "cub200": "CUB_200_2011/images/200.Bird/c_3.jpg",
    "indoor67": "Images/room66/Test pí_66.jpg",
}


@pytest.mark.parametrize("source", MAKERS)
def test_a_missing_image_is_named(tmp_path: Path, source: str) -> None:
    MAKERS[source](tmp_path)
    (tmp_path / FIRST[source]).unlink()
    with pytest.raises(MlsError) as caught:
        read(tmp_path, source)
    assert f"image {FIRST[source]!r} is missing" in str(caught.value)
