"""A torchvision detector as a transfer: trained on a store's images at their own size, judged by COCO's metrics.

    transfer = Detection(task, given)
    history = fit(transfer, execution=execution, work=work, log=log)

Shape legend: N instances of an image, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Any, cast

import numpy as np
import torch
from pycocotools import mask as coco_mask
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.resnet import ResNet

from mls.config.experiment import Backbone
from mls.config.transfers import TorchvisionDetector
from mls.models.backbone import LAYERS, feature_maps, load_backbone
from mls.transfer.convert import as_pretrained, first_pixels, load, prove
from mls.transfer.evaluate import as_result, ground_truth, in_batches
from mls.transfer.instances import Instances, decode_mask
from mls.transfer.interface import Given, TransferTask
from mls.transfer.order import plan_batch, read_ahead
from mls.transfer.torchvision import build_detector
from mls.transfer.train import undecayed_norms, warm_up_and_drops

NEW = {"backbone.fpn.": "FPN", "rpn.": "RPN", "roi_heads.": "heads"}
"""Parts of the detector that the backbone has not."""
BODY = "backbone.body."

Sample = tuple[Tensor, dict[str, Tensor]]


class Detection(TransferTask):
    """Mask R-CNN or Faster R-CNN of torchvision."""

    def __init__(self, task: TorchvisionDetector, given: Given) -> None:
        """Build and load the detector; index what it is trained on and judged by.

        Raises:
            MlsError: no instances to train on or to test on; weights of another backbone.
        """
        self.task: TorchvisionDetector = task
        self.given, self.store = given, given.store
        ground_truth(given.store, task.kind)  # nothing to find is seen before training
        self.instances = Instances(given.store, task.train_on, masks=task.kind == "instance")
        self.train_images = len(self.instances)
        self.rows_N = given.store.split("test")
        self.batch_size = task.batch_size
        self.total = max(1, round(task.epochs * self.train_images / task.batch_size))
        self.detector = self.build(task, given.config, len(given.store.classes))
        self.model = self.detector
        load_proved(self.detector, given, self.instances.rows[0])
        self.model.to(given.device)
        groups = undecayed_norms(self.model, task.weight_decay)
        self.optimizer = torch.optim.SGD(groups, lr=task.lr, momentum=task.momentum)

    @staticmethod
    def build(task: TorchvisionDetector, layout: Backbone, classes: int) -> FasterRCNN:
        """torchvision's detector."""
        return build_detector(layout, task, classes)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then drops."""
        return warm_up_and_drops(self.task.lr, step, self.total, self.task.warmup_steps, self.task.steps)

    def batches(self, steps: range, workers: int) -> Generator[list[Sample]]:
        """Yield images and targets, as `load_sample` makes them."""
        planned = (plan_batch(step, self.batch_size, self.train_images, self.given.seed) for step in steps)
        yield from read_ahead(planned, lambda one: self.load_sample(one[0], one[1]), workers)

    def load_sample(self, index: int, flip: bool) -> Sample:
        """Return an image, uint8 (3, H, W), and its target.

        The target holds ``boxes`` float32 (N, 4) as x1, y1, x2, y2 in pixels, ``labels`` int64 (N), 1 for the
        first class, and, for kind ``instance``, ``masks`` uint8 (N, H, W).
        """
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
            boxes_N4[:, [0, 2]] = width - boxes_N4[:, [2, 0]]
            target |= {"masks": target["masks"].flip(-1)} if "masks" in target else {}
        return image_CHW, target

    def losses(self, batch: list[Sample]) -> dict[str, Tensor]:
        """Of proposals, boxes, classes and masks."""
        device = self.given.device
        images = [image_CHW.to(device).float() / 255 for image_CHW, _ in batch]
        targets = [{key: value.to(device) for key, value in target.items()} for _, target in batch]
        found: dict[str, Tensor] = self.detector(images, targets)
        return found

    def predict(self, workers: int, name: str) -> list[dict[str, Any]]:
        """At most 100 instances an image, with a score of at least 0.05 (torchvision's defaults); masks at 0.5."""
        self.detector.eval()
        results: list[dict[str, Any]] = []
        size, device = self.batch_size, self.given.device
        chunks = (self.rows_N[start : start + size].tolist() for start in range(0, len(self.rows_N), size))
        with closing(read_ahead(chunks, self.store.decode, workers)) as decoded:
            for rows, images in zip(in_batches(self.rows_N, size, name), decoded, strict=True):
                outputs = self.detector([image_CHW.to(device).float() / 255 for image_CHW in images])
                for row, found in zip(rows, outputs, strict=True):
                    results += to_coco(row, {key: value.cpu() for key, value in found.items()})
        return results


def load_proved(detector: FasterRCNN, given: Given, row: int) -> None:
    """Load the pretrained weights into the detector's body, and compare its features of one image.

    The image goes through the detector's own normalisation, so another order of colours would be seen too.

    Raises:
        MlsError: the weights do not fit, or the features differ.
    """
    with torch.random.fork_rng(devices=[]):  # the copy to compare with is built without moving the generator
        source = load_backbone(given.config, given.weights).eval().double()
    load(detector, {f"{BODY}{name}": tensor for name, tensor in load_file(given.weights).items()}, NEW, given.log)
    pixels_CHW = first_pixels(given.store, row)
    own_1CHW = detector.transform.normalize(pixels_CHW.double() / 255)[None]
    body = cast(ResNet, detector.get_submodule(BODY.rstrip("."))).eval().double()
    with torch.inference_mode():
        expected = list(feature_maps(source, as_pretrained(pixels_CHW)).values())
        found = list(feature_maps(body, own_1CHW).values())
    body.float()  # exactly what it was
    prove(expected, found, [f"C{level + 2}" for level in range(len(LAYERS))], given.log)


def to_coco(row: int, found: dict[str, Tensor]) -> list[dict[str, Any]]:
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
