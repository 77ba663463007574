"""Downloads that can't go on leave at once and keep what came: signals, silence, full disks."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import pytest

from mls.download import download as download_module
from mls.download import web
from mls.download.download import download, download_many
from mls.download.partial import Partial
from mls.runtime.errors import MlsError
from tests.download.server import File, Server
from tests.download.support import CONTENT, SIZE, SUM, Usage, is_clean

pytestmark = pytest.mark.usefixtures("quick")


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
