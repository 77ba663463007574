"""PSPNet, PSANet or FCN as a transfer task: trained on crops of images and their index masks, scored by mean IoU.

    transfer = SemanticTraining(task, given)
    history = finetune(transfer, execution=execution, work=work, log=log, name="transfer city/mls:0")
    metrics = transfer.score(transfer.predict(workers, "test"))     # {"mIoU": 71.2, "mAcc": 78.9, "aAcc": 95.1, ...}

A result is one class of one image, in the format of COCO-stuff:
``{"image_id", "category_id" (class index + 1), "segmentation" {"size", "counts"}}``.

Shape legend: B images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.resnet import ResNet

from mls.config.experiment import Backbone
from mls.config.transfers import SemanticTransfer
from mls.data.eval_view import normalise
from mls.data.image_store import IGNORE
from mls.models.backbone import LAYERS, build_backbone, channels_last, feature_dims, feature_maps, load_backbone
from mls.transfer.convert import as_pretrained, first_pixels, prove
from mls.transfer.draws import KeyedDropout2d, Purpose
from mls.transfer.evaluate import in_batches
from mls.transfer.fcn import FCN
from mls.transfer.index_masks import IndexMasks
from mls.transfer.instances import as_json
from mls.transfer.interface import Given, TransferTask
from mls.transfer.order import Planned
from mls.transfer.psanet import PSANet
from mls.transfer.pspnet import PSPNet, Segmenter, dilate
from mls.transfer.semantic_data import Sample, Samples
from mls.transfer.torchvision import FIRST_STRIDE

HEADS = {"psp": PSPNet, "psa": PSANet, "fcn": FCN}
"""Value of ``head`` -> network."""


class SemanticTraining(TransferTask):
    """A head on a dilated ResNet; every parameter is trained and decayed."""

    model: Segmenter

    def __init__(self, task: SemanticTransfer, given: Given) -> None:
        """Load and dilate the backbone, prove its features; index the images.

        Raises:
            MlsError: no images or no masks to train on or to test on; weights of another backbone; an impossible output
                stride.
        """
        self.task: SemanticTransfer = task
        self.given, self.store = given, given.store
        self.masks = IndexMasks(given.store, task.train_on)
        self.truth = IndexMasks(given.store, "test")
        self.samples = Samples(self.masks, task, given.seed)
        self.train_images = len(self.masks)
        self.rows_N = np.array(self.truth.rows, dtype=np.int64)
        self.batch_size, self.total = task.batch_size, task.iterations
        backbone = load_dilated(given, task.output_stride, self.masks.rows[0])
        self.model = HEADS[task.head](backbone, feature_dims(given.config), task, len(self.masks.classes))
        channels_last(self.model).to(given.device)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=task.lr, momentum=task.momentum, weight_decay=task.weight_decay
        )

    @staticmethod
    def build(task: SemanticTransfer, layout: Backbone, classes: int) -> Segmenter:
        """The network on an undilated backbone; dilation changes no tensor's shape."""
        return HEADS[task.head](build_backbone(layout), feature_dims(layout), task, classes)

    def learning_rate(self, step: int) -> float:
        """Return polynomial decay to ``min_lr``, reached one step after the last [mmcv's PolyLrUpdaterHook].

        With ``steps`` the rate is divided by 10 at each of them.
        """
        task = self.task
        if task.steps:
            return task.lr * 0.1 ** sum(step >= round(share * self.total) for share in task.steps)
        return (task.lr - task.min_lr) * (1 - step / self.total) ** task.power + task.min_lr

    def share_batch(self) -> None:
        """Also key the dropout of both heads."""
        super().share_batch()
        if self.draws:
            KeyedDropout2d.keyed(self.model.head, self.draws, Purpose.HEAD)
            KeyedDropout2d.keyed(self.model.aux, self.draws, Purpose.AUX)

    def load_sample(self, planned: Planned) -> Sample:
        """Return a crop and its mask."""
        return self.samples.load(planned)

    def losses(self, batch: list[Sample]) -> dict[str, Tensor]:
        """Return the cross-entropy of each head.

        It is divided by the number of all pixels, ignored ones included, as in mmsegmentation. That number is the same
        on all ranks, so their losses need no weights.
        """
        images_BCHW, masks_BHW = self._padded(batch)
        logits = self.model(images_BCHW)
        weights = {"out": ("loss_seg", 1.0), "aux": ("loss_aux", self.task.aux_weight)}
        losses = {}
        for head, logits_BKHW in logits.items():
            name, weight = weights[head]
            summed = F.cross_entropy(logits_BKHW, masks_BHW, ignore_index=IGNORE, reduction="sum")
            losses[name] = weight * (summed / masks_BHW.numel())
        return losses

    def _padded(self, batch: list[Sample]) -> tuple[Tensor, Tensor]:
        """Return crops of one size, normalised, float32 (B, C, H, W), and their masks, int64 (B, H, W).

        Crops are padded with 0, masks with `IGNORE`. Padding comes after normalisation, so padded pixels have the mean
        colour.
        """
        device, (height, width) = self.given.device, self.task.crop
        images, masks = [], []
        for image_CHW, mask_HW in batch:
            beyond = (0, width - mask_HW.shape[1], 0, height - mask_HW.shape[0])
            images.append(F.pad(normalise(image_CHW[None], device), beyond))
            masks.append(F.pad(mask_HW, beyond, value=IGNORE))
        images_BCHW = torch.cat(images).contiguous(memory_format=torch.channels_last)
        return images_BCHW, torch.stack(masks).to(device).long()

    def predict(self, workers: int, name: str) -> list[dict[str, Any]]:
        """Predict the class of each pixel at the image's own size; results are ordered by row, then by class."""
        self.model.eval()
        results: list[dict[str, Any]] = []
        for (row,), (image_CHW,) in in_batches(self.rows_N, 1, self.store.decode, workers, name):
            logits_1KHW = self.logits(normalise(image_CHW[None], self.given.device))
            results += pixels_to_coco(row, logits_1KHW[0].argmax(dim=0).to(torch.uint8).cpu().numpy())
        return results

    def logits(self, image_1CHW: Tensor) -> Tensor:
        """Return logits (1, K, H, W) of a normalised image, whole or by windows, as the task's ``inference`` says."""
        if self.task.inference == "slide":
            crop, stride, classes = self.task.crop, self.task.stride, len(self.masks.classes)
            return slide(lambda x_1CHW: self.model(x_1CHW)["out"], image_1CHW, crop, stride, classes)
        logits_1KHW: Tensor = self.model(image_1CHW)["out"]
        return logits_1KHW

    def derived(self) -> dict[str, Any]:
        """Add the number of classes, including ``background`` if there is one."""
        return {**super().derived(), "classes": len(self.masks.classes)}


