"""Batch norm in groups, and the running statistics of a whole network as one vector.

    net = build_backbone(config)
    split_batch_norm(net, 4)                # a batch of 32 is normalised as 4 groups of 8
    running = RunningStatistics(net)
    running.write(mean(running.read()))     # average over ranks

Batch norm on W devices, each with its own share of the batch, equals batch norm with W groups on one device, up to
rounding. So a result depends on the groups, not on how many ranks compute them (MoCo's shuffled batch norm needs
groups: https://arxiv.org/abs/1911.05722, section 3.3).

Shapes: S groups, C channels, P = 2 x (all channels of all batch norms).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from mls.models.names import COUNTER
from mls.models.precision import at_least_float32
from mls.runtime.collectives import sum_over_ranks, world


class SplitBatchNorm(_BatchNorm):
    """Batch norm that splits a training batch into ``splits`` groups of consecutive images.

    Each group is normalised by its own statistics. Each group also updates its own copy of the running statistics, and
    their mean is kept: ranks that hold some of the groups each and average their running statistics get the same, up to
    rounding. In evaluation it is plain batch norm. `split_batch_norm` makes it from plain batch norm; the state dict is
    plain batch norm's.
    """

    splits: int = 1
    """S >= 1; 1 is plain batch norm, bit for bit."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, ...); dtype and memory format stay.

        Raises:
            ValueError: in training, if ``splits`` does not divide B, a group has one value per channel (from torch), or
                there are no running statistics or no momentum.
        """
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        if len(input) % self.splits:
            raise ValueError(f"a batch of {len(input)} images does not divide into {self.splits} groups")
        if self.momentum is None or not (
            self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        ):
            raise ValueError("split batch norm needs running statistics and a momentum, as torchvision's networks have")
        self.num_batches_tracked.add_(1)
        mean_SC = self.running_mean.repeat(self.splits, 1)
        var_SC = self.running_var.repeat(self.splits, 1)
        groups = zip(input.chunk(self.splits), mean_SC.unbind(), var_SC.unbind(), strict=True)
        outputs = [
            F.batch_norm(x, mean_C, var_C, self.weight, self.bias, True, self.momentum, self.eps)
            for x, mean_C, var_C in groups
        ]
        self.running_mean.copy_(mean_SC.mean(0))
        self.running_var.copy_(var_SC.mean(0))
        return torch.cat(outputs)

    def extra_repr(self) -> str:
        """Add the groups to plain batch norm's text."""
        return f"{super().extra_repr()}, splits={self.splits}"


class SplitBatchNorm1d(SplitBatchNorm, nn.BatchNorm1d):
    """For vectors (B, C)."""


