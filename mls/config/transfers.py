"""The schema of the ``transfer`` block: a backbone fine-tuned on detection or segmentation.

    transfer:
      detect: {kind: instance, dataset: scenes}                                # torchvision's Mask R-CNN
      coco: {kind: instance, backend: detectron2, dataset: coco}               # the paper's Table 1
      voc: {kind: detection, backend: detectron2, dataset: voc0712, architecture: c4, trials: 3}
      city: {kind: semantic, dataset: cityscapes, trials: 2}                   # the paper's Table 3

``instance``: boxes and masks; ``detection``: boxes alone; ``semantic``: the class of each pixel. Protocols and where
they come from: docs/protocols.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from mls.config.section import Annotations, Ascending, Count, Name, Positive, Section, alternatives, values_of

Steps = Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(max_length=8), Ascending]
"""Where the learning rate is divided by 10, as shares of the schedule."""
TrainOn = Literal["train", "train+val"]
Side = Annotated[int, Field(ge=16)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Decay = Annotated[float, Field(ge=0)]


class TransferSection(Section):
    """What all tasks share."""

    backend: Literal["torchvision", "detectron2"] = "torchvision"
    dataset: Name
    train_on: TrainOn = "train"
    """Splits."""
    trials: Count = 1
    """Repeats of this task with other seeds, on the same pretrained backbone."""
    batch_size: Count
    momentum: Momentum = 0.9
    """Of SGD."""
    made_by: ClassVar[str]
    """``module:Class`` of what trains it, a `mls.transfer.interface.TransferTask`."""

    @property
    def splits(self) -> tuple[str, ...]:
        """What it is trained on."""
        return tuple(self.train_on.split("+"))

    def steps_on(self, images: int | None) -> int | None:
        """Optimiser steps of the whole training on so many images; None where that is not known."""
        raise NotImplementedError


class TorchvisionDetector(TransferSection):
    """Mask R-CNN (``instance``) or Faster R-CNN (``detection``) with FPN on any ResNet of ours; torchvision's parts."""

    kind: Literal["instance", "detection"]
    backend: Literal["torchvision"] = "torchvision"
    made_by = "mls.transfer.detection:Detection"
    image_size: Annotated[int, Field(ge=32)] = 800
    """Shorter side in training and testing, pixels (longer side: at most 5/3 of it)."""
    epochs: Positive = 12.0
    """Passes over train; fractions are allowed."""
    batch_size: Count = 16
    lr: Positive = 0.02
    """For this batch size; never rescaled."""
    weight_decay: Decay = 1e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    steps: Steps = [0.6667, 0.8889]
    """[60k and 80k of 90k]"""
    fpn_channels: Count = 256
    head_channels: Count = 1024
    """Width of the box head's two layers; the mask head has ``fpn_channels``."""
    rois: Count = 512
    """Regions sampled per image to train the heads."""
    proposals: Count = 1000
    """Proposals kept per image after non-maximum suppression (testing; twice that in training)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the backbone and FPN (autocast); heads and losses are float32."""

    def steps_on(self, images: int | None) -> int | None:
        """So many epochs, at least one step."""
        return images and max(1, round(self.epochs * images / self.batch_size))