def load_dilated(given: Given, output_stride: int, row: int) -> ResNet:
    """Load the pretrained backbone and dilate it; compare both on one image.

    Dilation keeps every cell of a stage's map and adds cells between them. So the dilated maps, subsampled to the
    pretrained strides, must equal the pretrained ones. A wrong dilation or padding would change them.

    Raises:
        MlsError: the weights or the stride do not fit, or the features differ.
    """
    source = load_backbone(given.config, given.weights).eval()
    backbone = copy.deepcopy(source)
    first_stride = FIRST_STRIDE[given.config.stem]
    dilate(backbone, output_stride, first_stride)
    given.log(f"backbone loaded: all of {len(backbone.state_dict())} tensors; dilated to output stride {output_stride}")
    image_BCHW = as_pretrained(first_pixels(given.store, row))
    with torch.inference_mode():
        expected, found = (feature_maps(net.double(), image_BCHW).values() for net in (source, backbone))
    # Cells of the dilated map per cell of the pretrained one: more than 1 only for stages that lost a stride.
    steps = [max(1, first_stride * 2**level // output_stride) for level in range(len(LAYERS))]
    common = [map_BCHW[..., ::step, ::step] for map_BCHW, step in zip(found, steps, strict=True)]
    prove(list(expected), common, given.log)
    backbone.float()  # restores every bit: float32 -> float64 -> float32 is exact
    return backbone


def slide(
    net: Callable[[Tensor], Tensor], image_1CHW: Tensor, crop: list[int], stride: list[int], classes: int
) -> Tensor:
    """Average the logits of overlapping windows.

    A network that was trained on crops sees windows of the crops' size, and the memory of a pass does not grow with the
    image.

    Args:
        net: computes logits (1, K, h, w) of images (1, C, h, w).
        image_1CHW: normalised; if smaller than a window it is padded with zeros, as in training.
        crop: height and width of a window, pixels.
        stride: between windows, down and across, pixels; at most the window's size, so that no pixel is left out.
        classes: K.

    Returns:
        Logits (1, K, H, W), float32.
    """
    height, width = image_1CHW.shape[-2:]
    image_1CHW = F.pad(image_1CHW, (0, max(0, crop[1] - width), 0, max(0, crop[0] - height)))
    tops, lefts = (
        window_starts(side, window, step)
        for side, window, step in zip(image_1CHW.shape[-2:], crop, stride, strict=True)
    )
    count_HW = image_1CHW.new_zeros(image_1CHW.shape[-2:])
    total_1KHW = count_HW.repeat(1, classes, 1, 1)
    for top, left in itertools.product(tops, lefts):
        box = slice(top, top + crop[0]), slice(left, left + crop[1])
        total_1KHW[:, :, *box] += net(image_1CHW[:, :, *box])
        count_HW[box] += 1
    return (total_1KHW / count_HW)[..., :height, :width]  # without the padding of a small image


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Return where windows start along a side that is at least as long as a window; the last one ends with the side.

    The last stride may therefore be shorter. The other choice, padding the last window, would show the network edges
    that are not in the image.
    """
    # The range stops before ``side - window``, so that this start never occurs twice.
    return [*range(0, side - window, stride), side - window]


def pixels_to_coco(row: int, prediction_HW: np.ndarray) -> list[dict[str, Any]]:
    """Turn class indices, uint8 (H, W), into one result per class that occurs, ascending."""
    results = []
    for label in np.unique(prediction_HW):
        code = as_json(coco_mask.encode(np.asfortranarray(prediction_HW == label, dtype=np.uint8)))
        results.append({"image_id": row, "category_id": int(label) + 1, "segmentation": code})
    return results
