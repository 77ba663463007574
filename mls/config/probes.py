"""The schema of the ``probe`` block: how a backbone is evaluated by classification, one section for each kind.

    probe:
      linear: {kind: linear, dataset: scenes}            # on frozen features
      svm: {kind: svm, dataset: scenes}                  # on the same features, extracted once
      tuned: {kind: finetune, dataset: scenes}           # end to end

`METRICS` and `metrics_of` list the metrics of every task, transfers included. The ``transfer`` block itself is in
`mls.config.transfers`; docs/classification.md has the protocols and their sources.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from mls.config.section import Section, as_list, values_of
from mls.config.transfers import KINDS, TRANSFERS, VOC_METRICS
from mls.config.values import (
    BatchSize,
    Count,
    Drops,
    Grid,
    Momentum,
    Name,
    NonNegative,
    Positive,
    Repeats,
    Share,
    ShareRange,
    Side,
    check_pixels,
)
from mls.config.views import Augment, Interpolation

Strengths = Annotated[list[Positive], Field(min_length=1), Grid]
Fit = Literal["crop", "squash"]

CLASSIFIED = ("mAP", "mAP_11", "mAP_envelope", "top1")
"""Metrics of every classifier: three definitions of mAP (see `mls.metrics`), or top-1."""
DECIDED = ("CP", "CR", "CF1", "OP", "OR", "OF1")
"""Metrics of classifiers whose logit 0 means even odds: precision, recall and F1, per class and overall."""

LOW_SHOT = ("", "_best_on_test", "_envelope", "_best_on_test_envelope")
"""What may follow ``low_shot_<k>``: the cost chosen on val or on test, average precision as area or as envelope."""

# ----------------------------------------------------------------------------- probes of frozen features


def check_resize(resize: int | None, fit: str, side: int, name: str) -> None:
    """Reject a ``resize`` that has no effect.

    Args:
        resize: shorter side before the crop, pixels.
        fit: ``crop`` or ``squash``, before which any other size has an effect.
        side: side of the cropped square, pixels.
        name: key of the file that holds ``side``, for the message.

    Raises:
        ValueError: ``resize`` has no effect.
    """
    if resize is not None and resize == side and fit == "squash":
        raise ValueError(f"resize {resize} is {name} already: leave it out, or name the first of two steps")
    if resize is not None and resize <= side and fit == "crop":
        raise ValueError(f"resize {resize} must be more than {name} ({side}), which is its default")


class Features(Section):
    """Frozen, globally pooled features of a data set; probes with equal features share one artifact."""

    image_size: Side = 224
    """Side of the square that the backbone sees, pixels."""
    resize: Side | None = None
    """Length to which an image's shorter side is resized before the square is made of it, pixels; by default
    ``image_size`` for ``crop`` [ImageNet's usual protocol: 256, then 224], and no such step for ``squash`` [VISSL: 256,
    then 224 x 224]."""
    fit: Fit = "crop"
    """``crop``: resize the shorter side, then crop the centre; ``squash``: resize to the square, whatever the aspect
    ratio [VISSL's VOC07 protocol]."""
    interpolation: Interpolation = "bilinear"
    """Of these resizes; antialiased [``bicubic`` in BYOL's paper and SlotCon]."""
    layer: Literal["layer1", "layer2", "layer3", "layer4"] = "layer4"
    """ResNet stage whose output is averaged."""
    pool: Literal[1, 2] = 1
    """1: over all positions; 2: over each of the four squares that lack a row and a column at the border (6 x 6 of
    7 x 7 positions), which gives four times the features [VISSL and ORL on VOC07: 8,192]."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the backbone (autocast)."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the stored features. ``float16`` halves the file, 0.5 instead of 1.0 GB for COCO's 123,287 images of
    2,048 features, and rounds them to three digits."""
    test: bool = True
    """Evaluate on test. With ``false``, test is not read and val is evaluated: for choosing between settings."""
    metrics: ClassVar[tuple[str, ...]] = CLASSIFIED
    """Metrics that its ``metrics.json`` may hold and a table column may name; ``val`` is the value on val by which the
    classifier was chosen. List `DECIDED` only if a score of 0 means even odds."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_resize(self.resize, self.fit, self.image_size, "image_size")
        return self


class LinearProbe(Features):
    """A linear classifier on frozen features, trained by L-BFGS.

    Multi-label sets: one L2-regularised logistic regression per class, mAP. Single-label sets: softmax regression,
    top-1. The regularisation strength is chosen on val; test is read once.
    """

    kind: Literal["linear"]
    metrics = (*CLASSIFIED, *DECIDED, "val")
    dataset: Name
    strengths: Strengths = [0.01, 0.1, 1.0, 10.0, 100.0]
    """Candidates for C, the inverse regularisation strength as in scikit-learn."""


class SvmProbe(Features):
    """One linear SVM per class, by LIBLINEAR [Goyal et al., arXiv 1905.01235, and VISSL's VOC07 protocol].

    It is trained on train and val together (VOC's trainval). Each class takes the cost with the best cross-validated
    average precision. With ``test: false`` it is trained on train only, and val is evaluated.
    """

    kind: Literal["svm"]
    dataset: Name
    costs: Strengths = [0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0]
    """Candidates for C [VISSL]."""
    folds: Annotated[int, Field(ge=2)] = 3
    """Folds of the cross-validation [VISSL]."""
    low_shot: Annotated[list[Count], Field(max_length=20), Grid] = []
    """Values of k for low-shot SVMs, each trained on k positives and k x (classes - 1) negatives per class
    [1, 2, 4, 8, 16, 32, 64, 96]; multi-label sets only."""
    samples: Count = 5
    """Independent draws of low-shot images for each k [VISSL]."""

    @model_validator(mode="after")
    def _needs_test(self) -> Self:
        if self.low_shot and not self.test:
            raise ValueError("low_shot needs test, which test: false leaves out")
        return self


class KnnProbe(Features):
    """Weighted k-nearest-neighbour classification by cosine similarity [Wu et al., arXiv 1805.01978].

    Train images vote; k is chosen on val.
    """

    kind: Literal["knn"]
    metrics = (*CLASSIFIED, "val")
    dataset: Name
    ks: Annotated[list[Count], Field(min_length=1), Grid] = [10, 20, 100, 200]
    """Candidates for k [DINO's]."""
    temperature: Positive = 0.07
    """tau: a neighbour's vote weighs exp(cosine / tau)."""


class RetrievalProbe(Features):
    """Retrieval: train images are ranked by cosine similarity to each test image and scored per label.

    Nothing is chosen on val.
    """

    kind: Literal["retrieval"]
    metrics = ("mAP",)
    dataset: Name
    precision_at: Annotated[list[Count], Field(min_length=1), Grid] = [1, 5, 10]
    """Values of k for precision@k."""


# --------------------------------------------------------------------------------- trained on images


class TrainAugment(Augment):
    """Training views for labelled images: torchvision's random resized crop and flip, no colour changes."""

    scale: ShareRange = [0.08, 1.0]
    resize: Side | None = None
    """Plain crop instead of the random resized one: the shorter side is resized to this length, pixels, and a random
    square of side ``crop`` is cut out [S3L on CUB200 and VOC07: 256 with a crop of 224]."""
    jitter_p: Share = 0.0
    gray_p: Share = 0.0
    blur_p: Share = 0.0
    solarize_p: Share = 0.0
    overlap: Annotated[float, Field(ge=0, le=0)] = 0.0
    """Must be 0: there is only one view of each image."""
    auto_augment_p: Annotated[float, Field(ge=0, le=0)] = 0.0
    """Must be 0: AutoAugment is for pretraining."""

    @model_validator(mode="after")
    def _crops(self) -> Self:
        if self.local_crops.count:
            raise ValueError("local_crops are for pretraining: leave them out")
        if self.resize is not None and self.resize < self.crop:
            raise ValueError(f"resize {self.resize} must be at least crop ({self.crop})")
        if self.resize is not None and "scale" in self.model_fields_set:
            raise ValueError("resize cuts plain crops, which have no scale: leave one of the two out")
        return self


class Trained(Section):
    """A linear classifier on the pooled feature, trained on images by SGD: the keys of ``finetune`` and ``sgd``.

    Multi-label sets: binary cross-entropy, mAP. Single-label sets: cross-entropy, top-1. Nothing is chosen on val, so
    it is trained on train and val together, and the last epoch is evaluated. With ``test: false`` it is trained on
    train only and val is evaluated: for choosing between settings.
    """

    dataset: Name
    trials: Repeats = 1
    """Repeats of this task with different seeds, on the same pretrained backbone."""
    augment: TrainAugment = TrainAugment()
    """Training views; ``crop``, 224 or 448, and ``interpolation`` are also those of the square in testing."""
    resize: Side | None = None
    """As in `Features`, for testing [256 with a crop of 224]."""
    fit: Fit = "crop"
    """As in `Features`, for testing."""
    epochs: Count
    batch_size: BatchSize
    lr: Positive
    """Learning rate for this batch size; never rescaled."""
    momentum: Momentum = 0.9
    nesterov: bool = False
    weight_decay: NonNegative
    schedule: Literal["cosine", "step"] = "cosine"
    """``cosine``: the learning rate falls to zero over all steps; ``step``: it is divided by 10 at ``steps``."""
    steps: Drops = [0.3333, 0.6667]
    """When schedule ``step`` divides the learning rate, as shares of all epochs."""
    warmup_epochs: NonNegative = 0.0
    """Epochs over which the learning rate first rises linearly from 0."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the backbone (autocast); classifier and loss are float32."""
    test: bool = True
    """As in `Features`."""
    metrics: ClassVar[tuple[str, ...]] = (*CLASSIFIED, *DECIDED)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that it is trained on."""
        return ("train", "val") if self.test else ("train",)

    def steps_on(self, images: int | None) -> int | None:
        """Optimiser steps of the whole training on that many images; None if their number is unknown."""
        return images and max(1, round(self.epochs * images / self.batch_size))

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_resize(self.resize, self.fit, self.augment.crop, "augment.crop")
        check_pixels(self.batch_size, self.augment.crop)
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs must be less than epochs ({self.epochs})")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class FinetuneProbe(Trained):
    """Backbone and classifier trained end to end.

    120 epochs are the paper's. The paper states nothing else, so the other defaults are its lineage's [S3L's scripts
    for four of the seven sets: batch 64, weight decay 5e-4, learning rates from 0.001 to 0.1, cosine or steps at a
    third and two thirds of all epochs; docs/classification.md has each].
    """

    kind: Literal["finetune"]
    epochs: Count = 120
    batch_size: BatchSize = 64
    lr: Positive = 0.01
    weight_decay: NonNegative = 5e-4
    classifier_lr: Positive = 1.0
    """The classifier's learning rate as a multiple of ``lr`` [10 in CSRA]."""
    batchnorm: Literal["train", "frozen"] = "train"
    """``frozen`` keeps the pretrained statistics while all weights are trained, those of batch norm too [S3L on VOC07,
    Aircraft and Cars]."""
    mixup: NonNegative = 0.0
    """alpha of mixup [Zhang et al., arXiv 1710.09412]: each batch is mixed with itself in another order, images and
    losses alike, by one share drawn from Beta(alpha, alpha) [S3L on CUB200: 1.0]; 0 mixes nothing."""


class SgdProbe(Trained):
    """Only the classifier is trained, on augmented images through a frozen backbone.

    Defaults are MoCo's for ImageNet [arXiv 1911.05722: 100 epochs, lr 30 for batch 256, divided at epochs 60 and 80].
    The other usual protocol has 28 epochs [``r50_multihead_28ep`` of ORL and OpenSelfSup]: lr 0.01, nesterov, weight
    decay 1e-4, divided at epochs 8, 16 and 24, ``batchnorm`` (without it this lr is far too low), jitter_p 1.0 with
    jitter [0.4, 0.4, 0.4, 0.0].
    """

    kind: Literal["sgd"]
    epochs: Count = 100
    batch_size: BatchSize = 256
    lr: Positive = 30.0
    weight_decay: NonNegative = 0.0
    schedule: Literal["cosine", "step"] = "step"
    steps: Drops = [0.6, 0.8]
    batchnorm: bool = False
    """Put a batch norm without scale and shift between feature and classifier [ORL]."""


FrozenProbe = LinearProbe | SvmProbe | KnnProbe | RetrievalProbe
"""Probes that read extracted features."""
TrainedProbe = FinetuneProbe | SgdProbe
"""Probes that train on images."""
ProbeConfig = Annotated[FrozenProbe | TrainedProbe, Field(discriminator="kind")]
PROBES: tuple[type[Features | Trained], ...] = (*get_args(FrozenProbe), *get_args(TrainedProbe))
TASKS = (*PROBES, *TRANSFERS)

METRICS: dict[str, tuple[str, ...]] = {
    **{kind: task.metrics for task in PROBES for kind in values_of(task, "kind")},
    **{kind: entry.metrics for kind, entry in KINDS.items()},
}
"""Kind of a task -> metrics that its ``metrics.json`` may hold and a table column may name; `metrics_of` adds more."""


def metrics_of(task: dict[str, Any], multi_label: bool | None = None, source: str = "") -> tuple[str, ...]:
    """List the metrics of a task of a raw experiment file; empty if its kind is unknown.

    Args:
        task: as it was read.
        multi_label: whether an image of its data set may have several labels; None if that is not known yet.
        source: ``source`` of its data set.
    """
    if task.get("test") is False:
        return ("val",)
    kind = str(task.get("kind"))
    own = METRICS.get(kind, ())
    if kind == "retrieval":
        ks = as_list(task.get("precision_at", RetrievalProbe.model_fields["precision_at"].default))
        return (*own, *(f"P@{k}" for k in ks))
    undefined = () if multi_label is None else ("top1",) if multi_label else (*CLASSIFIED[:-1], *DECIDED)
    added: tuple[str, ...] = ()
    if kind == "svm":
        added = tuple(f"low_shot_{k}{end}" for k in as_list(task.get("low_shot")) for end in LOW_SHOT)
    elif task.get("backend") == "detectron2" and source == "voc":
        added = VOC_METRICS
    return (*(name for name in own if name not in undefined), *added)
