"""Cityscapes in its official layout: ``leftImg8bit/`` and ``gtFine/``, the class of each pixel.

    listing = read_listing(CityscapesDataset(source="cityscapes", root="/data/cityscapes"), Reader(Path(...)))

The download needs an account: unpack ``leftImg8bit_trainvaltest.zip`` and ``gtFine_trainvaltest.zip`` into one folder.
A seeded share of official train becomes val; official val, which papers report, becomes test. The official test set
has no public labels and is not read.
"""

from __future__ import annotations

import re

from mls.config.datasets import CityscapesDataset
from mls.data.image_store import IGNORE
from mls.data.listing import Entry, Listing, with_val
from mls.download.reader import Reader
from mls.runtime.errors import MlsError

LABEL_IDS = range(34)
"""All values of a label file; those of no class (unlabeled, ego vehicle, parking, caravan, ...) are ignored."""
IMAGE, LABELS = "_leftImg8bit.png", "_gtFine_labelIds.png"


def read_listing(config: CityscapesDataset, reader: Reader) -> Listing:
    """Pair images with label files; an image's classes are found when its label file is read.

    Raises:
        MlsError: names a folder without images, a file of another name, an image without labels, or labels without
            an image.
    """
    entries = []
    for folder, split in (("train", "train"), ("val", "test")):
        for frame in _frames(reader, folder):
            image, labels = f"leftImg8bit/{folder}/{frame}{IMAGE}", f"gtFine/{folder}/{frame}{LABELS}"
            entries.append(Entry(image, split, [], [], mask=labels))
    ids = label_ids()
    values = dict.fromkeys(LABEL_IDS, IGNORE) | {value: i for i, value in enumerate(ids.values())}
    return Listing(list(ids), True, with_val(entries, config, reader), values)


def label_ids() -> dict[str, int]:
    """Return the 19 classes that are evaluated, in the order of their official train ids, with their label ids."""
    from torchvision.datasets import Cityscapes  # imports torch, which takes seconds: only if it is needed

    evaluated = [one for one in Cityscapes.classes if not one.ignore_in_eval]
    return {one.name: one.id for one in sorted(evaluated, key=lambda one: one.train_id)}


def _frames(reader: Reader, split: str) -> list[str]:
    """Return ``<city>/<city>_<sequence>_<frame>`` of each image, sorted."""
    images, labels = (_found(reader, split, *kind) for kind in (("leftImg8bit", IMAGE), ("gtFine", LABELS)))
    if not images:
        raise MlsError(
            f"{reader.root / 'leftImg8bit' / split} holds no <city>/*{IMAGE}; "
            f"unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip in {reader.root}"
        )
    missing = [f"gtFine/{split}/{frame}{LABELS}" for frame in sorted(images - labels)]
    missing += [f"leftImg8bit/{split}/{frame}{IMAGE}" for frame in sorted(labels - images)]
    if missing:
        more = f", and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise MlsError(
            f"{reader.root}: images and label files do not pair: {missing[0]} is missing{more}; "
            "is the data set complete?"
        )
    return sorted(images)


def _found(reader: Reader, split: str, folder: str, ending: str) -> set[str]:
    """Return the frames, as in `_frames`, that have a file of one kind."""
    frames = set()
    for file in (reader.root / folder / split).glob(f"*/*{ending}"):
        city, name = file.parent.name, file.name.removesuffix(ending)
        if not re.fullmatch(rf"{re.escape(city)}_\d+_\d+", name) or not city.isprintable():
            raise MlsError(f"{file} is not named <city>_<sequence>_<frame>{ending}, after its folder")
        frames.add(f"{city}/{name}")
    return frames
