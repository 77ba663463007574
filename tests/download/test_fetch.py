"""A source's archives: fetched once, checked, unpacked whole or done again; somebody's own files left alone."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import subprocess
import sys
import tarfile
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mls.config import catalog
from mls.config.catalog import Archive
from mls.config.datasets import VocDataset
from mls.download import web
from mls.download.fetch import fetch_archives, fetch_images, verified
from mls.download.reader import Reader
from mls.runtime.errors import Interrupted, MlsError
from tests.download.server import File, Server

CONFIG = VocDataset(source="voc")
Usage = namedtuple("Usage", "total used free")


def tar_of(files: dict[str, bytes]) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return held.getvalue()


TRAIN = tar_of({"VOC2007/train.txt": b"1", "VOC2007/images/1.jpg": b"one"})
TEST = tar_of({"VOC2007/test.txt": b"2", "VOC2007/images/2.jpg": b"two"})
SPLITS = b"splits"
WHOLE = {
    "VOCdevkit/VOC2007/train.txt": b"1",
    "VOCdevkit/VOC2007/test.txt": b"2",
    "VOCdevkit/VOC2007/images/1.jpg": b"one",
    "VOCdevkit/VOC2007/images/2.jpg": b"two",
    "setid.mat": SPLITS,
}


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def archive_of(server: Server, file: str, content: bytes, gives: tuple[str, ...], into: str = "") -> Archive:
    server.files[f"/{file}"] = File(content)
    return Archive(file, (server.url(f"/{file}"),), len(content), sha256(content), gives, into)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def archives(server: Server, monkeypatch: pytest.MonkeyPatch) -> list[Archive]:
    """Two archives that share a folder, and a file that is none; what the catalog says can be changed in the list."""
    needed = [
        archive_of(server, "train.tar.gz", TRAIN, ("VOCdevkit/VOC2007/train.txt",), "VOCdevkit"),
        archive_of(server, "test.tgz", TEST, ("VOCdevkit/VOC2007/test.txt",), "VOCdevkit"),
        archive_of(server, "setid.mat", SPLITS, ("setid.mat",)),
    ]
    monkeypatch.setattr(catalog, "needed", lambda config: tuple(needed))
    monkeypatch.setattr(catalog, "hint", lambda config: "Ask at the page.")
    monkeypatch.setattr(web, "BACKOFF_S", 0.01)
    monkeypatch.delenv("MLS_OFFLINE", raising=False)
    return needed


def tree(root: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(".mls")}


def notes(root: Path) -> list[str]:
    return sorted(path.name for path in (root / ".mls").iterdir() if path.name.rpartition(".")[2] != "lock")


def test_archives_are_fetched_once(server: Server, archives: list[Archive], tmp_path: Path) -> None:
    root = tmp_path / "voc"
    assert not verified(CONFIG, root)
    fetch_archives("voc", CONFIG, root)
    assert tree(root) == WHOLE
    assert verified(CONFIG, root)
    files = ("setid.mat", "test.tgz", "train.tar.gz")
    assert set(notes(root)) - {"lock"} == {f"{file}.{kind}" for file in files for kind in ("json", "sha256")}
    note = json.loads((root / ".mls/test.tgz.json").read_text())
    assert note == {"file": "test.tgz", "checksum": sha256(TEST), "size": len(TEST), "whole": True}
    asked = len(server.asked)
    fetch_archives("voc", CONFIG, root)
    assert len(server.asked) == asked


def test_a_copy_of_ones_own_is_taken_and_nothing_is_written(
    server: Server, archives: list[Archive], tmp_path: Path
) -> None:
    for name, content in WHOLE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    fetch_archives("voc", CONFIG, tmp_path)
    assert not server.asked
    assert not (tmp_path / ".mls").exists()
    assert not verified(CONFIG, tmp_path), "nobody has checked it"


def test_what_was_deleted_is_fetched_again(server: Server, archives: list[Archive], tmp_path: Path) -> None:
    fetch_archives("voc", CONFIG, tmp_path)
    (tmp_path / "VOCdevkit/VOC2007/test.txt").unlink()
    assert not verified(CONFIG, tmp_path)
    asked = len(server.asked)
    fetch_archives("voc", CONFIG, tmp_path)
    assert tree(tmp_path) == WHOLE
    assert {path for path, _, _ in server.asked[asked:]} == {"/test.tgz"}


def test_another_published_checksum_is_another_file(server: Server, archives: list[Archive], tmp_path: Path) -> None:
    fetch_archives("voc", CONFIG, tmp_path)
    archives[2] = archive_of(server, "setid.mat", b"splits, mended", ("setid.mat",))
    assert not verified(CONFIG, tmp_path)
    with pytest.raises(MlsError, match=r"setid.mat is not the published file: it has other content: its sha256"):
        fetch_archives("voc", CONFIG, tmp_path)
    (tmp_path / "setid.mat").unlink()
    fetch_archives("voc", CONFIG, tmp_path)
    assert (tmp_path / "setid.mat").read_bytes() == b"splits, mended"
    assert verified(CONFIG, tmp_path)


@pytest.mark.parametrize("note", ["", "[]", "null", '{"whole": 1}', '{"whole": false}'])
def test_a_damaged_note_means_not_whole(server: Server, archives: list[Archive], tmp_path: Path, note: str) -> None:
    fetch_archives("voc", CONFIG, tmp_path)
    (tmp_path / ".mls/test.tgz.json").write_text(note)
    (tmp_path / "VOCdevkit/VOC2007/images/2.jpg").write_bytes(b"torn")
    assert not verified(CONFIG, tmp_path)
    fetch_archives("voc", CONFIG, tmp_path)
    assert tree(tmp_path) == WHOLE
    assert verified(CONFIG, tmp_path)


def test_nothing_is_verified_without_published_checksums(
    server: Server, archives: list[Archive], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives[1] = replace(archives[1], checksum=None, size=None)
    fetch_archives("voc", CONFIG, tmp_path)
    assert tree(tmp_path) == WHOLE
    assert not verified(CONFIG, tmp_path)
    asked = len(server.asked)
    fetch_archives("voc", CONFIG, tmp_path)
    assert len(server.asked) == asked
    archives.clear()
    assert not verified(CONFIG, tmp_path)


@pytest.mark.parametrize("place", ["", ".mls"])
def test_an_archive_that_the_user_has_put_there_is_used(
    server: Server, archives: list[Archive], tmp_path: Path, place: str
) -> None:
    archives[0] = replace(archives[0], urls=())
    brought = tmp_path / place / "train.tar.gz"
    brought.parent.mkdir(exist_ok=True)
    brought.write_bytes(TRAIN)
    fetch_archives("voc", CONFIG, tmp_path)
    assert {name: content for name, content in tree(tmp_path).items() if name != "train.tar.gz"} == WHOLE
    assert brought.exists() == (place == "")
    assert verified(CONFIG, tmp_path)
    assert server.requests("/train.tar.gz") == 0


@pytest.mark.parametrize("place", ["", ".mls"])
def test_a_wrong_archive_that_the_user_has_put_there(archives: list[Archive], tmp_path: Path, place: str) -> None:
    brought = tmp_path / place / "train.tar.gz"
    brought.parent.mkdir(exist_ok=True)
    brought.write_bytes(TRAIN[:-1] + b"?")
    with pytest.raises(MlsError, match="is not the published file: it has other content") as caught:
        fetch_archives("voc", CONFIG, tmp_path)
    assert str(brought) in str(caught.value)
    assert "Ask at the page." in str(caught.value)
    assert brought.exists()
    assert tree(tmp_path).keys() <= {"train.tar.gz"}


def test_files_without_an_address_are_named(archives: list[Archive], tmp_path: Path) -> None:
    archives[1:] = [replace(archive, urls=()) for archive in archives[1:]]
    with pytest.raises(MlsError, match="have no public address") as caught:
        fetch_archives("voc", CONFIG, tmp_path)
    for word in ("'voc'", "Ask at the page. ", "test.tgz, setid.mat", "VOCdevkit/VOC2007/test.txt", "`root:`"):
        assert word in str(caught.value)
    assert not tree(tmp_path), "before anything is downloaded"


def test_a_host_that_does_not_answer(server: Server, archives: list[Archive], tmp_path: Path) -> None:
    server.files["/test.tgz"] = File(status=503)
    with pytest.raises(MlsError, match=r"test.tgz could not be downloaded.*answers 503.*Ask at the page\."):
        fetch_archives("voc", CONFIG, tmp_path)
    assert (tmp_path / "VOCdevkit/VOC2007/train.txt").exists(), "what came before stays"
    server.files["/test.tgz"] = File(TEST)
    fetch_archives("voc", CONFIG, tmp_path)
    assert tree(tmp_path) == WHOLE
    assert server.sent("/train.tar.gz") == len(TRAIN)


def test_offline(server: Server, archives: list[Archive], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLS_OFFLINE", "1")
    with pytest.raises(MlsError, match="MLS_OFFLINE is set"):
        fetch_archives("voc", CONFIG, tmp_path)
    for archive, content in zip(archives, (TRAIN, TEST, SPLITS), strict=True):
        (tmp_path / archive.file).write_bytes(content)
    fetch_archives("voc", CONFIG, tmp_path)
    assert not server.asked
    assert WHOLE.items() <= tree(tmp_path).items()


def test_too_little_space_is_reported_before_anything_is_fetched(
    server: Server, archives: list[Archive], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = len(TRAIN) + len(TEST) + len(SPLITS) + max(len(TRAIN), len(TEST)) - 1
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(0, 0, room))
    with pytest.raises(MlsError, match="dataset voc needs"):
        fetch_archives("voc", CONFIG, tmp_path)
    assert not server.asked


def test_an_archive_that_holds_something_else(server: Server, archives: list[Archive], tmp_path: Path) -> None:
    archives[1] = replace(archives[1], gives=("VOCdevkit/VOC2007/val.txt",))
    with pytest.raises(MlsError, match=r"held no VOCdevkit/VOC2007/val.txt"):
        fetch_archives("voc", CONFIG, tmp_path)
    assert not verified(CONFIG, tmp_path)


def test_a_hostile_archive_writes_nothing(server: Server, archives: list[Archive], tmp_path: Path) -> None:
    evil = tar_of({"VOC2007/test.txt": b"2", "../../evil": b"x"})
    archives[1] = archive_of(server, "test.tgz", evil, archives[1].gives, "VOCdevkit")
    root = tmp_path / "data/voc"
    with pytest.raises(MlsError, match=r"'../../evil' leaves the folder"):
        fetch_archives("voc", CONFIG, root)
    assert "VOCdevkit/VOC2007/test.txt" not in tree(root)
    assert not list(tmp_path.rglob("evil"))


def test_a_stop_comes_through(server: Server, archives: list[Archive], tmp_path: Path) -> None:
    def poll() -> None:
        if server.requests("/test.tgz"):
            raise Interrupted("stop")

    with pytest.raises(Interrupted):
        fetch_archives("voc", CONFIG, tmp_path, poll)
    fetch_archives("voc", CONFIG, tmp_path)
    assert tree(tmp_path) == WHOLE


CHILD = """
import json, os, signal, sys
from pathlib import Path
from mls.config import catalog
from mls.download import fetch
from mls.config.catalog import Archive
from mls.config.datasets import VocDataset
file, url, size, checksum, gives, into = json.loads(sys.argv[1])
catalog.needed = lambda config: (Archive(file, (url,), size, checksum, tuple(gives), into),)
catalog.hint = lambda config: ""
original = getattr(fetch, sys.argv[3])
def killing(*args, **kwargs):
    if sys.argv[4] == "after":
        original(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(fetch, sys.argv[3], killing)
fetch.fetch_archives("voc", VocDataset(source="voc"), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("step", ["download after", "_write_note after", "unpack before", "unpack after"])
def test_killed_between_two_steps(server: Server, archives: list[Archive], tmp_path: Path, step: str) -> None:
    del archives[1:]
    one = archives[0]
    fields = json.dumps([one.file, one.urls[0], one.size, one.checksum, one.gives, one.into])
    command = [sys.executable, "-c", CHILD, fields, str(tmp_path), *step.split()]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert not verified(CONFIG, tmp_path)
    fetch_archives("voc", CONFIG, tmp_path)
    assert verified(CONFIG, tmp_path)
    assert tree(tmp_path) == {name: content for name, content in WHOLE.items() if content in (b"1", b"one")}
    assert server.sent("/train.tar.gz") == len(TRAIN), "it was there already"
    assert not (tmp_path / ".mls/train.tar.gz").exists()


def test_images_one_by_one(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLS_OFFLINE", raising=False)
    monkeypatch.setattr(web, "BACKOFF_S", 0.01)
    for i in range(5):
        server.files[f"/{i}.jpg"] = File(b"%d" % i, kind="image/jpeg")
    wanted = [(server.url(f"/{i}.jpg"), f"train2017/{i}.jpg") for i in range(6)]
    (tmp_path / "train2017").mkdir()
    (tmp_path / "train2017/0.jpg").write_bytes(b"mine")
    with pytest.raises(MlsError, match=r"1 of 5 files could not.*5.jpg: answers 404.*Look there\."):
        fetch_images("coco", wanted, Reader(tmp_path), "Look there.")
    assert tree(tmp_path) == {"train2017/0.jpg": b"mine"} | {f"train2017/{i}.jpg": b"%d" % i for i in range(1, 5)}
    asked = len(server.asked)
    fetch_images("coco", wanted[:5], Reader(tmp_path), "")
    assert len(server.asked) == asked


def test_some_images_are_not_a_copy_of_all(server: Server, archives: list[Archive], tmp_path: Path) -> None:
    server.files["/1.jpg"] = File(b"one", kind="image/jpeg")
    (tmp_path / "setid.mat").write_bytes(b"mine")
    fetch_images("voc", [(server.url("/1.jpg"), "VOCdevkit/VOC2007/images/1.jpg")], Reader(tmp_path), "")
    archives[:] = [replace(archives[0], gives=("VOCdevkit/VOC2007/images",)), archives[2]]
    fetch_archives("voc", CONFIG, tmp_path)
    assert tree(tmp_path) == {
        "setid.mat": b"mine",
        "VOCdevkit/VOC2007/train.txt": b"1",
        "VOCdevkit/VOC2007/images/1.jpg": b"one",
    }
    asked = len(server.asked)
    fetch_archives("voc", CONFIG, tmp_path)
    assert len(server.asked) == asked


@pytest.mark.parametrize("path", ["../x.jpg", "/x.jpg", "a/../../x.jpg", ""])
def test_images_stay_below_the_root(server: Server, tmp_path: Path, path: str) -> None:
    with pytest.raises(MlsError, match="image"):
        fetch_images("coco", [(server.url("/x"), path)], Reader(tmp_path), "")
    assert not server.asked
