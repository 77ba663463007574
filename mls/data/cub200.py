"""CUB-200-2011 in its official layout: ``CUB_200_2011/{images,*.txt}``.

    classes, entries = read(Reader(Path("downloads/cub200")))

Every text file has one pair a line, a number from 1 and a value, parted by a space:

    classes.txt              1 001.Black_footed_Albatross
    images.txt               1 001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg     (below images/)
    image_class_labels.txt   1 1                 image, class
    train_test_split.txt     1 0                 image, 1 for train or 0 for test

Files are joined by the image's number, not by line.
"""

from __future__ import annotations

from mls.data.listing import Entry
from mls.download.reader import Reader
from mls.runtime.errors import MlsError

FOLDER = "CUB_200_2011"


def read(reader: Reader) -> tuple[list[str], list[Entry]]:
    """Return the classes, by number, and all images, as train or test.

    Raises:
        MlsError: names the file, the line or number, and the value.
    """
    named = _pairs(reader, "classes.txt")
    images, labels, is_train = (
        _pairs(reader, file) for file in ("images.txt", "image_class_labels.txt", "train_test_split.txt")
    )
    for file, found in (("image_class_labels.txt", labels), ("train_test_split.txt", is_train)):
        if odd := sorted(found.keys() ^ images.keys()):
            where = "images.txt" if odd[0] in found else file
            raise MlsError(f"{reader.root / FOLDER / file}: image {odd[0]} is missing in {where}")
    numbers = {str(key): i for i, key in enumerate(sorted(named))}
    entries = []
    for key, path in images.items():
        if labels[key] not in numbers:
            raise MlsError(
                f"{reader.root / FOLDER / 'image_class_labels.txt'}: image {key} has class {labels[key]!r}, which is "
                f"none of the {len(named)} in classes.txt"
            )
        if is_train[key] not in ("0", "1"):
            raise MlsError(
                f"{reader.root / FOLDER / 'train_test_split.txt'}: image {key} has {is_train[key]!r}, not 0 or 1"
            )
        split = "train" if is_train[key] == "1" else "test"
        entries.append(Entry(f"{FOLDER}/images/{path}", split, [numbers[labels[key]]], []))
    return [named[key] for key in sorted(named)], entries


def _pairs(reader: Reader, file: str) -> dict[int, str]:
    """Number -> value of each line; blank lines are skipped."""
    path = reader.root / FOLDER / file
    try:
        lines = reader.read(f"{FOLDER}/{file}")[0].decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise MlsError(f"{path}: not text in UTF-8 ({error})") from error
    found: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        key, _, value = line.strip().partition(" ")
        if not (key.isascii() and key.isdigit()) or not value:
            raise MlsError(f"{path}, line {number}: {line!r} is no number and value")
        if int(key) in found:
            raise MlsError(f"{path}, line {number}: number {key} was listed before")
        found[int(key)] = value
    return found
