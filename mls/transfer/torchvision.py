"""torchvision's Mask R-CNN or Faster R-CNN as a transfer task: trained on whole images, scored by COCO's metrics.

    transfer = TorchvisionDetection(task, given)
    history = finetune(transfer, execution=execution, work=work, log=log, name="transfer detect/mls:0")

The network is built from torchvision's public parts: Faster R-CNN with FPN (Lin et al. 2017), Mask R-CNN (He et al.
2017). It differs from its ready-made models in three ways: the backbone is any ResNet of ``mls.models.backbone``; every
layer is trained, BatchNorm with batch statistics (the paper fine-tunes with synchronised BatchNorm and freezes
nothing); and anchors follow the image size and the stem's strides.

Shape legend: B images, N instances of an image, C channels, H x W pixels.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.resnet import ResNet
from torchvision.ops import FeaturePyramidNetwork, box_convert
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from mls.config.experiment import Backbone
from mls.config.transfers import TorchvisionDetector
from mls.models.backbone import build_backbone, channels_last, feature_dims, feature_maps
from mls.models.precision import at_least_float32
from mls.runtime.device import autocast
from mls.transfer.detector import DetectorTask
from mls.transfer.evaluate import as_result, in_batches
from mls.transfer.instances import as_json, decode_mask
from mls.transfer.order import Planned
from mls.transfer.torchvision_ranks import share_batch, weighted

LEVELS = 5
"""P2 to P6; P6 is a subsampled P5, and only the proposals use it."""
FIRST_STRIDE = {"imagenet": 4, "small": 2}
"""Pixels between the centres of P2's cells; each further level doubles it."""
ASPECT_RATIOS = (0.5, 1.0, 2.0)
BOX_POOL = 7
"""Side of the box head's input, cells (torchvision's own pooler)."""
BODY = "backbone.body"
"""Name of the ResNet in the detector."""

Sample = tuple[Tensor, dict[str, Tensor]]
"""An image and its target."""


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
        return {name: at_least_float32(map_BCHW) for name, map_BCHW in maps.items()}


def anchor_sizes(image_size: int, stem: str) -> list[float]:
    """Return the side of the anchors on P2 to P6, pixels: 32 to 512 at image size 800, proportional at other sizes.

    Never smaller than twice the stride of the level: neighbouring anchors then overlap by half or more.
    """
    base = max(32 * image_size / 800, 2.0 * FIRST_STRIDE[stem])
    return [base * 2**level for level in range(LEVELS)]


