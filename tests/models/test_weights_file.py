"""Every file ends in a loaded network or in one line that names the file, whatever is in it."""

from __future__ import annotations

import argparse
import io
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from mls.config.experiment import Backbone
from mls.models.backbone import build_backbone
from mls.models.foreign import translate
from mls.models.weights_file import read_tensors
from mls.runtime.errors import DeterministicError, MlsError

SHAPE = Backbone(name="resnet18", width=0.125)
MUTATIONS = 150
"""Of each format; together they take about 5 s."""


def saved(value: Any, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


FORMATS: dict[str, Callable[[dict[str, Tensor]], bytes]] = {
    "zip": lambda state: saved({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}),
    "legacy": lambda state: saved({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, False),
    "safetensors": save,
}


def place(draw: random.Random, size: int) -> int:
    """A byte's place; the first and last ones, which hold names and sizes, are drawn more often than numbers."""
    near = int(math.exp(draw.uniform(0, math.log(size)))) - 1
    return draw.choice([near, near, size - 1 - near, draw.randrange(size)])


def damaged(data: bytes, draw: random.Random) -> bytes:
    """One of the ways in which files are damaged: cut, or with bytes changed, lost, added, doubled or zeroed."""
    where, length = place(draw, len(data)), draw.choice([1, 2, 4, 8, 100])
    here, rest = data[where : where + length], data[where + length :]
    kind = draw.randrange(4)
    if kind == 0:
        return data[:where]
    if kind < 3:
        changed = bytearray(data)
        for _ in range(draw.choice([1, 1, 2, 8])):
            changed[place(draw, len(data))] = draw.choice([draw.randrange(256), 0, 255, *b"}:.u\x85"])
        return bytes(changed)
    return data[:where] + draw.choice([b"", here + draw.randbytes(length), here + here, bytes(length)]) + rest


@pytest.mark.parametrize("form", FORMATS)
def test_damaged_files_end_in_a_network_or_in_one_line(form: str, tmp_path: Path) -> None:
    draw, net = random.Random(form), build_backbone(SHAPE)
    data, wanted = FORMATS[form](net.state_dict()), net.state_dict()
    loaded, messages = 0, []
    for number in range(MUTATIONS):
        path = tmp_path / f"{number}.pth"
        path.write_bytes(damaged(data, draw))
        try:
            net.load_state_dict(translate(read_tensors(path), wanted, path)[0])
            loaded += 1
        except MlsError as error:
            messages.append(str(error))
            assert str(path) in messages[-1] and messages[-1].isprintable(), messages[-1]
            assert len(messages[-1]) < 2000 and "weights_only" not in messages[-1]
        path.unlink()
    assert loaded > MUTATIONS / 20 and len(messages) > MUTATIONS / 3


ELSE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is empty"),
    "an HTML page": (b"\n<!DOCTYPE html><html><head><title>Sign in", "is a web page"),
    "an error of S3": (b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied', "is a web page"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 97\n", "Git LFS pointer"),
    "JSON": (b'{"error": "Repository not found"}', "is JSON text"),
    "gzip": (b"\x1f\x8b\x08\x00rest", "is compressed; unpack it"),
    "text": (b"not weights", "damaged, cut short or of another format"),
}


@pytest.mark.parametrize("what", ELSE)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_what_is_not_weights_is_named(what: str, name: str, tmp_path: Path) -> None:
    data, message = ELSE[what]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DeterministicError, match=message) as caught:
        read_tensors(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["w.safetensors", "w.SAFETENSORS", "w.bin"])
def test_safetensors_are_known_by_their_bytes(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(save({"a.weight": torch.ones(2)}))
    assert torch.equal(read_tensors(tmp_path / name)["a.weight"], torch.ones(2))


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch executed",))


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_are_named_and_nothing_is_executed(zipped: bool, in_tmp: Path) -> None:
    (in_tmp / "w.pth").write_bytes(saved({"state_dict": {"a": torch.ones(2)}, "hook": Hostile()}, zipped))
    with pytest.raises(DeterministicError, match=r"holds a Python object, posix\.system, which may execute code; save"):
        read_tensors(in_tmp / "w.pth")
    assert not (in_tmp / "executed").exists()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torchscript_archive_is_named(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "w.pt")
    with pytest.raises(DeterministicError, match="is a TorchScript archive; save its state_dict"):
        read_tensors(tmp_path / "w.pt")


def test_values_without_code_may_stand_beside_the_weights(tmp_path: Path) -> None:
    beside = {"args": argparse.Namespace(arch="resnet50", lr=0.1), "best_acc1": np.float64(67.5), 3: torch.ones(1)}
    (tmp_path / "w.pth").write_bytes(saved(beside | {"state_dict": {"a": torch.ones(2)}}))
    assert list(read_tensors(tmp_path / "w.pth")) == ["state_dict.a"]


def test_a_file_without_named_tensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(saved([torch.ones(2)]))
    with pytest.raises(DeterministicError, match="holds no named tensors; save a network's state_dict"):
        read_tensors(tmp_path / "w.pth")


def test_a_mapping_that_holds_itself_is_read(tmp_path: Path) -> None:
    state: dict[str, Any] = {"a": torch.ones(2)}
    state["self"] = state
    (tmp_path / "w.pth").write_bytes(saved(state))
    assert list(read_tensors(tmp_path / "w.pth")) == ["a"]
