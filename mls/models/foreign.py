"""Weights from elsewhere: checkpoints of torchvision, timm, MoCo, DenseCL and Detectron2 become our backbone.

Files are read without executing anything in them (``weights_only=True`` or safetensors).
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision.models
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models.resnet import ResNet

from mls.config.experiment import Pretrain
from mls.models.backbone import build_backbone
from mls.models.names import COUNTER, few, to_detectron2, within_resnet
from mls.runtime.errors import DeterministicError, MlsError
from mls.runtime.files import sha256
from mls.runtime.paths import place

NESTED = ("state_dict", "model", "teacher", "student")
"""Keys under which checkpoints keep their weights."""
_MOCO = ("module.encoder_q.", "encoder_q.", "encoder_q.0.", "module.encoder_q.0.")
PREFIXES = ("", *_MOCO, "backbone.", "module.", "model.")
"""What precedes ``conv1.weight``: nothing in torchvision and timm, ``module.encoder_q.`` in MoCo, ``backbone.`` or
``encoder_q.0.`` in DenseCL."""


def weights_root() -> Path:
    """Return the folder of weight files: ``$MLS_WEIGHTS``, else ``weights/``."""
    return place("MLS_WEIGHTS", "weights")


def load_weights(config: Pretrain, log: Callable[[str], None]) -> ResNet:
    """Load the file that ``pretrain.weights`` names into the run's backbone.

    Raises:
        MlsError: the file is missing or has a different sha256.
        DeterministicError: it can't be read safely, or does not fit the backbone.
    """
    if config.weights is None:
        raise MlsError("method 'weights' needs pretrain.weights.file and pretrain.weights.sha256")
    path = weights_root() / config.weights.file
    if not path.is_file():
        raise MlsError(f"weights file {path} is missing; put it there, or set MLS_WEIGHTS to the folder that holds it")
    found = sha256(path)
    if found != config.weights.sha256:
        raise MlsError(f"{path} has sha256 {found}, but the experiment names {config.weights.sha256}")
    net = build_backbone(config.backbone)
    state, prefix, ignored = translate(read_state(path), net.state_dict(), path)
    net.load_state_dict(state)
    log(f"loaded {len(state)} tensors from {path.name} (prefix {prefix!r}); not used: {few(ignored)}")
    return net


def read_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint's tensors by name.

    Raises:
        DeterministicError: it is not a checkpoint, or reading it would execute code.
    """
    try:
        raw: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError, SafetensorError) as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise DeterministicError(
            f"{path} can't be read as plain tensors ({reason}); save its state_dict and use that"
        ) from error
    for key in NESTED:
        if isinstance(raw, Mapping) and isinstance(raw.get(key), Mapping):
            raw = raw[key]
    if not isinstance(raw, Mapping):
        raise DeterministicError(f"{path} does not hold a mapping of names to tensors; save a state_dict and use that")
    return dict(raw)


def translate(
    state: Mapping[str, Any], wanted: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], str, list[str]]:
    """Pick the backbone's tensors out of a checkpoint, by the prefix that matches most of them.

    Returns:
        The state dict in torchvision's names, the prefix, and the unused names.

    Raises:
        DeterministicError: tensors are missing or have a different shape; lists them.
    """
    ours = {to_detectron2(name): name for name in wanted}
    if converted := {ours[d2]: tensor for name, tensor in state.items() if (d2 := within_resnet(name)) in ours}:
        picked, _, _ = translate(converted, wanted, path)
        return picked, "Detectron2's names", [name for name in state if within_resnet(name) not in ours]
    prefix = max(PREFIXES, key=lambda p: sum(f"{p}{name}" in state for name in wanted))
    picked = {name: state[f"{prefix}{name}"] for name in wanted if f"{prefix}{name}" in state}
    # Old checkpoints lack this counter, which does not affect the result.
    picked |= {n: t for n, t in wanted.items() if n not in picked and n.endswith(COUNTER)}
    if missing := [name for name in wanted if name not in picked]:
        raise DeterministicError(
            f"{path} lacks {len(missing)} of {len(wanted)} backbone tensors: {few(missing)}; "
            f"it holds: {few(list(state))}"
        )
    shapes = [(n, tuple(picked[n].shape), tuple(t.shape)) for n, t in wanted.items()]
    if wrong := [f"{name} {found} instead of {expected}" for name, found, expected in shapes if found != expected]:
        raise DeterministicError(f"{path} does not fit pretrain.backbone: {few(wrong)}")
    ignored = [name for name in state if not (name.startswith(prefix) and name[len(prefix) :] in wanted)]
    return picked, prefix, ignored


def load_imagenet(config: Pretrain) -> ResNet:
    """Load torchvision's supervised weights, from `weights_root` if the file is there, else downloaded to it.

    The file's name holds the start of its sha256, which is checked either way.

    Raises:
        MlsError: the file can't be downloaded, or is not the published one.
    """
    entry = torchvision.models.get_model_weights(config.backbone.name)[config.imagenet.weights]
    path = weights_root() / entry.url.rsplit("/", 1)[1]
    digest = path.stem.rsplit("-", 1)[1]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(entry.url, str(path), hash_prefix=digest)
        except (OSError, RuntimeError) as error:
            raise MlsError(f"can't download {entry.url} ({error}); fetch it yourself and put it at {path}") from error
    if not sha256(path).startswith(digest):
        raise MlsError(f"{path} is not the published file (its sha256 differs from its name); remove it and try again")
    net = build_backbone(config.backbone)
    net.load_state_dict(translate(read_state(path), net.state_dict(), path)[0])
    return net
