"""The interface between transfer tasks and the stage that runs them: train, predict, score.

    transfer = made_by(task)(task, Given(store, config, weights, seed=1000, device=device, log=log))
    history = finetune(transfer, execution=execution, work=work, log=log, name="transfer detect/mls:0")
    transfer.finish(workers, name)
    results = transfer.predict(workers, name)
    metrics = transfer.score(results)

Three modules implement it: `mls.transfer.torchvision`, `mls.transfer.detectron2` and `mls.transfer.semantic`.
"""

from __future__ import annotations

import pkgutil
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mls.config.experiment import Backbone
from mls.config.transfers import KINDS, TransferConfig
from mls.data.image_store import ImageStore
from mls.models.batchnorm import synced
from mls.runtime.collectives import own, world
from mls.runtime.errors import MlsError
from mls.train.finetune import FineTuning, read_ahead
from mls.transfer.detectron2_install import require_detectron2
from mls.transfer.draws import Draws
from mls.transfer.order import Planned, plan_batch


@dataclass(frozen=True)
class Given:
    """What a transfer task starts from."""

    store: ImageStore
    config: Backbone
    """Layout of the pretrained backbone."""
    weights: Path
    """Its ``backbone.safetensors``."""
    seed: int
    """Seed of new weights, order and augmentation."""
    device: torch.device
    log: Callable[[str], None]
    """Writes a line to the log."""


class TransferTask(FineTuning):
    """A model on a pretrained backbone, the images it learns from and those it is evaluated on.

    Building it from a `Given` loads every tensor of the backbone, and checks that the model's backbone computes the
    same features as the pretrained one.
    """

    task: Any
    """Its section of the experiment file."""
    given: Given
    store: ImageStore
    train_images: int
    """Number of images to train on; images with nothing to learn are left out."""
    rows_N: NDArray[np.int64]
    """Images to evaluate on: rows of the data artifact."""
    draws: Draws | None = None
    """Keys of the random numbers of a shared batch; None in a single process, which draws from torch's generator."""

    @abstractmethod
    def __init__(self, task: Any, given: Given) -> None:
        """Build and load the model; index the images.

        Raises:
            MlsError: nothing to train on or to test on; weights of another backbone.
        """

    @staticmethod
    @abstractmethod
    def build(task: Any, layout: Backbone, classes: int) -> nn.Module:
        """Return the network of a task with new weights, on a backbone of this layout; ``mls plan`` shows its size."""

    @property
    def accumulate(self) -> int:
        """The task's."""
        return int(self.task.accumulate)

    def share_batch(self) -> None:
        """Prepare the model for ranks that share each batch, in place; call it before training.

        Batch norm then has the statistics of all ranks, and random numbers depend on seed, step and image. A loss that
        is a mean over a number of things which differs between ranks needs a weight too (see `losses`).

        Raises:
            MlsError: the ranks can't share the batch evenly.
        """
        if self.batch_size // self.accumulate % world():
            parts = f" in {self.accumulate} parts" if self.accumulate > 1 else ""
            raise MlsError(f"{world()} ranks do not divide batch_size {self.batch_size}{parts} evenly")
        self.model = synced(self.model, self.given.device)
        self.draws = Draws(self.given.seed)

    def batches(self, steps: range, workers: int) -> Generator[list[Any]]:
        """Yield the samples of this rank's share of each part, as `load_sample` makes them."""
        size = self.batch_size // self.accumulate
        shares = [own(range(start, start + size)) for start in range(0, self.batch_size, size)]
        planned = (batch[share.start : share.stop] for batch in self.plan(steps) for share in shares)
        places = ((step, share) for step in steps for share in shares)
        with closing(read_ahead(planned, self.load_sample, workers)) as loaded:
            for (step, share), batch in zip(places, loaded, strict=True):
                if self.draws:
                    self.draws.begin(step, share)
                yield batch

    def plan(self, steps: range) -> Iterator[list[Planned]]:
        """Yield what the batches of some steps hold: by default all images once per epoch, in random order."""
        return (plan_batch(step, self.batch_size, self.train_images, self.given.seed) for step in steps)

    @abstractmethod
    def load_sample(self, planned: Planned) -> Any:
        """Return a planned sample; threads call this."""

    def finish(self, workers: int, name: str) -> None:
        """Do the work that follows the last step once, before the model is evaluated; by default nothing."""

    @abstractmethod
    def predict(self, workers: int, name: str) -> list[dict[str, Any]]:
        """Run the model on this rank's share of `rows_N` once (`mls.transfer.evaluate.in_batches` takes it).

        Returns results in COCO's format, where ``image_id`` is the row.

        Raises:
            Interrupted: a signal came; the trained state is saved, so only this pass is run again.
        """

    def score(self, results: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the metrics of results, percent; see `scored`."""
        return scored(self.task, self.store, results)

    def derived(self) -> dict[str, Any]:
        """Return values that follow from the task and the data, for the artifact's ``params.json``."""
        return {"total_steps": self.total, "train_images": self.train_images}


def made_by(task: TransferConfig) -> type[TransferTask]:
    """Return the class that trains a task; it is imported only here, since its backend may not be installed.

    Raises:
        MlsError: the backend is not installed; says how to install it.
    """
    if task.backend == "detectron2":
        require_detectron2("backend 'detectron2'")
    found: type[TransferTask] = pkgutil.resolve_name(task.made_by)
    return found


def scored(task: TransferConfig, store: ImageStore, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the metrics of a task's results on test, percent: those of its kind in `mls.config.transfers.KINDS`.

    ``per_class`` may be one of them: class -> metric -> percent.
    """
    metrics: dict[str, Any] = pkgutil.resolve_name(KINDS[task.kind].scored_by)(task, store, results)
    return metrics
