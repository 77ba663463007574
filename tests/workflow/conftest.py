"""One finished, committed and pushed run, shared by all workflow tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mls.runtime.locks import locked
from tests.workflow.clone import Clone, new_clone


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Clone:
    """`dvc repro` ran everything; dvc.lock and results are committed; artifacts are pushed.

    Made once, by the first of pytest's workers that needs it; nobody changes it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "finished"
    clone = Clone(folder / "main")
    with locked(folder.with_suffix(".lock"), "the finished clone"):
        if not (folder / "whole").exists():
            shutil.rmtree(folder, ignore_errors=True)
            clone.path.mkdir(parents=True)
            new_clone(clone.path)
            clone.run("dvc", "remote", "add", "-q", "--local", "-d", "store", str(folder / "remote"))
            clone.run("dvc", "repro")
            clone.commit("a finished run")
            clone.run("dvc", "push")
            (folder / "whole").touch()
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
