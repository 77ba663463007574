"""The parts of a detector whose shapes do not depend on what is in the images: those that take its operations.

    parts = Parts(task, Backbone(), classes=80)
    loss = parts(images_BCHW)       # its backward pass is that of a training step

Which boxes are proposed depends on the data, but not how many: heads are trained on ``rois`` boxes of each image, of
which the mask head sees a quarter, those with an object. That is the most that can be positive, and the usual case once
a detector has learned a little. torchvision's parts are its own; Detectron2's are built alike from torchvision's, since
it may not be installed: the same layers, so the same tensors and operations.

Shape legend: B images, C channels, H x W pixels, R regions of all images.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from mls.config.experiment import Backbone
from mls.config.transfers import Detector, Detectron2Detector, TorchvisionDetector
from mls.models.backbone import LAYERS, build_backbone, feature_dims, feature_maps
from mls.runtime.device import autocast
from mls.transfer.torchvision import ASPECT_RATIOS, BOX_POOL, TorchvisionDetection

POSITIVE = 0.25
"""Largest share of the regions that have an object, in both libraries."""
MASK_POOL = 14
"""Side of the input of the mask head, and of the last stage as a head, cells."""
WIDTH, HIDDEN = 256, 1024
"""Channels of Detectron2's pyramid and of its box head."""
C4_ANCHORS = 15
"""Anchors of a cell of C4: five sizes."""


class Parts(nn.Module):
    """Backbone, pyramid, RPN and heads."""

    def __init__(self, task: Detector, layout: Backbone, classes: int) -> None:
        """Build the parts with new weights.

        Args:
            task: of either library.
            layout: of the backbone.
            classes: without the background.
        """
        super().__init__()
        self.rois, self.positives = task.rois, max(1, int(POSITIVE * task.rois))
        self.c4, self.precision = False, "fp32"  # torchvision's pyramid casts by itself
        self.box: nn.Module
        self.mask: nn.Module | None = None
        if isinstance(task, TorchvisionDetector):
            model = TorchvisionDetection.build(task, layout, classes)
            heads: Any = model.roi_heads
            self.maps, self.rpn = model.backbone, model.rpn.head
            self.box, self.predictor = heads.box_head, heads.box_predictor
            self.channels = task.fpn_channels
            if task.kind == "instance":
                self.mask = nn.Sequential(heads.mask_head, heads.mask_predictor)
        else:
            self._build_detectron2(task, layout, classes)

    def _build_detectron2(self, task: Detectron2Detector, layout: Backbone, classes: int) -> None:
        self.c4, self.precision = task.architecture == "c4", task.precision
        body, dims, labels = build_backbone(layout), feature_dims(layout), classes + 1
        stages = [nn.ModuleList([body.conv1, body.bn1]), *(getattr(body, name) for name in LAYERS)]
        for stage in stages[: task.freeze_at]:
            stage.requires_grad_(False)
        if task.norm == "FrozenBN":
            _freeze_norms(body)
        if self.c4:
            self.channels, out = dims[2], dims[3]
            self.maps, self.rpn = body, RPNHead(self.channels, C4_ANCHORS)
            self.box = nn.BatchNorm2d(out) if task.extra_norm else nn.Identity()
            self.predictor = FastRCNNPredictor(out, labels)
            mask: list[nn.Module] = []
        else:
            norms = {"SyncBN": nn.BatchNorm2d, "none": None}
            fpn, norm = norms[task.fpn_norm], norms[task.head_norm]
            pyramid = FeaturePyramidNetwork(dims, WIDTH, extra_blocks=LastLevelMaxPool(), norm_layer=fpn)
            self.channels = out = WIDTH
            self.maps, self.rpn = nn.ModuleList([body, pyramid]), RPNHead(WIDTH, len(ASPECT_RATIOS))
            self.box = TwoMLPHead(WIDTH * BOX_POOL**2, HIDDEN)
            if task.box_head == "4conv1fc":
                self.box = FastRCNNConvFCHead((WIDTH, BOX_POOL, BOX_POOL), [WIDTH] * 4, [HIDDEN], norm_layer=norm)
            self.predictor = FastRCNNPredictor(HIDDEN, labels)
            mask = [MaskRCNNHeads(WIDTH, [WIDTH] * 4, dilation=1, norm_layer=norm)]
        width = self.predictor.bbox_pred.in_features
        self.predictor.bbox_pred = nn.Linear(width, 4 * classes)  # torchvision has boxes of the background too
        if task.kind == "instance":
            self.mask = nn.Sequential(*mask, MaskRCNNPredictor(out, WIDTH, labels - 1))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return a scalar that depends on every output."""
        maps = self._maps(images_BCHW)
        count = len(images_BCHW) * self.rois
        masked = len(images_BCHW) * self.positives
        outputs = [self.rpn(maps)]
        if self.c4:
            with autocast(images_BCHW.device, self.precision):
                stage_RChw = self.maps.layer4(self._regions(maps[0], count, MASK_POOL))
            stage_RChw = self.box(stage_RChw.float())
            outputs.append(self.predictor(stage_RChw.mean((2, 3))))
            mask_input = stage_RChw[:masked]
        else:
            outputs.append(self.predictor(self.box(self._regions(maps[0], count, BOX_POOL))))
            mask_input = self._regions(maps[0], masked, MASK_POOL) if self.mask else maps[0]
        if self.mask:
            outputs.append(self.mask(mask_input))
        return torch.stack([tensor.float().sum() for tensor in tree_leaves(outputs)]).sum()

    def _maps(self, images_BCHW: Tensor) -> list[Tensor]:
        """Return the maps that the RPN sees."""
        with autocast(images_BCHW.device, self.precision):
            if self.c4:
                maps = [feature_maps(self.maps, images_BCHW, last=LAYERS[2])["2"]]
            elif isinstance(self.maps, nn.ModuleList):
                body, pyramid = self.maps
                maps = list(pyramid(feature_maps(body, images_BCHW)).values())
            else:
                maps = list(self.maps(images_BCHW).values())
        return [map_BChw.float() for map_BChw in maps]

    def _regions(self, map_BChw: Tensor, count: int, side: int) -> Tensor:
        """Return what pooling makes of the regions: a tensor whose gradient is computed, but not kept."""
        one = torch.zeros(1, device=map_BChw.device, requires_grad=True)
        return one.expand(count, self.channels, side, side).contiguous()


def _freeze_norms(module: nn.Module) -> None:
    """Replace batch norms by constants, which keep no input for the backward pass."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features))
        _freeze_norms(child)


def padded_side(short: int, images: int, grouped: bool) -> int:
    """Return the side of a square with as many pixels as a photo has on average once its batch is padded.

    It is a multiple of 32. Measured on COCO: images are padded to the highest and the widest of their batch, so they
    grow with the batch; less if it holds only wide or only tall ones, as with Detectron2.

    Args:
        short: shorter side after resizing (Detectron2: the largest of those that are drawn).
        images: of a batch.
        grouped: whether wide and tall images are in separate batches.
    """
    first, growth = (1.08, 0.045) if grouped else (1.19, 0.096)
    return 32 * math.ceil(short * (first + growth * math.log2(images)) / 32)
