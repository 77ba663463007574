"""The networks of jobs, built without memory: bytes of their tensors, and what a step of them takes.

    pretraining_sizes(config)       # bytes of weights and dictionary, and of what is trained
    pretraining_step(config)        # 32.5e9 operations and 52e6 bytes an image, for ResNet-50 and MoCo

They are built by the code that trains them, on torch's meta device, where tensors have a size but no numbers. What does
not change a count is not part of a cache's key, so that runs which differ in schedule, seed or weights share one.

Only this module and those that it imports need torch; `mls.cost` imports it when something has to be counted.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional as F

from mls.config.experiment import Backbone, Pretrain
from mls.config.identity import canonical, identity_params
from mls.config.methods import METHODS
from mls.config.probes import Features, FinetuneProbe, TrainedProbe
from mls.config.transfers import Detectron2Detector, SemanticTransfer, TorchvisionDetector, TransferConfig
from mls.cost.count import Step, count_step, on_meta
from mls.cost.detectors import Parts
from mls.cost.rates import SCHEMAS
from mls.methods.method import Method, Pair, build_method
from mls.models.backbone import build_backbone, feature_dims
from mls.probe.classifier import Classifier
from mls.runtime.device import autocast
from mls.transfer.interface import made_by
from mls.transfer.pspnet import dilate
from mls.transfer.semantic import HEADS
from mls.transfer.torchvision import FIRST_STRIDE

CPU = torch.device("cpu")
"""Where the counted tensors claim to be."""
MANY, FEW = 32, 2
"""Images of a counted step: of small squares, and of photos. Gradients of weights should not matter beside them."""
QUEUE = 1024
"""Largest dictionary of a counted step. One of 65,536 adds 0.2 % of operations; `pretraining_sizes` has its bytes."""
DETECTOR = (
    *(
        "kind",
        "backend",
        "architecture",
        "norm",
        "freeze_at",
        "fpn_norm",
        "box_head",
        "head_norm",
        "extra_norm",
        "rois",
    ),
    *("fpn_channels", "head_channels", "image_size", "precision"),
)
SEMANTIC = (
    "kind",
    "backend",
    "head",
    "output_stride",
    "crop",
    "head_channels",
    "pools",
    "attention_window",
    "precision",
)
"""Keys that decide what a network takes."""


COUNTED = (TorchvisionDetector, Detectron2Detector, SemanticTransfer)
"""Transfers whose steps are counted; of others, nobody knows the input."""


class Sizes(NamedTuple):
    """Bytes of a network's tensors."""

    state: int
    """Weights and buffers."""
    trained: int
    """Weights that are trained."""


def sizes_of(network: nn.Module) -> Sizes:
    """Return the bytes of a network."""
    trained = sum(parameter.nbytes for parameter in network.parameters() if parameter.requires_grad)
    return Sizes(sum(tensor.nbytes for tensor in network.state_dict().values()), trained)


def _key(section: BaseModel, *only: str) -> str:
    return canonical({**identity_params(section, only), "dataset": "data"})


# ------------------------------------------------------------------------------------- pretraining


@cache
def backbone_sizes(backbone: Backbone) -> Sizes:
    """Return the bytes of a backbone."""
    return sizes_of(on_meta(lambda: build_backbone(backbone)))


def pretraining_sizes(config: Pretrain) -> Sizes:
    """Return the bytes of a method: both encoders and the dictionary."""
    return _pretraining_sizes(_key(config, "method", "backbone", "moco.queue_size", *_heads(config)))


def _heads(config: Pretrain) -> list[str]:
    """Keys that decide the heads of a method: all of its blocks, but of ``moco`` and ``mls`` only one key matters."""
    blocks = {block.partition(".")[0] for block in METHODS[config.method].blocks}
    return ["moco.projection_dim", *sorted(blocks - {"moco", "mls"})]


@cache
def _pretraining_sizes(key: str) -> Sizes:
    return sizes_of(on_meta(lambda: build_method(Pretrain.model_validate_json(key))))


def pretraining_step(config: Pretrain) -> Step:
    """Return what a step takes for each image, with the run's batch: SlotCon compares each slot with all others."""
    queue = min(config.moco.queue_size, QUEUE)
    views = ("augment.crop", "augment.local_crops")
    return _pretraining_step(
        _key(config, "method", "backbone", "batch_size", "precision", *views, *_heads(config)), queue
    )


