"""A linear classifier on a ResNet, trained on images by SGD, with the backbone (``finetune``) or without (``sgd``).

    evaluation, facts = train_and_score(context, task, store, backbone, device)
    evaluation.scores_NC                            # logits of the evaluated images

Training stops at any step and resumes bit for bit (see `mls.train.finetune`): order, views and mixup depend only on the
seed and the step, the classifier's first weights only on the seed, and nothing else is random. The last state is
evaluated; no checkpoint is chosen by its score.

Each epoch holds every image once, in its own order, and one epoch follows another without a gap: every batch is full,
and one may begin in an epoch and end in the next. So nothing is dropped, no batch norm ever sees a single image, and
sets smaller than a batch can be trained on too (an image then occurs more than once in a batch, each time as another
view).

Shape legend: N images, B images of a batch, C classes (of an image: channels), D features, U draws of a view.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from mls.config.probes import TrainedProbe
from mls.data.augment import ColourAugment, crop, crop_boxes, draw, plain_crop
from mls.data.image_store import ImageStore
from mls.metrics import told_apart
from mls.models.backbone import channels_last
from mls.pipeline.plan import FIRST_SEED
from mls.pipeline.runner import Context
from mls.probe.classifier import Classifier, learning_rate, loss_of, make_optimizer
from mls.probe.evaluation import Evaluation, check_told_apart, names_of
from mls.probe.features import outputs_of, prepared
from mls.runtime import streams
from mls.runtime.device import workers_of
from mls.runtime.errors import DeterministicError, MlsError
from mls.runtime.files import write_csv, write_json
from mls.train.finetune import FineTuning, finetune, places, read_ahead


class Mixture(NamedTuple):
    """What mixup does to a batch."""

    share: float
    """Of an image itself; the rest is its partner's."""
    partner_B: Tensor
    """int64: the image of the batch that each one is mixed with; each is a partner once, perhaps its own."""


class LabelledBatch(NamedTuple):
    """Crops before flip and normalisation, and their labels."""

    crops_BCHW: Tensor
    """uint8."""
    draws_BU: Tensor
    """float64 uniforms that decide everything else (see ``mls.data.augment``)."""
    truth_BC: Tensor
    """bool."""
    kept_BC: Tensor
    """bool: the class counts for or against the image."""
    mixture: Mixture | None
    """None without mixup."""


class Views:
    """The images that a classifier is trained on."""

    def __init__(self, store: ImageStore, rows_N: NDArray[np.int64], task: TrainedProbe, seed: int) -> None:
        """Read sizes and labels; no image is read yet.

        Args:
            store: holds the images.
            rows_N: rows of the images to train on; at least one.
            task: ``augment``, ``batch_size`` and ``epochs`` are read.
            seed: of order and views.
        """
        self.store, self.rows_N, self.task, self.seed = store, rows_N, task, seed
        self.sizes_N2 = np.array([store.size(int(row)) for row in rows_N], dtype=np.int64)
        self.truth_NC = torch.from_numpy(store.labels(rows_N))
        self.kept_NC = torch.from_numpy(~store.ignored(rows_N))
        self.mixup = task.mixup if task.kind == "finetune" else 0.0

    def __len__(self) -> int:
        """Number of images to train on."""
        return len(self.rows_N)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training: ``epochs`` passes, rounded to whole batches."""
        return max(1, round(self.task.epochs * len(self) / self.task.batch_size))

    def plan(self, step: int) -> list[tuple[int, int]]:
        """Return index and epoch of each image of a batch."""
        return [
            (int(epoch_order(len(self), self.seed, epoch)[place]), epoch)
            for epoch, place in places(step, self.task.batch_size, len(self))
        ]

    def load(self, planned: tuple[int, int]) -> tuple[int, Tensor, Tensor]:
        """Return an image's index, its crop in an epoch, uint8 (3, S, S), and the draws (U,) of its view."""
        index, epoch = planned
        u_1U, augment = draw(self.seed, epoch, self.rows_N[[index]], 0), self.task.augment
        image_CHW = self.store.decode(int(self.rows_N[index]))
        if augment.resize:
            view_CHW = plain_crop(image_CHW, u_1U[0], augment.resize, augment.crop, augment.interpolation)
        else:
            box_14 = crop_boxes(u_1U, self.sizes_N2[[index]], augment.scale)
            view_CHW = crop(image_CHW, box_14[0], augment.crop, augment.interpolation)
        return index, view_CHW, torch.from_numpy(u_1U[0])

    def batches(self, steps: range, workers: int) -> Generator[LabelledBatch]:
        """Yield the batches of some steps, prepared ahead by ``workers`` threads (no effect on the batches)."""
        for samples, step in zip(read_ahead(map(self.plan, steps), self.load, workers), steps, strict=True):
            indices, crops, draws = map(list, zip(*samples, strict=True))
            truth_BC, kept_BC = self.truth_NC[indices], self.kept_NC[indices]
            mixture = mixture_of(self.seed, step, len(indices), self.mixup) if self.mixup else None
            yield LabelledBatch(torch.stack(crops), torch.stack(draws), truth_BC, kept_BC, mixture)