class SplitBatchNorm2d(SplitBatchNorm, nn.BatchNorm2d):
    """For maps (B, C, H, W)."""


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with the statistics of all ranks' maps, for CPUs; `nn.SyncBatchNorm` works only on GPUs.

    Ranks may hold unequal numbers of maps, also none. Plain batch norm of the joined maps gives the same, up to
    rounding, and so do its gradients.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, H, W); dtype stays."""
        if not self.training or self.running_mean is None or self.running_var is None or self.momentum is None:
            return super().forward(input)
        x_BCHW, dims = at_least_float32(input), (0, 2, 3)
        count = sum_over_ranks(x_BCHW.new_tensor(x_BCHW.numel() // x_BCHW.shape[1])).clamp(min=1)
        mean_C11 = sum_over_ranks(x_BCHW.sum(dims))[:, None, None] / count
        centred_BCHW = x_BCHW - mean_C11
        variance_C = sum_over_ranks(centred_BCHW.square().sum(dims)) / count
        with torch.no_grad():
            unbiased_C = variance_C * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean_C11.flatten().to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased_C.to(self.running_var.dtype), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale_C = torch.rsqrt(variance_C + self.eps) * self.weight
        out_BCHW = centred_BCHW * scale_C[:, None, None] + self.bias[:, None, None]
        return out_BCHW.to(input.dtype)


def synced(module: nn.Module, device: torch.device) -> nn.Module:
    """Return the module with plain batch norms that use the statistics of all ranks; with one rank, as it is.

    Parameters and buffers stay the same objects, so an optimiser may hold them already.
    """
    if world() == 1:
        return module
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return converted
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.__class__ = SyncedBatchNorm2d
    return module


class MaskedBatchNorm(nn.Module):
    """Batch norm whose statistics come from the valid vectors only.

    It has no running statistics: it is for heads that are dropped after training. With several ranks and one group the
    statistics are those of all ranks, as in SyncBN.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.eps, self.splits, self.synced = eps, 1, True

    def forward(self, x_BMC: Tensor, valid_BM: Tensor) -> Tensor:
        """Normalise M vectors of each image; a group is consecutive images, as in `SplitBatchNorm`.

        Args:
            x_BMC: of any floating dtype; the statistics are at least float32.
            valid_BM: bool, which vectors count. A group without any gets the bias.
        """
        x_SRC = at_least_float32(x_BMC).view(self.splits, -1, x_BMC.shape[2])
        valid_SR1 = valid_BM.reshape(self.splits, -1, 1).to(x_SRC.dtype)
        count_S11 = self._total(valid_SR1.sum(1, keepdim=True)).clamp(min=1)
        centred_SRC = x_SRC - self._total((x_SRC * valid_SR1).sum(1, keepdim=True)) / count_S11
        centred_SRC = centred_SRC * valid_SR1
        variance_S1C = self._total(centred_SRC.square().sum(1, keepdim=True)) / count_S11
        out_SRC = centred_SRC * torch.rsqrt(variance_S1C + self.eps) * self.weight + self.bias
        return out_SRC.view_as(x_BMC).to(x_BMC.dtype)

    def _total(self, own: Tensor) -> Tensor:
        return sum_over_ranks(own) if self.synced else own


def split_batch_norm(module: nn.Module, splits: int) -> None:
    """Give every batch norm of a module ``splits`` groups, in place.

    The modules stay the same objects with the same parameters, buffers and hooks; only their class changes. With 1,
    plain batch norm stays as it is.

    Raises:
        ValueError: ``splits`` is below 1.
    """
    if splits < 1:
        raise ValueError(f"batch norm needs at least 1 group, not {splits}")
    for child in module.modules():
        if splits > 1 and not isinstance(child, SplitBatchNorm):
            for plain, split in ((nn.BatchNorm1d, SplitBatchNorm1d), (nn.BatchNorm2d, SplitBatchNorm2d)):
                if isinstance(child, plain):
                    child.__class__ = split
        if isinstance(child, SplitBatchNorm):
            child.splits = splits
        if isinstance(child, MaskedBatchNorm):
            child.splits, child.synced = splits, False


class RunningStatistics:
    """Running means and variances of all batch norms (of any dimension) of a module, as one vector (P,).

    One vector makes averaging over ranks one all-reduce, and masking one kernel. The buffers are found once: move the
    module to its device and replace modules (``nn.SyncBatchNorm.convert_sync_batchnorm``) before, not after. Loading a
    state dict and `split_batch_norm` keep the buffers, so they may come later.
    """

    def __init__(self, module: nn.Module) -> None:
        buffers = dict(module.named_buffers())
        self._statistics = [b for name, b in buffers.items() if name.endswith(("running_mean", "running_var"))]
        self._counts = [b for name, b in buffers.items() if name.endswith(COUNTER)]

    def read(self) -> Tensor:
        """Return a copy (P,)."""
        return torch.cat(self._statistics)

    @torch.no_grad()
    def write(self, flat_P: Tensor) -> None:
        """Copy a vector like `read`'s into the buffers.

        Do not call it between a forward and its backward: autograd refuses changed buffers of plain batch norm.

        Raises:
            RuntimeError: the length is not P (from torch).
        """
        torch._foreach_copy_(self._statistics, list(flat_P.split([len(buffer) for buffer in self._statistics])))

    def counts(self) -> Tensor:
        """Return a copy of how many batches each norm has seen."""
        return torch.stack(self._counts)

    @torch.no_grad()
    def uncount(self, finite: Tensor, before: Tensor) -> None:
        """If ``finite`` (bool scalar) is false, restore the counts ``before`` (from `counts`)."""
        torch._foreach_copy_(self._counts, list(torch.where(finite, self.counts(), before).unbind()))
