"""Untrusted archives: plain files come out whole, and anything else leaves nothing behind."""

from __future__ import annotations

import io
import os
import random
import signal
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from mls.download import unpack as unpack_module
from mls.download.unpack import is_archive, staging_folder, unpack
from mls.runtime.errors import Interrupted, MlsError

FILES = {"VOC/images/1.jpg": b"one" * 1000, "VOC/images/2.jpg": b"", "VOC/labels.txt": b"a b c", "read me.txt": b"\xff"}
Usage = namedtuple("Usage", "total used free")


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("VOC")
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return path


def make_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix.lower() in (".gz", ".tgz") else "w") as archive:
        for folder in (".", "./VOC/"):
            info = tarfile.TarInfo(folder)
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o6777  # setuid, and writable by everybody
            archive.addfile(info, io.BytesIO(content))
    return path


def make(path: Path, files: dict[str, bytes]) -> Path:
    return make_zip(path, files) if path.suffix == ".zip" else make_tar(path, files)


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


NAMES = ["a.zip", "a.tar", "a.tar.gz", "a.TGZ"]


@pytest.mark.parametrize("name", NAMES)
def test_files_come_out(tmp_path: Path, name: str) -> None:
    archive = make(tmp_path / name, FILES)
    unpack(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == FILES
    assert not (tmp_path / "out/.mls").exists()
    umask = os.umask(0)
    os.umask(umask)
    for path in (tmp_path / "out").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~umask
    assert archive.exists()


@pytest.mark.parametrize("name", NAMES)
def test_folders_are_merged_and_files_replaced(tmp_path: Path, name: str) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (out / "VOC").mkdir(parents=True)
    (out / "VOC/images").symlink_to(elsewhere)  # the owner's way to another disk
    (out / "VOC/labels.txt").write_bytes(b"torn")
    (out / "VOC/mine.txt").write_bytes(b"mine")
    unpack(make(tmp_path / name, FILES), out)
    assert tree(out) | tree(elsewhere) == {
        **{key: value for key, value in FILES.items() if "images" not in key},
        "VOC/mine.txt": b"mine",
        "1.jpg": FILES["VOC/images/1.jpg"],
        "2.jpg": b"",
    }


@pytest.mark.parametrize("in_the_way", ["VOC", "VOC/labels.txt/x"])
def test_what_is_in_the_way_is_named(tmp_path: Path, in_the_way: str) -> None:
    blocked = tmp_path / "out" / in_the_way
    blocked.parent.mkdir(parents=True)
    blocked.write_bytes(b"mine")
    archive = make_zip(tmp_path / "a.zip", FILES)
    with pytest.raises(MlsError, match="is in the way"):
        unpack(archive, tmp_path / "out")
    assert blocked.read_bytes() == b"mine"
    assert not staging_folder(archive, tmp_path / "out").exists()


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize(
    "name",
    [
        *(
            "../x",
            "a/../../x",
            "a/..",
            "/x",
            "/etc/x",
            "a//x",
            "a/./x",
            "././x",
            "..",
            "..\\x",
            "a\\..\\x",
            "\\\\host\\x",
        ),
        *("C:/x", "c:x", "C:\\x", ".mls/VOC.zip.json", "./.mls/x", "a/" * 20 + "../" * 21 + "x", "x" * 256),
    ],
)
def test_names_that_lead_elsewhere(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / "in").mkdir()
    archive = make(tmp_path / "in" / kind, {**FILES, name: b"evil"})
    with pytest.raises(MlsError, match="nothing was unpacked"):
        unpack(archive, tmp_path / "in/out")
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(["in", kind])


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("name", ["VOC/labels.txt", "./VOC/labels.txt", "VOC", "VOC/labels.txt/x"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_nothing_comes_twice(tmp_path: Path, kind: str, name: str) -> None:
    archive = make(tmp_path / kind, FILES)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "a") as opened:
            opened.writestr(name, b"evil")
    else:
        with tarfile.open(archive, "w:gz" if "gz" in kind.lower() else "w") as tar:
            for each, content in [*FILES.items(), (name, b"evil")]:
                info = tarfile.TarInfo(each)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    with pytest.raises(MlsError, match="is there twice; nothing was unpacked"):
        unpack(archive, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.GNUTYPE_SPARSE,
        b"Z",
    ],
)
def test_only_files_and_folders_of_a_tar(tmp_path: Path, kind: bytes) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"mine")
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as tar:
        link = tarfile.TarInfo("VOC")
        link.type, link.linkname = kind, str(tmp_path)
        tar.addfile(link)
        inside = tarfile.TarInfo("VOC/secret")
        inside.size = 4
        tar.addfile(inside, io.BytesIO(b"evil"))
    with pytest.raises(MlsError):
        unpack(archive, tmp_path / "out")
    assert secret.read_bytes() == b"mine"
    assert not (tmp_path / "out").exists()


