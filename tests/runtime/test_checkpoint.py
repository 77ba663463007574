"""Checkpoints are written atomically, a damaged one is replaced by an older one, and reading executes no code."""

from __future__ import annotations

import ast
import errno
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mls.runtime.checkpoint import load_resumable, save_checkpoint, save_resumable

ROOT = Path(__file__).parents[2]


def state_at(step: int) -> dict[str, Any]:
    weights = {"a": torch.full((40, 30), float(step)), "b": torch.arange(7)}
    return {"step": step, "weights": weights, "curves": [{"step": step, "loss": float("nan")}]}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with the checkpoints of steps 3 and 12."""
    for step in (3, 12):
        save_resumable(state_at(step), tmp_path, step, keep=2)
    return tmp_path


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert load_resumable(tmp_path) == (None, [])
    save_checkpoint({"step": 9}, tmp_path / "checkpoint.pt")  # an artifact's name, not a resumable one's
    assert load_resumable(tmp_path) == (None, [])


def test_saved_and_loaded_again(two: Path) -> None:
    loaded, problems = load_resumable(two)
    assert loaded is not None and problems == []
    assert loaded["step"] == 12 and torch.equal(loaded["weights"]["a"], torch.full((40, 30), 12.0))
    assert np.isnan(loaded["curves"][0]["loss"])


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    for step in (5, 10, 999_999_999, 1_000_000_000):  # by number, not by name
        save_resumable(state_at(step), tmp_path, step, keep)
    every = [f"checkpoint-{step:09d}.pt" for step in (5, 10, 999_999_999, 1_000_000_000)]
    assert names(tmp_path) == sorted(every[-keep:])
    loaded, _ = load_resumable(tmp_path)
    assert loaded is not None and loaded["step"] == 1_000_000_000


def test_the_same_step_is_replaced(two: Path) -> None:
    save_resumable(state_at(12) | {"again": True}, two, 12, keep=2)
    assert names(two) == ["checkpoint-000000003.pt", "checkpoint-000000012.pt"]
    loaded, _ = load_resumable(two)
    assert loaded is not None and loaded["again"]


def test_leftovers_are_removed_and_other_files_stay(two: Path) -> None:
    for name in ("checkpoint-000000001.pt", ".checkpoint-000000012.pt.77.tmp", "checkpoint-mine.pt", "lock"):
        (two / name).write_bytes(b"")
    save_resumable(state_at(20), two, 20, keep=1)
    assert names(two) == ["checkpoint-000000020.pt", "checkpoint-mine.pt", "lock"]


def test_equal_states_are_equal_bytes_whatever_the_name(tmp_path: Path) -> None:
    state = {"a": torch.arange(5)}
    for name in ("one.pt", "another-name.pt"):
        save_checkpoint(state, tmp_path / name)
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "another-name.pt").read_bytes()


def test_a_failed_save_keeps_the_last_ones(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in two.iterdir()}

    def full(state: object, file: Any) -> None:
        file.write(b"some of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_resumable(state_at(13), two, 13, keep=1)
    assert {path.name: path.read_bytes() for path in two.iterdir()} == before


def test_a_file_truncated_at_any_length_is_skipped(two: Path) -> None:
    last = two / "checkpoint-000000012.pt"
    whole = last.read_bytes()
    lengths = {0, 1, 4, 30, len(whole) - 1, *range(0, len(whole), 211)}
    assert len(lengths) > 20
    for length in sorted(lengths):
        last.write_bytes(whole[:length])
        loaded, (problem,) = load_resumable(two)
        assert loaded is not None and loaded["step"] == 3, length
        assert "checkpoint-000000012.pt can't be read (" in problem
        assert problem.endswith("set aside as checkpoint-000000012.pt.unreadable; going on from the one before it")
        assert (two / "checkpoint-000000012.pt.unreadable").read_bytes() == whole[:length], "kept, not deleted"
        assert not last.exists()


def test_an_altered_byte_never_alters_the_state(two: Path) -> None:
    """torch itself would load altered weights, since it does not verify the checksums."""
    last = two / "checkpoint-000000012.pt"
    whole = last.read_bytes()
    noticed = 0
    for place in range(0, len(whole), 97):
        last.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        loaded, problems = load_resumable(two)
        assert loaded is not None
        expected = state_at(3 if problems else 12)  # an altered filler byte does no harm
        assert loaded["step"] == expected["step"]
        assert all(torch.equal(loaded["weights"][k], v) for k, v in expected["weights"].items())
        noticed += len(problems)
    assert noticed > 40


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_garbage_and_hostile_pickles_are_skipped(two: Path) -> None:
    mark = two / "executed"
    (two / "checkpoint-000000013.pt").write_bytes(np.random.default_rng(0).bytes(5000))
    (two / "checkpoint-000000014.pt").write_bytes(pickle.dumps(Hostile(mark)))  # torch's old format
    torch.save({"step": 15, "x": Hostile(mark)}, two / "checkpoint-000000015.pt")
    torch.save([1, 2], two / "checkpoint-000000016.pt")
    (two / "checkpoint-000000017.pt").mkdir()
    loaded, problems = load_resumable(two)
    assert loaded is not None and loaded["step"] == 12
    assert [line.split("checkpoint-0000000")[1][:2] for line in problems] == ["17", "16", "15", "14", "13"]
    assert not mark.exists()
    pickle.loads(pickle.dumps(Hostile(mark)))
    assert mark.exists(), "it would have"


def test_if_no_checkpoint_can_be_read_training_starts_again(two: Path) -> None:
    for path in two.iterdir():
        path.write_bytes(b"")
    state, problems = load_resumable(two)
    assert state is None
    assert problems[0].endswith("going on from the one before it") and problems[1].endswith("starting again")
    assert load_resumable(two) == (None, [])
    save_resumable(state_at(4), two, 4, keep=1)  # unreadable files do not count, and stay
    assert names(two) == [
        f"checkpoint-{s}" for s in ("000000003.pt.unreadable", "000000004.pt", "000000012.pt.unreadable")
    ]


def test_a_file_without_read_permission_is_not_renamed(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(PermissionError):
        load_resumable(two)
    assert names(two) == ["checkpoint-000000003.pt", "checkpoint-000000012.pt"]


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
