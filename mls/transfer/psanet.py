"""PSANet: each cell of the last map collects from the cells around it and distributes to them, by predicted weights.

    dilate(backbone, output_stride=8, first_stride=4)
    net = PSANet(backbone, feature_dims(config), task, classes=19)
    logits = net(images)["out"]             # training mode: also "aux", of the third stage

This is the network of mmsegmentation's ``configs/_base_/models/psanet_r50-d8.py`` (Zhao et al., ECCV 2018) with the
same initialisation, in torch operations only; its stem differs as `mls.transfer.pspnet` says.

Shape legend: B images, C channels, H x W cells of the last map, h x w of the map at half the resolution, on which cells
are related, N = h * w of those, R x S offsets from one to another: a window, whose middle is the cell itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import ResNet

from mls.config.transfers import SemanticTransfer
from mls.transfer.pspnet import Segmenter, classifier, conv_norm_relu

SHRINK = 2
"""How much smaller the map is on which cells are related [``shrink_factor``]."""


class PSANet(Segmenter):
    """Head that joins C5 and what its cells take from one another."""

    def __init__(self, backbone: ResNet, dims: list[int], task: SemanticTransfer, classes: int) -> None:
        """Put fresh heads on a backbone; they are drawn from torch's generator.

        Args:
            backbone: dilated, see `mls.transfer.pspnet.dilate`.
            dims: channels of its four stages.
            task: ``attention_window``, ``head_channels``, ``dropout`` and ``precision`` are read.
            classes: K.
        """
        super().__init__(backbone, task.precision)
        width = task.head_channels
        self.collect = Attention(dims[3], width, task.attention_window, distribute=False)
        self.distribute = Attention(dims[3], width, task.attention_window, distribute=True)
        # The padding gives the 1x1 convolution a border of zeros, and its map two more rows and columns. The authors'
        # code has none, but mmsegmentation's head, whose numbers these are, was trained with it.
        self.projected = nn.Sequential(nn.ZeroPad2d(1), *conv_norm_relu(2 * width, dims[3], 1))
        self.head = nn.Sequential(*conv_norm_relu(2 * dims[3], width, 3), *classifier(width, classes, task.dropout))
        self.aux = self.auxiliary(dims[2], width // 2, classes, task.dropout)

    def decode(self, map_BCHW: Tensor) -> Tensor:
        """Return logits of the cells: C5 and what attention makes of it, as channels, classified."""
        size = map_BCHW.shape[-2:]
        corners = all(side % SHRINK for side in size)  # odd maps keep their corner cells, and even ones their borders
        small = [(side - 1) // SHRINK + 1 if corners else max(1, side // SHRINK) for side in size]
        both = [attend(map_BCHW, small, corners) for attend in (self.collect, self.distribute)]
        attended = self.projected(torch.cat(both, dim=1))
        attended_BCHW = F.interpolate(attended, size, mode="bilinear", align_corners=corners)
        logits_BKHW: Tensor = self.head(torch.cat([map_BCHW, attended_BCHW], dim=1))
        return logits_BKHW


class Attention(nn.Module):
    """One direction: a cell predicts a weight for each cell around it, to take from it or to give to it."""

    def __init__(self, channels: int, width: int, window: int, *, distribute: bool) -> None:
        """Reduce ``channels`` to ``width``, and predict ``window`` x ``window`` weights for each cell."""
        super().__init__()
        self.distribute = distribute
        self.window = (window, window)
        self.reduced = nn.Sequential(*conv_norm_relu(channels, width, 1))
        last = nn.Conv2d(width, window**2, 1, bias=False)  # keeps torch's own initialisation, as in mmsegmentation
        self.weights = nn.Sequential(*conv_norm_relu(width, width, 1), last)

    def forward(self, map_BCHW: Tensor, small: list[int], corners: bool) -> Tensor:
        """Return what each cell has taken, or was given, (B, C, h, w).

        Args:
            map_BCHW: the last stage's.
            small: h and w.
            corners: whether the centres of the corner cells coincide in both maps.
        """
        x_BChw = F.interpolate(self.reduced(map_BCHW), small, mode="bilinear", align_corners=corners)
        weights_BNN = by_cell(self.weights(x_BChw).permute(0, 2, 3, 1).unflatten(3, self.window))
        # What a cell receives has weights that sum to 1: over those that it looks at, or over those that look at it.
        shares_BNN = weights_BNN.softmax(dim=1) if self.distribute else weights_BNN.softmax(dim=2).mT
        return (x_BChw.flatten(2) @ shares_BNN).view_as(x_BChw)


def by_cell(weights_BhwRS: Tensor) -> Tensor:
    """Turn each cell's weights for the cells around it into weights for all cells, 0 outside of the window.

    ``out[b, y * w + x, v * w + u]`` is ``weights[b, y, x, v - y + (R - 1) // 2, u - x + (S - 1) // 2]``. This is what
    mmcv's operator ``psa_mask`` gives for ``distribute``, and its transpose for ``collect``. There, too, a cell outside
    of the window has a 0, which the softmax that follows treats like a predicted one.

    It takes 2/h of its result's memory in addition, and keeps nothing for the backward pass.

    Args:
        weights_BhwRS: of a cell (h, w) for the cells at all offsets (R, S).

    Returns:
        (B, N, N): of a cell for another.
    """
    weights_BNN: Tensor = _ByCell.apply(weights_BhwRS)
    return weights_BNN


class _ByCell(torch.autograd.Function):
    """Each weight is copied to at most one place, so its gradient is copied back from there."""

    @staticmethod
    def forward(ctx: Any, weights_BhwRS: Tensor) -> Tensor:
        batch, height, width, *_ = ctx.shape = weights_BhwRS.shape
        cells_Bhwhw = weights_BhwRS.new_zeros(batch, height, width, height, width)
        for y in range(height):
            offsets, buffer, skewed, cells = _row(weights_BhwRS, cells_Bhwhw, y)
            buffer.copy_(offsets)
            cells.copy_(skewed)
        return cells_Bhwhw.view(batch, height * width, height * width)

    @staticmethod
    def backward(ctx: Any, gradient_BNN: Tensor) -> Tensor:
        batch, height, width, *_ = ctx.shape
        gradient_BhwRS = gradient_BNN.new_zeros(ctx.shape)
        cells_Bhwhw = gradient_BNN.reshape(batch, height, width, height, width)
        for y in range(height):
            offsets, buffer, skewed, cells = _row(gradient_BhwRS, cells_Bhwhw, y)
            skewed.copy_(cells)
            offsets.copy_(buffer)
        return gradient_BhwRS


def _row(weights_BhwRS: Tensor, cells_Bhwhw: Tensor, y: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return four views of the weights of row ``y``: by offset, in the first tensor and in a buffer of zeros; by cell,
    in the buffer and in the second tensor.

    The buffer has all offsets along the row, -(w - 1) to w - 1. The weight of cell x for cell u is u - x steps from its
    middle, so where x grows by one, the weights for all u begin one step earlier: a matter of strides.
    """
    batch, height, width, *window = weights_BhwRS.shape
    (above, left), (below, right) = ([(side - 1) // 2 for side in window], [side // 2 for side in window])
    up, down = min(above, y), min(below, height - 1 - y)
    near, far = min(left, width - 1), min(right, width - 1)
    rows, middle = up + 1 + down, width - 1
    buffer_BwRS = weights_BhwRS.new_zeros(batch, width, rows, 2 * width - 1)
    each_B, each_w, each_R, _ = buffer_BwRS.stride()
    return (
        weights_BhwRS[:, y, :, above - up : above + down + 1, left - near : left + far + 1],
        buffer_BwRS[..., middle - near : middle + far + 1],
        buffer_BwRS.as_strided((batch, width, rows, width), (each_B, each_w - 1, each_R, 1), middle),
        cells_Bhwhw[:, y, :, y - up : y + down + 1],
    )
