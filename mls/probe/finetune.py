"""A linear classifier before a ResNet, trained on images by SGD: the backbone too (``finetune``), or not (``sgd``).

    outcome = train_and_score(
        task, store, backbone, seed=1000, device=device, execution=execution, work=work, log=log, name="probe tuned"
    )
    outcome.scores_NC, outcome.curves       # logits of the judged split's images; rows of curves.csv

Training stops at any step and goes on bit for bit (on a CPU, at equal threads): order and views follow from the seed
and the step alone (see ``mls.probe.finetune_data``), the classifier's first weights from the seed, and nothing else
is random. The last state is judged; none is chosen by its score.

Shape legend: N images, B images of a batch, C classes, D features.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.models.resnet import ResNet

from mls.config.experiment import Execution
from mls.config.probes import TrainedProbe
from mls.data.augment import ColourAugment
from mls.data.eval_view import normalise
from mls.data.image_store import ImageStore
from mls.models.backbone import channels_last
from mls.probe.classifier import Classifier, learning_rate, loss_of, make_optimizer
from mls.probe.features import prepared
from mls.probe.finetune_data import Views
from mls.runtime.checkpoint import load_resumable, save_resumable
from mls.runtime.device import workers_of
from mls.runtime.errors import DeterministicError, MlsError
from mls.runtime.progress import Bar
from mls.runtime.signals import InterruptGuard

CURVE_EVERY = 20
"""Steps between the rows of ``curves.csv`` and ``timing.csv``."""


@dataclass
class History:
    """What the training was like: rows of ``curves.csv`` (step, loss, lr) and ``timing.csv`` (step, images_per_s)."""

    curves: list[dict[str, float]] = field(default_factory=list)
    timing: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """The judged images' logits, and how they came about."""

    split: str
    """Evaluation: ``test``, or ``val`` with ``test: false``."""
    rows_N: NDArray[np.int64]
    """The judged images: rows of the data artifact."""
    scores_NC: NDArray[np.float32]
    """Logits. Of untrained classes: 0 in multi-label sets, else minus infinity, as of the linear probe."""
    untrained: list[str]
    """Classes of which the train images hold no positive or no negative."""
    train_images: int
    steps: int
    history: History


def train_and_score(
    task: TrainedProbe,
    store: ImageStore,
    backbone: ResNet,
    *,
    seed: int,
    device: torch.device,
    execution: Execution,
    work: Path,
    log: Callable[[str], None],
    name: str,
) -> Outcome:
    """Train on train and val and score test; with ``test: false`` train on train and score val.

    Args:
        task: of kind ``finetune`` or ``sgd``.
        store: the data artifact.
        backbone: pretrained, without its classifier; changed in place unless frozen.
        seed: of the classifier's first weights, order and views.
        device: where all of it runs.
        execution: threads, checkpoints.
        work: holds the checkpoints; training goes on from the newest.
        log: takes a line.
        name: of the progress bars.

    Raises:
        MlsError: a split without images; no class to learn; a judged split without a positive of any class.
        DeterministicError: a loss or a logit is not finite.
        Interrupted: a signal came; the state is saved.
    """
    splits, judged = task.splits, "test" if task.test else "val"
    rows = {split: store.split(split) for split in (*splits, judged)}
    if empty := [split for split, found in rows.items() if not len(found)]:
        raise MlsError(
            f"{task.kind} trains on {' and '.join(splits)} and judges {judged}; "
            f"this dataset has no images of {' and '.join(empty)}"
        )
    if not store.labels(rows[judged]).any():
        raise MlsError(f"the {judged} split of this dataset has no positive image of any class")
    views = Views(store, np.concatenate([rows[split] for split in splits]), task, seed)
    trained_C = views.truth_NC.any(0) & (~views.truth_NC & views.kept_NC).any(0)
    if not trained_C.any():
        raise MlsError(f"{' and '.join(splits)} of this dataset: no class has both positive and negative images")
    model = Classifier(backbone, len(store.classes), task, seed)
    channels_last(model.to(device))
    history = train(model, views, device=device, execution=execution, work=work, log=log, name=name)
    workers = workers_of(execution.workers, execution.threads, device)
    scores_NC = predict(model, store, rows[judged], task, device=device, workers=workers, name=f"{name}: {judged}")
    if bad := int((~np.isfinite(scores_NC)).any(axis=1).sum()):
        raise DeterministicError(
            f"after {views.steps} steps the logits of {bad} of {len(scores_NC)} {judged} images are not finite; "
            f"lower lr (now {task.lr:g}), or look whether the pretraining diverged"
        )
    scores_NC[:, ~trained_C.numpy()] = 0.0 if store.multi_label else -np.inf
    untrained = [one for one, trained in zip(store.classes, trained_C.tolist(), strict=True) if not trained]
    return Outcome(judged, rows[judged], scores_NC, untrained, len(views), views.steps, history)