class Detectron2Detector(TransferSection):
    """Detectron2's Mask R-CNN (``instance``) or Faster R-CNN (``detection``): the reference for the paper's numbers.

    Defaults are those of Table 1: R50-FPN on COCO, 90k iterations [paper], in DenseCL's variant [lineage:
    benchmarks/detection of its repository, whose COCO numbers the paper quotes]. Pixels are RGB, normalised as in
    pretraining, and the stride is in the 3x3 convolutions: anything else would not be the pretrained network.
    """

    kind: Literal["instance", "detection"]
    backend: Literal["detectron2"]
    made_by = "mls.transfer.detectron2:Detectron2Detection"
    train_on: TrainOn = "train+val"
    """Nothing is chosen by val, and papers train on all of it."""
    trials: Count = 1
    """Repeats of this task with other seeds, on the same pretrained backbone [3 on VOC]."""
    architecture: Literal["fpn", "c4"] = "fpn"
    """``fpn``: a feature pyramid [Table 1]; ``c4``: heads on C4, whose last stage is ResNet's own [Tables 2 and 4]."""
    iterations: Count = 90_000
    """Steps at ``reference_batch`` images each [90k on COCO; 24k on VOC]."""
    batch_size: Count = 16
    """Images a step. Another number than ``reference_batch`` scales by the linear rule: of half the images come
    twice as many steps (and warm-up steps) at half the learning rate."""
    reference_batch: Count = 16
    """Batch size that ``iterations``, ``lr`` and ``warmup_steps`` are meant for."""
    lr: Positive = 0.02
    weight_decay: Decay = 1e-4
    """Of all but normalisation layers."""
    warmup_steps: Annotated[int, Field(ge=0)] = 1000
    """The learning rate rises linearly from a thousandth [100 on VOC]."""
    steps: Steps = [0.6666667, 0.8888889]
    """[60k and 80k of 90k; 18k and 22k of 24k]"""
    train_sizes: Annotated[list[Side], Field(min_length=1)] = [640, 672, 704, 736, 768, 800]
    """Shorter side in training, pixels, one drawn for each image [480 to 800 on VOC]."""
    test_size: Side = 800
    max_size: Side = 1333
    """Longer side, at most."""
    norm: Literal["SyncBN", "FrozenBN"] = "SyncBN"
    """Batch norms of the backbone: trained, with the statistics of the whole batch, or constants."""
    freeze_at: Annotated[int, Field(ge=0, le=5)] = 0
    """How many stages, the stem first, are not trained [Detectron2's own default: 2]."""
    fpn_norm: Literal["SyncBN", "none"] = "SyncBN"
    box_head: Literal["2fc", "4conv1fc"] = "4conv1fc"
    """Of ``fpn``: two linear layers [Detectron2's own]; or four convolutions and one [DenseCL's and InfoMin's]."""
    head_norm: Literal["SyncBN", "none"] = "SyncBN"
    """Of the convolutions in the heads of ``fpn``."""
    extra_norm: bool = True
    """Of ``c4``: a batch norm behind the last stage [MoCo's Res5ROIHeadsExtraNorm]."""
    rois: Count = 512
    """Regions sampled per image to train the heads."""
    proposals: Count = 1000
    """Proposals kept per image when testing."""
    precise_bn: Annotated[int, Field(ge=0)] = 200
    """Batches of ``reference_batch`` from which batch norms' statistics are computed anew after training; 0: none."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if max(self.train_sizes) > self.max_size or self.test_size > self.max_size:
            raise ValueError(f"max_size {self.max_size} is less than a shorter side")
        other = {"c4": ("fpn_norm", "box_head", "head_norm"), "fpn": ("extra_norm",)}[self.architecture]
        if unread := [name for name in other if name in self.model_fields_set]:
            raise ValueError(f"architecture {self.architecture!r} has no {', '.join(unread)}: leave that out")
        return self

    @property
    def scale(self) -> float:
        """By how much the linear rule scales the learning rate (and its inverse the steps)."""
        return self.batch_size / self.reference_batch

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return max(1, round(self.iterations / self.scale))

    def steps_on(self, images: int | None) -> int | None:
        """`total_steps`, however many images there are."""
        return self.total_steps


class SemanticTransfer(TransferSection):
    """The class of each pixel: PSPNet (arXiv 1612.01105) on a dilated ResNet.

    The paper's PSANet is not implemented: no maintained library has it (see ``tables.<table>.not_implemented``).
    Defaults are those of Cityscapes in mmsegmentation, 512 x 1024 and 40k iterations, whose supervised numbers the
    paper's Table 3 agrees with. Data sets without index masks get them from their instances' masks, with one class
    more: ``background``.
    """

    kind: Literal["semantic"]
    backend: Literal["torchvision"] = "torchvision"
    made_by = "mls.transfer.semantic:SemanticTraining"
    train_on: TrainOn = "train+val"
    """Nothing is chosen by val, and papers train on all of it."""
    trials: Count = 1
    """Repeats of this task with other seeds, on the same pretrained backbone [2]."""
    output_stride: Literal[4, 8, 16, 32] = 8
    """Pixels between the cells of the last stage's map: later stages are dilated instead of strided [8]."""
    iterations: Count = 40_000
    batch_size: Annotated[int, Field(ge=2)] = 8
    lr: Positive = 0.01
    """For this batch size; never rescaled."""
    power: Positive = 0.9
    """The learning rate falls from ``lr`` to ``min_lr`` as (1 - share of the schedule) to this power."""
    min_lr: Annotated[float, Field(ge=0)] = 1e-4
    weight_decay: Decay = 5e-4
    crop: Annotated[list[Side], Field(min_length=2, max_length=2)] = [512, 1024]
    """Height and width of what is trained on, pixels."""
    scale: Annotated[list[Positive], Field(min_length=2, max_length=2), Ascending] = [0.5, 2.0]
    """Least and greatest factor by which an image is resized before it is cropped."""
    class_share: Annotated[float, Field(gt=0, le=1)] = 0.75
    """A crop of which one class is more than this is drawn anew, 10 times at most."""
    photometric: bool = True
    """Random brightness, contrast, saturation and hue [SSD's, as mmsegmentation's]."""
    head_channels: Annotated[int, Field(ge=8)] = 512
    """Width of the pyramid-pooling head; the auxiliary head has half of it."""
    pools: Annotated[list[Count], Field(min_length=1)] = [1, 2, 3, 6]
    """Sides of the pooled maps, cells."""
    aux_weight: Annotated[float, Field(ge=0)] = 0.4
    """Of the auxiliary head's loss, on the third stage."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    inference: Literal["whole", "slide"] = "whole"
    """An image at once; or windows of ``crop`` whose logits are averaged where they overlap."""
    stride: Annotated[list[Count], Field(min_length=2, max_length=2)] = [341, 683]
    """Of ``slide``: between windows, down and across, pixels."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of backbone and heads (autocast); losses are float32."""

    def steps_on(self, images: int | None) -> int | None:
        """``iterations``, however many images there are."""
        return self.iterations

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.inference == "whole" and "stride" in self.model_fields_set:
            raise ValueError("inference 'whole' has no stride: leave it out")
        if any(step > side for step, side in zip(self.stride, self.crop, strict=True)) and self.inference == "slide":
            raise ValueError(f"stride {self.stride} leaves gaps between windows of {self.crop}")
        return self


