"""Sources that are read from files: where the files are, what they list, and what identifies them.

    reader = open_reader(["coco"], config)      # $MLS_DATA/coco; what is missing there is downloaded
    listing = read_listing(config, reader)
    pin("coco", config, Path("data.lock"))      # `mls data pin coco`

A source without published checksums is identified by a digest in ``data.lock``: sha256 over the sorted lines
``relative path NUL size NUL sha256 of content`` of exactly the files that its listing names.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mls.config import catalog
from mls.config.catalog import PUBLISHED
from mls.config.datasets import (
    CityscapesDataset,
    ClassificationDataset,
    CocoDataset,
    Dataset,
    FolderDataset,
    LocalDataset,
    ScenesDataset,
    VocDataset,
)
from mls.data import cityscapes, classification, coco, folder, voc
from mls.data.listing import Listing
from mls.download import fetch
from mls.download.reader import Reader
from mls.pipeline.plan import read_lock
from mls.runtime.errors import MlsError
from mls.runtime.files import write_atomic
from mls.runtime.locks import say
from mls.runtime.paths import expanded, place
from mls.runtime.progress import Bar

LISTINGS: dict[type[LocalDataset], Callable[[Any, Reader], Listing]] = {
    CocoDataset: coco.read_listing,
    VocDataset: voc.read_listing,
    CityscapesDataset: cityscapes.read_listing,
    ClassificationDataset: classification.read_listing,
    FolderDataset: folder.read_listing,
}
"""The section of each source -> the function that reads its listing."""


def find_root(names: Sequence[str], config: LocalDataset) -> Path:
    """Return the folder of a source: its ``root``, or ``$MLS_DATA/<name>`` of the first name that has one.

    Without ``MLS_DATA``, ``downloads/`` is used. If the source can be downloaded, its folder need not exist.

    Raises:
        MlsError: there is no such folder; says what to do.
    """
    base = place("MLS_DATA", "downloads")
    if config.root is not None:
        root = base / expanded(config.root, f"dataset {names[0]!r}: its root")
        if not root.is_dir():
            raise MlsError(
                f"dataset {names[0]!r}: its root, {root}, is not a folder; correct root in its entry"
                f"{'' if Path(config.root).is_absolute() else f' (relative ones are below $MLS_DATA, {base})'}, "
                "or leave it out to download what can be"
            )
        return root
    found = next((base / name for name in names if (base / name).is_dir()), None)
    if found is None and not catalog.needed(config):
        raise MlsError(
            f"dataset {names[0]!r}: there is no folder {base / names[0]} (MLS_DATA is "
            f"{os.environ.get('MLS_DATA') or 'not set'}); put the data there, or give root in its entry, "
            f"or run: export MLS_DATA=/path/that/holds/{names[0]}"
        )
    return found or base / names[0]


def open_reader(names: Sequence[str], config: LocalDataset, poll: Callable[[], None] = lambda: None) -> Reader:
    """Return a reader of the source's files, after downloading what is missing (never into a ``root``).

    Args:
        names: of the dataset, including the names of equal ones.
        config: its entry.
        poll: called now and then; an exception that it raises stops the download, and the next run goes on with it.

    Raises:
        MlsError: as `find_root` and `mls.download.fetch`.
    """
    root = find_root(names, config)
    if config.root is None and not (isinstance(config, VocDataset) and voc.is_bare(root, config)):
        fetch.fetch_archives(names[0], config, root, poll)
    return Reader(voc.devkit(root, config) if isinstance(config, VocDataset) else root, poll)


def read_listing(config: LocalDataset, reader: Reader, poll: Callable[[], None] = lambda: None) -> Listing:
    """Read and check what a source lists; images are not opened. Missing images of a COCO subset are downloaded.

    Args:
        config: the entry.
        reader: of `open_reader`.
        poll: as in `open_reader`.

    Raises:
        MlsError: names the file, the place and the value; or the images that can't be downloaded.
    """
    listing: Listing = LISTINGS[type(config)](config, reader)
    if isinstance(config, CocoDataset) and config.subset and config.root is None:
        wanted = [(catalog.image_url(entry.name), entry.name) for entry in listing.entries]
        fetch.fetch_images(reader.root.name, wanted, reader, catalog.hint(config), poll)
    return listing


def pin(name: str, config: Dataset, lock_path: Path) -> dict[str, Any]:
    """Hash a source's files, write the digest into ``data.lock`` (other entries stay) and return it.

    Raises:
        MlsError: the source is missing or contradicts itself, or is generated and needs no digest.
    """
    config = require_files(name, config)
    reader = open_reader([name], config)
    listing = read_listing(config, reader)
    if problem := _count_problem(config, listing):
        say(f"note: dataset {name!r}: {reader.root} {problem}")
    with Bar(f"pin {name}", total=len(listing.entries)) as bar:
        for entry in listing.entries:
            reader.read(entry.name)
            if entry.mask:
                reader.read(entry.mask)
            bar.advance(1, 1)
    return write_pin(name, reader.digest(), lock_path)


def require_files(name: str, config: Dataset) -> LocalDataset:
    """Return an entry if it is of a source that is read from files.

    Raises:
        MlsError: it is generated.
    """
    if isinstance(config, ScenesDataset):
        raise MlsError(f"dataset {name!r} is generated: its parameters identify it, so it needs no digest")
    return config


def write_pin(name: str, digest: dict[str, Any], lock_path: Path) -> dict[str, Any]:
    """Write a digest into ``data.lock`` (other entries stay) and return it."""
    lock = {**read_lock(lock_path), name: digest}
    text = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.dump({key: dict(sorted(lock[key].items())) for key in sorted(lock)}, text)
    write_atomic(lock_path, text.getvalue())
    return digest


def check_origin(names: Sequence[str], config: LocalDataset, reader: Reader, digest: str) -> None:
    """Before anything is read, check that a source that published checksums identify was unpacked from its archives.

    Raises:
        MlsError: it was not; says how to pin it.
    """
    if digest.startswith(PUBLISHED) and not fetch.verified(config, find_root(names, config)):
        raise MlsError(
            f"dataset {names[0]!r}: {reader.root} was not unpacked here from archives with the published checksums, so "
            f"nothing proves what it holds. To identify it by its own content, pin it first: mls data {names[0]} --pin "
            "-e FILE (makes the data set in the same pass), or: "
            f"mls data pin {names[0]} -e FILE"
        )


def check_counts(names: Sequence[str], config: LocalDataset, reader: Reader, listing: Listing, digest: str) -> None:
    """Before images are read, compare the counts of a source that published checksums identify with the official ones.

    Raises:
        MlsError: they differ.
    """
    if digest.startswith(PUBLISHED) and (problem := _count_problem(config, listing)):
        raise MlsError(f"dataset {names[0]!r}: {reader.root} {problem}")


def _count_problem(config: LocalDataset, listing: Listing) -> str | None:
    """Say how a listing's counts differ from the official ones, if they do; held-out val counts as train."""
    expected = catalog.expected(config)
    if expected is None:
        return None
    held_out = {} if "val" in expected else {"val": "train"}
    counts = dict(Counter(held_out.get(entry.split, entry.split) for entry in listing.entries))
    return None if counts == expected else f"lists {counts} images, but the official counts are {expected}"


def check_content(names: Sequence[str], config: LocalDataset, reader: Reader, digest: str) -> None:
    """After everything was read, compare it with the content of the archives, or with ``data.lock``.

    Raises:
        MlsError: they differ; says what to do.
    """
    if digest.startswith(PUBLISHED):
        root = find_root(names, config)
        held = fetch.contents(config, root)
        below = reader.root.relative_to(root)
        changed = [name for name, one in reader.seen().items() if held.get((below / name).as_posix()) != one]
        if changed:
            raise MlsError(
                f"dataset {names[0]!r}: {', '.join(sorted(changed)[:3])}{' and more' if len(changed) > 3 else ''} "
                f"below {reader.root} {'are' if len(changed) > 1 else 'is'} not as the published archives held it. "
                f"Remove the folder, or all of {root}, to have it fetched again"
            )
        return
    found = reader.digest()
    if found["sha256"] != digest:
        raise MlsError(
            f"dataset {names[0]!r}: the files under {reader.root} are not those pinned in data.lock: sha256 is "
            f"{found['sha256']} ({found['files']:,} files, {found['bytes']:,} bytes) instead of {digest}. "
            f"Restore the files or, if the change is wanted, run: mls data pin {names[0]} -e FILE"
        )
