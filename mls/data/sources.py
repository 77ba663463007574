"""Sources that lie on disk: where they are, their digest in ``data.lock``, and their images, checked.

    root = find_root(["coco"])                                  # $MLS_DATA/coco
    pin("coco", CocoDataset(source="coco"), Path("data.lock"))  # `mls data pin coco`

A source that publishes no checksum gets its identity from the digest: sha256 over the sorted lines
``relative path NUL size NUL sha256 of content`` of exactly the files that its listing names.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mls.data import coco, folder, voc
from mls.data.reader import Entry, Listing, Reader
from mls.data.store import Record
from mls.errors import MlsError
from mls.experiment.artifact import write_atomic
from mls.experiment.datasets import CocoDataset, Dataset, FolderDataset, LocalDataset, ScenesDataset, VocDataset
from mls.experiment.plan import read_lock
from mls.train.progress import Bar

SHOWN = 5
"""Bad images that an error names."""


def find_root(names: Sequence[str]) -> Path:
    """Return ``$MLS_DATA/<name>`` of the first name whose folder exists.

    Raises:
        MlsError: says how to set ``MLS_DATA``, or which folder is missing.
    """
    base = os.environ.get("MLS_DATA")
    if not base:
        raise MlsError(
            f"dataset {names[0]!r} is read from $MLS_DATA/{names[0]}, and MLS_DATA is not set; "
            f"run: export MLS_DATA=/path/that/holds/{names[0]}"
        )
    for name in names:
        if (Path(base) / name).is_dir():
            return Path(base) / name
    raise MlsError(
        f"dataset {names[0]!r}: there is no folder {Path(base) / names[0]} (MLS_DATA is {base}); put the data there, "
        f"or run: export MLS_DATA=/path/that/holds/{names[0]}"
    )


def open_reader(names: Sequence[str], config: LocalDataset) -> Reader:
    """Return a reader of the source's files, of the first name whose folder exists.

    Raises:
        MlsError: as `find_root`.
    """
    root = find_root(names)
    return Reader(voc.devkit(root, config) if isinstance(config, VocDataset) else root)


def read_listing(config: LocalDataset, reader: Reader) -> Listing:
    """Read and check what a source lists; images are not opened."""
    if isinstance(config, CocoDataset):
        return coco.read_listing(config, reader)
    if isinstance(config, VocDataset):
        return voc.read_listing(config, reader)
    if isinstance(config, FolderDataset):
        return folder.read_listing(config, reader)
    raise NotImplementedError(config.source)


def source_digest(name: str, config: Dataset) -> dict[str, Any]:
    """Hash a source's files: ``{"sha256", "files", "bytes"}``.

    Raises:
        MlsError: the source is missing or contradicts itself, or is generated and needs no digest.
    """
    if isinstance(config, ScenesDataset):
        raise MlsError(f"dataset {name!r} is generated: its parameters identify it, so it needs no digest")
    reader = open_reader([name], config)
    entries = read_listing(config, reader).entries
    with Bar(f"pin {name}", total=len(entries)) as bar:
        for entry in entries:
            reader.hash(entry.name)
            bar.advance(1, 1)
    return reader.digest()


def pin(name: str, config: Dataset, lock_path: Path) -> dict[str, Any]:
    """Hash a source, write its digest into ``data.lock`` (other entries stay) and return it."""
    digest = source_digest(name, config)
    lock = read_lock(lock_path)
    lock[name] = digest
    text = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.dump({key: dict(sorted(lock[key].items())) for key in sorted(lock)}, text)
    write_atomic(lock_path, text.getvalue())
    return digest


def check_digest(name: str, reader: Reader, pinned: str) -> None:
    """Compare what was read with what ``data.lock`` says.

    Raises:
        MlsError: they differ; says both and what to do.
    """
    found = reader.digest()
    if found["sha256"] != pinned:
        raise MlsError(
            f"dataset {name!r}: the files under {reader.root} are not those pinned in data.lock: sha256 is "
            f"{found['sha256']} ({found['files']:,} files, {found['bytes']:,} bytes) instead of {pinned}. "
            f"Restore the files or, if the change is wanted, run: mls data pin {name}"
        )


def load_records(
    listing: Listing, reader: Reader, excluded: list[dict[str, str]], max_excluded: float, threads: int
) -> Iterator[Record]:
    """Read, hash and decode every listed image; yield those that decode, in the listing's order.

    Args:
        listing: what to read.
        reader: reads (and hashes) each image once.
        excluded: filled with ``{"name", "reason"}`` of images that do not decode, or not to the
            size that their annotations are for.
        max_excluded: share of the listed images that may be excluded.
        threads: images prepared at the same time.

    Raises:
        MlsError: an image is missing, or too many are excluded (names the first).
    """
    from mls.data.decode import size_of  # imports torch, which listing and hashing do without

    def load(entry: Entry) -> Record | str:
        data, sha256 = reader.read(entry.name)
        try:
            size = size_of(data, entry.name)
        except MlsError as error:
            return str(error).removeprefix(f"{entry.name} ")
        if entry.size not in (None, size):
            return f"is {size[0]} x {size[1]} px, but its annotations are for {entry.size[0]} x {entry.size[1]}"
        return Record(entry.name, entry.split, data, *size, entry.classes, entry.annotations, sha256)

    total = len(listing.entries)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[Entry, Future[Record | str]]] = deque()
        upcoming = iter(listing.entries)
        try:
            while True:
                while len(waiting) < 4 * threads and (entry := next(upcoming, None)):
                    waiting.append((entry, pool.submit(load, entry)))
                if not waiting:
                    return
                entry, future = waiting.popleft()
                result = future.result()
                if isinstance(result, Record):
                    yield result
                    continue
                excluded.append({"name": entry.name, "reason": result})
                if len(excluded) > max_excluded * total:
                    names = "; ".join(f"{item['name']} {item['reason']}" for item in excluded[:SHOWN])
                    raise MlsError(
                        f"{reader.root}: more than max_excluded = {max_excluded:g} of {total:,} images can't be used: "
                        f"{names}. Mend these files, or raise max_excluded in the dataset's entry"
                    )
        finally:  # also where the reader of this generator stops early
            pool.shutdown(cancel_futures=True)
