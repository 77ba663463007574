"""PSPNet: predict the class of each pixel from a dilated ResNet's map, pooled at several scales.

    dilate(backbone, output_stride=8, first_stride=4)
    net = PSPNet(backbone, feature_dims(config), task, classes=19)
    logits = net(images)["out"]             # training mode: also "aux", of the third stage

This is the network of mmsegmentation's ``configs/_base_/models/pspnet_r50-d8.py`` (Zhao et al., arXiv 1612.01105) with
the same initialisation. Only the stem differs: mmsegmentation's ResNet-V1c has three 3x3 convolutions there, ours has
the pretrained one.

Shape legend: B images, C channels, H x W pixels, h x w cells of a map, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import ResNet

from mls.config.transfers import SemanticTransfer
from mls.models.backbone import LAYERS, feature_maps
from mls.models.precision import at_least_float32
from mls.runtime.device import autocast
from mls.runtime.errors import MlsError

CLASSIFIER_STD = 0.01
"""Standard deviation of the classifiers' initial weights [mmsegmentation's ``conv_seg``]."""


def dilate(backbone: ResNet, output_stride: int, first_stride: int) -> None:
    """Keep the resolution of the later stages: set their strides to 1, and dilate the 3x3 convolutions that follow.

    Subsampled by the lost strides, the map of a stage equals what the stage computed before, borders included. The
    weights fit as they are. Bottlenecks become those of torchvision's ``replace_stride_with_dilation``, which refuses
    the basic blocks of smaller ResNets.

    Args:
        backbone: is changed in place.
        output_stride: pixels between the cells of the last stage's map.
        first_stride: the same for the first stage, which stays as it is.

    Raises:
        MlsError: this network can't have that stride; names those it can have.
    """
    possible = [first_stride * 2**level for level in range(len(LAYERS))]
    if output_stride not in possible:
        raise MlsError(
            f"output_stride {output_stride}: the stages of this backbone lie {', '.join(map(str, possible))} pixels "
            "apart, and dilation can only keep one of these up to the last stage; choose one of them"
        )
    dilation = 1
    for stride, name in zip(possible, LAYERS, strict=True):
        # Modules come in the order in which data pass: up to and with a lost stride, the previous dilation holds.
        for conv in (module for module in getattr(backbone, name).modules() if isinstance(module, nn.Conv2d)):
            spatial = conv.kernel_size == (3, 3)
            if spatial:
                conv.dilation = conv.padding = (dilation, dilation)  # equal, so the map keeps its size
            if conv.stride == (2, 2) and stride > output_stride:
                conv.stride = (1, 1)
                dilation *= 2 if spatial else 1  # the 1x1 shortcut has the same stride: count it once


class Segmenter(nn.Module):
    """ResNet, a head on C5 and a small convolutional head on C4, which only training uses."""

    head: nn.Sequential
    aux: nn.Sequential
    """Empty if there is none."""

    def __init__(self, backbone: ResNet, precision: str) -> None:
        """Keep the backbone; subclasses add the heads."""
        super().__init__()
        self.backbone = backbone
        self.precision = precision

    @staticmethod
    def auxiliary(channels: int, width: int, classes: int, dropout: float) -> nn.Sequential:
        """Return the head on C4."""
        return nn.Sequential(*conv_norm_relu(channels, width, 3), *classifier(width, classes, dropout))

    def decode(self, map_BChw: Tensor) -> Tensor:
        """Return logits (B, K, h, w) of the cells of C5."""
        raise NotImplementedError

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return logits of every pixel.

        Args:
            images_BCHW: normalised, float32; at least two in training, since batch norm sees maps of one cell.

        Returns:
            ``out`` and, in training mode, ``aux`` if there is such a head: float32 (B, K, H, W).
        """
        size = images_BCHW.shape[-2:]
        with autocast(images_BCHW.device, self.precision):
            maps = feature_maps(self.backbone, images_BCHW)
            heads = {"out": self.decode(maps["3"])}
            if self.training and len(self.aux):
                heads["aux"] = self.aux(maps["2"])
        return {name: _enlarged(at_least_float32(logits_BKhw), size) for name, logits_BKhw in heads.items()}


class PSPNet(Segmenter):
    """Head that joins C5 and its means over some areas: a pyramid."""

    def __init__(self, backbone: ResNet, dims: list[int], task: SemanticTransfer, classes: int) -> None:
        """Put fresh heads on a backbone; they are drawn from torch's generator.

        Args:
            backbone: dilated, see `dilate`.
            dims: channels of its four stages.
            task: ``pools``, ``head_channels``, ``dropout`` and ``precision`` are read.
            classes: K.
        """
        super().__init__(backbone, task.precision)
        width = task.head_channels
        self.pooled = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), *conv_norm_relu(dims[3], width, 1)) for side in task.pools
        )
        joined = conv_norm_relu(dims[3] + len(task.pools) * width, width, 3)
        self.head = nn.Sequential(*joined, *classifier(width, classes, task.dropout))
        self.aux = self.auxiliary(dims[2], width // 2, classes, task.dropout)

    def decode(self, map_BChw: Tensor) -> Tensor:
        """Return logits of the cells: C5 and its pooled versions, enlarged to its size, as channels, classified."""
        pooled = [_enlarged(pool(map_BChw), map_BChw.shape[-2:]) for pool in self.pooled]
        logits_BKhw: Tensor = self.head(torch.cat([map_BChw, *pooled], dim=1))
        return logits_BKhw


def _enlarged(map_BChw: Tensor, size: torch.Size) -> Tensor:
    """Enlarge a map: bilinear, corners not aligned [the 512 x 1024 configuration]."""
    return F.interpolate(map_BChw, size=size, mode="bilinear", align_corners=False)


def conv_norm_relu(before: int, after: int, side: int) -> list[nn.Module]:
    """Return convolution, batch norm and ReLU; He's initialisation, fan out [mmcv's ConvModule]."""
    conv = nn.Conv2d(before, after, side, padding=side // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return [conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]


def classifier(channels: int, classes: int, dropout: float) -> list[nn.Module]:
    """Return dropout of whole channels [Dropout2d, as in mmsegmentation] and a 1x1 convolution."""
    conv = nn.Conv2d(channels, classes, 1)
    nn.init.normal_(conv.weight, std=CLASSIFIER_STD)
    conv.bias = nn.Parameter(torch.zeros(classes))
    return [nn.Dropout2d(dropout), conv]
