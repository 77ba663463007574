"""Downloads from a server that misbehaves: a target is right or missing, and what has arrived is not fetched again."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from mls.download import download as download_module
from mls.download import web
from mls.download.download import download, download_many
from mls.download.partial import Partial
from mls.runtime.errors import Interrupted, MlsError
from tests.download.server import File, Server

CONTENT = random.Random(0).randbytes(1_500_000)
SUM = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
SIZE = len(CONTENT)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses, small chunks."""
    monkeypatch.setattr(web, "BACKOFF_S", 0.01)
    monkeypatch.setattr(web, "PATIENCE_S", 0.4)
    monkeypatch.setattr(web, "TIMEOUT_S", (2.0, 2.0))
    monkeypatch.setattr(web, "TICK_S", 0.05)
    monkeypatch.setattr(web, "CHUNK", 8 << 10)
    monkeypatch.setattr(download_module, "WORTH", 20_000)
    monkeypatch.delenv("MLS_OFFLINE", raising=False)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "in" / "a.zip"


def is_clean(target: Path) -> bool:
    """The whole file, and nothing beside it but the lock."""
    assert target.read_bytes() == CONTENT
    return sorted(path.name for path in target.parent.iterdir()) == [target.name, f"{target.name}.lock"]


def test_each_byte_is_fetched_once(server: Server, target: Path) -> None:
    server.files["/a"] = File(CONTENT)
    download([server.url("/a")], target, size=SIZE, checksum=SUM)
    assert is_clean(target)
    assert server.sent("/a") == SIZE
    assert server.requests("/a") == 1


@pytest.mark.parametrize("known", [{}, {"size": SIZE}, {"checksum": SUM}])
@pytest.mark.parametrize("ranges", [True, False])
def test_what_is_known_beforehand_is_optional(
    server: Server, target: Path, known: dict[str, object], ranges: bool
) -> None:
    server.files["/a"] = File(CONTENT, ranges=ranges)
    download([server.url("/a")], target, **known)  # type: ignore[arg-type]
    assert is_clean(target)


@pytest.mark.parametrize("content", [b"", b"x"])
@pytest.mark.parametrize("ranges", [True, False])
def test_tiny_files(server: Server, target: Path, content: bytes, ranges: bool) -> None:
    server.files["/a"] = File(content, ranges=ranges)
    download([server.url("/a")], target, size=len(content), checksum="md5:" + hashlib.md5(content).hexdigest())
    assert target.read_bytes() == content


