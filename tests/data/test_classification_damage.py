"""The seven single-label sets: how each kind of damage is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from mls.runtime.errors import MlsError
from tests.data.classification_support import (
    DTD,
    MAKERS,
    PETS,
    PLANES,
    cars_annotations,
    make_cars,
    make_cub200,
    make_flowers102,
    put,
    read,
    rewrite,
)

pytestmark = pytest.mark.usefixtures("any_flowers")

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
