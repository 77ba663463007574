"""Read the listed images of a source: hash them, prove that they decode, and convert them to the form that is kept.

    records = load_records(listing, reader, excluded, config, threads=4)
    write_store(out, records, listing.classes, listing.multi_label, excluded, config.format)

Memory holds a few images per thread, however many are listed.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mls.config.datasets import LocalDataset
from mls.data.image_store import IGNORE, decode_mask
from mls.data.listing import Entry, Listing
from mls.data.writer import Record, encode_mask
from mls.download.reader import Reader
from mls.runtime.errors import MlsError

SHOWN = 5
"""Bad images that an error names."""


def load_records(
    listing: Listing, reader: Reader, excluded: list[dict[str, str]], config: LocalDataset, threads: int
) -> Iterator[Record]:
    """Check every listed object; then read, hash and decode each image that is asked for, in the listing's order.

    Images that can't be used are left out.

    Args:
        listing: what to read.
        reader: reads (and hashes) each file once.
        excluded: filled with ``{"name", "reason"}`` of images that do not decode, or do not have the size that their
            annotations are for, or whose label file can't be used; and with `Listing.find_degenerate` of the others.
        config: ``max_excluded`` is the share of the listed images that may be excluded, and of their objects that may
            be degenerate; ``short_side`` and ``format`` say what is kept (see `mls.data.shrink`).
        threads: images prepared at the same time.

    Raises:
        MlsError: a file is missing, too many images are excluded, or too many objects degenerate (names the first
            few).
    """
    objects = sum(len(entry.annotations) for entry in listing.entries)
    degenerate = listing.find_degenerate()
    _check_share(degenerate, objects, "objects", reader, config)
    return _loaded(listing, reader, excluded, degenerate, config, threads)


def _loaded(
    listing: Listing,
    reader: Reader,
    excluded: list[dict[str, str]],
    degenerate: Sequence[Mapping[str, str]],
    config: LocalDataset,
    threads: int,
) -> Iterator[Record]:
    total = len(listing.entries)
    with ThreadPoolExecutor(threads) as pool:
        submitted = ((entry, pool.submit(_load, entry, listing, reader, config)) for entry in listing.entries)
        waiting = deque(islice(submitted, 4 * threads))
        try:
            while waiting:
                entry, future = waiting.popleft()
                result = future.result()
                waiting.extend(islice(submitted, 1))
                if isinstance(result, Record):
                    yield result
                    continue
                excluded.append({"name": entry.name, "reason": result})
                _check_share(excluded, total, "images", reader, config)
        finally:  # also if the caller stops before the last image
            pool.shutdown(cancel_futures=True)
    gone = {item["name"] for item in excluded}
    excluded += [dict(item) for item in degenerate if item["name"] not in gone]


def _check_share(
    found: Sequence[Mapping[str, str]], total: int, what: str, reader: Reader, config: LocalDataset
) -> None:
    """Stop if more than ``max_excluded`` of all can't be used."""
    if len(found) > config.max_excluded * total:
        named = (" ".join(filter(None, (item["name"], item.get("object"), item["reason"]))) for item in found[:SHOWN])
        raise MlsError(
            f"{reader.root}: more than max_excluded = {config.max_excluded:g} of {total:,} {what} can't be used: "
            f"{'; '.join(named)}. Repair these files, or raise max_excluded in the dataset's entry"
        )


def _load(entry: Entry, listing: Listing, reader: Reader, config: LocalDataset) -> Record | str:
    """Return what is kept of one image, or why it can't be used."""
    from mls.data.decode import prove  # these import torch, which listing and hashing do without
    from mls.data.shrink import transcode

    data, sha256 = reader.read(entry.name)
    labels = reader.read(entry.mask)[0] if entry.mask else None  # read before any check: both count into the digest
    try:
        image_CHW = prove(data, entry.name)
        size = image_CHW.shape[2], image_CHW.shape[1]
        if entry.size not in (None, size):
            return f"is {size[0]} x {size[1]} px, but its annotations are for {entry.size[0]} x {entry.size[1]}"
        record = Record(entry.name, entry.split, data, *size, entry.classes, entry.annotations, sha256)
        if labels is not None and listing.values is not None:
            mask_HW = read_mask(labels, size, listing.values, f"{entry.name} has a label file, {entry.mask}, that")
            classes = [int(value) for value in np.unique(mask_HW) if value != IGNORE]
            record = replace(record, classes=classes, mask=encode_mask(mask_HW))
        return transcode(record, image_CHW, config.short_side, config.format)
    except MlsError as error:
        return str(error).removeprefix(f"{entry.name} ")


def read_mask(data: bytes, size: tuple[int, int], values: Mapping[int, int], what: str) -> NDArray[np.uint8]:
    """Turn a label file into class indices: uint8 (H, W).

    Args:
        data: an 8-bit grey PNG.
        size: width and height that it must have, pixels.
        values: class index, or `IGNORE`, of each value that it may hold.
        what: begins each error.

    Raises:
        MlsError: the file is not such a PNG, damaged, of a different size, or holds an unknown value.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.mode != "L":
                raise MlsError(f"{what} is not 8-bit grey (its mode is {image.mode})")
            if image.size != size:  # the header's claim, checked before memory is allocated for the pixels
                raise MlsError(
                    f"{what} is {image.size[0]} x {image.size[1]} px, but the image is {size[0]} x {size[1]}"
                )
            image.verify()  # all checksums; the image can't be read afterwards, so it is opened again
        given_HW = decode_mask(data)
    except MlsError:
        raise
    except Exception as error:  # PIL's readers raise SyntaxError, struct.error, OSError, EOFError and more
        raise MlsError(f"{what} is no PNG, or damaged ({error})") from error
    if unknown := sorted(set(np.unique(given_HW).tolist()) - set(values)):
        raise MlsError(f"{what} holds {', '.join(map(str, unknown))}, which no class has")
    table = np.full(256, IGNORE, dtype=np.uint8)
    table[list(values)] = list(values.values())
    return table[given_HW]
