"""The seven single-label sets: hand-made copies with few images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from mls.config.datasets import ClassificationDataset
from mls.data.classification import read_listing
from mls.data.listing import Listing
from mls.download.reader import Reader


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


def config_of(source: str, **keys: Any) -> ClassificationDataset:
    return ClassificationDataset.model_validate({"source": source, **keys})


def read(root: Path, source: str, **keys: Any) -> Listing:
    return read_listing(config_of(source, **keys), Reader(root))


def labels(listing: Listing) -> dict[str, str]:
    """File name -> class name."""
    return {Path(e.name).name: listing.classes[e.classes[0]] for e in listing.entries}


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


PETS, PLANES, DTD = "oxford-iiit-pet/annotations", "fgvc-aircraft-2013b/data", "dtd/dtd/labels"
