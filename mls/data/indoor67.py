"""MIT Indoor 67: the archive's ``Images/<class>/*.jpg``, and its ``TrainImages.txt`` and ``TestImages.txt``.

    classes, entries = read(Reader(Path("downloads/indoor67")))

A list has one path below ``Images`` a line, ``kitchen/int474.jpg``; blank lines are skipped. The lists name about 80
and 20 images a class, 6,700 of the archive's 15,620; the others are not read. Classes are the folders that the lists
name, sorted.

Not every ``.jpg`` is a JPEG inside. GIF and PNG are read by what they hold; what is BMP or damaged is left out and
listed with its reason (see `mls.data.decode`).
"""

from __future__ import annotations

from mls.data.listing import Entry
from mls.download.reader import Reader
from mls.runtime.errors import MlsError

LISTS = {"train": "TrainImages.txt", "test": "TestImages.txt"}


def read(reader: Reader) -> tuple[list[str], list[Entry]]:
    """Return the classes and all listed images, as train or test.

    Raises:
        MlsError: names the file, the line and the value.
    """
    paths = [(split, path) for split, file in LISTS.items() for path in _lines(reader, file)]
    classes = sorted({path.split("/")[0] for _, path in paths})
    numbers = {name: i for i, name in enumerate(classes)}
    return classes, [Entry(f"Images/{path}", split, [numbers[path.split("/")[0]]], []) for split, path in paths]


def _lines(reader: Reader, file: str) -> list[str]:
    try:
        lines = reader.read(file)[0].decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise MlsError(f"{reader.root / file}: not text in UTF-8 ({error})") from error
    found = []
    for number, line in enumerate(lines, 1):
        path = line.strip()
        if path and path.count("/") != 1:
            raise MlsError(f"{reader.root / file}, line {number}: {path!r} is not <class>/<image>")
        found += [path] if path else []
    return found
