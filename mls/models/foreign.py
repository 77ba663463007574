"""Weights from elsewhere: the ResNet in another project's checkpoint becomes our backbone.

It is found by its tensors' names, whatever they are nested in: ``state_dict.module.encoder_q.conv1.weight`` (MoCo),
``classy_state_dict.base_model.model.trunk._feature_blocks.conv1.weight`` (VISSL, its
extra_scripts/convert_vissl_to_torchvision.py), ``teacher.backbone.conv1.weight`` (DINO, its utils.py), and in three
naming schemes, see `mls.models.names`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision.models
from torch import Tensor
from torchvision.models.resnet import ResNet

from mls.config.experiment import Pretrain
from mls.models.backbone import build_backbone
from mls.models.names import COUNTER, LONGEST, SCHEMES, few
from mls.models.weights_file import read_tensors
from mls.runtime.errors import DeterministicError, MlsError
from mls.runtime.files import sha256
from mls.runtime.paths import place

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

PARTNERS = {
    "state_dict.module.encoder_k": "state_dict.module.encoder_q",  # facebookresearch/moco, main_lincls.py
    "state_dict.module.momentum_encoder": "state_dict.module.base_encoder",  # facebookresearch/moco-v3, main_lincls.py
    "state_dict.encoder_k.0": "state_dict.encoder_q.0",  # DenseCL and OpenSelfSup, tools/extract_backbone_weights.py
    "state_dict.target_net.0": "state_dict.online_net.0",  # ORL, openselfsup/models/byol.py: backbone = online_net[0]
    "model.module.encoder_k": "model.module.encoder",  # zdaxie/PixPro, transfer/detection/convert_pretrain_to_d2.py
}
"""Momentum network -> the network that its authors evaluate instead. Names alone don't tell: SlotCon's
transfer/detection/convert_pretrain_to_d2.py takes ``encoder_k``. So other pairs are for the user to choose from."""


def weights_root() -> Path:
    """Return the folder of weight files: ``$MLS_WEIGHTS``, else ``weights/``."""
    return place("MLS_WEIGHTS", "weights")


def load_weights(config: Pretrain, log: Callable[[str], None]) -> ResNet:
    """Load the file that ``pretrain.weights`` names into the run's backbone.

    Raises:
        MlsError: the file is missing or has a different sha256.
        DeterministicError: it can't be read safely, does not fit the backbone, or holds several networks that do.
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
    state, network, ignored = translate(read_tensors(path), net.state_dict(), path, config.weights.prefix)
    net.load_state_dict(state)
    log(f"loaded {len(state)} tensors from {path.name}, {network}; not used: {few(ignored)}")
    return net


@dataclass(frozen=True)
class Network:
    """The tensors of a checkpoint that are named like the backbone's, below one prefix."""

    prefix: str
    """What precedes the names, without the last dot."""
    scheme: str
    """Whose names they are, a key of `SCHEMES`."""
    names: Mapping[str, str]
    """Our name of a tensor -> its full name in the checkpoint."""

    def __str__(self) -> str:
        return f"{self.scheme} names below {few([repr(self.prefix)])}"


def networks(names: Iterable[str], wanted: Iterable[str]) -> list[Network]:
    """Group a checkpoint's names by prefix and naming scheme; those with the most tensors come first."""
    ours = {scheme: {rename(name): name for name in wanted} for scheme, rename in SCHEMES.items()}
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name in names:
        # Detectron2's C4 detectors hold the last stage in their heads.
        parts = name.replace("roi_heads.res5.", "backbone.res5.").rsplit(".", LONGEST)
        for start in range(len(parts)):
            prefix, inside = ".".join(parts[:start]), ".".join(parts[start:])
            for scheme, known in ours.items():
                if inside in known:
                    found.setdefault((prefix, scheme), {})[known[inside]] = name
    grouped = [Network(prefix, scheme, inside) for (prefix, scheme), inside in found.items()]
    return sorted(grouped, key=lambda network: -len(network.names))


