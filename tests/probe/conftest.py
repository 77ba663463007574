"""Fixtures of the probes' tests."""

from pathlib import Path

import pytest

from mls.data.image_store import ImageStore
from tests.probe.finetune_support import make_store


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return make_store(tmp_path / "data")