def test_no_sparse_files(tmp_path: Path) -> None:
    """They may be far larger than what is there of them."""
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("holes")
        info.size = 4
        info.pax_headers = {"GNU.sparse.map": "0,4", "GNU.sparse.size": "1000000000"}
        tar.addfile(info, io.BytesIO(b"some"))
    with pytest.raises(MlsError, match="'holes' is a link, a device or a sparse file"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_only_files_and_folders_of_a_zip(tmp_path: Path, kind: int) -> None:
    archive = make_zip(tmp_path / "a.zip", FILES)
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(info, str(tmp_path))
    with pytest.raises(MlsError, match="'link' is a link, a device"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def patched(archive: Path, change: Callable[[bytearray], None]) -> Path:
    content = bytearray(archive.read_bytes())
    change(content)
    archive.write_bytes(content)
    return archive


def test_an_encrypted_zip(tmp_path: Path) -> None:
    def encrypt(content: bytearray) -> None:
        content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag, in the directory at the end

    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("a", b"1")
    with pytest.raises(MlsError, match=r"filename='a'.* is encrypted"):
        unpack(patched(archive, encrypt), tmp_path / "out")


@pytest.mark.parametrize("kind", NAMES)
def test_bombs(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make(tmp_path / kind, {f"{i}": bytes(1_000_000) for i in range(5)})
    with monkeypatch.context() as patch:
        patch.setattr(unpack_module, "LIMIT", 4_000_000)
        with pytest.raises(MlsError, match=r"holds more than 0.004 GB"):
            unpack(archive, tmp_path / "out")
    monkeypatch.setattr(unpack_module, "MEMBERS", 4)
    with pytest.raises(MlsError, match="or 4 members"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("claimed", [10, 10_000_000])
def test_a_zip_that_lies_about_its_sizes(tmp_path: Path, claimed: int) -> None:
    def lie(content: bytearray) -> None:
        at = content.index(b"PK\x01\x02") + 24
        content[at : at + 4] = claimed.to_bytes(4, "little")

    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("a", bytes(1_000_000))
    with pytest.raises(MlsError):
        unpack(patched(archive, lie), tmp_path / "out")
    assert not tree(tmp_path / "out")
    assert not (tmp_path / "out/.mls").exists()


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_torn_archives(tmp_path: Path, kind: str, share: float) -> None:
    noise = random.Random(1).randbytes
    archive = make(tmp_path / kind, {f"{i}.jpg": noise(20_000) for i in range(5)})
    length = archive.stat().st_size
    if kind == "a.tar":
        length -= length % tarfile.RECORDSIZE or tarfile.RECORDSIZE - 512  # the padding may go
    os.truncate(archive, int(length * share))
    with pytest.raises(MlsError, match="damaged or torn"):
        unpack(archive, tmp_path / "out")
    assert not tree(tmp_path / "out")


def test_a_tar_torn_between_two_members(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a.tar", FILES)
    with tarfile.open(archive) as tar:
        third = tar.getmembers()[3].offset
    os.truncate(archive, third)  # what tarfile takes for complete
    with tarfile.open(archive) as tar:
        assert len(tar.getmembers()) == 3
    with pytest.raises(MlsError, match="damaged or torn"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("kind", NAMES)
def test_damaged_bytes(tmp_path: Path, kind: str) -> None:
    """No damage goes through with other content, or as anything but an error for people. (A tar has no checksum.)"""
    archive = make(tmp_path / kind, {f"{i}.jpg": bytes(range(256)) * 8 for i in range(3)})
    whole = archive.read_bytes()
    unpack(archive, tmp_path / "whole")
    seen = tree(tmp_path / "whole")
    for at in range(0, len(whole), max(1, len(whole) // 120)):
        archive.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        out = tmp_path / f"out-{at}"
        try:
            unpack(archive, out)
        except MlsError:
            assert not tree(out)
            continue
        for name, content in tree(out).items():
            assert kind == "a.tar" or content in seen.values(), (at, name)


@pytest.mark.parametrize("name", ["a.rar", "a.mat", "zip", "a.zip.part"])
def test_other_files_are_copied(tmp_path: Path, name: str) -> None:
    assert not is_archive(name)
    file = make_zip(tmp_path / name, FILES)
    unpack(file, tmp_path / "out")
    unpack(file, tmp_path)  # where it lies already
    assert tree(tmp_path / "out") == {name: file.read_bytes()}
    assert tree(tmp_path).keys() == {name, f"out/{name}"}


def test_too_little_space_is_reported_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(0, 0, 10_000_000))
    with pytest.raises(MlsError, match=r"what a.zip holds needs 0.02 GB, and .* has 0.01 GB"):
        unpack(make_zip(tmp_path / "a.zip", {"a": bytes(20_000_000)}), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_stop_leaves_nothing(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a.tar", FILES)

    def poll() -> None:
        if tree(tmp_path / "out"):
            raise Interrupted("stop")

    with pytest.raises(Interrupted):
        unpack(archive, tmp_path / "out", poll=poll)
    assert not list((tmp_path / "out").iterdir())


CHILD = """
import sys, time
from pathlib import Path
from mls.download import unpack as module
if sys.argv[3] == "moving":
    move = module._move
    def slow(*args):
        if args[0].name == "2.jpg":
            print("now", flush=True)
            time.sleep(60)
        move(*args)
    module._move = slow
    poll = lambda: None
else:
    def poll():
        if list(Path(sys.argv[2]).rglob("1.jpg")):
            print("now", flush=True)
            time.sleep(60)
module.unpack(Path(sys.argv[1]), Path(sys.argv[2]), poll=poll)
"""


@pytest.mark.parametrize("when", ["writing", "moving"])
def test_a_killed_unpacking_is_done_again(tmp_path: Path, when: str) -> None:
    archive, out = make_zip(tmp_path / "a.zip", FILES), tmp_path / "out"
    (out / "VOC/images").mkdir(parents=True)
    command = [sys.executable, "-c", CHILD, str(archive), str(out), when]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"now\n"
        process.send_signal(signal.SIGKILL)
    assert staging_folder(archive, out).is_dir()
    assert (out / "VOC/images/1.jpg").exists() == (when == "moving")
    assert not (out / "VOC/images/2.jpg").exists()
    unpack(archive, out)
    assert tree(out) == FILES
    assert not (out / ".mls").exists()
