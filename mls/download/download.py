"""Fetch files over http(s): mirrors, several connections, going on after a kill, checksums.

    download(["https://host/images.zip", "https://mirror/images.zip"], Path("images.zip"),
             size=815_585_330, checksum="md5:442b8da7639aecaf257c1dceb8ba8c80")
    download_many([("https://host/1.jpg", Path("images/1.jpg")), ...], "coco-2k")      # small files

A target appears whole and checked, or not at all. What has come so far lies beside it (`mls.download.partial`) and is
used by the next call where the server answers ranges; where it ignores them, the file starts over. With a checksum,
ranges may come from several mirrors; without, all are of one address and one ETag or Last-Modified.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import requests

from mls.download.partial import MB, Partial
from mls.download.stream import Download, Poll, Wanted
from mls.download.web import RETRIES, Crew, Refused, Stopped, Torn, body, content_length, is_web_page, new_session
from mls.runtime.errors import MlsError
from mls.runtime.files import out_of_space, sync
from mls.runtime.locks import locked
from mls.runtime.progress import Bar

LARGEST = 64 * MB
"""Bytes that a small file may have: more is none."""
GIVE_UP = 20
"""Failed small files after which the rest isn't tried."""
SHOWN = 5


def download(
    urls: Sequence[str],
    target: Path,
    *,
    size: int | None = None,
    checksum: str | None = None,
    connections: int = 4,
    hint: str = "",
    name: str | None = None,
    poll: Poll = lambda: None,
) -> None:
    """Fetch one file, unless it is there.

    Args:
        urls: mirrors, tried in order.
        target: where it goes; its folder is made.
        size: bytes, where known; another size is refused before anything is fetched.
        checksum: ``md5:<hex>`` or ``sha256:<hex>``.
        connections: at most so many at once.
        hint: what a person can do if no mirror has it.
        name: what it is called in messages; the file's name by default.
        poll: called five times a second.

    Raises:
        MlsError: each mirror with its reason, or a full disk, or ``MLS_OFFLINE``; says what to do.
    """
    name = name or target.name
    if _is_there(target, size, checksum, poll):
        return
    require_online(name, f"{target} is missing", urls, hint)
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_name(f"{target.name}.lock"), f"download of {name}"):
        if _is_there(target, size, checksum, poll):  # by another process meanwhile
            return
        partial = Partial(target)
        try:
            _try_mirrors(urls, partial, Wanted(target, size, checksum, connections, name, poll), hint)
        except OSError as error:
            if not out_of_space(error):
                raise
            raise MlsError(
                f"{name}: the disk that holds {target.parent} is full ({partial.held / 1e9:.1f} GB have come). "
                "Free some space and run the same command again; it goes on from there"
            ) from error
        finally:
            if partial.path.exists():
                with suppress(OSError):  # the last journal still holds true
                    partial.flush()
            partial.close()


def _try_mirrors(urls: Sequence[str], partial: Partial, wanted: Wanted, hint: str) -> None:
    """Fetch ``partial`` from the first mirror that has it, check it and rename it to the target."""
    reasons = []
    waiting = deque(urls)
    while waiting:
        url = waiting.popleft()
        mixed = partial.held > 0
        try:
            Download(url, partial, wanted).fetch()
            partial.flush()
            if problem := mismatch(partial.path, wanted.size, wanted.checksum, wanted.poll):
                partial.restart(None)
                if mixed:  # bytes of an earlier call, or of another mirror, may be to blame: once more without them
                    waiting.appendleft(url)
                raise Refused(problem)
        except Refused as error:
            reasons.append(f"{url}: {error}")
            continue
        partial.path.replace(wanted.target)
        sync(wanted.target.parent)
        partial.drop()
        return
    if not partial.held:
        partial.drop()
    raise MlsError(
        f"{wanted.name} could not be downloaded. {'; '.join(reasons) or 'No address is public'}. {sentence(hint)}"
        "Run the same command again (it goes on from what has come), or fetch the file by other means and put it at "
        f"{wanted.target}; a copy of the data set that exists is named by `root:` in the dataset's entry"
    )


