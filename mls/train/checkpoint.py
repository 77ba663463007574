"""Resumable state: written aside, synced, renamed; read back with ``weights_only=True`` alone."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import torch

from mls.experiment.artifact import atomic_file

NAME = "checkpoint.pt"


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write tensors and plain values so that the file is whole or absent at any instant.

    Saved through a file object: ``torch.save`` to a path would embed the file's name, and equal
    states would not be equal bytes.
    """
    with atomic_file(path) as file:
        torch.save(_canonical(state), file)


def _canonical(value: Any) -> Any:
    """The same values in plain containers, with every equal string one object.

    Pickle writes a repeated object as a reference, so a state that was loaded (whose equal strings
    are separate objects) would otherwise be other bytes than one that never was.
    """
    if isinstance(value, dict):
        return {_canonical(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return sys.intern(value) if isinstance(value, str) else value


def load_checkpoint(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Return the state and an empty string, or None and why there is none to resume from.

    A file that can't be read (cut short by a dying disk, say) is set aside under
    ``<name>.unreadable``, never deleted: the caller says so and starts again.
    """
    if not path.exists():
        return None, ""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError("not a mapping")
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        kept = path.with_name(f"{path.name}.unreadable")
        path.replace(kept)
        reason = (str(error).splitlines() or ["unknown"])[0]
        return None, f"{path} can't be read ({reason}); set aside as {kept.name}; starting again"
    return state, ""


def rng_state() -> dict[str, Any]:
    """State of torch's generators (data order and augmentation need none: they are counter-based)."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `rng_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