def test_what_is_there_is_not_fetched(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(CONTENT)
    download([server.url("/a")], target, size=SIZE, checksum=SUM)
    assert not server.asked


def test_what_is_there_but_wrong_is_replaced(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(CONTENT[:-1] + b"?")
    server.files["/a"] = File(CONTENT)
    download([server.url("/a")], target, checksum=SUM)
    assert is_clean(target)


def test_a_dropped_connection_costs_little(server: Server, target: Path) -> None:
    server.files["/a"] = File(CONTENT, drop_after=50_000, drops=3)
    download([server.url("/a")], target, checksum=SUM)
    assert is_clean(target)
    assert server.sent("/a") < SIZE + 3 * 2 * (16 << 10)


def test_connections_that_always_drop_get_there_bit_by_bit(server: Server, target: Path) -> None:
    server.files["/a"] = File(CONTENT, drop_after=60_000)
    download([server.url("/a")], target, checksum=SUM)
    assert is_clean(target)


@pytest.mark.parametrize("known", [{}, {"checksum": SUM}])
def test_without_ranges_a_dropped_stream_starts_over(server: Server, target: Path, known: dict[str, str]) -> None:
    server.files["/a"] = File(CONTENT, ranges=False, drop_after=900_000, drops=2)
    download([server.url("/a")], target, checksum=known.get("checksum"))
    assert is_clean(target)


def test_a_stream_without_length_that_ends_early_starts_over(server: Server, target: Path) -> None:
    server.files["/a"] = File(CONTENT, ranges=False, length=False, drop_after=900_000, drops=2)
    download([server.url("/a")], target, size=SIZE)
    assert is_clean(target)


def test_a_stream_that_always_drops_is_given_up(server: Server, target: Path) -> None:
    server.files["/a"] = File(CONTENT, ranges=False, drop_after=900_000)
    with pytest.raises(MlsError, match="broke off"):
        download([server.url("/a")], target)
    assert not target.exists()
    assert server.requests("/a") == 1 + web.RETRIES


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("known", [{}, {"checksum": SUM}, {"size": SIZE}])
def test_announced_but_never_sent(server: Server, target: Path, ranges: bool, known: dict[str, object]) -> None:
    server.files["/a"] = File(CONTENT[:-100], ranges=ranges, announce=100)
    with pytest.raises(MlsError):
        download([server.url("/a")], target, **known)  # type: ignore[arg-type]
    assert not target.exists()


def test_a_size_that_is_not_the_published_one_is_not_fetched(server: Server, target: Path) -> None:
    server.files["/a"], server.files["/b"] = File(CONTENT[:-1]), File(CONTENT[:-1], ranges=False)
    with pytest.raises(MlsError, match="offers 1,499,999 bytes instead of 1,500,000") as caught:
        download([server.url("/a"), server.url("/b")], target, size=SIZE, checksum=SUM)
    assert str(caught.value).count("offers") == 2
    assert [path.name for path in target.parent.iterdir()] == ["a.zip.lock"]


def test_a_body_without_length(server: Server, target: Path) -> None:
    server.files["/a"] = File(CONTENT, ranges=False, length=False)
    with pytest.raises(MlsError, match="gives no length"):
        download([server.url("/a")], target)
    download([server.url("/a")], target, checksum=SUM)
    assert is_clean(target)


def test_a_body_without_length_that_does_not_end(server: Server, target: Path) -> None:
    server.files["/a"] = File(CONTENT * 2, ranges=False, length=False)
    with pytest.raises(MlsError, match="sends more than 1,500,000"):
        download([server.url("/a")], target, size=SIZE)
    assert not target.exists()


def test_a_torn_body_without_length_does_not_spoil_the_next_mirror(server: Server, target: Path) -> None:
    server.files["/a"] = File(b"<p>sorry</p>" * 1000, ranges=False, length=False, kind="text/html")
    server.files["/b"] = File(CONTENT)
    download([server.url("/a"), server.url("/b")], target, size=SIZE, checksum=SUM)
    assert is_clean(target)
    assert server.sent("/b") == SIZE


@pytest.mark.parametrize("shift", [1, -1, 10**9])
def test_a_wrong_content_range_writes_nothing(server: Server, target: Path, shift: int) -> None:
    server.files["/a"] = File(CONTENT, shift=shift, drop_after=100_000)
    with pytest.raises(MlsError, match="answers with bytes"):
        download([server.url("/a")], target, checksum=SUM)
    assert not target.exists()
    assert target.with_name("a.zip.part").read_bytes() == CONTENT[:100_000]
    server.files["/a"] = File(CONTENT)
    download([server.url("/a")], target, checksum=SUM)
    assert is_clean(target)
    assert server.sent("/a") == SIZE - 100_000


@pytest.mark.parametrize("checksum", [SUM, None])
def test_a_server_that_stops_answering_ranges(server: Server, target: Path, checksum: str | None) -> None:
    server.files["/a"] = File(CONTENT, drop_after=500_000, drops=3, ranges_after=1)
    download([server.url("/a")], target, checksum=checksum)
    assert is_clean(target)
    assert server.requests("/a") == 4
    assert server.sent("/a") == 3 * 500_000 + SIZE, "the last two answers were the whole file, from its start"


def test_wrong_bytes_go_to_the_next_mirror(server: Server, target: Path) -> None:
    server.files["/a"], server.files["/b"] = File(bytes(SIZE)), File(CONTENT)
    download([server.url("/a"), server.url("/b")], target, size=SIZE, checksum=SUM)
    assert is_clean(target)


def test_wrong_bytes_everywhere(server: Server, target: Path) -> None:
    server.files["/a"] = File(bytes(SIZE))
    zeros = hashlib.sha256(bytes(SIZE)).hexdigest()
    with pytest.raises(MlsError, match=f"sha256 is {zeros} instead of {SUM[7:]} .1,500,000 bytes") as caught:
        download([server.url("/a")], target, checksum=SUM, hint="Ask the authors")
    assert "Ask the authors. " in str(caught.value)
    assert str(target) in str(caught.value)
    assert [path.name for path in target.parent.iterdir()] == ["a.zip.lock"]


def test_wrong_bytes_of_one_mirror_are_not_blamed_on_the_next(server: Server, target: Path) -> None:
    server.files["/a"] = File(bytes(SIZE), drop_after=500_000, ranges=False)
    server.files["/b"] = File(CONTENT)
    download([server.url("/a"), server.url("/b")], target, checksum=SUM)
    assert is_clean(target)


@pytest.mark.parametrize("status", [403, 404, 410])
def test_gone_is_not_tried_again(server: Server, target: Path, status: int) -> None:
    server.files["/a"], server.files["/b"] = File(status=status), File(CONTENT)
    download([server.url("/a"), server.url("/b")], target, checksum=SUM)
    assert is_clean(target)
    assert server.requests("/a") == 1


def test_busy_is_tried_again(server: Server, target: Path) -> None:
    server.files["/a"] = File(CONTENT, status=503, times=2)
    server.files["/b"] = File(CONTENT, status=429, times=1, retry_after="1")  # capped at PATIENCE_S
    download([server.url("/a")], target, checksum=SUM)
    assert is_clean(target)
    target.unlink()
    begun = time.monotonic()
    download([server.url("/b")], target, checksum=SUM)
    assert is_clean(target)
    assert time.monotonic() - begun >= web.PATIENCE_S


def test_busy_for_good_goes_to_the_next_mirror(server: Server, target: Path) -> None:
    server.files["/a"] = File(status=429, retry_after="0")
    with pytest.raises(MlsError, match="answers 429 Too Many Requests"):
        download([server.url("/a")], target)
    assert server.requests("/a") == 1 + web.RETRIES
    server.files["/b"] = File(CONTENT)
    download([server.url("/a"), server.url("/b")], target)
    assert is_clean(target)


def test_retry_after_is_capped(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/a"] = File(CONTENT, status=503, times=1, retry_after="86400")
    download([server.url("/a")], target)
    assert is_clean(target)


def test_every_mirror_is_named_with_its_reason(server: Server, target: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/a"
    server.files["/page"] = File(b"<html>not here</html>", kind="text/html; charset=utf-8")
    server.files["/loop"] = File(status=302, location="/loop")
    server.files["/file"] = File(status=302, location="file:///etc/passwd")
    paths = ("/gone", "/page", "/loop", "/file")
    urls = [closed, "ftp://host/a", *(server.url(path) for path in paths)]
    with pytest.raises(MlsError) as caught:
        download(urls, target, hint="See the page")
    text = str(caught.value)
    reasons = ("can't be reached", "No connection adapters", "answers 404", "a web page", "30 redirects", "file:///")
    for url, reason in zip(urls, reasons, strict=True):
        assert reason in text.split(f"{url}: ", 1)[1].split("; http", 1)[0].split("; ftp", 1)[0], text
    assert not target.exists()


def test_a_certificate_that_cannot_be_verified_is_said(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ssl

    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    pair = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert")]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *pair, "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run(make, check=True, capture_output=True)
    with Server() as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        with pytest.raises(MlsError, match="certificate can't be verified"):
            download([server.url("/a").replace("http:", "https:")], target)


def test_a_redirect_is_followed(server: Server, target: Path) -> None:
    server.files["/a"], server.files["/b"] = File(status=302, location="/b"), File(CONTENT)
    download([server.url("/a")], target, checksum=SUM)
    assert is_clean(target)


def test_a_content_encoding_is_not_undone(server: Server, target: Path) -> None:
    packed = gzip.compress(b"words " * 1000)
    server.files["/a.tgz"] = File(packed, encoding="gzip")
    server.files["/b.tgz"] = File(packed, encoding="gzip", ranges=False)
    for path in ("/a.tgz", "/b.tgz"):
        download([server.url(path)], target)
        assert target.read_bytes() == packed
        target.unlink()


def test_a_file_that_changes_meanwhile_is_not_mixed(server: Server, target: Path) -> None:
    def etag() -> str:
        """The first answer is of another file, and breaks off."""
        file.content = CONTENT[::-1] if server.requests("/a") == 1 else CONTENT
        return f'"{server.requests("/a") > 1}"'

    file = server.files["/a"] = File(CONTENT, etag=etag, drop_after=500_000, drops=1)
    download([server.url("/a")], target)
    assert is_clean(target)
    assert server.asked[1][2] == '"False"', "only the rest of the same file was asked for"


@pytest.mark.parametrize("etag", [lambda: 'W/"1"', None])
def test_without_a_strong_validator_a_cut_download_starts_over(server: Server, target: Path, etag: Any) -> None:
    server.files["/a"] = File(CONTENT, etag=etag, drop_after=500_000, drops=1)
    download([server.url("/a")], target)
    assert is_clean(target)
    assert all(asked[1:] == (None, None) for asked in server.asked)


def part_of(server: Server, target: Path, checksum: str | None) -> None:
    """Leave a download of which half has come, stopped by its caller."""
    server.files["/a"] = File(CONTENT, pause=0.02)
    asked = [0]

    def poll() -> None:
        if server.sent("/a") > SIZE // 2:
            asked[0] += 1
            raise Interrupted("stop")

    with pytest.raises(Interrupted):
        download([server.url("/a")], target, checksum=checksum, poll=poll)
    assert asked == [1]
    assert not target.exists()


@pytest.mark.parametrize("checksum", [SUM, None])
def test_what_came_is_kept(server: Server, target: Path, checksum: str | None) -> None:
    part_of(server, target, checksum)
    server.files["/a"] = File(CONTENT)
    download([server.url("/a")], target, checksum=checksum)
    assert is_clean(target)
    assert server.sent("/a") < 0.7 * SIZE
    assert server.asked[-1][2] == (None if checksum else '"v1"')


def test_without_checksum_another_etag_starts_over(server: Server, target: Path) -> None:
    part_of(server, target, None)
    other = CONTENT[::-1]
    server.files["/a"] = File(other, etag=lambda: '"v2"')
    download([server.url("/a")], target)
    assert target.read_bytes() == other


def test_without_checksum_another_mirror_starts_over(server: Server, target: Path) -> None:
    part_of(server, target, None)
    other = CONTENT[::-1]
    server.files["/b"] = File(other)
    download([server.url("/b")], target)
    assert target.read_bytes() == other


def test_with_a_checksum_another_mirror_goes_on(server: Server, target: Path) -> None:
    part_of(server, target, SUM)
    server.files["/b"] = File(CONTENT, etag=None)
    download([server.url("/gone"), server.url("/b")], target, checksum=SUM)
    assert is_clean(target)
    assert server.sent("/b") < 0.7 * SIZE


def test_resuming_where_ranges_are_ignored_starts_over(server: Server, target: Path) -> None:
    part_of(server, target, SUM)
    server.files["/a"] = File(CONTENT, ranges=False)
    download([server.url("/a")], target, checksum=SUM)
    assert is_clean(target)


@pytest.mark.parametrize("damage", ["{", "[]", '{"length": 1}', "null", "short", "long", "gone", "earlier version"])
def test_a_damaged_journal_starts_over(server: Server, target: Path, damage: str) -> None:
    part_of(server, target, None)
    journal, part = target.with_name("a.zip.part.json"), target.with_name("a.zip.part")
    state = json.loads(journal.read_text())
    assert state == {"length": SIZE, "url": server.url("/a"), "validator": '"v1"'}
    if damage == "short":
        os.truncate(part, 10)  # it resumes from there
    elif damage == "long":
        os.truncate(part, SIZE + 1)
    elif damage == "gone":
        part.unlink()
    elif damage == "earlier version":  # its parts have holes
        os.truncate(part, SIZE)
        journal.write_text(json.dumps({"total": SIZE, "url": state["url"], "validator": '"v1"', "done": [[0, 10]]}))
    else:
        journal.write_text(damage)
    server.files["/a"] = File(CONTENT)
    download([server.url("/a")], target)
    assert is_clean(target)


def test_wrong_bytes_of_an_earlier_call_are_not_the_mirrors_fault(server: Server, target: Path) -> None:
    part_of(server, target, SUM)
    with target.with_name("a.zip.part").open("r+b") as file:
        file.write(bytes(1000))
    server.files["/a"] = File(CONTENT)
    download([server.url("/a")], target, checksum=SUM)
    assert is_clean(target)


CHILD = """
import sys
from pathlib import Path
from mls.download.download import download
download([sys.argv[1]], Path(sys.argv[2]), checksum=sys.argv[3])
"""


def child(url: str, target: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, url, str(target), SUM], stderr=subprocess.PIPE)


def test_a_killed_download_resumes(server: Server, target: Path) -> None:
    server.files["/a"] = File(CONTENT, pause=0.05)
    part = target.with_name("a.zip.part")
    with child(server.url("/a"), target) as process:
        while not (part.exists() and part.stat().st_size > SIZE // 2):
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not target.exists()
    server.files["/a"] = File(CONTENT)
    download([server.url("/a")], target, checksum=SUM)
    assert is_clean(target)
    assert server.sent("/a") < SIZE // 2


def test_two_processes_share_one_download(server: Server, target: Path) -> None:
    server.files["/a"] = File(CONTENT, pause=0.01)
    both = [child(server.url("/a"), target) for _ in range(2)]
    texts = [process.communicate()[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert is_clean(target)
    assert server.sent("/a") == SIZE


@pytest.fixture
def signalled() -> Iterator[None]:
    """SIGUSR1 raises in the main thread, as Ctrl-C does where a shell has not switched it off."""
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    yield
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_leaves_at_once(
    server: Server, target: Path, signalled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "TIMEOUT_S", (2.0, 60.0))
    server.files["/a"] = File(CONTENT, stall=threading.Event())
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
    with pytest.raises(KeyboardInterrupt):
        download([server.url("/a")], target)
    workers = [thread for thread in threading.enumerate() if "_run" in thread.name]
    for thread in workers:
        thread.join(5)
    assert not any(thread.is_alive() for thread in workers), "they end although the server is silent"
    server.files["/a"] = File(CONTENT)
    download([server.url("/a")], target)
    assert is_clean(target)


def test_a_server_that_says_nothing_is_left(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "TIMEOUT_S", (0.3, 0.3))
    monkeypatch.setattr(web, "RETRIES", 1)
    monkeypatch.setattr(download_module, "RETRIES", 1)
    server.files["/a"], server.files["/b"] = File(CONTENT, stall=threading.Event(), ranges=False), File(CONTENT)
    with pytest.raises(MlsError, match="timed out"):
        download([server.url("/a")], target)
    download([server.url("/a"), server.url("/b")], target, checksum=SUM)
    assert is_clean(target)


def test_offline(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLS_OFFLINE", "1")
    server.files["/a"] = File(CONTENT)
    with pytest.raises(MlsError, match="MLS_OFFLINE is set") as caught:
        download([server.url("/a")], target, hint="Ask")
    assert str(target) in str(caught.value)
    assert server.url("/a") in str(caught.value)
    with pytest.raises(MlsError, match="2 files are missing"):
        download_many([(server.url("/a"), target), (server.url("/b"), target.with_name("b"))], "images")
    assert not server.asked
    target.parent.mkdir()
    target.write_bytes(CONTENT)
    download([server.url("/a")], target, checksum=SUM)
    download_many([(server.url("/a"), target)], "images")


@pytest.mark.parametrize("ranges", [True, False])
def test_too_little_space_is_reported_first(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch, ranges: bool
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(0, 0, 1_400_000))
    server.files["/a"] = File(CONTENT, ranges=ranges)
    with pytest.raises(MlsError, match=r"needs 0.00 GB, and the disk that holds .* has 0.00 GB free"):
        download([server.url("/a")], target)
    assert not target.with_name("a.zip.part").read_bytes()
    assert server.requests("/a") == 1


def test_a_disk_that_fills_up_keeps_what_came(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append = Partial.append

    def full(self: Partial, file: FileIO, content: bytes) -> None:
        if self.held + len(content) > SIZE // 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, file, content)

    server.files["/a"] = File(CONTENT, pause=0.001)
    with monkeypatch.context() as patch:
        patch.setattr(Partial, "append", full)
        with pytest.raises(MlsError, match="is full"):
            download([server.url("/a")], target, checksum=SUM)
    came = target.with_name("a.zip.part").stat().st_size
    assert came > SIZE // 4
    server.files["/a"] = File(CONTENT)
    download([server.url("/a")], target, checksum=SUM)
    assert is_clean(target)
    assert server.sent("/a") == SIZE - came


def many(server: Server, folder: Path, count: int) -> list[tuple[str, Path]]:
    for i in range(count):
        server.files[f"/{i}.jpg"] = File(CONTENT[i : i + 30_000], kind="image/jpeg")
    return [(server.url(f"/{i}.jpg"), folder / f"{i % 3}" / f"{i}.jpg") for i in range(count)]


def test_many(server: Server, tmp_path: Path) -> None:
    items = many(server, tmp_path, 60)
    items[0][1].parent.mkdir()
    items[0][1].write_bytes(b"there")
    download_many(items, "images")
    assert items[0][1].read_bytes() == b"there"
    assert server.requests("/0.jpg") == 0
    for i, (_, path) in enumerate(items[1:], 1):
        assert path.read_bytes() == CONTENT[i : i + 30_000]
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == 60
    download_many(items, "images")
    assert len(server.asked) == 59


def test_many_one_failure_does_not_lose_the_rest(server: Server, tmp_path: Path) -> None:
    items = many(server, tmp_path, 40)
    server.files["/3.jpg"].drop_after = 100
    server.files["/4.jpg"] = File(b"<html>", kind="text/html")
    server.files["/5.jpg"] = File(CONTENT[5:30_005], status=503, times=2)
    server.files["/6.jpg"].drop_after, server.files["/6.jpg"].drops = 100, 2
    del server.files["/7.jpg"]
    with pytest.raises(MlsError, match="3 of 40 files could not be downloaded") as caught:
        download_many(items, "images", hint="Look elsewhere")
    text = str(caught.value)
    assert all(
        word in text
        for word in ("/3.jpg: can't be reached or broke off", "web page", "/7.jpg: answers 404", "Look elsewhere. ")
    )
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 37
    assert all(path.suffix == ".jpg" and path.stat().st_size == 30_000 for path in files)
    many(server, tmp_path, 40)
    download_many(items, "images")
    assert all(path.is_file() for _, path in items)


def test_a_single_image_is_bounded(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "LARGEST", 20_000)
    with pytest.raises(MlsError, match=r"3 of 3 files could not be downloaded.*and a single image may have"):
        download_many(many(server, tmp_path, 3), "images")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_many_missing_stop_early(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [(server.url(f"/{i}.jpg"), tmp_path / f"{i}.jpg") for i in range(500)]
    monkeypatch.setattr(download_module, "CONNECTIONS", 4)
    with pytest.raises(MlsError, match="were not tried") as caught:
        download_many(items, "images")
    assert len(server.asked) <= download_module.GIVE_UP + 4
    assert str(caught.value).count("answers 404") == download_module.SHOWN
    assert not list(tmp_path.iterdir())


def test_many_stop_at_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "CONNECTIONS", 4)
    items = many(server, tmp_path, 30)
    for file in list(server.files.values())[10:]:
        file.stall = threading.Event()

    def poll() -> None:
        if len(list(tmp_path.rglob("*.jpg"))) == 10:
            raise Interrupted("stop")

    with pytest.raises(Interrupted):
        download_many(items, "images", poll=poll)
    assert len(list(tmp_path.rglob("*.jpg"))) == 10


def test_many_on_a_full_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    items = many(server, tmp_path, 5)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(MlsError, match="is full"):
            download_many(items, "images")
    assert not list(tmp_path.rglob("*.jpg"))
    download_many(items, "images")
    assert len(list(tmp_path.rglob("*.jpg"))) == 5
