"""The seven single-label sets: class names that others would misread."""

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
    read,
    rewrite,
)

pytestmark = pytest.mark.usefixtures("any_flowers")


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