@lru_cache(maxsize=4)
def epoch_order(images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of an epoch's images, int64 (N,)."""
    return streams.order(seed, epoch).permutation(images)


def mixture_of(seed: int, step: int, images: int, alpha: float) -> Mixture:
    """Draw what mixup does to the batch of a step: a share from Beta(alpha, alpha), and partners."""
    rng = streams.mixture(seed, step)
    return Mixture(float(rng.beta(alpha, alpha)), torch.from_numpy(rng.permutation(images)))


class ClassifierTraining(FineTuning):
    """A classifier with its views and optimiser."""

    def __init__(self, model: Classifier, views: Views, device: torch.device) -> None:
        """Move the classifier to the device and build its optimiser."""
        channels_last(model.to(device))
        self.model: Classifier = model
        self.views, self.device, self.task = views, device, views.task
        self.optimizer = make_optimizer(model, self.task)
        self.batch_size, self.total = self.task.batch_size, views.steps
        self.augment = ColourAugment(self.task.augment, view=0)
        self.finite_features = torch.tensor(True)

    @property
    def trained(self) -> nn.Module:
        """The classifier, without its backbone if that is frozen."""
        return self.model.trained

    def learning_rate(self, step: int) -> float:
        """Return the learning rate: warm-up, then cosine or steps, see `mls.probe.classifier.learning_rate`."""
        return learning_rate(self.task, step, self.total)

    def batches(self, steps: range, workers: int) -> Generator[LabelledBatch]:
        """Yield crops and labels, see `Views.batches`."""
        return self.views.batches(steps, workers)

    def losses(self, batch: LabelledBatch) -> dict[str, Tensor]:
        """Return the cross-entropy, see `mls.probe.classifier.loss_of`.

        Mixup mixes normalised images, and the losses of both labels by the same shares. Where no class is ignored,
        that is the loss of the mixed labels; where some are, each image's own classes are left out of its share.
        """
        truth_BC, kept_BC = batch.truth_BC.to(self.device), batch.kept_BC.to(self.device)
        images_BCHW = self.augment(batch.crops_BCHW.to(self.device), batch.draws_BU)
        if batch.mixture:
            share, partner_B = batch.mixture.share, batch.mixture.partner_B.to(self.device)
            images_BCHW = share * images_BCHW + (1 - share) * images_BCHW[partner_B]
        features_BD = self.model.features(images_BCHW)
        self.finite_features = torch.isfinite(features_BD).all()
        logits_BC, multi_label = self.model.logits(features_BD), self.views.store.multi_label
        loss = loss_of(logits_BC, truth_BC, kept_BC, multi_label)
        if batch.mixture:
            loss = share * loss + (1 - share) * loss_of(logits_BC, truth_BC[partner_B], kept_BC[partner_B], multi_label)
        return {"loss": loss}

    def remedy(self, step: int) -> str:
        """Blame the pretrained backbone if it is unchanged and its features are not finite, else the learning rate."""
        if (self.model.frozen or step == 0) and not self.finite_features:
            return "the pretrained backbone's features are not finite either: check whether the pretraining diverged"
        return f"lower lr (now {self.task.lr:g}) or raise warmup_epochs (now {self.task.warmup_epochs:g})"


def train_and_score(
    context: Context, task: TrainedProbe, store: ImageStore, backbone: ResNet, device: torch.device
) -> tuple[Evaluation, dict[str, Any]]:
    """Train on train and val and score test; with ``test: false`` train on train and score val.

    Classes that are not trained score 0 in multi-label sets, else minus infinity, as in the linear probe.

    Args:
        context: of the probe; gets ``curves.csv``, ``timing.csv`` and ``derived.json``, and its work folder holds the
            checkpoints: training resumes from the newest.
        task: of kind ``finetune`` or ``sgd``.
        store: the data artifact.
        backbone: pretrained, without its classifier; changed in place unless frozen.
        device: where training and scoring run.

    Returns:
        The evaluated images with their logits, and facts for ``metrics.json``.

    Raises:
        MlsError: a split has no images; no class can be learned; none of these can be evaluated.
        DeterministicError: a loss, a gradient or a logit is not finite.
        Interrupted: a signal came; the state is saved.
    """
    splits, split = task.splits, "test" if task.test else "val"
    rows = {one: store.split(one) for one in (*splits, split)}
    if empty := [one for one, found in rows.items() if not len(found)]:
        raise MlsError(
            f"{task.kind} trains on {' and '.join(splits)} and is evaluated on {split}; "
            f"this dataset has no images of {' and '.join(empty)}"
        )
    seed, name, execution = FIRST_SEED + context.job.seed, f"probe {context.label}", context.execution
    views = Views(store, np.concatenate([rows[one] for one in splits]), task, seed)
    trained_C = told_apart(views.truth_NC.numpy(), ~views.kept_NC.numpy())
    if not trained_C.any():
        raise MlsError(f"{' and '.join(splits)} of this dataset: no class has both positive and negative images")
    truth_NC, ignored_NC = store.labels(rows[split]), store.ignored(rows[split])
    if store.multi_label:
        check_told_apart(truth_NC[:, trained_C], ignored_NC[:, trained_C], split)
    training = ClassifierTraining(Classifier(backbone, len(store.classes), task, seed), views, device)
    history = finetune(training, execution=execution, work=context.work, log=context.log, name=name)
    write_csv(history.curves, context.out / "curves.csv")
    write_csv(history.timing, context.out / "timing.csv")
    write_json({"seed": seed, "total_steps": views.steps}, context.out / "derived.json")
    workers = workers_of(execution.workers, execution.threads, device)
    side, interpolation = task.augment.crop, task.augment.interpolation
    squares = prepared(store, rows[split], side, task.resize, task.fit, workers, interpolation=interpolation)
    scores_NC = outputs_of(training.model.eval(), squares, len(rows[split]), device, f"{name}: {split}")
    if bad := int((~np.isfinite(scores_NC)).any(axis=1).sum()):
        raise DeterministicError(
            f"after {views.steps} steps the logits of {bad} of {len(scores_NC)} {split} images are not finite; "
            f"lower lr (now {task.lr:g}), or check whether the pretraining diverged"
        )
    scores_NC[:, ~trained_C] = 0.0 if store.multi_label else -np.inf
    evaluation = Evaluation(
        rows_N=rows[split],
        names=[store.name(int(row)) for row in rows[split]],
        split=split,
        classes=store.classes,
        multi_label=store.multi_label,
        truth_NC=truth_NC,
        ignored_NC=ignored_NC,
        scores_NC=scores_NC,
        decided=True,
        untrained=names_of(store.classes, ~trained_C),
    )
    return evaluation, {"n_train": len(views)}
