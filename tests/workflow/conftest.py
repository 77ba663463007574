"""One finished, committed and pushed run, shared by all workflow tests of a worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.workflow.clone import Clone, new_clone


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """`dvc repro` ran everything; dvc.lock and results are committed; artifacts are pushed."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "main").mkdir()
    clone = new_clone(folder / "main")
    clone.run("dvc", "remote", "add", "-q", "--local", "-d", "store", str(folder / "remote"))
    clone.run("dvc", "repro")
    clone.commit("a finished run")
    clone.run("dvc", "push")
    return clone


@pytest.fixture
def original(finished: Clone, tmp_path: Path) -> Clone:
    """A copy of the finished clone with everything in it, to change at will."""
    copy = finished.copy(tmp_path / "original")
    (copy.path / ".dvc" / "config.local").write_text(
        f"[core]\n    remote = store\n['remote \"store\"']\n    url = {finished.path.parent / 'remote'}\n"
    )
    return copy


@pytest.fixture
def pulled(finished: Clone, tmp_path: Path) -> Clone:
    """A fresh clone after `dvc pull`; no .snakemake."""
    clone = finished.clone(tmp_path / "pulled")
    clone.run("dvc", "pull")
    return clone


@pytest.fixture
def fresh(finished: Clone, tmp_path: Path) -> Clone:
    """A fresh clone without artifacts."""
    return finished.clone(tmp_path / "fresh")
