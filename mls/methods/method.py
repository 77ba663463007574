"""What every method shares: two encoders, the dictionary of keys, and the order of a step.

    losses = method(pair)
    losses["loss"].backward()
    optimizer.step()
    method.finish_step(finite)

A method defines its heads (`build_heads`), what its encoders make of two views (`embed`) and what it minimises
(`losses`). The key encoder, batch norm, the dictionary and therefore the diagnostics are the same for all.

Shapes: V = 2 views, B images of this rank, N of the global batch, X = B L local crops, D dictionary entries, G backbone
and d embedding dimensions, C channels, H x W pixels, R rows of the store.
"""

from __future__ import annotations

import copy
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mls.config.experiment import Pretrain
from mls.config.methods import DEFAULT_POSITIVES, METHODS
from mls.methods.dictionary import Dictionary, Keys
from mls.methods.momentum import update_key_encoder
from mls.methods.pseudo_labels import pseudo_labels
from mls.models.backbone import build_backbone, feature_dims, last_map
from mls.models.batchnorm import split_batch_norm
from mls.runtime.collectives import gather, world


class Pair(NamedTuple):
    """Input of one step: two views of each image of this rank, and where they come from."""

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
    """Permutation of the keys over the batch norm groups, equal on all ranks; None with one group."""
    epoch: float
    """Epochs trained so far, with fraction."""
    local_XCHW: Tensor | None = None
    """L local crops of each image, image after image: further queries; None without ``augment.local_crops``."""


class Queries(NamedTuple):
    """Features and projections of local crops, as those of the query view in `Embedded`."""

    g_XG: Tensor
    z_Xd: Tensor


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What the encoders make of a pair; keys have no gradient. Methods that need more add fields in a subclass."""

    g_query_BG: Tensor
    """Pooled backbone features of the query view, raw (Eq. 4)."""
    z_query_Bd: Tensor
    """L2-normalised projections of them, to compare with the keys (Eq. 5)."""
    z_key_Bd: Tensor
    """The key of each query: L2-normalised projection by the key encoder."""
    keys: Keys
    """Keys of the global batch, as they will be enqueued."""
    epoch: float
    local: Queries | None = None
    """L local crops of each image, image after image."""

    def all_queries(self) -> Self:
        """Return the same with local crops as queries among the others: first the B query views, then the crops."""
        if self.local is None:
            return self
        each = len(self.local.z_Xd) // len(self.z_query_Bd)
        return replace(
            self,
            g_query_BG=torch.cat([self.g_query_BG, self.local.g_XG]),
            z_query_Bd=torch.cat([self.z_query_Bd, self.local.z_Xd]),
            z_key_Bd=torch.cat([self.z_key_Bd, self.z_key_Bd.repeat_interleave(each, 0)]),
            local=None,
        )


E = TypeVar("E", bound=Embedded)


class Method(nn.Module, Generic[E]):
    """Base class of the methods.

    All of them keep Q_g and Q_z, even if the loss reads neither: so every run reports collapse and label agreement in
    the same way.
    """

    followed: ClassVar[tuple[str, ...]] = ("backbone", "projector")
    """Modules that the key encoder has too (as ``key_<name>``), as moving averages."""
    negatives: ClassVar[bool] = True
    """Whether the loss reads the dictionary."""
    exported: ClassVar[str] = "backbone"
    """Which backbone is the result: the online one or the moving average (``key_backbone``)."""
    gradient_terms: ClassVar[Mapping[str, str]] = {}
    """Losses whose gradient with respect to z is logged, with the name that it gets: ``grad_<name>``."""

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
        """Set ``projector`` and any other module on top of the backbone; return the dimension of z."""
        raise NotImplementedError

    def embed(self, pair: Pair) -> E:
        """Run all networks; the results are at least float32, normalised or not as `Embedded` says."""
        raise NotImplementedError

    def losses(self, e: E) -> dict[str, Tensor]:
        """Return the losses by name; ``loss`` is minimised. Reads the dictionary, changes nothing."""
        raise NotImplementedError

    def positives(self, e: E, g_DG: Tensor, z_Dd: Tensor) -> Tensor:
        """Return which entries of Q_g and Q_z count as each query's positives, bool (B, D), for the label agreement.

        By default the nearest by g; a method that labels entries itself overrides it.
        """
        return pseudo_labels(e.g_query_BG, g_DG, min(DEFAULT_POSITIVES, len(g_DG)))

    def use_labels(self, labels_RC: Tensor | None) -> None:
        """Take the ground truth of every row, bool, None if some train image has none. By default it is not used."""

    def scheduled_at(self, epoch: float) -> dict[str, float]:
        """Return what the method schedules, by the name of its column in the curves. By default nothing."""
        return {}

    def momentum_at(self, epoch: float) -> float:
        """Return m of the key encoder's moving average for a step at this epoch."""
        return self.config.moco.momentum

    def compile_encoders(self) -> None:
        """``torch.compile`` both backbones, whole and up to their last map."""
        self.backbone.compile()
        self.key_backbone.compile()
        self.map_of = torch.compile(last_map)

    def forward(self, pair: Pair) -> dict[str, Tensor]:
        """Return the losses of one batch; keep ``embedded`` for `finish_step` and the diagnostics."""
        self.embedded = self.embed(pair)
        with torch.autocast(pair.query_BCHW.device.type, enabled=False):
            return self.losses(self.embedded)

    @torch.no_grad()
    def finish_step(self, finite: Tensor) -> None:
        """Move the key encoder and enqueue this batch's keys; call it after the optimiser's step.

        The moving average follows the updated weights, and the keys come last, so that no query of this step has met
        its own key among the negatives.

        Args:
            finite: bool scalar on the device; if false, nothing changes.

        Raises:
            RuntimeError: there was no forward.
        """
        if self.embedded is None:
            raise RuntimeError("finish_step needs a forward before it")
        momentum = self.momentum_at(self.embedded.epoch)
        for name in self.followed:
            update_key_encoder(getattr(self, name), getattr(self, f"key_{name}"), momentum, finite)
        self.dictionary.enqueue(self.embedded.keys, finite)
        self.embedded = None


def build_method(config: Pretrain) -> Method[Any]:
    """Build the trained method of a run with fresh weights."""
    made_by: type[Method[Any]] = pkgutil.resolve_name(METHODS[config.method].made_by)
    return made_by(config)


def keys_of(pair: Pair, g_NG: Tensor, z_Nd: Tensor) -> Keys:
    """Return the keys of the global batch from its features (of any scale) and its L2-normalised projections."""
    return Keys(F.normalize(g_NG, dim=1), z_Nd, gather(pair.row_B), gather(pair.boxes_VB4[1]))
