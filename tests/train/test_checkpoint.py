"""Checkpoints are whole or absent, and never execute anything."""

from __future__ import annotations

import ast
import errno
from pathlib import Path

import pytest
import torch

from mls.train.checkpoint import load_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[2]


def test_saved_and_loaded_again(tmp_path: Path) -> None:
    state = {"step": 3, "weights": {"a": torch.randn(4)}, "curves": [{"step": 1, "loss": 0.5}]}
    save_checkpoint(state, tmp_path / "checkpoint.pt")
    loaded, problem = load_checkpoint(tmp_path / "checkpoint.pt")
    assert loaded is not None and problem == ""
    assert loaded["step"] == 3 and torch.equal(loaded["weights"]["a"], state["weights"]["a"])  # type: ignore[index]


def test_equal_states_are_equal_bytes_whatever_the_name(tmp_path: Path) -> None:
    state = {"a": torch.arange(5)}
    for name in ("one.pt", "another-name.pt"):
        save_checkpoint(state, tmp_path / name)
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "another-name.pt").read_bytes()


def test_a_failed_save_keeps_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "checkpoint.pt"
    save_checkpoint({"step": 1}, file)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint({"step": 2}, file)
    assert load_checkpoint(file)[0] == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_no_code_here_loads_pickles() -> None:
    """Every torch.load says weights_only=True; nothing imports pickle's or numpy's object loaders."""
    for file in sorted((ROOT / "mls").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            called = ast.unparse(node.func)
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called == "torch.load":
                assert keywords.get("weights_only") == "True", f"{file}: torch.load without weights_only=True"
            assert called not in ("pickle.load", "pickle.loads"), file
            assert keywords.get("allow_pickle", "False") == "False", file
