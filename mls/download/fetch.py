"""Fetch a source's files into its root: archives that the catalog names, or images one by one.

    fetch_archives("voc", VocDataset(source="voc"), Path("data/voc"))       # what is there is not fetched again
    verified(VocDataset(source="voc"), Path("data/voc"))                    # True: all are the published archives

``ROOT/.mls/<file>.json`` says that an archive was unpacked, and which one (its checksum); it is written before the
first file is moved in (``"whole": false``) and again after the last one. ``ROOT/.mls/<file>.sha256`` lists the files
it held (in the format of ``sha256sum``); the data stage compares what it reads with that list. Files without such a
note are the user's own copy, and are used as they are. An archive that the user has put in ``ROOT`` (or ``ROOT/.mls``)
is used instead of a download, once its checksum is verified.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mls.config import catalog
from mls.config.catalog import Archive
from mls.config.datasets import LocalDataset
from mls.download.download import download, download_many, mismatch, sentence
from mls.download.partial import require_space
from mls.download.reader import Reader, unsafe
from mls.download.unpack import NOTES, unpack
from mls.download.web import Poll
from mls.runtime.errors import MlsError
from mls.runtime.files import explain_full_disk, sha256, write_atomic
from mls.runtime.locks import locked, say

SOME = "images-one-by-one.json"
"""Name of the note on the folders that `fetch_images` has put images in."""


def fetch_archives(name: str, config: LocalDataset, root: Path, poll: Poll = lambda: None) -> None:
    """Download, verify and unpack what an entry needs and ``root`` lacks. Killed at any point, it resumes.

    Args:
        name: of the dataset, for messages.
        config: the entry.
        root: made if it is missing.
        poll: see `mls.download.web.Poll`.

    Raises:
        MlsError: an archive can't be downloaded, is not the published one, or the disk is too full; says what to do.
    """
    if not _missing(config, root):  # without a lock: root may be read-only
        return
    with locked(root / NOTES / "lock", f"dataset {name}"):
        archives = _missing(config, root)  # another process may have fetched some meanwhile
        absent = to_download(config, root)
        hint = catalog.hint(config)
        if by_hand := [archive for archive in absent if not archive.urls]:
            files = ", ".join(archive.file for archive in by_hand)
            gives = ", ".join(path for archive in by_hand for path in archive.gives)
            raise MlsError(
                f"dataset {name!r} needs files that have no public address: {files}. {sentence(hint)}Put them in "
                f"{root}, or what they hold ({gives}) below it; if you have a copy elsewhere, set `root:` in the "
                "dataset's entry to its folder"
            )
        if archives and (about := catalog.source(config)):
            say(f"dataset {name!r}: {about.title}, {about.page}; as far as we know: {about.licence}")
        if absent:  # images hardly compress: unpacked, an archive takes about its own size again
            sizes = [archive.size or 0 for archive in absent]
            parts = [root / NOTES / f"{archive.file}.part" for archive in absent]
            begun = sum(part.stat().st_size for part in parts if part.exists())
            require_space(root, sum(sizes) + max(sizes) - begun, f"dataset {name}")
        for archive in archives:
            with explain_full_disk(root):
                _fetch_archive(f"dataset {name!r}: {archive.file}", archive, root, hint, poll)


def to_download(config: LocalDataset, root: Path) -> list[Archive]:
    """The archives that an entry needs and that are neither unpacked in ``root`` nor lie there as files."""
    return [archive for archive in _missing(config, root) if _local_file(archive, root) is None]


def _missing(config: LocalDataset, root: Path) -> list[Archive]:
    return [archive for archive in catalog.needed(config) if not _is_there(archive, root)]


def verified(config: LocalDataset, root: Path) -> bool:
    """Whether all that an entry needs was unpacked here from archives with the published checksums."""
    archives = catalog.needed(config)
    return bool(archives) and all(
        archive.checksum is not None
        and _note(archive, root).get("checksum") == archive.checksum
        and _is_there(archive, root)
        for archive in archives
    )


def contents(config: LocalDataset, root: Path) -> dict[str, str]:
    """The sha256 of each file that the needed archives held, by path below the root."""
    lists = (_listed(_list_path(archive, root)) for archive in catalog.needed(config))
    return {path: digest for listed in lists for path, digest in listed.items()}


def fetch_images(
    name: str, wanted: Sequence[tuple[str, str]], reader: Reader, hint: str, poll: Poll = lambda: None
) -> None:
    """Download those images that are not there.

    Args:
        name: of the dataset, for messages.
        wanted: (address, path below the root) of each image.
        reader: they go below its root.
        hint: what to do if the host does not answer.
        poll: see `mls.download.web.Poll`.

    Raises:
        MlsError: how many can't be downloaded, and why; the others are there.
    """
    for _, path in wanted:
        if problem := unsafe(path):
            raise MlsError(f"dataset {name!r}: image {path!r} {problem}")
    if all(reader.has(path) for _, path in wanted):
        return
    notes = reader.root / NOTES
    with locked(notes / "lock", f"dataset {name}"):
        folders = _partly_filled(reader.root) | {path.rpartition("/")[0] for _, path in wanted}
        write_atomic(notes / SOME, json.dumps(sorted(folders)) + "\n")
        download_many([(url, reader.root / path) for url, path in wanted], f"images of {name}", hint, poll)


def _is_there(archive: Archive, root: Path) -> bool:
    """Whether all that an archive holds is here: unpacked by us, or the user's own copy."""
    if not all((root / path).exists() for path in archive.gives):
        return False
    if not _note_path(archive, root).exists():
        return not _partly_filled(root) & set(archive.gives)
    note = _note(archive, root)
    return note.get("whole") is True and archive.checksum in (None, note.get("checksum"))


