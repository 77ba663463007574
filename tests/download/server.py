"""A web server on this machine that misbehaves as its files say.

with Server() as server:
    server.files["/a.zip"] = File(b"...", drop_after=1000, drops=1)
    download([server.url("/a.zip")], target)
    assert server.sent("/a.zip") < 2000
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

FOREVER = 1 << 30
CHUNK = 16 << 10


@dataclass
class File:
    """What lies at one path, and how it is served."""

    content: bytes = b""
    ranges: bool = True
    etag: Callable[[], str] | None = lambda: '"v1"'
    status: int = 200
    """Answered ``times`` times instead of the file."""
    times: int = FOREVER
    retry_after: str | None = None
    drop_after: int | None = None
    """The connection ends after this many bytes of a body, ``drops`` times."""
    drops: int = FOREVER
    announce: int = 0
    """Added to the length that is announced."""
    length: bool = True
    """False: no Content-Length; the end of the connection is the end of the body."""
    shift: int = 0
    """Added to the range that Content-Range claims."""
    kind: str = "application/octet-stream"
    encoding: str | None = None
    location: str | None = None
    pause: float = 0.0
    """Seconds after each 16 KiB."""
    stall: threading.Event | None = None
    """Sends nothing (after the headers) until it is set."""
    ranges_after: int = FOREVER
    """Number of range requests that are answered; the next ones get 200 and the whole file."""
    sent: int = 0
    """Bytes of bodies."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class Server(ThreadingHTTPServer):
    """Serves ``files`` on a free port until the block ends; ``asked`` lists (path, Range, If-Range)."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, File] = {}
        self.asked: list[tuple[str, str | None, str | None]] = []
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for file in self.files.values():
            if file.stall:
                file.stall.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no error."""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def sent(self, path: str) -> int:
        """Bytes of bodies that were sent for what lies at a path now."""
        return self.files[path].sent

    def requests(self, path: str) -> int:
        return sum(asked[0] == path for asked in self.asked)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        span = self.headers.get("Range")
        self.server.asked.append((self.path, span, self.headers.get("If-Range")))
        file = self.server.files.get(self.path)
        if file is None:
            self._head(404, 0, {})
            return
        with file.lock:
            bad, file.times = file.status != 200 and file.times > 0, file.times - 1
            etag = file.etag() if file.etag else None
            ranged = file.ranges and span is not None
            if ranged:
                ranged, file.ranges_after = file.ranges_after > 0, file.ranges_after - 1
            drop = file.drop_after if file.drops > 0 else None
        if bad:
            extra = {"Retry-After": file.retry_after, "Location": file.location}
            self._head(file.status, 0, {key: value for key, value in extra.items() if value is not None})
            return
        content, status = file.content, 200
        headers = {"Content-Type": file.kind}
        if etag:
            headers["ETag"] = etag
        if file.encoding:
            headers["Content-Encoding"] = file.encoding
        if ranged and self.headers.get("If-Range") in (None, etag):
            found = re.fullmatch(r"bytes=(\d+)-", span or "")
            assert found, span
            start, end = int(found[1]), len(content) - 1
            if start >= len(content):
                self._head(416, 0, {"Content-Range": f"bytes */{len(content)}"})
                return
            headers["Content-Range"] = f"bytes {start + file.shift}-{end + file.shift}/{len(content) + file.announce}"
            content, status = content[start : end + 1], 206
        self._head(status, len(content) + file.announce if file.length else None, headers)
        if file.stall:
            self.wfile.flush()
            file.stall.wait(30)
        for at in range(0, len(content), CHUNK):
            piece = content[at : at + CHUNK]
            if drop is not None and at + len(piece) > drop:
                piece = piece[: drop - at]
                with file.lock:
                    file.drops -= 1
                self._send(file, piece)
                self.close_connection = True
                return
            self._send(file, piece)
            if file.pause:
                time.sleep(file.pause)
        if file.announce > 0 or not file.length:
            self.close_connection = True

    def _send(self, file: File, piece: bytes) -> None:
        self.wfile.write(piece)
        self.wfile.flush()
        with file.lock:
            file.sent += len(piece)

    def _head(self, status: int, length: int | None, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if length is None:
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()
