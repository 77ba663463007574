"""One file from one address: by ranges over several connections where they are answered, else in one stream.

    wanted = Wanted(Path("images.zip"), size=815_585_330, checksum="md5:...", connections=4, name="images.zip")
    Download("https://host/images.zip", Partial(wanted.target), wanted).fetch()

Every range that comes is compared with what was asked for before a byte of it is written. What can't be told from
headers (other bytes of the same length) is for the checksum to find.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import requests

from mls.download.partial import MB, Partial, Range, require_space
from mls.download.web import RETRIES, Crew, Refused, Torn, body, content_length, is_web_page, new_session
from mls.runtime.progress import Bar

PIECE = 32 << 20
"""Bytes asked for by one range request."""
WORTH = 1 << 20
"""Bytes that make a try count as progress although it broke off."""
FLUSH_S = 5.0
"""Between two writings of the journal, seconds: at most so much is lost to a kill."""

Poll = Callable[[], None]
"""Called often while waiting; what it raises (``Interrupted``, say) stops everything."""


@dataclass(frozen=True)
class Wanted:
    """What is to be fetched."""

    target: Path
    size: int | None
    """Bytes, where known."""
    checksum: str | None
    """``md5:<hex>`` or ``sha256:<hex>``, where known."""
    connections: int
    """At most so many at once."""
    name: str
    """For messages."""
    poll: Poll = lambda: None


class _Changed(Exception):
    """The file on the server is not the one that was begun."""


class Download:
    """One file from one address: by ranges over several connections, or in one stream."""

    def __init__(self, url: str, partial: Partial, wanted: Wanted) -> None:
        """Nothing is asked for yet."""
        self.url, self.partial, self.wanted, self.checked = url, partial, wanted, wanted.checksum is not None
        self.total: int | None = None
        self.ranges = False
        self.validator: str | None = None
        self._pieces: deque[Range] = deque()
        self._busy = 0
        self._lock = threading.Lock()
        self._reason = ""

    def fetch(self) -> None:
        """Bring all bytes into ``partial``.

        Raises:
            Refused: this address will not do.
            MlsError: the disk has too little room.
        """
        with Crew(1, self._probe) as crew:
            crew.wait(self.wanted.poll)
        if self.ranges and self.total is not None:
            self.partial.begin(self.total, self.url, self.validator, checked=self.checked)
            self._require_space()
            for start, end in self.partial.missing():
                self._pieces.extend((at, min(at + PIECE, end)) for at in range(start, end, PIECE))
            try:
                self._run(min(self.wanted.connections, len(self._pieces)), self._take_pieces)
            except _Changed:  # one answer is of one file, whatever the server does meanwhile
                self._pieces.clear()
            else:
                if self.partial.missing():
                    raise Refused(self._reason)
                return
        self.partial.restart(self.total)
        self._require_space()
        self._run(1, self._take_stream)

    def _run(self, count: int, work: Callable[[Crew], None]) -> None:
        """Let ``count`` threads work, with a bar and the journal kept up."""
        done = self.partial.held // MB
        unknown = self.total is None
        with (
            Bar(self.wanted.name, -(-(self.total or 0) // MB), "MB", done, hidden=unknown) as bar,
            Crew(count, work) as crew,
        ):
            flushed = time.monotonic()

            def tick() -> None:
                nonlocal flushed
                self.wanted.poll()
                held = self.partial.held
                now_done = -(-held // MB) if held == self.total else held // MB
                if now_done != bar.done:
                    bar.advance(now_done - bar.done, now_done - bar.done)
                if time.monotonic() - flushed > FLUSH_S:
                    self.partial.flush()
                    flushed = time.monotonic()

            crew.wait(tick)

    def _require_space(self) -> None:
        if self.total is not None:
            require_space(self.wanted.target.parent, self.total - self.partial.held, self.wanted.name)

    def _examine(self, answer: requests.Response, total: int | None) -> None:
        """Refuse at once what can't be the file."""
        if self.wanted.size is not None and total not in (None, self.wanted.size):
            raise Refused(f"offers {total:,} bytes instead of {self.wanted.size:,}")
        if self.wanted.size is None and not self.checked:
            if is_web_page(answer) and self.wanted.target.suffix not in (".html", ".htm"):
                raise Refused("answers with a web page instead of the file")
            if total is None:
                raise Refused("gives no length: a torn file could not be told from a whole one")

    def _probe(self, crew: Crew) -> None:
        """Ask for the first byte: learn the length, the validator, and whether ranges are answered."""
        with crew.get(new_session(), self.url, {"Range": "bytes=0-0"}) as answer:
            found = _content_range(answer)
            self.ranges = answer.status_code == 206 and found is not None and found[:2] == (0, 0)
            if self.ranges and found is not None:
                self.total = found[2]
            elif answer.status_code == 200:
                self.total = content_length(answer)
            self.validator = _validator(answer)
            if self.ranges or answer.status_code == 200:
                self._examine(answer, self.total)

    def _take_stream(self, crew: Crew) -> None:
        """All of it in one answer, from the start; a broken one starts over."""
        session = new_session()
        for failures in range(1, RETRIES + 2):
            try:
                self._stream(crew, session)
                return
            except Torn as error:
                if failures > RETRIES:
                    raise Refused(f"{error}, {failures} times, and does not answer ranges") from error
                crew.pause(failures)

    def _stream(self, crew: Crew, session: requests.Session) -> None:
        with crew.get(session, self.url) as answer:
            if answer.status_code != 200:
                raise Refused(f"answers {answer.status_code} {answer.reason} to a plain request")
            total = content_length(answer)
            self._examine(answer, total)
            self.partial.restart(total, crew.stop)
            expected = total if self.wanted.size is None else self.wanted.size
            at, most = 0, shutil.disk_usage(self.wanted.target.parent).free if expected is None else expected
            for content in body(answer):
                if at + len(content) > most:
                    raise Refused(f"sends more than {most:,} bytes")
                self.partial.write(at, content, crew.stop)
                at += len(content)
        if expected not in (None, at):
            raise Torn(f"ended after {at:,} bytes of {expected:,}")
        self.partial.total = at

    def _take_pieces(self, crew: Crew) -> None:
        """Fetch pieces until none is left; give up after some failures in a row, others may go on."""
        session, failures = new_session(), 0
        while failures <= RETRIES:
            with self._lock:
                piece = self._pieces.popleft() if self._pieces else None
                if piece is None and not self._busy:
                    return
                self._busy += piece is not None
            if piece is None:  # one that is on its way may come back
                if crew.stop.wait(0.05):
                    return
                continue
            try:
                self._fetch_piece(crew, session, *piece)
                reason = "sends less than it was asked for"
            except Torn as error:
                reason = str(error)
            except Refused as error:
                reason, failures = str(error), RETRIES
            finally:
                rest = self.partial.missing(*piece)
                with self._lock:
                    self._pieces.extendleft(reversed(rest))
                    self._busy -= 1
            came = piece[1] - piece[0] - sum(end - start for start, end in rest)
            if not rest or came >= WORTH:
                failures = 0
                continue
            self._reason, failures = reason, failures + 1
            if failures <= RETRIES:
                crew.pause(failures)

    def _fetch_piece(self, crew: Crew, session: requests.Session, start: int, end: int) -> None:
        headers = {"Range": f"bytes={start}-{end - 1}"}
        if not self.checked and self.validator and self.validator.startswith('"'):
            headers["If-Range"] = self.validator
        with crew.get(session, self.url, headers) as answer:
            if not self.checked:
                same = answer.status_code == 206 and _validator(answer) in (None, self.validator)
                if not same:
                    raise _Changed
            found = _content_range(answer)
            if answer.status_code != 206 or found is None:
                raise Torn(f"answers {answer.status_code} without the range to a request for one")
            if found[0] != start or found[1] >= end or found[2] != self.total:
                raise Torn(f"answers with bytes {found[0]}-{found[1]} of {found[2]} where {start}-{end - 1} was asked")
            at = start
            for content in body(answer):
                if at + len(content) > found[1] + 1:
                    raise Torn("sends more than it announced")
                self.partial.write(at, content, crew.stop)
                at += len(content)


def _content_range(answer: requests.Response) -> tuple[int, int, int] | None:
    """First byte, last byte and whole length, of an answer that says them."""
    found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", answer.headers.get("Content-Range", "").strip())
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def _validator(answer: requests.Response) -> str | None:
    """What changes when the file does: a strong ETag, else Last-Modified."""
    etag = answer.headers.get("ETag", "")
    return etag if etag.startswith('"') else answer.headers.get("Last-Modified")
