"""FCN: predict the class of each cell of a dilated ResNet's last map by a few convolutions, as MoCo does.

    dilate(backbone, output_stride=16, first_stride=4)
    net = FCN(backbone, feature_dims(config), task, classes=19)
    logits = net(images)["out"]

This is the network of MoCo's appendix (He et al., arXiv 1911.05722), as SlotCon's repository configures it:
``transfer/segmentation/configs/cityscapes/fcn_d6_r50-d16_769x769_90k_cityscapes_moco.py``.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from mls.config.transfers import SemanticTransfer
from mls.transfer.pspnet import Segmenter, classifier, conv_norm_relu

DILATION = 6
"""Of both 3x3 convolutions: a large field of view."""


class FCN(Segmenter):
    """Head of two dilated convolutions, without an auxiliary one."""

    def __init__(self, backbone: ResNet, dims: list[int], task: SemanticTransfer, classes: int) -> None:
        """Put a fresh head on a backbone; it is drawn from torch's generator.

        Args:
            backbone: dilated, see `mls.transfer.pspnet.dilate`.
            dims: channels of its four stages.
            task: ``head_channels``, ``dropout`` and ``precision`` are read.
            classes: K.
        """
        super().__init__(backbone, task.precision)
        width = task.head_channels
        convs = [*conv_norm_relu(dims[3], width, 3), *conv_norm_relu(width, width, 3)]
        for conv in convs:
            if isinstance(conv, nn.Conv2d):
                conv.dilation = conv.padding = (DILATION, DILATION)
        self.head = nn.Sequential(*convs, *classifier(width, classes, task.dropout))
        self.aux = nn.Sequential()

    def decode(self, map_BChw: Tensor) -> Tensor:
        """Return logits of the cells."""
        logits_BKhw: Tensor = self.head(map_BChw)
        return logits_BKhw
