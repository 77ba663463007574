"""Bring a source's files to its root: archives that the catalog names, or images one by one.

    fetch_archives("voc", VocDataset(source="voc"), Path("data/voc"))       # what is there is not fetched again
    verified(VocDataset(source="voc"), Path("data/voc"))                    # True: all are the published archives

``ROOT/.mls/<file>.json`` says that an archive was unpacked, and which (its checksum); it is written before the first
file is moved in (``"whole": false``) and again after the last one. ``ROOT/.mls/<file>.sha256`` lists what it held (in
the format of ``sha256sum``); the data stage compares what it reads with it. What lies there without such a note is
somebody's own copy, and taken as it is. An archive that somebody has put in ``ROOT`` (or ``ROOT/.mls``) is used, once
its checksum is verified, instead of a download.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mls.config import catalog
from mls.config.catalog import Archive
from mls.config.datasets import LocalDataset
from mls.download.download import download, download_many, mismatch, sentence
from mls.download.partial import require_space
from mls.download.reader import Reader, unsafe
from mls.download.stream import Poll
from mls.download.unpack import NOTES, is_archive, unpack
from mls.runtime.errors import MlsError
from mls.runtime.files import atomic_file, explain_full_disk, sha256, sync, write_atomic
from mls.runtime.locks import locked, say

SOME = "images-one-by-one.json"
"""Note on the folders that `fetch_images` has put images in."""


def fetch_archives(name: str, config: LocalDataset, root: Path, poll: Poll = lambda: None) -> None:
    """Download, verify and unpack what an entry needs and ``root`` has not. Killed at any point, it goes on.

    Args:
        name: of the dataset, for messages.
        config: the entry.
        root: made where it is missing.
        poll: called five times a second; what it raises stops everything.

    Raises:
        MlsError: an archive is not to be had, or not the published one, or the disk is too full; says what to do.
    """
    if not _missing(config, root):
        return  # also where root can't be written to
    notes = root / NOTES
    notes.mkdir(parents=True, exist_ok=True)
    with locked(notes / "lock", f"dataset {name}"):
        missing = _missing(config, root)  # another process may have brought some meanwhile
        hint = catalog.hint(config)
        _require_brought(name, [one for one in missing if not one.urls and not _brought(one, root)], root, hint)
        if missing and (about := catalog.source(config)):
            say(f"dataset {name!r}: {about.title}, {about.page}; as far as we know: {about.licence}")
        sizes = [archive.size or 0 for archive in missing if not _brought(archive, root)]
        if sizes:  # images hardly shrink: unpacked, an archive takes about its own size again
            require_space(root, sum(sizes) + max(sizes) - _begun(missing, notes), f"dataset {name}")
        for archive in missing:
            _bring(name, archive, root, hint, poll)


def verified(config: LocalDataset, root: Path) -> bool:
    """Whether all that an entry needs was unpacked here from archives with the published checksums."""
    archives = catalog.needed(config)
    return bool(archives) and all(
        archive.checksum is not None
        and _note(archive, root).get("checksum") == archive.checksum
        and _is_there(archive, root)
        for archive in archives
    )


def fetch_images(
    name: str, wanted: Sequence[tuple[str, str]], reader: Reader, hint: str, poll: Poll = lambda: None
) -> None:
    """Download the images that are not there.

    Args:
        name: of the dataset, for messages.
        wanted: (address, path below the root).
        reader: its root is where they go.
        hint: what to do where the host does not answer.
        poll: as for `fetch_archives`.

    Raises:
        MlsError: how many could not be had, and why; the others are there.
    """
    for _, path in wanted:
        if problem := unsafe(path):
            raise MlsError(f"dataset {name!r}: image {path!r} {problem}")
    if all(reader.has(path) for _, path in wanted):
        return
    notes = reader.root / NOTES
    notes.mkdir(parents=True, exist_ok=True)
    with locked(notes / "lock", f"dataset {name}"):
        folders = _partly_filled(reader.root) | {path.rpartition("/")[0] for _, path in wanted}
        write_atomic(notes / SOME, json.dumps(sorted(folders)) + "\n")
        download_many([(url, reader.root / path) for url, path in wanted], f"images of {name}", hint=hint, poll=poll)


def _missing(config: LocalDataset, root: Path) -> list[Archive]:
    return [archive for archive in catalog.needed(config) if not _is_there(archive, root)]


def _is_there(archive: Archive, root: Path) -> bool:
    """Whether an archive's content lies here whole: unpacked by us, or somebody's own."""
    if not all((root / path).exists() for path in archive.gives):
        return False
    if not _note_path(archive, root).exists():
        return not _partly_filled(root) & set(archive.gives)
    note = _note(archive, root)
    return note.get("whole") is True and archive.checksum in (None, note.get("checksum"))


def _require_brought(name: str, absent: Sequence[Archive], root: Path, hint: str) -> None:
    """Stop where files without a public address are not there, naming all of them at once."""
    if absent:
        files = ", ".join(archive.file for archive in absent)
        gives = ", ".join(path for archive in absent for path in archive.gives)
        raise MlsError(
            f"dataset {name!r} needs what has no public address: {files}. {sentence(hint)}Put the files in {root}, or "
            f"what they hold ({gives}) below it; a copy elsewhere is named by `root:` in the dataset's entry"
        )


def _bring(name: str, archive: Archive, root: Path, hint: str, poll: Poll) -> None:
    """One archive: have it, unpack it, write the note, remove what was downloaded."""
    label = f"dataset {name!r}: {archive.file}"
    brought = _brought(archive, root)
    size = archive.size if archive.checksum is None else None  # the checksum decides; sizes are at times misreported
    if brought:
        if problem := mismatch(brought, size, archive.checksum, poll):
            raise MlsError(
                f"{label}: {brought} is not the published file: it {problem}. {sentence(hint)}Replace it, or remove it "
                "to have it downloaded"
            )
    else:
        download(
            archive.urls,
            root / NOTES / archive.file,
            size=size,
            checksum=archive.checksum,
            hint=hint,
            name=archive.file,
            poll=poll,
        )
    file = brought or root / NOTES / archive.file
    note = {"file": archive.file, "checksum": archive.checksum, "size": file.stat().st_size}
    into = root / archive.into

    def before(held: dict[str, str]) -> None:
        """Between unpacking and moving in: nobody's file is lost, and what comes is known."""
        held = {(PurePosixPath(archive.into) / path).as_posix(): one for path, one in held.items()}
        _refuse_to_replace(held, root, label, ours=_note_path(archive, root).exists())
        write_atomic(_list_path(archive, root), "".join(f"{one}  {path}\n" for path, one in sorted(held.items())))
        _write_note(archive, root, {**note, "whole": False})

    with explain_full_disk(root):
        if is_archive(archive.file):
            unpack(file, into, poll=poll, before=before)
        else:
            before({archive.file: sha256(file)})
            if file != into / archive.file:
                into.mkdir(parents=True, exist_ok=True)
                with file.open("rb") as source, atomic_file(into / archive.file) as copy:
                    shutil.copyfileobj(source, copy)
    absent = [path for path in archive.gives if not (root / path).exists()]
    if absent:
        raise MlsError(f"{label} was unpacked in {into}, but held no {', '.join(absent)}; is it the right file?")
    _write_note(archive, root, {**note, "whole": True})
    if file.parent == root / NOTES:
        file.unlink()


