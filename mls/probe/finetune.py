"""A linear classifier on a ResNet, trained on images by SGD, with the backbone (``finetune``) or without (``sgd``).

    evaluation, facts = train_and_score(context, task, store, backbone, device)
    evaluation.scores_NC                            # logits of the evaluated images

Training stops at any step and resumes bit for bit (see `mls.train.finetune`): order and views depend only on the seed
and the step (see `mls.probe.finetune_data`), the classifier's first weights from the seed, and nothing else is
random. The last state is evaluated; no checkpoint is chosen by its score.

Shape legend: N images, B images of a batch, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from mls.config.probes import TrainedProbe
from mls.data.augment import ColourAugment
from mls.data.image_store import ImageStore
from mls.models.backbone import channels_last
from mls.pipeline.runner import Context
from mls.probe.classifier import Classifier, learning_rate, loss_of, make_optimizer
from mls.probe.evaluation import Evaluation
from mls.probe.features import outputs_of, prepared
from mls.probe.finetune_data import LabelledBatch, Views
from mls.runtime.device import workers_of
from mls.runtime.errors import DeterministicError, MlsError
from mls.runtime.files import write_csv, write_json
from mls.train.finetune import FIRST_SEED, FineTuning, finetune


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
        """Yield crops and labels, see `mls.probe.finetune_data.Views.batches`."""
        return self.views.batches(steps, workers)

    def losses(self, batch: LabelledBatch) -> dict[str, Tensor]:
        """Return the cross-entropy, see `mls.probe.classifier.loss_of`."""
        truth_BC, kept_BC = batch.truth_BC.to(self.device), batch.kept_BC.to(self.device)
        features_BD = self.model.features(self.augment(batch.crops_BCHW.to(self.device), batch.draws_BU))
        self.finite_features = torch.isfinite(features_BD).all()
        return {"loss": loss_of(self.model.logits(features_BD), truth_BC, kept_BC, self.views.store.multi_label)}

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
        MlsError: a split has no images; no class can be learned; no evaluated image is positive of any class.
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
    if not store.labels(rows[split]).any():
        raise MlsError(f"the {split} split of this dataset has no positive image of any class")
    seed, name, execution = FIRST_SEED + context.job.seed, f"probe {context.label}", context.execution
    views = Views(store, np.concatenate([rows[one] for one in splits]), task, seed)
    trained_C = views.truth_NC.any(0) & (~views.truth_NC & views.kept_NC).any(0)
    if not trained_C.any():
        raise MlsError(f"{' and '.join(splits)} of this dataset: no class has both positive and negative images")
    training = ClassifierTraining(Classifier(backbone, len(store.classes), task, seed), views, device)
    history = finetune(training, execution=execution, work=context.work, log=context.log, name=name)
    write_csv(history.curves, context.out / "curves.csv")
    write_csv(history.timing, context.out / "timing.csv")
    write_json({"seed": seed, "total_steps": views.steps}, context.out / "derived.json")
    workers = workers_of(execution.workers, execution.threads, device)
    squares = prepared(store, rows[split], task.augment.crop, task.resize, task.fit, workers)
    scores_NC = outputs_of(training.model.eval(), squares, len(rows[split]), device, f"{name}: {split}")
    if bad := int((~np.isfinite(scores_NC)).any(axis=1).sum()):
        raise DeterministicError(
            f"after {views.steps} steps the logits of {bad} of {len(scores_NC)} {split} images are not finite; "
            f"lower lr (now {task.lr:g}), or check whether the pretraining diverged"
        )
    scores_NC[:, ~trained_C.numpy()] = 0.0 if store.multi_label else -np.inf
    untrained = [one for one, trained in zip(store.classes, trained_C.tolist(), strict=True) if not trained]
    evaluation = Evaluation(
        rows_N=rows[split],
        names=[store.name(int(row)) for row in rows[split]],
        split=split,
        classes=store.classes,
        multi_label=store.multi_label,
        truth_NC=store.labels(rows[split]),
        ignored_NC=store.ignored(rows[split]),
        scores_NC=scores_NC,
        decided=True,
    )
    return evaluation, {"n_train": len(views), "untrained_classes": untrained}
