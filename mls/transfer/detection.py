"""A torchvision detector as a transfer task: trained on whole images, scored by COCO's metrics.

    transfer = TorchvisionDetection(task, given)
    history = finetune(transfer, execution=execution, work=work, log=log, name="transfer detect/mls:0")

Shape legend: N instances of an image, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, ClassVar, cast

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.resnet import ResNet

from mls.config.experiment import Backbone
from mls.config.transfers import TorchvisionDetector
from mls.models.backbone import feature_maps
from mls.train.finetune import read_ahead
from mls.transfer.detector import DetectorTask
from mls.transfer.evaluate import as_result, in_batches
from mls.transfer.instances import decode_mask
from mls.transfer.order import plan_batch
from mls.transfer.torchvision import build_detector

BODY = "backbone.body"

Sample = tuple[Tensor, dict[str, Tensor]]


class TorchvisionDetection(DetectorTask):
    """Mask R-CNN or Faster R-CNN of torchvision."""

    NEW: ClassVar = {"backbone.fpn.": "FPN", "rpn.": "RPN", "roi_heads.": "heads"}
    model: FasterRCNN

    @staticmethod
    def build(task: TorchvisionDetector, layout: Backbone, classes: int) -> FasterRCNN:
        """Build torchvision's detector."""
        return build_detector(layout, task, classes)

    def name_of(self, name: str) -> str:
        """Prefix the name: the whole backbone is the pyramid's body."""
        return f"{BODY}.{name}"

    def maps_of(self, pixels_CHW: Tensor) -> list[Tensor]:
        """Return C2 to C5."""
        image_1CHW = self.model.transform.normalize(pixels_CHW.double() / 255)[None]
        return list(feature_maps(cast(ResNet, self.model.get_submodule(BODY)), image_1CHW).values())

    def batches(self, steps: range, workers: int) -> Generator[list[Sample]]:
        """Yield images and targets, as `load_sample` makes them."""
        planned = (plan_batch(step, self.batch_size, self.train_images, self.given.seed) for step in steps)
        return read_ahead(planned, self.load_sample, workers)

    def load_sample(self, planned: tuple[int, bool, int]) -> Sample:
        """Return an image, uint8 (3, H, W), and its target.

        The target holds ``boxes`` float32 (N, 4) as x1, y1, x2, y2 in pixels, ``labels`` int64 (N), 1 for the
        first class, and, for kind ``instance``, ``masks`` uint8 (N, H, W).
        """
        index, flip, _ = planned
        row = self.instances.rows[index]
        image_CHW = self.store.decode(row)
        height, width = image_CHW.shape[1:]
        annotations = self.instances.of(row)
        xywh_N4 = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32)
        boxes_N4 = torch.cat([xywh_N4[:, :2], xywh_N4[:, :2] + xywh_N4[:, 2:]], dim=1)
        labels_N = torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)
        target = {"boxes": boxes_N4, "labels": labels_N}
        if self.task.kind == "instance":
            masks = [decode_mask(a["segmentation"], height, width) for a in annotations]
            target["masks"] = torch.from_numpy(np.stack(masks))
        if flip:
            image_CHW = image_CHW.flip(-1)
            # the mirrored right edge becomes the left one, so that x1 <= x2 still holds
            boxes_N4[:, [0, 2]] = width - boxes_N4[:, [2, 0]]
            target |= {"masks": target["masks"].flip(-1)} if "masks" in target else {}
        return image_CHW, target

    def losses(self, batch: list[Sample]) -> dict[str, Tensor]:
        """Return the losses of proposals, boxes, classes and masks."""
        targets = [{key: value.to(self.given.device) for key, value in target.items()} for _, target in batch]
        found: dict[str, Tensor] = self.model(self.scaled([image_CHW for image_CHW, _ in batch]), targets)
        return found

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
    count = len(found["scores"])
    codes: list[dict[str, Any] | None] = [None] * count
    if count and "masks" in found:
        masks_HWN = (found["masks"][:, 0] > 0.5).numpy().astype(np.uint8).transpose(1, 2, 0)
        codes = coco_mask.encode(np.asfortranarray(masks_HWN))
    boxes = found["boxes"].double().tolist()
    return [
        as_result(row, int(label), box, float(score), code)
        for label, box, score, code in zip(found["labels"], boxes, found["scores"], codes, strict=True)
    ]
