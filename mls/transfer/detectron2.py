"""A Detectron2 detector as a transfer task: the paper's protocol (Tables 1, 2 and 4), fed from a store.

    transfer = Detectron2Detection(task, given)
    history = finetune(transfer, execution=execution, work=work, log=log, name="transfer coco/mls:0")

Images come as from Detectron2's own loader: resized to a random one of the shorter sides, flipped with probability
1/2, wide and tall ones in separate batches (to save padding); images without objects are left out. Order, sides and
flips are functions of the seed and the step, so training resumes bit for bit, unlike with Detectron2's own trainer.

Shape legend: C channels, H x W pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, ClassVar, cast

import numpy as np
import torch
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from mls.config.experiment import Backbone
from mls.config.transfers import Detectron2Detector
from mls.data.masks import polygons
from mls.runtime import streams
from mls.runtime.collectives import rank, stop_together
from mls.runtime.device import autocast
from mls.runtime.progress import Bar
from mls.runtime.signals import InterruptGuard
from mls.transfer.detector import DetectorTask
from mls.transfer.detectron2_model import make_config, place
from mls.transfer.detectron2_ranks import SharedBatch
from mls.transfer.evaluate import as_result, in_batches
from mls.transfer.instances import run_lengths
from mls.transfer.interface import Given
from mls.transfer.order import Planned, order_and_flips
from mls.transfer.precise_statistics import precise_statistics


class Detectron2Detection(DetectorTask):
    """Mask R-CNN or Faster R-CNN of Detectron2."""

    NEW: ClassVar = {
        "backbone.fpn_": "FPN",
        "proposal_generator.": "RPN",
        "roi_heads.res5.norm.": "extra norm",
        "roi_heads.res5.": "",  # the ResNet's own last stage
        "roi_heads.": "heads",
    }
    model: Any
    shared: SharedBatch | None = None

    def __init__(self, task: Detectron2Detector, given: Given) -> None:
        """Build and load the detector; index the images.

        Raises:
            MlsError: no instances to train on or to test on; weights of another backbone.
        """
        super().__init__(task, given)
        if task.precision != "fp32":
            cast_to_float32(self.model.backbone, given.device, task.precision)
            if task.architecture == "c4":
                cast_to_float32(self.model.roi_heads.res5, given.device, task.precision)
        codes = (a["segmentation"] for annotations in self.instances.values() for a in annotations)
        self.mask_format = "polygon" if all(isinstance(code, list) for code in codes) else "bitmask"
        scaled = (
            f" instead of {task.reference_batch}: by the linear rule the learning rate is {task.lr * task.scale:g} "
            f"instead of {task.lr:g}, and steps are {self.total:,} instead of {task.iterations:,}"
        )
        given.log(f"batches of {task.batch_size} images" + (scaled if task.scale != 1 else ""))

    def name_of(self, name: str) -> str:
        """Return Detectron2's name, see `mls.transfer.detectron2_model.place`."""
        return place(name, self.task.architecture)

    def maps_of(self, pixels_CHW: Tensor) -> list[Tensor]:
        """Return C2 to C5, or C4 and C5 if the last stage is in the heads."""
        images_BCHW = self.model.preprocess_image([{"image": pixels_CHW}]).tensor
        if self.task.architecture == "fpn":
            return list(self.model.backbone.bottom_up(images_BCHW).values())
        c4_BCHW = self.model.backbone(images_BCHW)["res4"]
        stage = self.model.roi_heads.res5  # the extra norm at its end is new, so it is left out of the comparison
        return [c4_BCHW, (stage[:-1] if self.task.extra_norm else stage)(c4_BCHW)]

    @staticmethod
    def build(task: Detectron2Detector, layout: Backbone, classes: int) -> nn.Module:
        """Return Detectron2's detector on the CPU with new weights, drawn from torch's generator."""
        cfg = make_config(task, layout, classes)
        return cast(nn.Module, META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg))

    def plan(self, steps: range) -> Iterator[list[Planned]]:
        """Yield batches of wide images or of tall ones, in the order in which they fill up.

        A batch is the next ``batch_size`` images of its kind, so step n follows only from all steps before it. A
        resumed run therefore plans from step 0; planning is cheap, since it reads no image.
        """
        return itertools.islice(self.plan_all(), steps.start, steps.stop)

    def plan_all(self) -> Iterator[list[Planned]]:
        """Yield the batches of all steps, without end."""
        waiting: dict[bool, list[Planned]] = {True: [], False: []}
        sizes = [self.store.size(row) for row in self.rows]
        for epoch in itertools.count():
            for index, flip in zip(*order_and_flips(self.train_images, self.given.seed, epoch), strict=True):
                width, height = sizes[index]
                kind = waiting[width > height]
                kind.append((int(index), bool(flip), epoch))
                if len(kind) == self.batch_size:
                    yield kind[:]  # a copy, since the list is emptied for the next batch
                    kind.clear()

    def load_sample(self, planned: Planned) -> dict[str, Any]:
        """Return an image, uint8 (3, H, W), RGB, resized, and its ``Instances``."""
        index, flip, epoch = planned
        row = self.rows[index]
        # One generator per sample: the side does not depend on which thread loads the sample, or when.
        rng = streams.side(self.given.seed, epoch, row)
        side = self.task.train_sizes[rng.integers(len(self.task.train_sizes))]
        pixels_HWC, resize = self.load_pixels(row, side)
        chain = T.TransformList([resize, T.HFlipTransform(resize.new_w)] if flip else [resize])
        image_HWC = chain.apply_image(pixels_HWC)
        annotations = [
            detection_utils.transform_instance_annotations(
                self.as_detectron2(annotation, pixels_HWC.shape[:2]), chain, image_HWC.shape[:2]
            )
            for annotation in self.instances[row]
        ]
        found = detection_utils.annotations_to_instances(annotations, image_HWC.shape[:2], self.mask_format)
        return {"image": to_tensor(image_HWC), "instances": detection_utils.filter_empty_instances(found)}

    def load_pixels(self, row: int, side: int) -> tuple[np.ndarray, Any]:
        """Return an image, uint8 (H, W, 3), RGB, and the transform that resizes its shorter side to ``side``.

        The longer side becomes at most ``max_size``. The image is a copy: transforms may write to it.
        """
        pixels_HWC = np.array(self.store.decode(row).permute(1, 2, 0))
        return pixels_HWC, T.ResizeShortestEdge(side, self.task.max_size).get_transform(pixels_HWC)

    def as_detectron2(self, annotation: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
        """Return an annotation for Detectron2: classes from 0, run-length codes compressed, masks only if used."""
        box, mode = list(annotation["bbox"]), BoxMode.XYWH_ABS
        own = {"bbox": box, "bbox_mode": mode, "category_id": annotation["category_id"] - 1}
        if self.task.kind == "instance":
            code = annotation["segmentation"]
            own["segmentation"] = polygons(code) if isinstance(code, list) else run_lengths(code, *shape)
        return own

    def share_batch(self) -> None:
        """Also pad all ranks' images alike, and key the sampling of anchors and regions."""
        super().share_batch()
        if self.draws:
            self.shared = SharedBatch(self.model, self.draws)

    def losses(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return Detectron2's own losses."""
        with EventStorage():  # its layers fail without one to report to
            losses: dict[str, Tensor] = self.model(batch)
        return self.shared.weighted(losses) if self.shared else losses

    def finish(self, workers: int, name: str) -> None:
        """Recompute batch norm statistics from further batches [MoCo's detection configs].

        They hold as many images as ``precise_bn`` batches of the reference size.
        """
        count = round(self.task.precise_bn / self.task.scale)
        if not count:
            return
        steps = range(self.total, self.total + count)
        self.model.train()

        def counted() -> Iterator[list[dict[str, Any]]]:
            for batch in self.batches(steps, workers):
                stop_together(guard, lambda: None)
                yield batch
                bar.advance(1, count=len(batch))

        bar = Bar(f"{name}: batch norm", self.accumulate * len(steps), hidden=rank() > 0)
        with InterruptGuard() as guard, bar, EventStorage():
            precise_statistics(self.model, counted())

    def predict(self, workers: int, name: str) -> list[dict[str, Any]]:
        """Predict at most 100 instances per image, with a score of at least 0.05 (Detectron2's defaults)."""
        self.model.eval()
        results: list[dict[str, Any]] = []
        for (row,), images in in_batches(self.rows_N, 1, self.load_test, workers, name):
            (found,) = self.model(images)
            results += [
                as_result(row, entry["category_id"] + 1, entry["bbox"], entry["score"], entry.get("segmentation"))
                for entry in instances_to_coco_json(found["instances"].to("cpu"), row)
            ]
        return results

    def load_test(self, row: int) -> dict[str, Any]:
        """Return an image, resized, and its original size, at which boxes and masks are predicted."""
        pixels_HWC, resize = self.load_pixels(row, self.task.test_size)
        height, width = pixels_HWC.shape[:2]
        return {"image": to_tensor(resize.apply_image(pixels_HWC)), "height": height, "width": width}

    def derived(self) -> dict[str, Any]:
        """Add the learning rate by the linear rule."""
        return super().derived() | {"lr": self.task.lr * self.task.scale}


def cast_to_float32(module: nn.Module, device: torch.device, precision: str) -> None:
    """Run a module under autocast, in place, with float32 outputs: a map, or a mapping of names to maps."""
    forward = module.forward

    def cast(map_BCHW: Tensor) -> Any:
        with autocast(device, precision):
            found = forward(map_BCHW)
        return found.float() if isinstance(found, Tensor) else {name: one.float() for name, one in found.items()}

    module.forward = cast


def to_tensor(image_HWC: np.ndarray) -> Tensor:
    """Turn (H, W, 3) into (3, H, W)."""
    return torch.as_tensor(np.ascontiguousarray(image_HWC.transpose(2, 0, 1)))
