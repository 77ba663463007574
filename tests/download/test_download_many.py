"""Single images, many at a time."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from mls.download import download as download_module
from mls.download.download import download_many
from mls.runtime.errors import Interrupted, MlsError
from tests.download.server import File, Server
from tests.download.support import CONTENT

pytestmark = pytest.mark.usefixtures("quick")


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
