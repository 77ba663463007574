"""COCO's layout: splits, classes, crowds, and how contradictions are named."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mls.config.datasets import CocoDataset
from mls.data.coco import read_listing
from mls.download.reader import Reader
from mls.pipeline.plan import read_ids
from mls.runtime.errors import MlsError
from tests.data.support import CATEGORIES, make_coco

CONFIG = CocoDataset(source="coco", val_share=0.2)
TINY = Path(os.environ.get("MLS_DATA", "/nonexistent")) / "coco-tiny"


def test_splits_classes_and_annotations(tmp_path: Path) -> None:
    listing = read_listing(CONFIG, make_coco(tmp_path))
    assert listing.classes == ["car", "cat", "toothbrush"] and listing.multi_label
    assert Counter(e.split for e in listing.entries) == {"train": 8, "val": 2, "test": 4}
    entries = {e.name: e for e in listing.entries}
    first, second = entries["train2017/000000000001.jpg"], entries["train2017/000000000002.jpg"]
    assert (first.classes, list(first.annotations), first.size) == ([], [], (20, 10))
    assert second.classes == [0, 1], "a class with only crowds counts"
    assert [(a["category_id"], a["iscrowd"]) for a in second.annotations] == [(2, 0), (1, 1)]
    assert set(second.annotations[0]) == {"category_id", "bbox", "area", "iscrowd", "segmentation"}


def test_val_depends_on_seed_and_not_on_file_order(tmp_path: Path) -> None:
    def val(seed: int, change: Callable[[dict[str, Any]], object]) -> frozenset[str]:
        config = CONFIG.model_copy(update={"seed": seed})
        entries = read_listing(config, make_coco(tmp_path, change)).entries
        return frozenset(e.name for e in entries if e.split == "val")

    assert val(0, lambda raw: None) == val(0, lambda raw: raw["images"].reverse())
    assert len({val(seed, lambda raw: None) for seed in range(6)}) > 1


def test_a_tiny_share_still_makes_one_val_image(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"val_share": 0.001})
    entries = read_listing(config, make_coco(tmp_path)).entries
    assert Counter(e.split for e in entries) == {"train": 9, "val": 1, "test": 4}


def on(section: str, **values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda raw: raw[section][2].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (on("annotations", image_id=999), "annotation 996: image_id 999 is not an image"),
        (on("annotations", image_id=[1]), "annotation 996: image_id [1] is not an image"),
        (on("annotations", category_id=91), "annotation 996: category_id 91 is not a category"),
        (
            on("annotations", bbox=[15, 2, 8, 5]),
            "annotation 996: bbox [15, 2, 8, 5] does not lie in image 4, which is 20 x 10",
        ),
        (on("annotations", bbox=[1, 2, -8, 5]), "annotation 996: bbox"),
        (on("annotations", bbox=[1, 2, 3]), "annotation 996: bbox [1, 2, 3] is not four numbers"),
        (on("annotations", area="big"), "annotation 996: area is 'big'"),
        (on("annotations", area=float("nan")), "holds NaN"),
        (on("annotations", iscrowd=2), "annotation 996: iscrowd is 2"),
        (on("annotations", segmentation={"size": [20, 10], "counts": [0]}), "annotation 996: segmentation"),
        (on("annotations", area=-1), "annotation 996: area is -1, and COCO's evaluation drops such objects; its mask"),
        (on("annotations", area=1e11), "annotation 996: area is 100000000000.0, and COCO's evaluation drops"),
        (on("annotations", iscrowd=1.0), "annotation 996: iscrowd is 1.0"),
        (on("annotations", segmentation=[[1, 2, 9, 2, 9, 7, 1]]), "annotation 996: segmentation is a polygon of 7 num"),
        (on("annotations", segmentation=[[1, 2, 4e7, 2, 9, 7]]), "annotation 996: segmentation is a polygon that re"),
        (on("annotations", segmentation=[[1, 2, 9, -1e10, 9, 7]]), "annotation 996: segmentation is a polygon that r"),
        (on("annotations", segmentation=[[1, 40]]), "annotation 996: segmentation is a polygon that reaches 30.0 px"),
        (
            on("annotations", segmentation={"size": [10, 20], "counts": [150, 20]}),
            "an RLE of 170 pixels, but",
        ),
        (
            on("annotations", segmentation={"size": [10, 20], "counts": [199, 1.0]}),
            "an RLE with a run that is no",
        ),
        (on("annotations", segmentation={"size": [10, 20], "counts": "ü"}), "an RLE that does not decode: 'ü' is not"),
        (on("annotations", segmentation={"size": [10, 20], "counts": "o" * 99}), "holds a number of more than 32 bits"),
        (on("annotations", bbox=[1, 2, 10**399, 3]), "holds 100000000000..., a number of 400 digits; 18 are allowed"),
        (on("images", width=10**399), "holds 100000000000..., a number of 400 digits; 18 are allowed"),
        (on("images", file_name="x" * 300), "is missing below"),
        (on("categories", name="cat"), "category 90: class name 'cat' was there before (category 17)"),
        (on("categories", name="cat "), "category 90: class name 'cat ' has space around it"),
        (on("categories", name="ca\u0308r"), "category 90: class name 'ca\\u0308r' is not in Unicode's form NFC"),
        (on("categories", name="\ud83d"), "category 90: class name '\\ud83d' holds U+D83D, which can't be seen"),
        (on("categories", name="a\u200db"), "category 90: class name 'a\\u200db' holds U+200D"),
        (on("categories", name="\u3164"), "category 90: class name '\\u3164' holds U+3164"),
        (on("annotations", id=2001), "annotations: id 2001 is there twice"),
        (on("annotations", id=None), "annotations: an entry without an integer id"),
        (on("images", file_name="../x.jpg"), "image 3: file_name '../x.jpg' leaves"),
        (on("images", file_name="gone.jpg"), "image 3: train2017/gone.jpg is missing"),
        (on("images", file_name="000000000001.jpg"), "two images have the same file_name"),
        (on("images", width=0), "image 3: 0 x 10 is not a size"),
        (on("images", height="10"), "image 3: height is '10', not an integer"),
        (lambda raw: raw.pop("categories"), "has no list 'categories'"),
    ],
)
def test_contradictions_are_named(tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(MlsError) as caught:
        read_listing(CONFIG, make_coco(tmp_path, change)).find_degenerate()
    assert str(caught.value).startswith(str(tmp_path / "annotations/instances_train2017.json"))
    assert message in str(caught.value)


def test_categories_of_test_must_be_those_of_train(tmp_path: Path) -> None:
    renamed = [{"id": 17, "name": "dog"}, *CATEGORIES[1:]]
    with pytest.raises(MlsError, match=r"val2017\.json: category 17 \('cat'\) is 'dog' in .*train2017\.json"):
        read_listing(CONFIG, make_coco(tmp_path, lambda raw: raw.update(categories=renamed)))


def test_invalid_json_is_named(tmp_path: Path) -> None:
    reader = make_coco(tmp_path)
    (tmp_path / "annotations/instances_val2017.json").write_text('{"images": [')
    with pytest.raises(MlsError, match=r"instances_val2017\.json: not valid JSON"):
        read_listing(CONFIG, reader)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "not valid JSON (it is nested too deeply)"),
        ('{"images": ' + '{"a": ' * 100_000, "not valid JSON (it is nested too deeply)"),
        ('{"images": [], "images": []}', "key 'images' is there twice in one object"),
        ('{"images": [{"id": 1, "id": 2}]}', "key 'id' is there twice in one object, which has 'id', 'id'"),
        ("\xff", "not valid JSON"),
        ("[]", "must be one object"),
    ],
)
def test_json_that_is_no_data_set_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    reader = make_coco(tmp_path)
    (tmp_path / "annotations/instances_val2017.json").write_text(text, encoding="latin-1")
    with pytest.raises(MlsError) as caught:
        read_listing(CONFIG, reader)
    assert str(caught.value).startswith(str(tmp_path / "annotations/instances_val2017.json"))
    assert message in str(caught.value) and "\n" not in str(caught.value)


DEGENERATE: dict[str, tuple[dict[str, Any], str]] = {
    "polygon of two points": ({"segmentation": [[1.5, 2, 9.5, 7]]}, "its polygons have fewer than three points"),
    "empty polygon": ({"segmentation": [[]]}, "its polygons have fewer than three points"),
    "box of no height": ({"bbox": [1.5, 2, 8, 0]}, "its box, [1.5, 2, 8, 0], has no area"),
    "line": ({"segmentation": [[1, 2, 5, 2, 1, 2]]}, "its mask covers no pixel"),
    "empty RLE": ({"segmentation": {"size": [10, 20], "counts": [200]}}, "its mask covers no pixel"),
}


@pytest.mark.parametrize("kind", DEGENERATE)
def test_an_object_of_no_area_is_listed_and_kept(tmp_path: Path, kind: str) -> None:
    """Official COCO has a few."""
    values, reason = DEGENERATE[kind]
    listing = read_listing(CONFIG, make_coco(tmp_path, on("annotations", **values)))
    name = "train2017/000000000004.jpg"
    assert listing.find_degenerate() == [{"name": name, "object": "annotation 996", "reason": reason}]
    (entry,) = (entry for entry in listing.entries if entry.name == name)
    assert entry.annotations[0].items() >= values.items()


def test_a_short_polygon_beside_a_good_one_is_no_degenerate_object(tmp_path: Path) -> None:
    both = [[1.5, 2, 3, 2], [1.5, 2, 9.5, 2, 9.5, 7]]
    assert not read_listing(CONFIG, make_coco(tmp_path, on("annotations", segmentation=both))).find_degenerate()


def test_boxes_may_touch_the_edge_and_be_empty(tmp_path: Path) -> None:
    """Official COCO has a few boxes of no height, and rounds."""
    read_listing(CONFIG, make_coco(tmp_path, on("annotations", bbox=[12, 0, 8.6, 0])))


@pytest.mark.skipif(not TINY.is_dir(), reason="needs $MLS_DATA/coco-tiny")
def test_coco_tiny_is_read_in_full() -> None:
    listing = read_listing(CocoDataset(source="coco"), Reader(TINY))
    assert len(listing.classes) == 80 and listing.classes[:2] == ["person", "bicycle"]
    assert Counter(e.split for e in listing.entries) == {"train": 48, "val": 2, "test": 50}
    of = {s: [a for e in listing.entries if (e.split == "test") == s for a in e.annotations] for s in (False, True)}
    assert (len(of[False]), len(of[True])) == (470, 382)
    assert sum(a["iscrowd"] for a in of[False]) == sum(a["iscrowd"] for a in of[True]) == 5
    assert len({c for e in listing.entries if e.split == "test" for c in e.classes}) == 48
    assert not listing.find_degenerate()


def subset(**changes: Any) -> CocoDataset:
    return CocoDataset.model_validate({"source": "coco", "val_share": 0.2, "subset": changes})


def names(reader: Reader, config: CocoDataset) -> list[str]:
    return [entry.name for entry in read_listing(config, reader).entries]


def test_a_subset_is_a_seeded_draw_of_both_splits_and_needs_no_images(tmp_path: Path) -> None:
    reader = make_coco(tmp_path)
    for file in tmp_path.rglob("*.jpg"):
        file.unlink()
    listing = read_listing(subset(images=5, test=2), reader)
    assert Counter(e.split for e in listing.entries) == {"train": 4, "val": 1, "test": 2}
    chosen = names(reader, subset(images=5, test=2))
    assert chosen == names(reader, subset(images=5, test=2, seed=0)) != names(reader, subset(images=5, test=2, seed=1))
    assert set(names(reader, subset(images=3, test=2))) < set(names(reader, subset(images=6, test=2))) | set(chosen)
    with pytest.raises(MlsError, match=r"instances_train2017.json: has 10 images, but the subset asks for 11"):
        read_listing(subset(images=11, test=2), reader)
    with pytest.raises(MlsError, match="is missing below"):
        read_listing(CONFIG, reader)


def test_a_subset_by_ids_takes_them_from_both_splits(tmp_path: Path) -> None:
    reader = make_coco(tmp_path)
    file = tmp_path / "mine.txt"
    file.write_text("2\n7\n53\n")
    config = subset(ids=str(file))
    assert {name[-6:-4] for name in names(reader, config)} == {"02", "07", "53"}
    file.write_text("2\n3\n11\n53\n99\n")
    with pytest.raises(MlsError, match=r"mine.txt: 2 ids are neither in .*train2017.json nor in .*: 11, 99"):
        read_listing(config, reader)


def test_unlabeled_images_are_a_split_of_their_own(tmp_path: Path) -> None:
    reader = make_coco(tmp_path)
    (tmp_path / "unlabeled2017").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "unlabeled2017/9.jpg")
    info = {"images": [{"id": 9, "file_name": "9.jpg", "width": 8, "height": 6}]}
    (tmp_path / "annotations/image_info_unlabeled2017.json").write_text(json.dumps(info))
    config = CocoDataset(source="coco", unlabeled=True)
    last = read_listing(config, reader).entries[-1]
    assert (last.name, last.split, last.classes, last.annotations) == ("unlabeled2017/9.jpg", "unlabeled", [], [])
    (tmp_path / "unlabeled2017/9.jpg").unlink()
    with pytest.raises(MlsError, match=r"image_info_unlabeled2017.json: image 9: unlabeled2017/9.jpg is missing"):
        read_listing(config, reader)


@pytest.mark.skipif(not TINY.is_dir(), reason="needs $MLS_DATA/coco-tiny")
def test_coco_tiny_is_the_subset_of_its_ids() -> None:
    ids = "experiments/coco-tiny-ids.txt"
    whole, chosen = CocoDataset(source="coco", val_share=0.2), subset(ids=ids)
    reader = Reader(TINY)
    assert len(read_ids(ids)) == 100 and names(reader, chosen) == names(reader, whole)
