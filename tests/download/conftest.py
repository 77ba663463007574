"""A server that misbehaves as told, where to download, and short pauses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mls.download import download as download_module
from mls.download import web
from tests.download.server import Server


@pytest.fixture
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
