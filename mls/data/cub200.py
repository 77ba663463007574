"""CUB-200-2011 in its official layout: ``CUB_200_2011/{images,*.txt}``.

    classes, entries = read(Reader(Path("downloads/cub200")))

Each line of the text files is a number, counted from 1, and a value, separated by a space:

    classes.txt              1 001.Black_footed_Albatross
    images.txt               1 001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg     (below images/)
    image_class_labels.txt   1 1                 image, class
    train_test_split.txt     1 0                 image, 1 for train or 0 for test

Files are joined by the image's number, not by line.
"""

from __future__ import annotations

from typing import Any

from mls.data.listing import Entry, read_lines
from mls.download.reader import Reader
from mls.runtime.errors import MlsError

FOLDER = "CUB_200_2011"


def read(reader: Reader) -> tuple[list[str], list[Entry]]:
    """Return the classes, by number, and all images, as train or test.

    Raises:
        MlsError: names the file, the line or number, and the value.
    """
    classes, images = (_pairs(reader, file) for file in ("classes.txt", "images.txt"))
    numbers = {str(key): i for i, key in enumerate(sorted(classes))}
    label_of = _values(reader, "image_class_labels.txt", images, numbers, "a number of classes.txt")
    split_of = _values(reader, "train_test_split.txt", images, {"0": "test", "1": "train"}, "0 or 1")
    entries = [Entry(f"{FOLDER}/images/{path}", split_of[i], [label_of[i]], []) for i, path in images.items()]
    return [classes[key] for key in sorted(classes)], entries


def _values(reader: Reader, file: str, images: dict[int, str], meaning: dict[str, Any], allowed: str) -> dict[int, Any]:
    """Return image number -> meaning of its value in one file."""
    path, pairs = reader.root / FOLDER / file, _pairs(reader, file)
    if odd := sorted(pairs.keys() ^ images.keys()):
        raise MlsError(f"{path}: image {odd[0]} is missing in {'images.txt' if odd[0] in pairs else file}")
    for key, value in pairs.items():
        if value not in meaning:
            raise MlsError(f"{path}: image {key} has {value!r}, not {allowed}")
    return {key: meaning[value] for key, value in pairs.items()}


def _pairs(reader: Reader, file: str) -> dict[int, str]:
    """Return number -> value of each line of a file."""
    found: dict[int, str] = {}
    for number, line in read_lines(reader, f"{FOLDER}/{file}"):
        where = f"{reader.root / FOLDER / file}, line {number}"
        key, _, value = line.partition(" ")
        if not (key.isascii() and key.isdigit()) or not value:
            raise MlsError(f"{where}: {line!r} is not a number and a value")
        if int(key) in found:
            raise MlsError(f"{where}: number {key} was listed before")
        found[int(key)] = value
    return found
