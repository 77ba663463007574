"""Code that torchvision's and Detectron2's detectors share as transfer tasks: instances, optimiser, learning rate.

lr = warm_up_and_drops(0.02, step, total=90_000, warmup_steps=1000, drops=[0.6667, 0.8889])
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from mls.config.transfers import Detectron2Detector, TorchvisionDetector
from mls.models.backbone import feature_maps, load_backbone
from mls.transfer.convert import as_pretrained, first_pixels, load, prove
from mls.transfer.evaluate import ground_truth
from mls.transfer.instances import TrainingInstances
from mls.transfer.interface import Given, TransferTask

WARMUP_FACTOR = 0.001
"""Share of the learning rate at the first step of the warm-up (Detectron2's default)."""


class DetectorTask(TransferTask):
    """A detector on a pretrained backbone, trained on the instances of a store's images."""

    NEW: ClassVar[Mapping[str, str]]
    """Name prefixes of the parts that the backbone does not have, see `mls.transfer.convert.load`."""

    def __init__(self, task: TorchvisionDetector | Detectron2Detector, given: Given) -> None:
        """Build the detector, load the backbone, index the images.

        Raises:
            MlsError: no instances to train on or to test on; weights of another backbone.
        """
        self.task, self.given, self.store = task, given, given.store
        ground_truth(given.store, task.kind)  # a test split without instances stops here, not after the training
        self.instances = TrainingInstances(given.store, task.train_on, masks=task.kind == "instance")
        self.rows = list(self.instances)
        self.train_images, self.rows_N = len(self.rows), given.store.split("test")
        self.batch_size, self.total = task.batch_size, cast(int, task.steps_on(self.train_images))
        self.scale = task.scale if isinstance(task, Detectron2Detector) else 1.0  # the linear rule's factor
        self.model = self.build(task, given.config, len(given.store.classes))
        self.load_and_prove()
        self.model.to(given.device)
        groups = undecayed_norms(self.model, task.weight_decay)
        self.optimizer = torch.optim.SGD(groups, lr=task.lr * self.scale, momentum=task.momentum)

    @abstractmethod
    def name_of(self, name: str) -> str:
        """Return the detector's name for a tensor that the backbone calls ``name``."""

    @abstractmethod
    def maps_of(self, pixels_CHW: Tensor) -> list[Tensor]:
        """Return the last maps, up to C5, that the detector's own backbone computes for an image, uint8 (3, H, W).

        The image goes through the detector's own normalisation, so the comparison also finds swapped channels.
        """

    def load_and_prove(self) -> None:
        """Load the pretrained weights into the model, and compare both backbones' features of one image.

        Raises:
            MlsError: the weights do not fit, or the features differ.
        """
        given = self.given
        state = {self.name_of(name): tensor for name, tensor in load_file(given.weights).items()}
        load(self.model, state, self.NEW, given.log)
        with torch.random.fork_rng(devices=[]):  # building the copy to compare with must not advance the generator
            source = load_backbone(given.config, given.weights).eval().double()
        pixels_CHW = first_pixels(given.store, self.rows[0])
        # eval: batch norm uses the loaded statistics, so these are compared too, and the image does not change them
        self.model.eval().double()
        with torch.inference_mode():
            expected = list(feature_maps(source, as_pretrained(pixels_CHW)).values())
            found = self.maps_of(pixels_CHW)
        self.model.float()  # restores every bit: float32 -> float64 -> float32 is exact
        # Some detectors return only C4 and C5. That suffices: these are computed from C2 and C3.
        prove(expected[-len(found) :], found, given.log)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, then drops."""
        lr, warmup_steps = self.task.lr * self.scale, self.task.warmup_steps / self.scale
        return warm_up_and_drops(lr, step, self.total, warmup_steps, self.task.steps)


def warm_up_and_drops(lr: float, step: int, total: int, warmup_steps: float, drops: list[float]) -> float:
    """Return the learning rate of a step: linear warm-up, divided by 10 at each drop.

    Args:
        lr: after the warm-up, before the drops.
        step: counted from 0.
        total: steps of the whole schedule.
        warmup_steps: steps over which the rate rises from `WARMUP_FACTOR` of ``lr``.
        drops: when to drop, as shares of ``total``.
    """
    progress = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    warm = WARMUP_FACTOR + (1 - WARMUP_FACTOR) * progress
    return lr * warm * 0.1 ** sum(step >= math.floor(share * total) for share in drops)


def undecayed_norms(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trained parameters in two groups: normalisation layers are not decayed (Detectron2's default)."""
    norms = {id(p) for module in model.modules() if isinstance(module, _NormBase) for p in module.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if id(p) not in norms], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in norms], "weight_decay": 0.0},
    ]
