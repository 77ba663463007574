"""MIT Indoor 67: the archive's ``Images/<class>/*.jpg``, and its ``TrainImages.txt`` and ``TestImages.txt``.

    classes, entries = read(Reader(Path("downloads/indoor67")))

Each line of a list is one path below ``Images``, ``kitchen/int474.jpg``; blank lines are skipped. The lists name about
80 and 20 images of each class, 6,700 of the archive's 15,620; the others are not read. Classes are the folders that
the lists name, sorted.

Not every ``.jpg`` holds a JPEG. GIF and PNG are read by their content; BMP and damaged files are left out and listed
with the reason (see `mls.data.decode`).
"""

from __future__ import annotations

from mls.data.listing import Entry, read_lines
from mls.download.reader import Reader
from mls.runtime.errors import MlsError

LISTS = {"train": "TrainImages.txt", "test": "TestImages.txt"}


def read(reader: Reader) -> tuple[list[str], list[Entry]]:
    """Return the classes and all listed images, as train or test.

    Raises:
        MlsError: names the file, the line and the value.
    """
    paths = []
    for split, file in LISTS.items():
        for number, path in read_lines(reader, file):
            if path.count("/") != 1:
                raise MlsError(f"{reader.root / file}, line {number}: {path!r} is not <class>/<image>")
            paths.append((split, path, path.split("/")[0]))
    classes = sorted({name for _, _, name in paths})
    numbers = {name: i for i, name in enumerate(classes)}
    return classes, [Entry(f"Images/{path}", split, [numbers[name]], []) for split, path, name in paths]
