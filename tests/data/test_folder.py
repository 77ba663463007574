"""``labels.csv``: what is read, and how each kind of bad row is named."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from mls.config.datasets import FolderDataset
from mls.data.folder import read_listing
from mls.download.reader import Reader
from mls.runtime.errors import MlsError

CONFIG = FolderDataset(source="folder", val_share=0.25)
MIML = Path(os.environ.get("MLS_DATA", "/nonexistent")) / "miml-scenes"
GOOD = [
    "file,split,sea,trees",
    *(f"x/{i}.png,train,{i % 2},1" for i in range(8)),
    "x/8.png,test,0,0",
    "x/9.png,test,1,0",
]


def make_folder(root: Path, lines: list[str]) -> Reader:
    (root / "x").mkdir(exist_ok=True)
    for i in range(10):
        Image.new("RGB", (4, 3), (i, 0, 0)).save(root / f"x/{i}.png")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return Reader(root)


def test_one_column_per_class_is_multi_label(tmp_path: Path) -> None:
    listing = read_listing(CONFIG, make_folder(tmp_path, GOOD))
    assert (listing.classes, listing.multi_label) == (["sea", "trees"], True)
    assert Counter(e.split for e in listing.entries) == {"train": 6, "val": 2, "test": 2}
    assert [(e.split, e.name) for e in listing.entries[-2:]] == [("test", "x/8.png"), ("test", "x/9.png")]
    assert {e.name: e.classes for e in listing.entries}["x/3.png"] == [0, 1]
    assert [e.classes for e in listing.entries[-2:]] == [[], [0]]
    order = [(("train", "val", "test").index(e.split), e.name) for e in listing.entries]
    assert order == sorted(order)


def test_val_is_drawn_from_train_by_the_seed(tmp_path: Path) -> None:
    reader = make_folder(tmp_path, GOOD)

    def val(seed: int) -> set[str]:
        config = CONFIG.model_copy(update={"seed": seed})
        return {e.name for e in read_listing(config, reader).entries if e.split == "val"}

    assert val(0) == val(0)
    assert len({frozenset(val(seed)) for seed in range(8)}) > 1
    make_folder(tmp_path, [GOOD[0], *reversed(GOOD[1:])])
    assert {e.name for e in read_listing(CONFIG, reader).entries if e.split == "val"} == val(0), "row order is nothing"


def test_own_val_rows_are_kept(tmp_path: Path) -> None:
    lines = [GOOD[0], "x/0.png,val,0,0", *GOOD[2:]]
    listing = read_listing(CONFIG, make_folder(tmp_path, lines))
    assert [e.name for e in listing.entries if e.split == "val"] == ["x/0.png"]


def test_a_label_column_is_single_label(tmp_path: Path) -> None:
    lines = ["file,label,split", "x/0.png,sea,train", "x/1.png,desert,train", "x/2.png,sea,test"]
    listing = read_listing(CONFIG, make_folder(tmp_path, lines))
    assert (listing.classes, listing.multi_label) == (["desert", "sea"], False)
    assert {e.name: e.classes for e in listing.entries} == {"x/0.png": [1], "x/1.png": [0], "x/2.png": [1]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x/1.png,train,2,0", "line 3: column 'sea' is '2'; only 0 and 1"),
        ("x/1.png,train,,0", "line 3: column 'sea' is ''"),
        ("x/1.png,validation,0,0", "line 3: split 'validation' is none of train, val, test"),
        ("x/0.png,train,0,0", "line 3: image 'x/0.png' was listed before, in line 2"),
        ("x/77.png,train,0,0", "line 3: image 'x/77.png' is missing"),
        ("../secret.png,train,0,0", "line 3: image '../secret.png' leaves"),
        ("x/../../secret.png,train,0,0", "line 3: image 'x/../../secret.png' leaves"),
        ("/etc/passwd,train,0,0", "line 3: image '/etc/passwd' leaves"),
        ("x/./1.png,train,0,0", "line 3: image 'x/./1.png' leaves"),
        ("x/1.png\0,train,0,0", "line"),
        (",train,0,0", "line 3: image '' is empty"),
        ("x/1.png,train,0", "line 3: has 3 cells, the header 4"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: str, message: str) -> None:
    reader = make_folder(tmp_path, [*GOOD[:2], row, *GOOD[3:]])
    (tmp_path.parent / "secret.png").write_bytes(b"")  # it is there, and still must not be read
    with pytest.raises(MlsError) as caught:
        read_listing(CONFIG, reader)
    assert str(caught.value).startswith(str(tmp_path / "labels.csv"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("name,split,sea,trees", "line 1: column 'file' is missing; there are: name, split, sea, trees"),
        ("file,split,sea,sea", "line 1: column 4: class name 'sea' was there before .column 3."),
        ("file,split,sea,", "line 1: column 4: class name '' is blank"),
        ("file,split,sea,sea ", "line 1: column 4: class name 'sea ' has space around it"),
        ("file,split,sea,\u00a0", "is blank"),
        ("file,split,sea,s\u200bea", r"class name 's\\u200bea' holds U.200B, which can't be seen"),
        ("file,split,sea,s\ufe0fea", "holds U.FE0F"),
        ("file,split,sea,s\0ea", "holds U.0000|NUL"),
        ('file,split,sea,"s\nea"', "holds U.000A"),
        ("file,split,sea,cafe\u0301", r"class name 'cafe\\u0301' is not in Unicode's form NFC"),
        ("file,split,sea,label", "'label' can't stand beside"),
    ],
)
def test_bad_headers_are_named(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(MlsError, match=message):
        read_listing(CONFIG, make_folder(tmp_path, [header, *GOOD[1:]]))


@pytest.mark.parametrize(("label", "message"), [("sea ", "has space"), ("", "is blank"), (" ", "is blank")])
def test_bad_labels_are_named(tmp_path: Path, label: str, message: str) -> None:
    lines = ["file,split,label", "x/0.png,train,sea", f"x/1.png,train,{label}", "x/2.png,test,sea"]
    with pytest.raises(MlsError, match=rf"labels\.csv, line 3: column 'label': class name '{label}' {message}"):
        read_listing(CONFIG, make_folder(tmp_path, lines))


@pytest.mark.parametrize("lines", [[], GOOD[:1], GOOD[:9], [GOOD[0], *GOOD[-2:]], [*GOOD[:2], GOOD[-1]]])
def test_too_few_rows_are_an_error(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(MlsError, match=r"column 'file' is missing|train needs two images"):
        read_listing(CONFIG, make_folder(tmp_path, lines))


def test_a_missing_labels_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MlsError, match=r"labels\.csv is missing; write it or"):
        read_listing(CONFIG, Reader(tmp_path))


@pytest.mark.skipif(not MIML.is_dir(), reason="needs $MLS_DATA/miml-scenes")
def test_miml_scenes_is_read_in_full() -> None:
    listing = read_listing(FolderDataset(source="folder"), Reader(MIML))
    assert listing.classes == ["desert", "mountains", "sea", "sunset", "trees"]
    assert Counter(e.split for e in listing.entries) == {"train": 900, "val": 100, "test": 1000}
    counts = Counter(c for e in listing.entries for c in e.classes)
    assert [counts[i] for i in range(5)] == [409, 458, 580, 465, 560]
