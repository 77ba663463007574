"""What has arrived is not fetched again: stopped, killed and damaged downloads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mls.download.download import download
from mls.runtime.errors import Interrupted
from tests.download.server import File, Server
from tests.download.support import CONTENT, SIZE, SUM, is_clean

pytestmark = pytest.mark.usefixtures("quick")


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