def _fetch_archive(label: str, archive: Archive, root: Path, hint: str, poll: Poll) -> None:
    """Get one archive, unpack it, write the note, and remove what was downloaded."""
    size = archive.size if archive.checksum is None else None  # published sizes are at times wrong, checksums are not
    file = _local_file(archive, root)
    if file is None:
        file = root / NOTES / archive.file
        download(archive.urls, file, size=size, checksum=archive.checksum, hint=hint, poll=poll)
    elif problem := mismatch(file, size, archive.checksum, poll):
        raise MlsError(
            f"{label}: {file} is not the published file: it {problem}. {sentence(hint)}Replace it, or remove it to "
            "have it downloaded"
        )
    note = {"file": archive.file, "checksum": archive.checksum, "size": file.stat().st_size}

    def before(held: dict[str, str]) -> None:
        """Between unpacking and moving in: protect the user's files, and note which ones are ours."""
        held = {(PurePosixPath(archive.into) / path).as_posix(): digest for path, digest in held.items()}
        if not _note_path(archive, root).exists():  # else the files there came from an earlier attempt
            _refuse_to_replace(held, root, label)
        write_atomic(_list_path(archive, root), "".join(f"{held[path]}  {path}\n" for path in sorted(held)))
        _write_note(archive, root, {**note, "whole": False})

    unpack(file, root / archive.into, poll, before)
    if absent := [path for path in archive.gives if not (root / path).exists()]:
        raise MlsError(
            f"{label} was unpacked in {root / archive.into}, but held no {', '.join(absent)}; is it the right file?"
        )
    _write_note(archive, root, {**note, "whole": True})
    if file.parent == root / NOTES:
        file.unlink()


def _refuse_to_replace(held: dict[str, str], root: Path, label: str) -> None:
    """Stop if a file that was not downloaded would be replaced by another one.

    Args:
        held: sha256 of each file of an archive, by path below the root.
        root: of the source.
        label: of the archive, for the message.

    Raises:
        MlsError: names the files.
    """
    known = {path for notes in (root / NOTES).glob("*.sha256") for path in _listed(notes)}
    there = (path for path in held if path not in known and (root / path).is_file())
    others = [path for path in there if sha256(root / path) != held[path]]
    if others:
        names = ", ".join(others[:3]) + (" and more" if len(others) > 3 else "")
        raise MlsError(
            f"{label} holds {names}, and {root} has other files of these names that were not downloaded. Move them "
            "elsewhere, or set `root:` in the dataset's entry to their folder to use them as they are"
        )


def _listed(file: Path) -> dict[str, str]:
    """The sha256 by path, from a list in the format of ``sha256sum``."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {path: digest for digest, _, path in (line.partition("  ") for line in lines)}


def _list_path(archive: Archive, root: Path) -> Path:
    return root / NOTES / f"{archive.file}.sha256"


def _local_file(archive: Archive, root: Path) -> Path | None:
    """The archive's file if it is here: put there by the user, or downloaded before a kill."""
    places = (root / archive.file, root / NOTES / archive.file)
    return next((place for place in places if place.is_file()), None)


def _partly_filled(root: Path) -> set[str]:
    """Folders in which `fetch_images` has put images, so they are not a complete copy of the user's."""
    return set(_read_json(root / NOTES / SOME) or [])


def _read_json(path: Path) -> Any:
    """The content of a note; None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _note_path(archive: Archive, root: Path) -> Path:
    return root / NOTES / f"{archive.file}.json"


def _note(archive: Archive, root: Path) -> dict[str, Any]:
    """The note on an archive; empty if it is missing or damaged."""
    note = _read_json(_note_path(archive, root))
    return note if isinstance(note, dict) else {}


def _write_note(archive: Archive, root: Path, note: dict[str, Any]) -> None:
    write_atomic(_note_path(archive, root), json.dumps(note) + "\n")
