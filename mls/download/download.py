"""Download files over http(s): mirrors, resume after any interruption, checksums.

    download(["https://host/images.zip", "https://mirror/images.zip"], Path("images.zip"),
             size=815_585_330, checksum="md5:442b8da7639aecaf257c1dceb8ba8c80")
    download_many([("https://host/1.jpg", Path("images/1.jpg"))], "coco-2k")      # small files, several at once

A target appears whole and checked, or not at all. What has arrived so far lies beside it (`mls.download.partial`), and
the next call continues it. With a checksum, any mirror may continue; without one, only the same address with the same
ETag or Last-Modified. A server that does not answer ranges sends the file from its start again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import requests

from mls.download.partial import MB, Partial, advance_to, require_space
from mls.download.web import RETRIES, Poll, Refused, Torn, Workers, new_session
from mls.runtime.errors import MlsError
from mls.runtime.files import explain_full_disk
from mls.runtime.locks import locked
from mls.runtime.progress import Bar

WORTH = 1 << 20
"""Bytes that make an attempt count as progress, although it broke off: the retries start over."""
CONNECTIONS = 16
"""Small files fetched at once."""
LARGEST = 64 * MB
"""Maximum size of a small file, in bytes."""
GIVE_UP = 20
"""Failed small files after which the rest is not tried."""
SHOWN = 5
"""Failed small files that an error names."""


def download(
    urls: Sequence[str],
    target: Path,
    *,
    size: int | None = None,
    checksum: str | None = None,
    hint: str = "",
    poll: Poll = lambda: None,
) -> None:
    """Download one file unless it is there.

    Args:
        urls: mirrors, tried in order.
        target: where it goes; its folder is made.
        size: in bytes, where known; a server that offers another size is refused before its body is read.
        checksum: ``md5:<hex>`` or ``sha256:<hex>``.
        hint: what a person can do if no mirror has it.
        poll: see `mls.download.web.Poll`.

    Raises:
        MlsError: no mirror has it (each is named with its reason), the disk is full, or ``MLS_OFFLINE`` is set.
    """

    def is_there() -> bool:
        return target.is_file() and mismatch(target, size, checksum, poll) is None

    if is_there():
        return
    _require_online(target.name, f"{target} is missing", urls, hint)
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.with_name(f"{target.name}.lock")
    with locked(lock, f"download of {target.name}"), explain_full_disk(target.parent):
        if is_there():  # another process has fetched it meanwhile
            return
        partial = Partial(target, size, checked=checksum is not None)
        reasons = []
        waiting = deque(urls)
        while waiting:
            url = waiting.popleft()
            resumed = partial.held > 0
            try:
                _transfer_one(url, partial, poll)
            except Refused as error:
                reasons.append(f"{url}: {error}")
                continue
            problem = mismatch(partial.path, size, checksum, poll)
            if problem is None:
                partial.finish()
                return
            reasons.append(f"{url}: {problem}")
            partial.restart()
            if resumed:  # bytes of an earlier call or another mirror may be to blame: try once more without them
                waiting.appendleft(url)
        if not partial.held:
            partial.drop()
        raise MlsError(
            f"{target.name} could not be downloaded. {'; '.join(reasons) or 'No address is public'}. {sentence(hint)}"
            "Run the same command again (it resumes), or fetch the file by other means and put it at "
            f"{target}; if you have a copy of the data set, set `root:` in the dataset's entry to its folder"
        )


def download_many(items: Sequence[tuple[str, Path]], name: str, hint: str = "", poll: Poll = lambda: None) -> None:
    """Download those small files that are not there, several at once; a failed one does not lose the rest.

    Two calls at once must not share targets: the caller holds a lock.

    Args:
        items: (address, target) of each file.
        name: of all of them together, for messages.
        hint: what a person can do if they can't be downloaded.
        poll: see `mls.download.web.Poll`.

    Raises:
        MlsError: how many failed, with the first reasons; or the disk is full, or ``MLS_OFFLINE`` is set.
    """
    missing = [(url, target) for url, target in items if not target.exists()]
    if not missing:
        return
    total = len(missing)
    first_url, first = missing[0]
    _require_online(name, f"{total:,} files are missing, {first} is the first", [first_url], hint)
    for folder in {target.parent for _, target in missing}:
        folder.mkdir(parents=True, exist_ok=True)
    waiting = iter(missing)  # threads may share it: a list's iterator and append are atomic
    failed: list[str] = []
    done: list[Path] = []

    def work(workers: Workers) -> None:
        session = new_session()
        while len(failed) < GIVE_UP and (item := next(waiting, None)):
            url, target = item
            partial = Partial(target, small=True)
            try:
                _transfer(workers, session, url, partial)
            except Refused as error:
                partial.drop()
                failed.append(f"{url}: {error}")
            else:
                partial.finish()
                done.append(target)

    with explain_full_disk(first.parent), Bar(name, total, "files") as bar:

        def tick() -> None:
            poll()
            advance_to(bar, len(done) + len(failed))

        Workers().run(min(CONNECTIONS, total), work, tick)
    if failed:
        untried = total - len(done) - len(failed)
        raise MlsError(
            f"{name}: {len(failed):,} of {total:,} files could not be downloaded"
            f"{f', {untried:,} were not tried' if untried else ''}. {'; '.join(failed[:SHOWN])}. {sentence(hint)}"
            "Run the same command again: it fetches only what is missing"
        )


def _transfer_one(url: str, partial: Partial, poll: Poll) -> None:
    Workers().run(1, lambda workers: _transfer(workers, new_session(), url, partial), poll)


def _transfer(workers: Workers, session: requests.Session, url: str, partial: Partial) -> None:
    """Fetch all bytes from one address into ``partial``; resume each response that breaks off.

    Raises:
        Refused: this address can't deliver the file.
        MlsError: the disk has too little space.
    """
    failures = furthest = 0
    while True:
        try:
            _read(workers, session, url, partial)
            return
        except Torn as error:
            failures = 1 if partial.held >= furthest + WORTH else failures + 1
            furthest = max(furthest, partial.held)
            if failures > RETRIES:
                raise Refused(f"{error}, {failures} times in a row") from error
        workers.pause(failures)


def _read(workers: Workers, session: requests.Session, url: str, partial: Partial) -> None:
    """Request the missing bytes once, and append them.

    Raises:
        Refused: the response can't be the file.
        Torn: the response broke off, or another request may succeed.
    """
    if partial.held and not partial.continues(url):
        partial.restart()
    if partial.held == partial.total:
        return  # all of it came before an interruption
    headers = {"Range": f"bytes={partial.held}-"} if partial.held else {}
    if partial.held and not partial.checked:
        headers["If-Range"] = str(partial.validator)
    with workers.get(session, url, headers) as response:
        if partial.held and response.status_code in (206, 416):
            _check_range(response, partial)
        elif response.status_code == 200:
            _begin(response, url, partial)
        else:
            raise Refused(f"answers {response.status_code} {response.reason}")
        expected = partial.size if partial.total is None else partial.total
        require_space(partial.path.parent, (expected or 0) - partial.held, partial.target.name)
        most = shutil.disk_usage(partial.path.parent).free if expected is None else expected
        hidden = partial.small or expected is None
        with (
            Bar(partial.target.name, -(-(expected or 0) // MB), "MB", partial.held // MB, hidden) as bar,
            partial.path.open("r+b", buffering=0) as file,
        ):
            file.seek(partial.held)
            for content in workers.body(response):
                if partial.held + len(content) > most:
                    raise Refused(f"sends more than {most:,} bytes")
                partial.append(file, content)
                advance_to(bar, partial.held // MB)
            if expected not in (None, partial.held):
                raise Torn(f"ended after {partial.held:,} bytes of {expected:,}")
            advance_to(bar, -(-partial.held // MB))


def _begin(response: requests.Response, url: str, partial: Partial) -> None:
    """Start over with a response that holds the whole file, unless it can't be the right one."""
    length: int | None = response.raw.length_remaining
    if partial.size is not None and length not in (None, partial.size):
        raise Refused(f"offers {length:,} bytes instead of {partial.size:,}")
    if partial.size is None and not partial.checked:
        page = response.headers.get("Content-Type", "").strip().lower().startswith("text/html")
        if page and partial.target.suffix not in (".html", ".htm"):  # how servers say with 200 that a file is gone
            raise Refused("answers with a web page instead of the file")
        if length is None:
            raise Refused("gives no length: a torn file could not be told from a whole one")
    if partial.small and length is not None and length > LARGEST:
        raise Refused(f"offers {length / MB:,.0f} MB, and a single image may have {LARGEST // MB} MB")
    partial.restart(length, url, _validator(response))


