"""The schema of the ``transfer`` block: a backbone fine-tuned on detection or segmentation.

    transfer:
      detect: {kind: instance, dataset: scenes}                                # torchvision's Mask R-CNN
      coco: {kind: instance, backend: detectron2, dataset: coco}               # the paper's Table 1
      voc: {kind: detection, backend: detectron2, dataset: voc0712, architecture: c4, trials: 3}
      city: {kind: semantic, dataset: cityscapes, trials: 2}                   # the paper's Table 3

``instance`` finds boxes and masks, ``detection`` only boxes, ``semantic`` the class of each pixel. docs/protocols.md
has the protocols and their sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from mls.config.datasets import Annotations
from mls.config.section import Section, alternatives, values_of
from mls.config.values import (
    Ascending,
    Channels,
    Count,
    Drops,
    Index,
    Momentum,
    Name,
    NonNegative,
    Positive,
    PositiveRange,
    Repeats,
    Side,
    at_most,
)

TrainOn = Literal["train", "train+val"]
Steps = Annotated[Drops, Ascending]
Images = Annotated[int, Field(ge=1), at_most(4096, "no machine holds more images of this size at once")]
"""Images in a batch."""
Engine = Literal["faster-coco-eval", "pycocotools"]
"""Library that scores detections; both give the same numbers."""
Regions = Annotated[int, Field(ge=1), at_most(100_000, "an image has no more regions of interest")]


class TransferSection(Section):
    """Keys of every transfer task."""

    backend: Literal["torchvision", "detectron2"] = "torchvision"
    """Library that trains the task."""
    dataset: Name
    train_on: TrainOn = "train"
    """Splits that it is trained on."""
    trials: Repeats = 1
    """Repeats of this task with different seeds, on the same pretrained backbone [paper: 3 on VOC, 2 on Cityscapes]."""
    batch_size: Images
    """Images per step, over all ranks."""
    accumulate: Count = 1
    """Parts of each step's batch, one after another, whose gradients are added up: less memory. Batch norm then sees
    one part at a time, and a detector's losses are means over the parts' means."""
    momentum: Momentum = 0.9
    """Momentum of SGD."""
    made_by: ClassVar[str]
    """``module:Class`` of the `mls.transfer.interface.TransferTask` that trains it."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that it is trained on."""
        return tuple(self.train_on.split("+"))

    @model_validator(mode="after")
    def _has_equal_parts(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate {self.accumulate} does not divide batch_size {self.batch_size}")
        return self

    def steps_on(self, images: int | None) -> int | None:
        """Optimiser steps of the whole training on that many images; None if their number is unknown."""
        raise NotImplementedError


class TorchvisionDetector(TransferSection):
    """torchvision's Mask R-CNN (``instance``) or Faster R-CNN (``detection``) with FPN, on any `Backbone`."""

    kind: Literal["instance", "detection"]
    backend: Literal["torchvision"] = "torchvision"
    made_by = "mls.transfer.torchvision:TorchvisionDetection"
    image_size: Annotated[Side, Field(ge=32)] = 800
    """Shorter side in training and testing, pixels; the longer side is at most 5/3 of it."""
    epochs: Positive = 12.0
    """Passes over train; fractions are allowed."""
    batch_size: Images = 16
    lr: Positive = 0.02
    """Learning rate for this batch size; never rescaled."""
    weight_decay: NonNegative = 1e-4
    warmup_steps: Index = 100
    """Steps over which the learning rate rises linearly."""
    steps: Steps = [0.6667, 0.8889]
    """When the learning rate is divided by 10, as shares of the schedule [60k and 80k of 90k]."""
    fpn_channels: Channels = 256
    head_channels: Channels = 1024
    """Width of the box head's two layers; the mask head's width is ``fpn_channels``."""
    rois: Regions = 512
    """Regions sampled per image to train the heads."""
    proposals: Regions = 1000
    """Proposals kept per image after non-maximum suppression when testing; training keeps twice as many."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the backbone and FPN (autocast); heads and losses are float32."""
    engine: Engine = "faster-coco-eval"
    """Library that scores the predictions. ``pycocotools`` is the reference: the same numbers, many times slower."""

    def steps_on(self, images: int | None) -> int | None:
        """Steps of ``epochs`` passes over that many images, at least one step."""
        return images and max(1, round(self.epochs * images / self.batch_size))


class Detectron2Detector(TransferSection):
    """Detectron2's Mask R-CNN (``instance``) or Faster R-CNN (``detection``): the reference for the paper's numbers.

    Defaults are those of Table 1: R50-FPN on COCO, 90k iterations [paper], in DenseCL's variant [lineage:
    benchmarks/detection of its repository, whose COCO numbers the paper quotes]. As in the pretrained network, pixels
    are RGB with the same normalisation, and the stride is in the 3x3 convolutions.
    """

    kind: Literal["instance", "detection"]
    backend: Literal["detectron2"]
    made_by = "mls.transfer.detectron2:Detectron2Detection"
    train_on: TrainOn = "train+val"
    """Splits that it is trained on. Nothing is chosen on val, and papers train on all of it."""
    architecture: Literal["fpn", "c4"] = "fpn"
    """``fpn``: a feature pyramid [Table 1]; ``c4``: heads on C4, with ResNet's last stage as a head [Tables 2 and
    4]."""
    iterations: Count = 90_000
    """Steps with ``reference_batch`` images each [90k on COCO; 24k on VOC]."""
    batch_size: Images = 16
    """Images per step. If it differs from ``reference_batch``, the linear rule applies: with half as many images there
    are twice as many steps (and warm-up steps) at half the learning rate."""
    reference_batch: Count = 16
    """Batch size for which ``iterations``, ``lr`` and ``warmup_steps`` are given."""
    lr: Positive = 0.02
    """Learning rate for ``reference_batch``."""
    weight_decay: NonNegative = 1e-4
    """Weight decay of all layers except normalisation."""
    warmup_steps: Index = 1000
    """Steps over which the learning rate rises linearly from a thousandth [100 on VOC]."""
    steps: Steps = [0.6666667, 0.8888889]
    """When the learning rate is divided by 10, as shares of the schedule [60k and 80k of 90k; 18k and 22k of 24k]."""
    train_sizes: Annotated[list[Side], Field(min_length=1)] = [640, 672, 704, 736, 768, 800]
    """Shorter sides in training, pixels; one is drawn for each image [480 to 800 on VOC]."""
    test_size: Side = 800
    """Shorter side in testing, pixels."""
    max_size: Side = 1333
    """Largest longer side, pixels."""
    norm: Literal["SyncBN", "FrozenBN"] = "SyncBN"
    """Batch norms of the backbone. ``SyncBN``: trained, with statistics of the whole batch; ``FrozenBN``: constants."""
    freeze_at: Annotated[int, Field(ge=0, le=5)] = 0
    """Number of stages that are not trained, counted from the stem [Detectron2's own default: 2]."""
    fpn_norm: Literal["SyncBN", "none"] = "SyncBN"
    """Normalisation of the feature pyramid; only with ``fpn``."""
    box_head: Literal["2fc", "4conv1fc"] = "4conv1fc"
    """``2fc``: two linear layers [Detectron2's own, S3L, Tobias]; ``4conv1fc``: four convolutions and one linear layer
    [InfoMin, DenseCL, ORL, SlotCon]. Only with ``fpn``."""
    head_norm: Literal["SyncBN", "none"] = "SyncBN"
    """Normalisation of the convolutions in the heads; only with ``fpn`` [none with ``2fc`` in S3L and Tobias]."""
    extra_norm: bool = True
    """Add a batch norm after the last stage [MoCo's Res5ROIHeadsExtraNorm]; only with ``c4``."""
    rois: Regions = 512
    """Regions sampled per image to train the heads."""
    proposals: Regions = 1000
    """Proposals kept per image when testing."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the backbone, FPN and C4's last stage (autocast); other heads and losses are float32."""
    precise_bn: Index = 200
    """Batches of ``reference_batch`` images from which batch norm statistics are computed again after training; 0 keeps
    the running statistics."""
    engine: Engine = "faster-coco-eval"
    """Library that scores the predictions, as for torchvision's."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if max(self.train_sizes) > self.max_size or self.test_size > self.max_size:
            raise ValueError(f"max_size {self.max_size} is less than a shorter side (train_sizes, test_size)")
        other = {"c4": ("fpn_norm", "box_head", "head_norm"), "fpn": ("extra_norm",)}[self.architecture]
        if unread := [name for name in other if name in self.model_fields_set]:
            raise ValueError(f"architecture {self.architecture!r} has no {', '.join(unread)}: leave that out")
        return self

    @property
    def scale(self) -> float:
        """Factor of the linear rule: the learning rate is multiplied by it, the steps are divided by it."""
        return self.batch_size / self.reference_batch

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return max(1, round(self.iterations / self.scale))

    def steps_on(self, images: int | None) -> int | None:
        """`total_steps`, for any number of images."""
        return self.total_steps


class SemanticTransfer(TransferSection):
    """Semantic segmentation with PSPNet (arXiv 1612.01105), PSANet (ECCV 2018) or FCN on a dilated ResNet.

    Defaults are mmsegmentation's for Cityscapes, 512 x 1024 and 40k iterations, the same for PSPNet and PSANet; its
    supervised numbers agree with the paper's Table 3. For data sets without index masks, these are made from the
    instances' masks, with one more class: ``background``.
    """

    kind: Literal["semantic"]
    backend: Literal["torchvision"] = "torchvision"
    made_by = "mls.transfer.semantic:SemanticTraining"
    train_on: TrainOn = "train+val"
    """Splits that it is trained on. Nothing is chosen on val, and papers train on all of it."""
    head: Literal["psp", "psa", "fcn"] = "psp"
    """``psp``: pyramid pooling, PSPNet; ``psa``: point-wise spatial attention, collected and distributed, PSANet;
    ``fcn``: two dilated convolutions [MoCo's FCN]."""
    output_stride: Literal[4, 8, 16, 32] = 8
    """Pixels between neighbouring cells of the last stage's map; later stages are dilated instead of strided [8]."""
    iterations: Count = 40_000
    """Steps of the whole training."""
    batch_size: Annotated[Images, Field(ge=2)] = 8
    lr: Positive = 0.01
    """Learning rate for this batch size; never rescaled."""
    power: Positive = 0.9
    """Exponent of the schedule: from ``lr`` to ``min_lr`` as (1 - share of the schedule) to this power."""
    min_lr: NonNegative = 1e-4
    steps: Steps = []
    """When the learning rate is divided by 10 instead, as shares of the schedule; empty: polynomial."""
    weight_decay: NonNegative = 5e-4
    crop: Annotated[list[Side], Field(min_length=2, max_length=2)] = [512, 1024]
    """Height and width of a training crop, pixels."""
    scale: Annotated[PositiveRange, at_most(10, "photos enlarged further do not fit in memory")] = [0.5, 2.0]
    """Smallest and largest factor by which an image is resized before it is cropped."""
    class_share: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Largest share of one class in a crop; a crop with more is drawn again, at most 10 times."""
    photometric: bool = True
    """Change brightness, contrast, saturation and hue at random [as SSD and mmsegmentation do]."""
    head_channels: Annotated[Channels, Field(ge=8)] = 512
    """Width of the head; the auxiliary head is half as wide."""
    pools: Annotated[list[Count], Field(min_length=1), at_most(256, "maps have fewer cells")] = [1, 2, 3, 6]
    """Sides of the pooled maps, cells; only with ``psp``."""
    attention_window: Annotated[Count, at_most(255, "each cell predicts as many weights as the window has cells")] = 97
    """Side of the square around a cell that it attends to, cells of a map at half the resolution; only with ``psa``."""
    aux_weight: NonNegative = 0.4
    """Weight of the auxiliary head's loss, on the third stage; not with ``fcn``, which has none."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    inference: Literal["whole", "slide"] = "whole"
    """``whole``: the image at once; ``slide``: windows of size ``crop``, whose logits are averaged where they
    overlap."""
    stride: Annotated[list[Count], Field(min_length=2, max_length=2)] = [341, 683]
    """Distance between windows of ``slide``, down and across, pixels."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of backbone and heads (autocast); losses are float32."""

    def steps_on(self, images: int | None) -> int | None:
        """``iterations``, for any number of images."""
        return self.iterations

    @model_validator(mode="after")
    def _fits(self) -> Self:
        others = {"psp": ("attention_window",), "psa": ("pools",), "fcn": ("pools", "attention_window", "aux_weight")}
        if unread := [key for key in others[self.head] if key in self.model_fields_set]:
            raise ValueError(f"head {self.head!r} has no {', '.join(unread)}: leave that out")
        if self.steps and (unread := [key for key in ("power", "min_lr") if key in self.model_fields_set]):
            raise ValueError(f"with steps, {' and '.join(unread)} would not be read: leave that out")
        if self.inference == "whole" and "stride" in self.model_fields_set:
            raise ValueError("inference 'whole' has no stride: leave it out")
        if self.batch_size == self.accumulate:
            raise ValueError("batch norm needs parts of at least 2 images: lower accumulate or raise batch_size")
        if any(step > side for step, side in zip(self.stride, self.crop, strict=True)) and self.inference == "slide":
            raise ValueError(f"stride {self.stride} leaves gaps between windows of {self.crop}")
        return self


Detector = TorchvisionDetector | Detectron2Detector
"""Tasks that find boxes."""


def _section_name(value: Any) -> str | None:
    """Name the section of a raw task. A wrong backend gives a section of the same kind, which then reports it."""
    if isinstance(value, TransferSection):
        return type(value).__name__
    kind, backend = (value.get("kind"), value.get("backend", "torchvision")) if isinstance(value, dict) else (None, "")
    of_kind = [section for section in TRANSFERS if kind in values_of(section, "kind")]
    of_kind.sort(key=lambda section: backend not in values_of(section, "backend"))  # stable: the fitting one first
    return of_kind[0].__name__ if of_kind else None


_AP = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_BOX, _MASK = (tuple(f"{target}_{ap}" for ap in _AP) for target in ("box", "mask"))
VOC_METRICS = ("voc_AP", "voc_AP50", "voc_AP75")
"""VOC's own average precision by Detectron2's evaluator (2007: at 11 points); AP is the mean over IoU 0.5 to 0.95."""


@dataclass(frozen=True)
class Kind:
    """What the rest of the package knows about a kind of transfer."""

    metrics: tuple[str, ...]
    """Metrics that ``metrics.json`` holds and a table column may name; on VOC with Detectron2 also `VOC_METRICS`."""
    trained_on: tuple[Annotations, ...]
    """Annotations that it can be trained on."""
    scored_by: str
    """``module:function`` that computes the metrics, see `mls.transfer.interface.scored`."""
    per_class: str = ""
    """Metric of a single class that figures compare; empty if there is none."""


KINDS: dict[str, Kind] = {
    "instance": Kind((*_BOX, *_MASK), ("boxes and masks",), "mls.transfer.evaluate:score_objects", "box_AP"),
    "detection": Kind(_BOX, ("boxes", "boxes and masks"), "mls.transfer.evaluate:score_objects", "box_AP"),
    "semantic": Kind(
        ("mIoU", "mAcc", "aAcc"), ("boxes and masks", "index masks"), "mls.transfer.semantic_score:score_pixels", "IoU"
    ),
}
"""Value of ``kind`` -> its entry."""

TransferConfig = Annotated[
    Annotated[TorchvisionDetector, Tag("TorchvisionDetector")]
    | Annotated[Detectron2Detector, Tag("Detectron2Detector")]
    | Annotated[SemanticTransfer, Tag("SemanticTransfer")],
    Discriminator(
        _section_name,
        custom_error_type="transfer_kind",
        custom_error_message=f"kind must be {alternatives(KINDS)}",
    ),
]
TRANSFERS: tuple[type[TransferSection], ...] = tuple(
    get_args(member)[0] for member in get_args(get_args(TransferConfig)[0])
)
"""The sections of all transfer tasks."""
