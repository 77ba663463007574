"""torchvision's Mask R-CNN, or Faster R-CNN, with a feature pyramid on the pretrained ResNet.

    detector = build_detector(Backbone(), task, num_classes=80)
    losses = detector(images, targets)      # training mode: a dict of scalar losses
    found = detector.eval()(images)         # boxes, labels, scores, masks of each image

Built from torchvision's public parts: Faster R-CNN with FPN (Lin et al. 2017), Mask R-CNN (He et al. 2017).
What differs from its ready-made models: any ResNet of ``mls.models.backbone``; every layer is trained,
BatchNorm with batch statistics (the paper fine-tunes with synchronised BatchNorm and freezes nothing); and
anchors that follow the image size and the stem's strides.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.resnet import ResNet
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from mls.config.experiment import Backbone
from mls.config.transfers import TorchvisionDetector
from mls.models.backbone import build_backbone, feature_dims, feature_maps
from mls.runtime.device import autocast

LEVELS = 5
"""P2 to P6; P6 is a subsampled P5, and only the proposals use it."""
FIRST_STRIDE = {"imagenet": 4, "small": 2}
"""Pixels between the centres of P2's cells; each further level doubles it."""
ASPECT_RATIOS = (0.5, 1.0, 2.0)
BOX_POOL = 7
"""Side of the box head's input, cells (torchvision's own pooler)."""


class Pyramid(nn.Module):
    """ResNet and FPN: images (B, 3, H, W) to maps P2-P6 of ``out_channels`` channels, in float32.

    With ``precision`` bf16 the ResNet and the FPN run under autocast; what follows them is float32.
    """

    def __init__(self, body: ResNet, dims: list[int], channels: int, precision: str) -> None:
        """Put an FPN of ``channels`` on the ResNet ``body``, whose stages C2-C5 have ``dims`` channels."""
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(dims, channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = channels  # the name torchvision's detectors read
        self.precision = precision

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return the pyramid, keyed ``"0"`` (P2) to ``"3"`` (P5) and ``"pool"`` (P6)."""
        images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
        with autocast(images_BCHW.device, self.precision):
            maps = self.fpn(feature_maps(self.body, images_BCHW))
        return {name: map_BCHW.float() for name, map_BCHW in maps.items()}


def anchor_sizes(image_size: int, stem: str) -> list[float]:
    """Return the side of the anchors on P2 to P6, pixels: 32 to 512 at image size 800, proportional at other sizes.

    Never smaller than twice the stride of the level: neighbouring anchors then overlap by half or more.
    """
    base = max(32 * image_size / 800, 2.0 * FIRST_STRIDE[stem])
    return [base * 2**level for level in range(LEVELS)]


def build_detector(config: Backbone, task: TorchvisionDetector, num_classes: int) -> FasterRCNN:
    """Return Mask R-CNN for kind ``instance``, else Faster R-CNN; all weights are drawn from torch's generator.

    Args:
        config: layout of the pretrained backbone.
        task: sizes of the images, the heads and the samples.
        num_classes: without the background, which torchvision counts as class 0.
    """
    channels, classes = task.fpn_channels, num_classes + 1
    pyramid = Pyramid(build_backbone(config), feature_dims(config), channels, task.precision)
    anchors = AnchorGenerator(
        tuple((size,) for size in anchor_sizes(task.image_size, config.stem)), (ASPECT_RATIOS,) * LEVELS
    )
    arguments: dict[str, Any] = {
        "min_size": task.image_size,
        "max_size": round(task.image_size * 5 / 3),
        "rpn_anchor_generator": anchors,
        "rpn_pre_nms_top_n_train": 2 * task.proposals,
        "rpn_pre_nms_top_n_test": task.proposals,
        "rpn_post_nms_top_n_train": 2 * task.proposals,
        "rpn_post_nms_top_n_test": task.proposals,
        "box_batch_size_per_image": task.rois,
        "box_head": TwoMLPHead(channels * BOX_POOL**2, task.head_channels),
        "box_predictor": FastRCNNPredictor(task.head_channels, classes),
    }  # image mean and std: torchvision's default is ImageNet's, which pretraining uses too
    if task.kind == "instance":
        heads = MaskRCNNHeads(channels, [channels] * 4, dilation=1)
        detector: FasterRCNN = MaskRCNN(
            pyramid, **arguments, mask_head=heads, mask_predictor=MaskRCNNPredictor(channels, channels, classes)
        )
    else:
        detector = FasterRCNN(pyramid, **arguments)
    return cast(FasterRCNN, detector.to(memory_format=torch.channels_last))