def _check_range(response: requests.Response, partial: Partial) -> None:
    """Make sure that a response continues ``partial``, before a byte of it is written."""
    found = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", response.headers.get("Content-Range", "").strip())
    start, total = (int(found[1]), int(found[2])) if found else (None, None)
    changed = not partial.checked and _validator(response) not in (None, partial.validator)
    if changed or total != partial.total:
        partial.restart()
        raise Torn("has another file than before")
    if start != partial.held:
        raise Torn(f"answers with bytes from {start} on instead of from {partial.held} on")


def _validator(response: requests.Response) -> str | None:
    """What changes when the file does: a strong ETag, else Last-Modified."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def mismatch(path: Path, size: int | None, checksum: str | None, poll: Poll = lambda: None) -> str | None:
    """Say why a file is not the published one, or return None; a size or checksum of None is not compared."""
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
            advance_to(bar, file.tell() // MB)
    if digest.hexdigest() == expected.lower():
        return None
    return f"has other content: its {algorithm} is {digest.hexdigest()} instead of {expected} ({held:,} bytes)"


def _require_online(name: str, what: str, urls: Sequence[str], hint: str) -> None:
    """Stop if ``MLS_OFFLINE`` is set, saying what is missing, where it comes from and where it goes."""
    if os.environ.get("MLS_OFFLINE", "0") not in ("", "0"):
        raise MlsError(
            f"{name}: {what}, and MLS_OFFLINE is set, so nothing is downloaded. It comes from {' or '.join(urls)}. "
            f"{sentence(hint)}Put it there by hand, set `root:` in the dataset's entry to a copy, or unset MLS_OFFLINE"
        )


def sentence(text: str) -> str:
    """Return a hint with a full stop and a space after it, or nothing if there is none."""
    return f"{text.rstrip('. ')}. " if text else ""
