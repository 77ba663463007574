"""Read the tensors of a weights file: torch's two formats and safetensors, told apart by their bytes.

    tensors = read_tensors(Path("moco_v2_800ep_pretrain.pth.tar"))  # {"state_dict.module.encoder_q.conv1.weight": ...}

Nothing in a file is executed. Whatever is wrong with it ends in one line.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import safe_globals

from mls.models.names import few
from mls.runtime.errors import DeterministicError, MlsError

MISTAKEN = {
    rb"\Z": "is empty: the download failed or has not started",
    rb"version https://git-lfs": "is a Git LFS pointer, not the weights; run `git lfs pull` where it came from, "
    "or download the file itself",
    rb"\s*<": "is a web page (HTML or XML), not weights: the server sent a login, an error or a preview; "
    "download the file itself",
    rb"\s*[{\[]": "is JSON text, not weights; download the file itself",
    rb"\x1f\x8b|BZh|\xfd7zXZ": "is compressed; unpack it and name the file inside",
    rb"\x89HDF": "is an HDF5 file of Keras; convert it to a state_dict first",
}
"""Pattern of a file's first bytes -> what it is, where it is not weights."""

SAFE: list[Any] = [
    argparse.Namespace,  # the options that DINO, PixPro and SlotCon save beside their weights
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("float32", "float64", "int32", "int64", "bool")},
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),  # type: ignore[attr-defined]
]
"""What a checkpoint may hold beside torch's own types: values without code, such as the best accuracy so far."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file's tensors by their full names: keys of nested mappings, joined by dots.

    Raises:
        DeterministicError: it is not a weights file, it is damaged, or reading it would execute code.
        MlsError: the disk can't be read.
    """
    with path.open("rb") as file:
        head = file.read(64)
    for pattern, what in MISTAKEN.items():
        if re.match(pattern, head):
            raise DeterministicError(f"{path} {what}")
    # A safetensors file is the size of its header (8 bytes), then JSON. torch's formats have other bytes there.
    safetensors = head[8:9] == b"{" or path.suffix.lower() == ".safetensors"
    try:
        if safetensors:
            raw: Any = load_file(path)
        else:
            # torch warns of what the errors below say, and of its own costs.
            with warnings.catch_warnings(action="ignore"), safe_globals(SAFE), path.open("rb") as file:
                raw = torch.load(file, "cpu", weights_only=True)
    except OSError as error:
        raise MlsError(f"{path} can't be read: {error}") from error
    except Exception as error:  # damaged bytes make torch raise errors of any type, IndexError and struct.error too
        raise DeterministicError(f"{path} can't be read as weights: {reason(error)}") from error
    tensors = flatten(raw)
    if not tensors:
        raise DeterministicError(f"{path} holds no named tensors; save a network's state_dict and use that")
    return tensors


def reason(error: Exception) -> str:
    """Return why a file can't be read. torch's own text advises to read it unsafely, so it is used in part only."""
    text = str(error)
    if found := re.search(r"GLOBAL (\S+)", text):
        return f"it holds a Python object, {few([found[1]])}, which may execute code; save its state_dict and use that"
    if "TorchScript" in text:
        return "it is a TorchScript archive; save its state_dict and use that"
    line = "" if "weights_only" in text else few([text.partition("\n")[0]])
    return f"it is damaged, cut short or of another format ({line or type(error).__name__})"


def flatten(raw: Any) -> dict[str, Tensor]:
    """Return the tensors of nested mappings by their dotted names; lists and keys that are not text are left out."""
    tensors: dict[str, Tensor] = {}
    waiting, seen = deque([("", raw)]), {id(raw)}
    while waiting:
        prefix, mapping = waiting.popleft()
        for key, value in mapping.items() if isinstance(mapping, Mapping) else ():
            if not isinstance(key, str):
                continue
            if isinstance(value, Tensor):
                tensors.setdefault(f"{prefix}{key}", value)
            elif isinstance(value, Mapping) and id(value) not in seen:  # damaged files hold cycles
                seen.add(id(value))
                waiting.append((f"{prefix}{key}.", value))
    return tensors
