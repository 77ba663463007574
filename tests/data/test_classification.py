"""The seven single-label sets: hand-made copies with few images, and how each kind of damage is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from scipy.io import savemat

from mls.config import catalog
from mls.config.datasets import ClassificationDataset
from mls.data.classification import CLASSES, read_listing
from mls.data.listing import Listing
from mls.download.reader import Reader
from mls.runtime.errors import MlsError


def put(path: Path, content: str | bytes = b"image") -> None:
    """Listings don't open images, so any bytes will do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def make_flowers102(root: Path) -> None:
    folder = root / "flowers-102"
    for i in range(1, 8):
        put(folder / f"jpg/image_{i:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.array([[77, 1, 102, 5, 6, 7, 8]], dtype=np.uint8)})
    splits = {"trnid": [[3, 1]], "valid": [[2, 4]], "tstid": [[5, 7, 6]]}
    savemat(folder / "setid.mat", {key: np.array(ids, dtype=np.uint16) for key, ids in splits.items()})


def make_pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    for split, offset in (("trainval", 0), ("test", 100)):
        lines = [f"breed_{i:02d}_{i + offset} {i} {1 + i % 2} {i}" for i in range(1, 38)]
        put(folder / f"annotations/{split}.txt", "\n".join(lines) + "\n")
        for line in lines:
            put(folder / f"images/{line.split()[0]}.jpg")


def make_dtd(root: Path) -> None:
    folder = root / "dtd/dtd"
    for split in ("train", "val", "test"):
        names = [f"texture{i:02d}/texture{i:02d}_{split}.jpg" for i in range(47)]
        put(folder / f"labels/{split}1.txt", "\n".join(reversed(names)))
        for name in names:
            put(folder / "images" / name)


def make_aircraft(root: Path) -> None:
    folder = root / "fgvc-aircraft-2013b/data"
    put(folder / "variants.txt", "".join(f"Variant {i:02d}/B\n" for i in range(100)))
    for k, split in enumerate(("train", "val", "test")):
        put(folder / f"images_variant_{split}.txt", f"000{k}1 Variant 07/B\n000{k}0 Variant 99/B\n")
        put(folder / f"images/000{k}0.jpg")
        put(folder / f"images/000{k}1.jpg")


def cars_annotations(names: list[str], labels: list[int]) -> dict[str, Any]:
    rows = np.zeros((1, len(names)), dtype=[("class", object), ("fname", object)])
    for i, (name, label) in enumerate(zip(names, labels, strict=True)):
        rows[0, i] = (np.uint8(label), name)
    return {"annotations": rows}


def make_cars(root: Path) -> None:
    folder = root / "stanford_cars"
    for i in range(1, 5):
        put(folder / f"cars_train/0000{i}.jpg")
        put(folder / f"cars_test/0000{i}.jpg")
    names = [f"0000{i}.jpg" for i in range(1, 5)]
    (folder / "devkit").mkdir()
    savemat(folder / "devkit/cars_train_annos.mat", cars_annotations(names, [1, 196, 14, 3]))
    savemat(folder / "cars_test_annos_withlabels.mat", cars_annotations(names, [2, 2, 1, 196]))
    classes = np.array([f"Car {i:03d}" for i in range(196)], dtype=object).reshape(1, -1)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": classes})


def make_cub200(root: Path) -> None:
    folder = root / "CUB_200_2011"
    put(folder / "classes.txt", "".join(f"{i} {i:03d}.Bird\n" for i in range(1, 201)))
    put(folder / "images.txt", "1 001.Bird/a_1.jpg\n2 001.Bird/b_2.jpg\n3 200.Bird/c_3.jpg\n4 002.Bird/d_4.jpg\n")
    put(folder / "image_class_labels.txt", "4 2\n3 200\n2 1\n1 1\n\n")
    put(folder / "train_test_split.txt", "1 0\n2 1\n3 1\n4 1\n")
    for name in ("001.Bird/a_1", "001.Bird/b_2", "200.Bird/c_3", "002.Bird/d_4"):
        put(folder / f"images/{name}.jpg")


def make_indoor67(root: Path) -> None:
    for split in ("Train", "Test"):
        names = [f"room{i:02d}/{split} pí_{i}.jpg" for i in range(67)]
        put(root / f"{split}Images.txt", "\r\n".join([*names[:9], "", *names[9:]]))
        for name in names:
            put(root / "Images" / name)
    put(root / "Images/room00/not listed.jpg")


MAKERS: dict[str, Callable[[Path], None]] = {
    "flowers102": make_flowers102,
    "pets": make_pets,
    "dtd": make_dtd,
    "aircraft": make_aircraft,
    "cars": make_cars,
    "cub200": make_cub200,
    "indoor67": make_indoor67,
}


@pytest.fixture(autouse=True)
def _any_flowers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hand-made .mat files are not the published ones."""
    files = {key: (file, None) for key, (file, _) in torchvision.datasets.Flowers102._file_dict.items()}
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_file_dict", files)


def config_of(source: str, **keys: Any) -> ClassificationDataset:
    return ClassificationDataset.model_validate({"source": source, **keys})


def read(root: Path, source: str, **keys: Any) -> Listing:
    return read_listing(config_of(source, **keys), Reader(root))


def labels(listing: Listing) -> dict[str, str]:
    """File name -> class name."""
    return {Path(e.name).name: listing.classes[e.classes[0]] for e in listing.entries}


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


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


PETS, PLANES, DTD = "oxford-iiit-pet/annotations", "fgvc-aircraft-2013b/data", "dtd/dtd/labels"
BAD = [
    # label out of range, or none
    (
        "pets",
        f"{PETS}/test.txt",
        "breed_37_137 37",
        "breed_37_137 38",
        "breed_37_137.jpg' has class 38",
    ),
    ("pets", f"{PETS}/trainval.txt", "breed_01_1 1 ", "breed_01_1 0 ", "has class 0, counted from 1; there are 37"),
    ("pets", f"{PETS}/trainval.txt", "breed_01_1 1 ", "breed_01_1 ", "(ValueError: not enough values"),
    ("pets", f"{PETS}/test.txt", "breed_01_101 1 2", "breed_01_101 one 2", "(ValueError: invalid literal"),
    ("aircraft", f"{PLANES}/images_variant_val.txt", "Variant 07/B", "Zeppelin", "(KeyError: 'Zeppelin')"),
    (
        "cub200",
        "CUB_200_2011/image_class_labels.txt",
        "3 200",
        "3 201",
        "image 3 has '201', not a number of",
    ),
    ("cub200", "CUB_200_2011/image_class_labels.txt", "3 200", "3 0", "image 3 has '0', not a number of"),
    # classes
    ("aircraft", f"{PLANES}/variants.txt", "Variant 50/B\n", "", "99 classes are listed; aircraft has 100"),
    ("cub200", "CUB_200_2011/classes.txt", "100 100.Bird\n", "", "199 classes are listed; cub200 has 200"),
    ("indoor67", "TestImages.txt", "room03/", "new/", "68 classes are listed; indoor67 has 67"),
    ("dtd", f"{DTD}/test1.txt", "texture03/texture03_test.jpg\n", "", "not those of 'train': texture03"),
    ("pets", f"{PETS}/test.txt", "breed_05", "brood_05", "not those of 'trainval': Breed 05, Brood 05"),
    # twice
    ("pets", f"{PETS}/test.txt", "breed_03_103", "breed_03_3", "breed_03_3.jpg' was listed before, in train"),
    ("aircraft", f"{PLANES}/images_variant_val.txt", "00011", "00001", "00001.jpg' was listed before, in train"),
    ("aircraft", f"{PLANES}/images_variant_val.txt", "00011", "00010", "00010.jpg' was listed before, in val"),
    ("cub200", "CUB_200_2011/images.txt", "b_2", "a_1", "a_1.jpg' was listed before, in test"),
    ("cub200", "CUB_200_2011/images.txt", "4 002", "3 002", "images.txt, line 4: number 3 was listed before"),
    ("indoor67", "TestImages.txt", "Test pí_1.jpg", "Train pí_1.jpg", "was listed before, in train"),
    # files that contradict one another, or are not such files
    (
        "cub200",
        "CUB_200_2011/train_test_split.txt",
        "3 1\n",
        "",
        "split.txt: image 3 is missing in train_test_split.txt",
    ),
    ("cub200", "CUB_200_2011/train_test_split.txt", "3 1\n", "3 1\n9 1\n", "image 9 is missing in images.txt"),
    ("cub200", "CUB_200_2011/train_test_split.txt", "3 1", "3 2", "image 3 has '2', not 0 or 1"),
    ("cub200", "CUB_200_2011/train_test_split.txt", "3 1", "3", "line 3: '3' is not a number and a value"),
    ("cub200", "CUB_200_2011/images.txt", "3 200", "three 200", "line 3: 'three 200.Bird/c_3.jpg' is not a number"),
    ("indoor67", "TrainImages.txt", "room03/", "room03/more/", "line 4: 'room03/more/Train pí_3.jpg' is not <class>"),
    ("indoor67", "TrainImages.txt", "room03/", "", "line 4: 'Train pí_3.jpg' is not <class>/<image>"),
    # paths that lead elsewhere
    ("pets", f"{PETS}/test.txt", "breed_03_103", "../../../secret", "'trainval': ../../../Secret, Breed 03"),
    (
        "aircraft",
        f"{PLANES}/images_variant_test.txt",
        "00020",
        "../../../secret",
        "/images/../../../secret.jpg'",
    ),
    ("aircraft", f"{PLANES}/images_variant_test.txt", "00020", "/etc/secret", "image '/etc/secret.jpg' leaves"),
    ("dtd", f"{DTD}/test1.txt", "texture03/texture03_test", "../secret", "'train': .., texture03"),
    ("cub200", "CUB_200_2011/images.txt", "001.Bird/a_1", "../../../secret", "../../../secret.jpg' leaves"),
    ("cub200", "CUB_200_2011/images.txt", "001.Bird/a_1", "/etc/secret", "images//etc/secret.jpg' leaves"),
    ("cub200", "CUB_200_2011/images.txt", "a_1", "a\0_1", "is empty or holds unprintable characters"),
    ("indoor67", "TrainImages.txt", "room03/Train pí_3.jpg", "../secret.jpg", "68 classes"),
    ("indoor67", "TrainImages.txt", "/Train pí_3.jpg", "/..", "image 'Images/room03/..' leaves"),
]


@pytest.mark.parametrize(("source", "file", "old", "new", "message"), BAD)
def test_damage_is_named(tmp_path: Path, source: str, file: str, old: str, new: str, message: str) -> None:
    root = tmp_path / "root"
    MAKERS[source](root)
    put(tmp_path / "secret.jpg")  # it is there, and still must not be read
    rewrite(root / file, old, new)
    with pytest.raises(MlsError) as caught:
        read(root, source)
    assert message in str(caught.value)
    assert str(root) in str(caught.value)


@pytest.mark.parametrize("file", ["CUB_200_2011/images.txt", "TrainImages.txt"])
def test_lists_that_are_not_utf8_are_an_error(tmp_path: Path, file: str) -> None:
    source = "cub200" if file.startswith("CUB") else "indoor67"
    MAKERS[source](tmp_path)
    put(tmp_path / file, b"kitchen/caf\xe9.jpg\n")
    with pytest.raises(MlsError, match=r"not text in UTF-8"):
        read(tmp_path, source)


def test_flowers_must_be_the_published_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_flowers102(tmp_path)
    monkeypatch.undo()
    with pytest.raises(MlsError, match=r"Flowers102 can't read.*imagelabels\.mat, .*setid\.mat is not the published"):
        read(tmp_path, "flowers102")


@pytest.mark.parametrize(
    ("labels", "test", "message"),
    [
        (
            [1, 2, 3, 4, 5, 6, 103],
            [5, 7, 6],
            r"image_00007.jpg' has class 103, counted from 1; there are 102",
        ),
        ([1, 2, 3, 4, 5, 6], [5, 7, 6], r"Flowers102 can't read its split 'test' \(KeyError: 7\)"),
        ([1, 2, 3, 4, 5, 6, 7], [5, 1, 6], r"image_00001.jpg' was listed before, in train"),
        ([1, 2, 3, 4, 5, 6, 7], [5, 5, 6], r"image_00005.jpg' was listed before, in test"),
    ],
)
def test_contradictory_flowers_are_named(tmp_path: Path, labels: list[int], test: list[int], message: str) -> None:
    make_flowers102(tmp_path)
    savemat(tmp_path / "flowers-102/imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
    splits = {"trnid": [[3, 1]], "valid": [[2, 4]], "tstid": [test]}
    savemat(tmp_path / "flowers-102/setid.mat", {key: np.array(ids, dtype=np.uint16) for key, ids in splits.items()})
    with pytest.raises(MlsError, match=message):
        read(tmp_path, "flowers102")


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (["00001.jpg", "00002.jpg"], [1, 197], r"00002.jpg' has class 197"),
        (["00001.jpg", "00001.jpg"], [1, 2], r"00001.jpg' was listed before, in test"),
        (
            ["00001.jpg", "../../../secret.jpg"],
            [1, 2],
            r"image 'stanford_cars/cars_test/../../../secret.jpg' leaves",
        ),
        (["00001.jpg", "/etc/passwd"], [1, 2], r"image '/etc/passwd' leaves"),
    ],
)
def test_contradictory_cars_are_named(tmp_path: Path, names: list[str], labels: list[int], message: str) -> None:
    make_cars(tmp_path)
    savemat(tmp_path / "stanford_cars/cars_test_annos_withlabels.mat", cars_annotations(names, labels))
    with pytest.raises(MlsError, match=message):
        read(tmp_path, "cars")


def test_a_damaged_mat_file_is_named(tmp_path: Path) -> None:
    make_cars(tmp_path)
    put(tmp_path / "stanford_cars/devkit/cars_train_annos.mat", b"<html>404</html>" * 20)
    with pytest.raises(MlsError, match=r"StanfordCars can't read its split 'train'.*is not the published file"):
        read(tmp_path, "cars")


def test_too_few_train_images_are_an_error(tmp_path: Path) -> None:
    make_cub200(tmp_path)
    put(tmp_path / "CUB_200_2011/train_test_split.txt", "1 0\n2 0\n3 0\n4 1\n")
    with pytest.raises(MlsError, match=r"train needs two images"):
        read(tmp_path, "cub200")


def with_class(root: Path, source: str, name: str) -> None:
    """Make a set in which class 6 has another name."""
    MAKERS[source](root)
    if source == "cars":
        classes = np.array([f"Car {i:03d}" for i in range(196)], dtype=object).reshape(1, -1)
        classes[0, 5] = name
        savemat(root / "stanford_cars/devkit/cars_meta.mat", {"class_names": classes})
        return
    old, files, folder = {
        "pets": ("breed_06", [f"{PETS}/trainval.txt", f"{PETS}/test.txt"], "oxford-iiit-pet/images"),
        "dtd": ("texture05/", [f"{DTD}/{split}1.txt" for split in ("train", "val", "test")], "dtd/dtd/images"),
        "aircraft": ("Variant 05/B", [f"{PLANES}/variants.txt"], ""),
        "cub200": ("006.Bird", ["CUB_200_2011/classes.txt"], ""),
        "indoor67": ("room05/", ["TrainImages.txt", "TestImages.txt"], "Images"),
    }[source]
    for file in files:
        rewrite(root / file, old, name + "/" * old.endswith("/"))
    for path in list((root / folder).glob(f"{old.rstrip('/')}*")):
        path.rename(path.with_name(path.name.replace(old.rstrip("/"), name)))


ODD_NAMES = [
    ("soft\u00adhyphen", "holds U+00AD, which can't be seen; remove it"),
    ("zero\u200bwidth", "holds U+200B, which can't be seen; remove it"),
    ("left\u200eright", "holds U+200E, which can't be seen; remove it"),
    ("cafe\u0301", "is not in Unicode's form NFC, so an equal name may be written in another way; convert it"),
    ("\u2800", "holds U+2800, which can't be seen; remove it"),
]


@pytest.mark.parametrize("source", [source for source in MAKERS if source != "flowers102"])
@pytest.mark.parametrize(
    ("name", "message"), ODD_NAMES, ids=[name.encode("unicode_escape").decode() for name, _ in ODD_NAMES]
)
def test_a_class_name_that_others_would_misread_is_named(tmp_path: Path, source: str, name: str, message: str) -> None:
    """Flowers' names are torchvision's own."""
    with_class(tmp_path, source, name)
    with pytest.raises(MlsError) as caught:
        read(tmp_path, source)
    assert str(caught.value).startswith(f"{tmp_path}: class ") and str(caught.value).endswith(message)
    assert ascii(name)[1:-1].lower() in str(caught.value).lower() and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "other"), [("aircraft", "Variant 09/B"), ("cars", "Car 009"), ("cub200", "010.Bird")]
)
def test_two_classes_of_one_name_are_an_error(tmp_path: Path, source: str, other: str) -> None:
    """Where classes are folders or breeds, equal names are one class."""
    with_class(tmp_path, source, other)
    with pytest.raises(MlsError, match=r"class 10: class name '.*' was there before \(class 6\); one of them needs"):
        read(tmp_path, source)


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("aircraft", "", "class 6: class name '' is blank"),
        ("aircraft", "\u3000", "class 6: class name '' is blank"),  # torchvision strips lines
        ("aircraft", "two\u2028lines", "class name 'two\\u2028lines' holds U+2028, which can't be seen; remove it"),
        ("cars", " ", "class 6: class name ' ' is blank"),
        ("cars", " Car", "class 6: class name ' Car' has space around it; remove it"),
        ("cars", "a\nb", "class 6: class name 'a\\nb' holds U+000A, which can't be seen; remove it"),
        ("cub200", "\u00a0", "classes.txt, line 6: '6' is not a number and a value"),
        ("cub200", "two\u2028lines", "classes.txt, line 7: 'lines' is not a number and a value"),
        ("indoor67", " ", "class name '' is blank"),
        ("indoor67", "two\u2028lines", "TrainImages.txt, line 6: 'two' is not <class>/<image>"),
    ],
)
def test_a_blank_or_broken_class_name_is_named(tmp_path: Path, source: str, name: str, message: str) -> None:
    with_class(tmp_path, source, name)
    with pytest.raises(MlsError) as caught:
        read(tmp_path, source)
    assert message in str(caught.value) and "\n" not in str(caught.value)