def download_many(
    items: Sequence[tuple[str, Path]], name: str, connections: int = 16, hint: str = "", poll: Poll = lambda: None
) -> None:
    """Fetch small files that are not there, several at once; a failed one does not lose the rest.

    Two calls at once must not share targets: the caller holds a lock.

    Args:
        items: (address, where it goes).
        name: what they are together, in messages.
        connections: at most so many at once.
        hint: what a person can do if they are not to be had.
        poll: called five times a second.

    Raises:
        MlsError: how many failed, and why the first of them; or ``MLS_OFFLINE``, or a full disk.
    """
    todo = deque((url, target) for url, target in items if not target.exists())
    if not todo:
        return
    total = len(todo)
    first_url, first = todo[0]
    require_online(name, f"{total:,} files are missing, {first} the first", [first_url], hint)
    for folder in {target.parent for _, target in todo}:
        folder.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    done: list[Path] = []  # appending is atomic, unlike counting

    def work(crew: Crew) -> None:
        session = new_session()
        while len(failed) < GIVE_UP:
            try:
                url, target = todo.popleft()
            except IndexError:
                return
            try:
                _fetch_small(crew, session, url, target)
            except (Refused, Torn) as error:
                failed.append(f"{url}: {error}")
            else:
                done.append(target)

    try:
        with Bar(name, total, "files") as bar, Crew(min(connections, total), work) as crew:

            def tick() -> None:
                poll()
                if (now := len(done) + len(failed)) != bar.done:
                    bar.advance(now - bar.done, now - bar.done)

            crew.wait(tick)
    except OSError as error:
        if not out_of_space(error):
            raise
        raise MlsError(
            f"{name}: the disk that holds {first.parent} is full. Free some space and run the same command again; it "
            "fetches what is missing"
        ) from error
    if failed:
        untried = f", {len(todo):,} were not tried" if todo else ""
        raise MlsError(
            f"{name}: {len(failed):,} of {total:,} files could not be downloaded{untried}. "
            f"{'; '.join(failed[:SHOWN])}. {sentence(hint)}Run the same command again: it fetches only what is missing"
        )


def _fetch_small(crew: Crew, session: requests.Session, url: str, target: Path) -> None:
    """One file, to ``<target>.part`` first."""
    part = target.with_name(f"{target.name}.part")
    for failures in range(1, RETRIES + 2):
        try:
            with crew.get(session, url) as answer, part.open("wb") as file:
                length = content_length(answer)
                if answer.status_code != 200:
                    raise Refused(f"answers {answer.status_code} {answer.reason}")
                if is_web_page(answer) or length is None:
                    raise Refused("answers with a web page or without a length instead of the file")
                if length > LARGEST:
                    raise Refused(f"announces {length / MB:,.0f} MB, and images have {LARGEST // MB} MB at most")
                for content in body(answer):
                    if crew.stop.is_set():
                        raise Stopped
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
                if file.tell() != length:
                    raise Torn(f"broke off after {file.tell():,} bytes")
            part.replace(target)
            return
        except Torn:
            if failures > RETRIES:
                part.unlink()
                raise
            crew.pause(failures)
        except Refused:
            part.unlink(missing_ok=True)
            raise


def mismatch(path: Path, size: int | None, checksum: str | None, poll: Poll = lambda: None) -> str | None:
    """Why a file is not the published one, or None; what is None is not compared."""
    held = path.stat().st_size
    if size is not None and held != size:
        return f"has {held:,} bytes instead of {size:,}"
    if checksum is None:
        return None
    algorithm, _, expected = checksum.partition(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with Bar(f"check {path.name}", held // MB, "MB", hidden=held < 1000 * MB) as bar, path.open("rb") as file:
        while content := file.read(16 * MB):
            poll()
            digest.update(content)
            step = min(16, bar.total - bar.done)
            bar.advance(step, step)
    if digest.hexdigest() != expected.lower():
        return f"has another content: its {algorithm} is {digest.hexdigest()} instead of {expected} ({held:,} bytes)"
    return None


def require_online(name: str, what: str, urls: Sequence[str], hint: str) -> None:
    """Stop where ``MLS_OFFLINE`` forbids connections.

    Raises:
        MlsError: it does; says what is missing, where from and where to.
    """
    if os.environ.get("MLS_OFFLINE", "0") not in ("", "0"):
        raise MlsError(
            f"{name}: {what}, and MLS_OFFLINE is set, so nothing is downloaded. It comes from {' or '.join(urls)}. "
            f"{sentence(hint)}Put it there by hand, name a copy that exists by `root:` in the dataset's entry, or run "
            "without MLS_OFFLINE"
        )


def _is_there(target: Path, size: int | None, checksum: str | None, poll: Poll) -> bool:
    return target.is_file() and mismatch(target, size, checksum, poll) is None


def sentence(text: str) -> str:
    """A hint with a full stop and a space behind it; nothing where there is none."""
    return f"{text.rstrip('. ')}. " if text else ""
