"""The schema of the ``probe`` block: what a backbone is judged by, one section a kind; and what all tasks may give.

    probe:
      linear: {kind: linear, dataset: scenes}            # on frozen features
      svm: {kind: svm, dataset: scenes}                  # on the same features, extracted once
      tuned: {kind: finetune, dataset: scenes}           # end to end

The ``transfer`` block is in ``mls.config.transfers``. Protocols and where they come from: docs/classification.md.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from mls.config.section import Ascending, Count, Grid, Name, Positive, Section, Share, values_of
from mls.config.transfers import KINDS, TRANSFERS, VOC_METRICS
from mls.config.views import Augment

CLASSIFIED = ("mAP", "mAP_11", "mAP_envelope", "top1")
"""Of every classifier: three definitions of mAP (see ``mls.metrics``), or top-1."""
DECIDED = ("CP", "CR", "CF1", "OP", "OR", "OF1")
"""Of classifiers of whose logits 0 means even odds: precision, recall and F1 by class and over all."""

# ----------------------------------------------------------------------------- probes of frozen features


def check_resize(resize: int | None, fit: str, side: int, name: str) -> None:
    """Check that a ``resize`` has something to say.

    Raises:
        ValueError: it has not.
    """
    if resize is not None and fit == "squash":
        raise ValueError("fit 'squash' resizes to the square itself: leave resize out")
    if resize is not None and resize <= side:
        raise ValueError(f"resize {resize} must be more than {name} ({side}), its value when it is left out")


class Features(Section):
    """Frozen, globally pooled features of a data set; probes that name equal ones share one artifact."""

    image_size: Annotated[int, Field(ge=16)] = 224
    """Side of the square that the backbone sees, pixels."""
    resize: Annotated[int, Field(ge=16)] | None = None
    """Shorter side that images are resized to before the square is cut out of their middle, pixels; default:
    ``image_size`` [256 before 224 is usual for ImageNet]."""
    fit: Literal["crop", "squash"] = "crop"
    """``crop``: as above; ``squash``: resized to the square, whatever the aspect ratio [VISSL's VOC07 protocol]."""
    layer: Literal["layer1", "layer2", "layer3", "layer4"] = "layer4"
    """The stage of the ResNet whose output is averaged over all places."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the backbone (autocast); features are kept as float32."""
    test: bool = True
    """Whether test is read. Without it val is judged: for choosing between settings."""
    metrics: ClassVar[tuple[str, ...]] = CLASSIFIED
    """What its ``metrics.json`` may hold and a table column may name; ``val`` is the value on val by which the
    classifier was chosen. With `DECIDED`, of its scores 0 must mean even odds."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_resize(self.resize, self.fit, self.image_size, "image_size")
        return self


class LinearProbe(Features):
    """A linear classifier on frozen features, by L-BFGS.

    Multi-label sets: one L2-regularised logistic regression per class, mAP. Single-label sets:
    softmax regression, top-1. The strength is chosen on val; test is read once.
    """

    kind: Literal["linear"]
    metrics = (*CLASSIFIED, *DECIDED, "val")
    dataset: Name
    strengths: Annotated[list[Positive], Field(min_length=1), Grid] = [0.01, 0.1, 1.0, 10.0, 100.0]
    """Candidates for C, the inverse regularisation strength (scikit-learn's meaning)."""


class SvmProbe(Features):
    """One linear SVM per class [Goyal et al., arXiv 1905.01235, and VISSL's VOC07 protocol], by LIBLINEAR.

    Trained on train and val together (VOC's trainval); each class's cost has the best average precision in
    cross-validation there. With ``test: false`` trained on train alone, val is judged.
    """

    kind: Literal["svm"]
    dataset: Name
    costs: Annotated[list[Positive], Field(min_length=1), Grid] = [
        0.01,
        0.1,
        1.0,
        2.0,
        5.0,
        10.0,
        15.0,
        20.0,
        50.0,
        100.0,
        1000.0,
    ]
    """Candidates for C [VISSL]."""
    folds: Annotated[int, Field(ge=2)] = 3
    """Of the cross-validation [VISSL]."""
    low_shot: Annotated[list[Count], Field(max_length=20), Grid] = []
    """Further SVMs on k positives and k x (classes - 1) negatives of each class, drawn ``samples`` times
    [1, 2, 4, 8, 16, 32, 64, 96]; multi-label sets only."""
    samples: Count = 5
    """Independent draws for each k [VISSL]."""

    @model_validator(mode="after")
    def _judged(self) -> Self:
        if self.low_shot and not self.test:
            raise ValueError("low_shot is judged on test, which test: false leaves alone")
        return self


class KnnProbe(Features):
    """Weighted k-nearest-neighbour classification by cosine [Wu et al., arXiv 1805.01978].

    Train images vote, val chooses k.
    """

    kind: Literal["knn"]
    metrics = (*CLASSIFIED, "val")
    dataset: Name
    ks: Annotated[list[Count], Field(min_length=1), Grid] = [10, 20, 100, 200]
    """Candidates for k [10, 20, 100 and 200 as DINO's]."""
    temperature: Positive = 0.07
    """A vote weighs exp(cosine / this)."""


class RetrievalProbe(Features):
    """Label-wise retrieval: train images ranked by cosine to each test image, judged label by label. No choices."""

    kind: Literal["retrieval"]
    metrics = ("mAP",)
    dataset: Name
    precision_at: Annotated[list[Count], Field(min_length=1), Grid] = [1, 5, 10]
    """Ks of precision@k."""


# --------------------------------------------------------------------------------- trained on images


class TrainAugment(Augment):
    """Views of what is trained on labels: torchvision's random resized crop and flip, no change of colour."""

    scale: Annotated[list[Share], Field(min_length=2, max_length=2), Ascending] = [0.08, 1.0]
    jitter_p: Share = 0.0
    gray_p: Share = 0.0
    blur_p: Share = 0.0
    solarize_p: Share = 0.0
    overlap: Annotated[float, Field(ge=0, le=0)] = 0.0
    """There is one view of an image, and nothing that it could overlap."""


class Trained(Section):
    """What ``finetune`` and ``sgd`` share: a linear classifier on the pooled feature, trained on images by SGD.

    Multi-label sets: binary cross-entropy, mAP. Single-label sets: cross-entropy, top-1. Trained on train and val
    together, since nothing is chosen by val; the last epoch is judged. With ``test: false`` trained on train alone,
    val is judged: for choosing between settings.
    """

    dataset: Name
    trials: Count = 1
    """Repeats of this task with other seeds, on the same pretrained backbone."""
    augment: TrainAugment = TrainAugment()
    """``crop`` is the side of the square in training and in testing: 224 or 448."""
    resize: Annotated[int, Field(ge=16)] | None = None
    """As of `Features`, when testing [256 beside a crop of 224]."""
    fit: Literal["crop", "squash"] = "crop"
    """As of `Features`, when testing."""
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    lr: Positive
    """For this batch size; never rescaled."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)]
    schedule: Literal["cosine", "step"] = "cosine"
    """To zero over all steps; or divided by 10 at ``steps``."""
    steps: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(max_length=8)] = [0.3333, 0.6667]
    """Of schedule ``step``, as shares of all epochs."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """The learning rate rises linearly from 0 over so many epochs first."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the backbone (autocast); classifier and loss are float32."""
    test: bool = True
    metrics: ClassVar[tuple[str, ...]] = (*CLASSIFIED, *DECIDED)

    @property
    def splits(self) -> tuple[str, ...]:
        """What it is trained on."""
        return ("train", "val") if self.test else ("train",)

    def steps_on(self, images: int | None) -> int | None:
        """Optimiser steps of the whole training on so many images; None where that is not known."""
        return images and max(1, round(self.epochs * images / self.batch_size))

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_resize(self.resize, self.fit, self.augment.crop, "augment.crop")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs takes all {self.epochs} epochs")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class FinetuneProbe(Trained):
    """Backbone and classifier trained end to end.

    Defaults: 120 epochs [paper]; the rest is its lineage's [S3L's scripts for four of the seven sets: batch 64, weight
    decay 5e-4, learning rates from 0.001 to 0.1, cosine or steps at 40 and 80 of 120]; the paper states none of it.
    """

    kind: Literal["finetune"]
    epochs: Count = 120
    batch_size: Annotated[int, Field(ge=2)] = 64
    lr: Positive = 0.01
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    classifier_lr: Positive = 1.0
    """The classifier's learning rate, in units of ``lr`` [10 in CSRA]."""
    batchnorm: Literal["train", "frozen"] = "train"
    """``frozen``: statistics stay the pretrained ones while weights are trained [S3L on VOC07]."""


class SgdProbe(Trained):
    """The classifier alone, trained on augmented images before a frozen backbone.

    Defaults: MoCo's on ImageNet [arXiv 1911.05722: 100 epochs, lr 30 for batch 256, divided at 60 and 80]. The other
    usual one, of 28 epochs [ORL and OpenSelfSup, their ``r50_multihead_28ep``]: lr 0.01, nesterov, weight decay 1e-4,
    divided at 8, 16 and 24, ``batchnorm`` (without it this lr is far too low), jitter_p 1.0 of [0.4, 0.4, 0.4, 0.0].
    """

    kind: Literal["sgd"]
    epochs: Count = 100
    batch_size: Annotated[int, Field(ge=2)] = 256
    lr: Positive = 30.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["cosine", "step"] = "step"
    steps: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(max_length=8)] = [0.6, 0.8]
    batchnorm: bool = False
    """A batch norm without scale and shift between feature and classifier [ORL]."""


FrozenProbe = LinearProbe | SvmProbe | KnnProbe | RetrievalProbe
"""Probes that read features, never images."""
TrainedProbe = FinetuneProbe | SgdProbe
"""Probes that train on images."""
ProbeConfig = Annotated[FrozenProbe | TrainedProbe, Field(discriminator="kind")]
PROBES: tuple[type[Features | Trained], ...] = (*get_args(FrozenProbe), *get_args(TrainedProbe))
TASKS = (*PROBES, *TRANSFERS)

METRICS: dict[str, tuple[str, ...]] = {
    **{kind: task.metrics for task in PROBES for kind in values_of(task, "kind")},
    **{kind: entry.metrics for kind, entry in KINDS.items()},
}
"""Per task kind: what its ``metrics.json`` may hold and a table column may name, but for `metrics_of`'s additions."""


def metrics_of(task: dict[str, Any], several: bool | None = None, source: str = "") -> tuple[str, ...]:
    """Name the metrics of a task of an experiment file as it was read; none where its kind is unknown.

    Args:
        task: as it was read.
        several: whether an image of its data set may have several labels; None where that is not known yet.
        source: of its data set.
    """
    if task.get("test") is False:
        return ("val",)
    kind = str(task.get("kind"))
    added: list[str] = []
    if kind == "svm":
        added = [f"low_shot_{k}{end}" for k in _list(task.get("low_shot")) for end in ("", "_best_on_test")]
    if task.get("backend") == "detectron2" and source == "voc":
        added = list(VOC_METRICS)
    if kind == "retrieval":
        default = RetrievalProbe.model_fields["precision_at"].default
        added = [f"P@{k}" for k in _list(task.get("precision_at", default))]
    unfit = () if several is None else ("top1",) if several else (*CLASSIFIED[:-1], *DECIDED)
    own = METRICS.get(kind, ())
    return (*(own if kind == "retrieval" else (name for name in own if name not in unfit)), *added)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
