"""Artifacts pushed to a server and pulled by a fresh clone leave nothing to do.

test_reruns.py has a folder as the remote. No address is ever committed, and nothing needs a remote.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import threading
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

from tests.workflow.clone import ROOT, Clone

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
Settings = list[tuple[str, str]]
"""The remote's address under ``url``, then what `dvc remote modify --local` sets."""


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """An S3 server on this machine, with one empty bucket; its keys are only in the environment."""
    pytest.importorskip("dvc_s3", reason="dvc-s3 is not installed (extra: remotes)")
    server = pytest.importorskip("moto.server", reason="moto is not installed (extra: remotes)")
    import boto3

    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    address = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=address).create_bucket(Bucket="artifacts")
    yield [("url", "s3://artifacts/mls"), ("endpointurl", address)]
    running.stop()


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[Settings]:
    """An SSH server on this machine, only for files; it accepts one key."""
    pytest.importorskip("dvc_ssh", reason="dvc-ssh is not installed (extra: remotes)")
    import asyncssh

    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(str(tmp_path / "key"))
    key.write_public_key(str(tmp_path / "known"))
    (tmp_path / "store").mkdir()

    async def listen() -> int:
        server = await asyncssh.listen(
            "127.0.0.1",
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            authorized_client_keys=str(tmp_path / "known"),
            sftp_factory=True,
        )
        port: int = server.get_port()
        return port

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    port = asyncio.run_coroutine_threadsafe(listen(), loop).result()
    yield [
        ("url", f"ssh://127.0.0.1{tmp_path / 'store'}"),
        ("port", str(port)),
        ("user", "somebody"),
        ("keyfile", str(tmp_path / "key")),
    ]
    loop.call_soon_threadsafe(loop.stop)


def add_remote(clone: Clone, settings: Settings) -> None:
    """As docs/remotes.md says."""
    (_, address), *others = settings
    clone.run("dvc", "remote", "add", "--local", "-d", "-f", "store", address)
    for name, value in others:
        clone.run("dvc", "remote", "modify", "--local", "store", name, value)


@pytest.mark.parametrize("kind", ["s3", "ssh"])
def test_push_fresh_clone_and_pull_leave_nothing_to_do(
    kind: str, original: Clone, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    settings: Settings = request.getfixturevalue(kind)
    add_remote(original, settings)
    original.run("dvc", "push")
    assert original.run("git", "status", "--porcelain") == "", "the remote is only known to this clone"
    fresh = original.clone(tmp_path / "fresh")
    add_remote(fresh, settings)
    fresh.run("dvc", "pull")
    assert fresh.planned() == {}
    assert fresh.digests() == original.digests()
    assert fresh.run("git", "grep", "-F", settings[0][1], "--", ":!tests", ok=False) == "", "no address is committed"


def test_no_remote_is_committed() -> None:
    config = ConfigParser()
    config.read_string((ROOT / ".dvc" / "config").read_text())
    assert config.sections() == ["core"] and "remote" not in config["core"]


def test_reproduce_needs_no_remote(original: Clone) -> None:
    (original.path / ".dvc" / "config.local").unlink()
    assert original.run("dvc", "remote", "list") == ""
    shutil.rmtree(original.path / "artifacts" / "tables")
    printed = original.run("make", "--no-print-directory", "reproduce", "-o", "setup", f"VENV={sys.prefix}")
    assert "| mls " in printed
    assert original.planned() == {}
