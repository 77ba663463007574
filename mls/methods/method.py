"""What every method shares: two encoders, the dictionary of keys, and how a step goes.

    losses = method(pair)
    losses["loss"].backward()
    optimizer.step()
    method.finish_step(finite)

A method says which heads it has (`build_heads`), what its encoders make of two views (`embed`) and what it
minimises (`losses`). The key encoder, batch norm, the dictionary and thus the diagnostics are the same for all.

Shapes: V = 2 views, B images of this rank, N of the global batch, D dictionary entries, G backbone and d embedding
dimensions, C channels, H x W pixels.
"""

from __future__ import annotations

import copy
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mls.config.experiment import Pretrain
from mls.config.methods import METHODS
from mls.methods.dictionary import Dictionary, Keys
from mls.methods.momentum import update_key_encoder
from mls.models.backbone import build_backbone, feature_dims, last_map
from mls.models.batchnorm import split_batch_norm
from mls.runtime.collectives import gather, world


class Pair(NamedTuple):
    """What one step is fed: two views of each image of this rank, and what the step needs besides."""

    query_BCHW: Tensor
    """v1 of Eq. 3, normalised."""
    key_BCHW: Tensor
    """v2 of Eq. 3, normalised."""
    row_B: Tensor
    """int64 row of each image in the store."""
    boxes_VB4: Tensor
    """int64 top, left, height, width of each view, pixels of the stored image."""
    flips_VB: Tensor
    """bool, which views are mirrored."""
    key_order_N: Tensor | None
    """The keys' permutation over the batch norm groups, equal on all ranks; None with one group."""
    epoch: float
    """Epochs trained so far, with fraction."""


@dataclass(frozen=True)
class Embedded:
    """What the encoders make of a pair; keys are without gradient. Methods that need more add fields."""

    g_query_BG: Tensor
    """Pooled backbone features of the query view, raw (Eq. 4)."""
    z_query_Bd: Tensor
    """What is compared with the keys: their L2-normalised projections (Eq. 5)."""
    z_key_Bd: Tensor
    """The key of each query: L2-normalised projection by the key encoder."""
    keys: Keys
    """Keys of the global batch, as they will be enqueued."""
    epoch: float


E = TypeVar("E", bound=Embedded)


class Method(nn.Module, Generic[E]):
    """Base of the methods. Q_g and Q_z are kept by all of them, also where the loss reads neither: with them every run
    tells in the same way whether it collapses, and whether its neighbours share labels.
    """

    followed: ClassVar[tuple[str, ...]] = ("backbone", "projector")
    """Modules that the key encoder has too (``key_<name>``), as moving averages."""
    negatives: ClassVar[bool] = True
    """Whether the loss reads the dictionary."""
    exported: ClassVar[str] = "backbone"
    """Which backbone is the result: the online one, or the moving average's (``key_backbone``)."""

    key_backbone: nn.Module
    key_projector: nn.Module
    projector: nn.Module

    def __init__(self, config: Pretrain) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone)
        feature_dim = feature_dims(config.backbone)[-1]
        projection_dim = self.build_heads(feature_dim)
        for name in self.followed:
            setattr(self, f"key_{name}", copy.deepcopy(getattr(self, name)).requires_grad_(False))
        self.dictionary = Dictionary(config.moco.queue_size, feature_dim, projection_dim)
        if config.moco.bn_splits > 1:
            split_batch_norm(self, config.moco.bn_splits // world())
        elif world() > 1:
            for name, child in list(self.named_children()):
                setattr(self, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
        self.map_of: Callable[[nn.Module, Tensor], Tensor] = last_map
        self.embedded: E | None = None

    def build_heads(self, feature_dim: int) -> int:
        """Set ``projector``, and whatever else stands on the backbone; return the dimension of z."""
        raise NotImplementedError

    def embed(self, pair: Pair) -> E:
        """Run all networks; what comes out is float32 at least, normalised or not as `Embedded` says."""
        raise NotImplementedError

    def losses(self, e: E) -> dict[str, Tensor]:
        """Return the method's losses by name; ``loss`` is what is minimised. Reads the dictionary, changes nothing."""
        raise NotImplementedError

    def momentum_at(self, epoch: float) -> float:
        """m of the key encoder's moving average after a step."""
        return self.config.moco.momentum

    def compile_encoders(self) -> None:
        """``torch.compile`` both backbones, and the way to their last map."""
        self.backbone.compile()
        self.key_backbone.compile()
        self.map_of = torch.compile(last_map)

    def forward(self, pair: Pair) -> dict[str, Tensor]:
        """Losses of one batch of view pairs; ``embedded`` stays for `finish_step` and the diagnostics."""
        self.embedded = self.embed(pair)
        with torch.autocast(pair.query_BCHW.device.type, enabled=False):
            return self.losses(self.embedded)

    @torch.no_grad()
    def finish_step(self, finite: Tensor) -> None:
        """After the optimiser's step: move the key encoder, enqueue this batch's keys.

        Args:
            finite: bool scalar on the device; where false, nothing changes.

        Raises:
            RuntimeError: no forward came before.
        """
        if self.embedded is None:
            raise RuntimeError("finish_step without a forward before it")
        momentum = self.momentum_at(self.embedded.epoch)
        for name in self.followed:
            update_key_encoder(getattr(self, name), getattr(self, f"key_{name}"), momentum, finite)
        self.dictionary.enqueue(self.embedded.keys, finite)
        self.embedded = None


def build_method(config: Pretrain) -> Method[Any]:
    """Build the method of a run, one of those that train, with fresh weights."""
    made_by: type[Method[Any]] = pkgutil.resolve_name(METHODS[config.method].made_by)
    return made_by(config)


def keys_of(pair: Pair, g_NG: Tensor, z_Nd: Tensor) -> Keys:
    """Return the keys of the global batch from features of any scale and L2-normalised projections of it."""
    return Keys(F.normalize(g_NG, dim=1), z_Nd, gather(pair.row_B), gather(pair.boxes_VB4[1]))


def at_least_float32(x: Tensor) -> Tensor:
    """Leave autocast's half precision: losses and labels are computed in float32 (float64 stays)."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