Detector = TorchvisionDetector | Detectron2Detector
"""Tasks that find boxes."""


def _which(value: Any) -> str | None:
    """Tag of a task as it was read; Python objects carry theirs in their class."""
    read = value.get if isinstance(value, dict) else lambda key, default=None: getattr(value, key, default)
    kind, backend = read("kind"), read("backend", "torchvision")
    of_kind = [section for section in TRANSFERS if kind in values_of(section, "kind")]
    fitting = [section for section in of_kind if backend in values_of(section, "backend")]
    return next((section.__name__ for section in (*fitting, *of_kind)), None)


_AP = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_BOX, _MASK = (tuple(f"{target}_{ap}" for ap in _AP) for target in ("box", "mask"))
VOC_METRICS = ("voc_AP", "voc_AP50", "voc_AP75")
"""VOC's own average precision (2007: at 11 points), of Detectron2's evaluator; AP over IoU 0.5 to 0.95."""


@dataclass(frozen=True)
class Kind:
    """What the rest of the package has to know of a kind of transfer."""

    metrics: tuple[str, ...]
    """What ``metrics.json`` holds and a table column may name; on VOC with Detectron2 `VOC_METRICS` too."""
    trained_on: tuple[Annotations, ...]
    """What its data set may tell."""
    scored_by: str
    """``module:function`` of what computes the metrics, see `mls.transfer.rescore.scored`."""
    per_class: str = ""
    """Which metric of a single class figures compare; empty where it judges none."""


KINDS: dict[str, Kind] = {
    "instance": Kind((*_BOX, *_MASK), ("boxes and masks",), "mls.transfer.rescore:score_objects", "box_AP"),
    "detection": Kind(_BOX, ("boxes", "boxes and masks"), "mls.transfer.rescore:score_objects", "box_AP"),
    "semantic": Kind(
        ("mIoU", "mAcc", "aAcc"), ("boxes and masks", "index masks"), "mls.transfer.rescore:score_pixels", "IoU"
    ),
}
"""Every kind of transfer."""

TransferConfig = Annotated[
    Annotated[TorchvisionDetector, Tag("TorchvisionDetector")]
    | Annotated[Detectron2Detector, Tag("Detectron2Detector")]
    | Annotated[SemanticTransfer, Tag("SemanticTransfer")],
    Discriminator(
        _which,
        custom_error_type="transfer_kind",
        custom_error_message=f"kind must be {alternatives(KINDS)}",
    ),
]
TRANSFERS: tuple[type[TransferSection], ...] = tuple(
    get_args(member)[0] for member in get_args(get_args(TransferConfig)[0])
)
"""The section of each task."""