def _refuse_to_replace(held: dict[str, str], root: Path, label: str, *, ours: bool) -> None:
    """Stop where a file that we did not bring would be replaced by another one.

    Args:
        held: sha256 of each file of an archive, by path below the root.
        root: of the source.
        label: of the archive, for the message.
        ours: it was being moved in before, so what is in its way came from it.

    Raises:
        MlsError: names the files.
    """
    if ours:
        return
    known = {path for notes in (root / NOTES).glob("*.sha256") for path in _listed(notes)}
    there = (path for path in held if path not in known and (root / path).is_file())
    others = [path for path in there if sha256(root / path) != held[path]]
    if others:
        names = ", ".join(others[:3]) + (" and more" if len(others) > 3 else "")
        raise MlsError(
            f"{label} holds {names}, and {root} has other files of these names that were not downloaded. Move them "
            "elsewhere, or name the folder by `root:` in the dataset's entry to use them as they are"
        )


def contents(config: LocalDataset, root: Path) -> dict[str, str]:
    """The sha256 of each file that the needed archives held, by path below the root."""
    lists = (_listed(_list_path(archive, root)) for archive in catalog.needed(config))
    return {path: one for listed in lists for path, one in listed.items()}


def _listed(file: Path) -> dict[str, str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {path: one for one, _, path in (line.partition("  ") for line in lines)}


def _list_path(archive: Archive, root: Path) -> Path:
    return root / NOTES / f"{archive.file}.sha256"


def _brought(archive: Archive, root: Path) -> Path | None:
    """The archive's file where it lies: put there by somebody, or downloaded before a kill."""
    places = (root / archive.file, root / NOTES / archive.file)
    return next((place for place in places if place.is_file()), None)


def _begun(archives: Sequence[Archive], notes: Path) -> int:
    """Bytes that downloads which were interrupted have on the disk."""
    parts = [notes / f"{archive.file}.part" for archive in archives]
    return sum(part.stat().st_blocks * 512 for part in parts if part.exists())


def _partly_filled(root: Path) -> set[str]:
    """Folders that hold some images only: such a one is nobody's whole copy."""
    try:
        return set(json.loads((root / NOTES / SOME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return set()


def _note_path(archive: Archive, root: Path) -> Path:
    return root / NOTES / f"{archive.file}.json"


def _note(archive: Archive, root: Path) -> dict[str, Any]:
    """What the note on an archive says; nothing where there is none, or a damaged one."""
    try:
        note = json.loads(_note_path(archive, root).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _write_note(archive: Archive, root: Path, note: dict[str, Any]) -> None:
    write_atomic(_note_path(archive, root), json.dumps(note) + "\n")
    sync(root / NOTES)