@cache
def _pretraining_step(key: str, queue: int) -> Step:
    given = Pretrain.model_validate_json(key)
    # one batch norm group: more of them make the same activations, in more calls
    config = given.model_copy(
        update={
            "moco": given.moco.model_copy(update={"queue_size": queue, "bn_splits": 1}),
            "mls": given.mls.model_copy(update={"topk": 1}),
        }
    )
    count, side = config.batch_size, config.augment.crop

    def run(method: Method[Any]) -> Tensor:
        query_BCHW, key_BCHW = (torch.empty(count, 3, side, side) for _ in range(2))
        boxes_VB4 = torch.ones(2, count, 4, dtype=torch.int64)
        flips_VB = torch.zeros(2, count, dtype=torch.bool)
        row_B = torch.zeros(count, dtype=torch.int64)
        local = config.augment.local_crops
        local_XCHW = torch.empty(count * local.count, 3, local.size, local.size) if local.count else None
        pair = Pair(query_BCHW, key_BCHW, row_B, boxes_VB4, flips_VB, None, 1.0, local_XCHW)
        with autocast(CPU, config.precision):
            return method(pair)["loss"]

    return count_step(count, lambda: build_method(config), run)


# ------------------------------------------------------------------------- probes


def extraction_step(task: Features, backbone: Backbone) -> Step:
    """Return what the features of an image take."""
    return _extraction_step(task.image_size, task.precision, backbone)


@cache
def _extraction_step(side: int, precision: str, backbone: Backbone) -> Step:
    def run(net: nn.Module) -> Tensor:
        with torch.no_grad(), autocast(CPU, precision):
            return net(torch.empty(MANY, 3, side, side)).sum()

    return count_step(MANY, lambda: build_backbone(backbone), run)


def classifier_sizes(task: TrainedProbe, backbone: Backbone, classes: int) -> Sizes:
    """Return the bytes of a classifier's checkpoint: without its backbone, if that is frozen."""
    return _classifier_sizes(_key(task, "kind", "batchnorm"), backbone, classes)


@cache
def _classifier_sizes(key: str, backbone: Backbone, classes: int) -> Sizes:
    task = SCHEMAS["probe"].validate_json(key)
    return sizes_of(on_meta(lambda: Classifier(build_backbone(backbone), classes, task, seed=0).trained))


def classifier_step(task: TrainedProbe, backbone: Backbone) -> Step:
    """Return what training a classifier takes for each image."""
    return _classifier_step(isinstance(task, FinetuneProbe), task.augment.crop, task.precision, backbone)


@cache
def _classifier_step(tuned: bool, side: int, precision: str, backbone: Backbone) -> Step:
    def run(net: nn.Module) -> Tensor:
        with autocast(CPU, precision), torch.set_grad_enabled(tuned):
            return net(torch.empty(MANY, 3, side, side)).float().sum()

    return count_step(MANY, lambda: build_backbone(backbone), run)


# ------------------------------------------------------------------------------ transfers


def transfer_sizes(task: TransferConfig, backbone: Backbone, classes: int) -> Sizes:
    """Return the bytes of a detector, a segmentation's network or the network of another task."""
    if not isinstance(task, COUNTED):
        return sizes_of(on_meta(lambda: made_by(task).build(task, backbone, classes)))
    semantic = isinstance(task, SemanticTransfer)
    return _transfer_sizes(_key(task, *(SEMANTIC if semantic else DETECTOR)), backbone, classes)


@cache
def _transfer_sizes(key: str, backbone: Backbone, classes: int) -> Sizes:
    return sizes_of(on_meta(lambda: _transfer(SCHEMAS["transfer"].validate_json(key), backbone, classes)))


def _transfer(task: TransferConfig, backbone: Backbone, classes: int) -> nn.Module:
    if not isinstance(task, SemanticTransfer):
        return Parts(task, backbone, classes)
    body = build_backbone(backbone)
    dilate(body, task.output_stride, FIRST_STRIDE[backbone.stem])
    return HEADS[task.head](body, feature_dims(backbone), task, classes)


def transfer_step(task: TransferConfig, backbone: Backbone, classes: int, side: int) -> Step:
    """Return what an image takes: of a detector on squares of a side, or of semantic segmentation on its crops."""
    semantic = isinstance(task, SemanticTransfer)
    size = tuple(task.crop) if isinstance(task, SemanticTransfer) else (side, side)
    return _transfer_step(_key(task, *(SEMANTIC if semantic else DETECTOR)), backbone, classes, size)


@cache
def _transfer_step(key: str, backbone: Backbone, classes: int, size: tuple[int, ...]) -> Step:
    task = SCHEMAS["transfer"].validate_json(key)

    def run(net: nn.Module) -> Tensor:
        images_BCHW = torch.empty(FEW, 3, *size)
        if not isinstance(task, SemanticTransfer):
            return net(images_BCHW)
        truth_BHW = torch.zeros(FEW, *size, dtype=torch.int64)
        losses = [F.cross_entropy(logits_BKHW, truth_BHW) for logits_BKHW in net(images_BCHW).values()]
        return torch.stack(losses).sum()

    return count_step(FEW, lambda: _transfer(task, backbone, classes), run)