def train(
    model: Classifier,
    views: Views,
    *,
    device: torch.device,
    execution: Execution,
    work: Path,
    log: Callable[[str], None],
    name: str,
) -> History:
    """Train in place, from the newest checkpoint in ``work`` where there is one; leaves the final state there.

    Raises:
        DeterministicError: a loss is not finite; no weight was updated with it.
        Interrupted: a signal came; the state is saved.
    """
    task, steps = views.task, views.steps
    colours, optimizer = ColourAugment(task.augment, view=0), make_optimizer(model, task)
    history, done = History(), 0
    state, problems = load_resumable(work)
    for problem in problems:
        log(problem)
    if state is not None:
        model.trained.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        history, done = History(state["curves"], state["timing"]), int(state["step"])
        log(f"going on from step {done} of {steps}")

    def save() -> None:
        state = {
            "step": done,
            "model": model.trained.state_dict(),
            "optimizer": optimizer.state_dict(),
            "curves": history.curves,
            "timing": history.timing,
        }
        save_resumable(state, work, done, execution.keep_checkpoints)

    model.train()
    since, since_step = time.perf_counter(), done
    workers = workers_of(execution.workers, execution.threads, device)
    with (
        InterruptGuard() as guard,
        Bar(name, steps, done=done) as bar,
        closing(views.batches(range(done, steps), workers)) as batches,
    ):
        for batch in batches:
            guard.stop_if_asked(save)
            lr = learning_rate(task, done, steps)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["times"]
            truth_BC, kept_BC = batch.truth_BC.to(device), batch.kept_BC.to(device)
            features_BD = model.features(colours(batch.crops_BCHW.to(device), batch.draws_BU))
            loss = loss_of(model.logits(features_BD), truth_BC, kept_BC, views.store.multi_label)
            value = float(loss.detach())
            if not math.isfinite(value):
                untouched = model.frozen or done == 0
                if untouched and not bool(torch.isfinite(features_BD).all()):
                    remedy = "the pretrained backbone's features are not: look whether the pretraining diverged"
                else:
                    remedy = f"lower lr (now {task.lr:g}) or raise warmup_epochs (now {task.warmup_epochs:g})"
                raise DeterministicError(
                    f"the loss is not finite ({value}) at step {done} of {steps}, learning rate {lr:.3g}; {remedy}"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if done % CURVE_EVERY == 0 or done == steps - 1:
                history.curves.append({"step": done, "loss": value, "lr": lr})
                now = time.perf_counter()
                rate = (done + 1 - since_step) * task.batch_size / (now - since)
                history.timing.append({"step": done, "images_per_s": rate})
                since, since_step = now, done + 1
            done += 1
            bar.advance(1, count=task.batch_size, note=f"loss {value:.3f}")
            if done % execution.checkpoint_every == 0 and done < steps:
                save()
        save()
        guard.stop_if_asked(lambda: None)
    return history


def predict(
    model: Classifier,
    store: ImageStore,
    rows_N: NDArray[np.int64],
    task: TrainedProbe,
    *,
    device: torch.device,
    workers: int,
    name: str,
) -> NDArray[np.float32]:
    """Return the logits (N, C) of images, each seen as one square (see ``mls.data.eval_view.square``).

    Raises:
        Interrupted: a signal came; the training's last state is saved, so only this is to be done again.
    """

    parts: list[NDArray[np.float32]] = []
    model.eval()
    batches = prepared(store, rows_N, task.augment.crop, task.resize, task.fit, workers)
    with torch.inference_mode(), InterruptGuard() as guard, Bar(name, len(rows_N)) as bar:
        for images_BCHW in batches:
            guard.stop_if_asked(lambda: None)
            parts.append(model(normalise(images_BCHW, device)).cpu().numpy())
            bar.advance(len(images_BCHW), count=len(images_BCHW))
    return np.concatenate(parts)