def translate(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path, prefix: str | None = None
) -> tuple[dict[str, Tensor], Network, list[str]]:
    """Pick the backbone's tensors out of a checkpoint.

    Args:
        tensors: of the checkpoint, by their full names.
        wanted: the backbone's state dict.
        path: of the file, for messages.
        prefix: what precedes the network's names, or its first parts; None if only one network fits.

    Returns:
        The state dict in torchvision's names, where it was found, and the unused names.

    Raises:
        DeterministicError: no network fits, or several do, or its tensors are not finite floating-point numbers.
    """
    network = choose(tensors, wanted, path, prefix)
    used = set(network.names.values())
    ignored = [name for name in tensors if name not in used]
    before = f"{network.prefix}." if network.prefix else ""
    parts = tuple({f"{before}{SCHEMES[network.scheme](name).partition('.')[0]}." for name in wanted})
    if extra := [name for name in ignored if name.startswith(parts) and not name.endswith(COUNTER)]:
        raise DeterministicError(
            f"{path} is of a deeper network than pretrain.backbone, or of another kind: nothing would use {few(extra)}"
        )
    state = dict(wanted)
    for name, theirs in network.names.items():
        tensor = tensors[theirs]
        if not name.endswith(COUNTER):
            state[name] = checked(tensor, theirs, path)
        elif tensor.dtype == torch.int64 and not tensor.shape:  # it does not affect the result; old files lack it
            state[name] = tensor
    return state, network, ignored


def checked(tensor: Tensor, name: str, path: Path) -> Tensor:
    """Return a tensor in float32.

    Raises:
        DeterministicError: it is not dense, or holds anything but finite floating-point numbers.
    """
    where = f"{path}: {few([name])}"
    if tensor.dtype not in FLOATS or tensor.layout != torch.strided or tensor.is_meta:
        kind = " ".join(str(word).removeprefix("torch.") for word in (tensor.device, tensor.layout, tensor.dtype))
        raise DeterministicError(f"{where} is of kind {kind}; weights are dense floats of 16, 32 or 64 bits")
    if not (tensor := tensor.float()).isfinite().all():
        raise DeterministicError(f"{where} holds values that are NaN or infinite in float32")
    return tensor


def choose(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path, prefix: str | None) -> Network:
    """Return the one network that fits the backbone in names and shapes.

    Raises:
        DeterministicError: no network fits, or several different ones do.
    """
    needed = [name for name in wanted if not name.endswith(COUNTER)]
    found, below = networks(tensors, wanted), ""
    if prefix is not None:
        found = [network for network in found if f"{network.prefix}.".startswith(f"{prefix.rstrip('.')}.")]
        below = f" below pretrain.weights.prefix {prefix!r}"
    whole = [network for network in found if network.names.keys() >= set(needed)]
    if not whole:
        missing = [name for name in needed if not found or name not in found[0].names]
        raise DeterministicError(
            f"{path} lacks {len(missing)} of {len(wanted)} backbone tensors{below}: {few(missing)}; "
            f"it holds: {few(list(tensors))}"
        )

    def misfits(network: Network) -> list[str]:
        shapes = ((name, tuple(tensors[network.names[name]].shape), tuple(wanted[name].shape)) for name in needed)
        return [f"{name} {theirs} instead of {ours}" for name, theirs, ours in shapes if theirs != ours]

    fitting = [network for network in whole if not misfits(network)]
    if not fitting:
        raise DeterministicError(f"{path} does not fit pretrain.backbone: {few(misfits(whole[0]))}")
    fitting = [network for network in fitting if prefix is not None and network.prefix == prefix.rstrip(".")] or fitting
    prefixes = {network.prefix for network in fitting}
    fitting = [network for network in fitting if PARTNERS.get(network.prefix) not in prefixes]

    def values(network: Network) -> Iterator[Tensor]:
        return (checked(tensors[network.names[name]], network.names[name], path) for name in needed)

    first, *others = fitting
    for other in others:  # a module with two names is in the file twice, and equal
        if not all(map(torch.equal, values(first), values(other))):
            raise DeterministicError(
                f"{path} holds several networks that fit: {few([repr(network.prefix) for network in fitting])}; "
                "choose one with pretrain.weights.prefix"
            )
    return first


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
    net.load_state_dict(translate(read_tensors(path), net.state_dict(), path)[0])
    return net