class TorchvisionDetection(DetectorTask):
    """Mask R-CNN or Faster R-CNN of torchvision."""

    NEW: ClassVar = {"backbone.fpn.": "FPN", "rpn.": "RPN", "roi_heads.": "heads"}
    model: FasterRCNN

    @staticmethod
    def build(task: TorchvisionDetector, layout: Backbone, classes: int) -> FasterRCNN:
        """Return Mask R-CNN for kind ``instance``, else Faster R-CNN; all weights are drawn from torch's generator.

        Args:
            task: sizes of the images, the heads and the samples.
            layout: of the pretrained backbone.
            classes: without the background, which torchvision counts as class 0.
        """
        channels, labels = task.fpn_channels, classes + 1
        pyramid = Pyramid(build_backbone(layout), feature_dims(layout), channels, task.precision)
        sizes = tuple((size,) for size in anchor_sizes(task.image_size, layout.stem))
        arguments: dict[str, Any] = {
            "min_size": task.image_size,
            "max_size": round(task.image_size * 5 / 3),
            "rpn_anchor_generator": AnchorGenerator(sizes, (ASPECT_RATIOS,) * LEVELS),
            "rpn_pre_nms_top_n_train": 2 * task.proposals,
            "rpn_pre_nms_top_n_test": task.proposals,
            "rpn_post_nms_top_n_train": 2 * task.proposals,
            "rpn_post_nms_top_n_test": task.proposals,
            "box_batch_size_per_image": task.rois,
            "box_head": TwoMLPHead(channels * BOX_POOL**2, task.head_channels),
            "box_predictor": FastRCNNPredictor(task.head_channels, labels),
        }  # image mean and std: torchvision's default is ImageNet's, which pretraining uses too
        if task.kind == "instance":
            arguments["mask_head"] = MaskRCNNHeads(channels, [channels] * 4, dilation=1)
            arguments["mask_predictor"] = MaskRCNNPredictor(channels, channels, labels)
        network = MaskRCNN if task.kind == "instance" else FasterRCNN
        return cast(FasterRCNN, channels_last(network(pyramid, **arguments)))

    def name_of(self, name: str) -> str:
        """Prefix the name: the whole backbone is the pyramid's body."""
        return f"{BODY}.{name}"

    def maps_of(self, pixels_CHW: Tensor) -> list[Tensor]:
        """Return C2 to C5."""
        image_1CHW = self.model.transform.normalize(pixels_CHW.double() / 255)[None]
        return list(feature_maps(cast(ResNet, self.model.get_submodule(BODY)), image_1CHW).values())

    def load_sample(self, planned: Planned) -> Sample:
        """Return an image, uint8 (3, H, W), and its target.

        The target holds ``boxes`` float32 (N, 4) as x1, y1, x2, y2 in pixels, ``labels`` int64 (N), 1 for the
        first class, and, for kind ``instance``, ``masks`` uint8 (N, H, W).
        """
        index, flip, _ = planned
        image_CHW = self.store.decode(self.rows[index])
        height, width = image_CHW.shape[1:]
        annotations = self.instances[self.rows[index]]
        xywh_N4 = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32)  # JSON may hold integers
        boxes_N4 = box_convert(xywh_N4, "xywh", "xyxy")
        target = {"boxes": boxes_N4, "labels": torch.tensor([a["category_id"] for a in annotations])}
        if self.task.kind == "instance":
            masks = [decode_mask(a["segmentation"], height, width) for a in annotations]
            target["masks"] = torch.from_numpy(np.stack(masks))
        if flip:
            image_CHW = image_CHW.flip(-1)
            # the mirrored right edge becomes the left one, so that x1 <= x2 still holds
            boxes_N4[:, [0, 2]] = width - boxes_N4[:, [2, 0]]
            if "masks" in target:
                target["masks"] = target["masks"].flip(-1)
        return image_CHW, target

    def share_batch(self) -> None:
        """Also pad all ranks' images alike, and key the sampling of anchors and regions."""
        super().share_batch()
        if self.draws:
            share_batch(self.model, self.draws)

    def losses(self, batch: list[Sample]) -> dict[str, Tensor]:
        """Return the losses of proposals, boxes, classes and masks."""
        targets = [{key: value.to(self.given.device) for key, value in target.items()} for _, target in batch]
        found: dict[str, Tensor] = self.model(self.scaled([image_CHW for image_CHW, _ in batch]), targets)
        return weighted(self.model, found) if self.draws else found

    def scaled(self, images: list[Tensor]) -> list[Tensor]:
        """Return images on the device, float32 in [0, 1]."""
        return [image_CHW.to(self.given.device).float() / 255 for image_CHW in images]

    def predict(self, workers: int, name: str) -> list[dict[str, Any]]:
        """Predict at most 100 instances per image, scored 0.05 or higher (torchvision's defaults); masks at 0.5."""
        self.model.eval()
        results: list[dict[str, Any]] = []
        for rows, images in in_batches(self.rows_N, self.batch_size, self.store.decode, workers, name):
            for row, found in zip(rows, self.model(self.scaled(images)), strict=True):
                results += detections_to_coco(row, {key: value.cpu() for key, value in found.items()})
        return results


def detections_to_coco(row: int, found: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Turn torchvision's output for one image into COCO results."""
    codes: list[dict[str, Any] | None] = [None] * len(found["scores"])
    if codes and "masks" in found:
        masks_HWN = (found["masks"][:, 0] > 0.5).numpy().astype(np.uint8).transpose(1, 2, 0)
        codes = [as_json(code) for code in coco_mask.encode(np.asfortranarray(masks_HWN))]
    boxes = box_convert(found["boxes"], "xyxy", "xywh").tolist()
    return [
        as_result(row, label, box, score, code)
        for label, box, score, code in zip(
            found["labels"].tolist(), boxes, found["scores"].tolist(), codes, strict=True
        )
    ]
