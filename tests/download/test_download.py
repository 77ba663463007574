"""Downloads from a server that misbehaves: a target is right or missing."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from mls.download import web
from mls.download.download import download
from mls.runtime.errors import MlsError
from tests.download.server import File, Server
from tests.download.support import CONTENT, SIZE, SUM, is_clean

pytestmark = pytest.mark.usefixtures("quick")


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
