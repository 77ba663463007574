"""Checkpoints: written atomically, and read without executing code (``weights_only=True``).

save_resumable({"step": 500, "model": model.state_dict()}, work, step=500, keep=2)  # checkpoint-000000500.pt
state, problems = load_resumable(work)  # the newest that can be read; problems are lines for the log
"""

from __future__ import annotations

import re
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from mls.runtime.files import atomic_file

NAME = "checkpoint.pt"
"""The final state in an artifact; a resumable checkpoint has its step in its name."""


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write tensors and plain values atomically; equal states give equal bytes.

    The state is saved through a file object, because ``torch.save`` to a path embeds the file's name.
    """
    with atomic_file(path) as file:
        torch.save(_canonical(state), file)


def _canonical(value: Any) -> Any:
    """The same values in plain containers, with equal strings interned.

    Pickle writes a repeated object as a reference. In a loaded state equal strings are separate objects, so without
    this a resumed run would write different bytes than one that was never stopped.
    """
    if isinstance(value, dict):
        return {_canonical(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return sys.intern(value) if isinstance(value, str) else value


def save_resumable(state: dict[str, Any], folder: Path, step: int, keep: int) -> None:
    """Write ``checkpoint-<step>.pt`` atomically, then remove all but the last ``keep`` checkpoints up to this step.

    An older checkpoint is removed only when the new one is safely on disk, so ``keep + 1`` must fit.
    """
    for leftover in folder.glob(".checkpoint-*.pt.*.tmp"):  # from a process that was killed while it wrote
        leftover.unlink()
    save_checkpoint(state, folder / f"checkpoint-{step:09d}.pt")
    older = [path for one, path in _resumable(folder) if one < step]
    for path in older[: max(0, len(older) - (keep - 1))]:
        path.unlink()


def load_resumable(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the newest state that can be read, or None, and a line for the log on each that can't.

    A file that can't be read (truncated, or altered by a failing disk) is renamed to ``<name>.unreadable``, never
    deleted.

    Raises:
        PermissionError: this user may not read a checkpoint; it may be a good one, so it is not renamed.
        MemoryError: there is too little memory to read one; it is not renamed either.
    """
    problems: list[str] = []
    found = _resumable(folder)
    while found:
        _, path = found.pop()
        try:
            return _read(path), problems
        except (PermissionError, MemoryError):
            raise
        except Exception as error:  # garbage makes torch raise almost anything
            kept = path.with_name(f"{path.name}.unreadable")
            with suppress(FileNotFoundError):  # another rank has renamed it
                path.replace(kept)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            then = "going on from the one before it" if found else "starting again"
            problems.append(f"{path} can't be read ({reason}); set aside as {kept.name}; {then}")
    return None, problems


def _resumable(folder: Path) -> list[tuple[int, Path]]:
    """Steps and paths of the checkpoints in a folder, newest last."""
    found = [(re.fullmatch(r"checkpoint-(\d+)\.pt", path.name), path) for path in folder.glob("checkpoint-*.pt")]
    return sorted((int(match[1]), path) for match, path in found if match)


def _read(path: Path) -> dict[str, Any]:
    """Read a file that `save_checkpoint` wrote; verify the checksums of its zip archive, which torch does not."""
    with zipfile.ZipFile(path) as archive:
        altered = archive.testzip()
    if altered is not None:
        raise ValueError(f"{altered} has a wrong checksum")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError("not a mapping")
    return state


def rng_state() -> dict[str, Any]:
    """State of torch's generators. Data order and augmentation are counter-based and need no state."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `rng_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])
