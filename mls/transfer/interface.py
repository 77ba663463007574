"""What every transfer task is to the stage that runs it: something that trains, predicts and scores.

    transfer = made_by(task)(task, Given(store, config, weights, seed=1000, device=device, log=log))
    history = fit(transfer, execution=execution, work=work, log=log, name="transfer detect/mls:0")
    transfer.finish(workers, name)
    results = transfer.predict(workers, name)
    metrics = transfer.score(results)

Three implement it: `mls.transfer.detection` (torchvision), `mls.transfer.detectron2` and `mls.transfer.semantic`.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mls.config.experiment import Backbone
from mls.config.transfers import TransferConfig
from mls.data.image_store import ImageStore
from mls.transfer.detectron2_install import require_detectron2
from mls.transfer.rescore import scored


@dataclass(frozen=True)
class Given:
    """What a transfer starts from."""

    store: ImageStore
    config: Backbone
    """Of the backbone that was pretrained."""
    weights: Path
    """Its ``backbone.safetensors``."""
    seed: int
    """Of new weights, order and augmentation. Trials, not pretraining seeds, number the repeats of a task."""
    device: torch.device
    log: Callable[[str], None]
    """Takes a line for people."""


class TransferTask(ABC):
    """A model on a pretrained backbone, the images it learns from and those it is judged by.

    Made from a `Given`: its weights are loaded, every tensor accounted for, and its backbone was seen to give the
    features of the pretrained one.
    """

    task: TransferConfig
    store: ImageStore
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batch_size: int
    total: int
    """Optimiser steps of the whole training."""
    train_images: int
    """How many are trained on; those that hold nothing to learn are left out."""
    rows_N: NDArray[np.int64]
    """Images that are judged: rows of the data artifact."""

    @abstractmethod
    def __init__(self, task: Any, given: Given) -> None:
        """Build and load the model; index what it is trained on and judged by.

        Raises:
            MlsError: nothing to train on or to test on; weights of another backbone.
        """

    @staticmethod
    @abstractmethod
    def build(task: Any, layout: Backbone, classes: int) -> nn.Module:
        """The network of a task with fresh weights, on a backbone of this layout; how large it is shows `mls plan`."""

    @abstractmethod
    def learning_rate(self, step: int) -> float:
        """Of step ``step``, from 0."""

    @abstractmethod
    def batches(self, steps: range, workers: int) -> Generator[list[Any]]:
        """Yield the batches of some steps: a function of seed and step alone, prepared by ``workers`` threads."""

    @abstractmethod
    def losses(self, batch: list[Any]) -> dict[str, Tensor]:
        """Named scalar losses of a batch; their sum is minimised."""

    def finish(self, workers: int, name: str) -> None:  # noqa: B027 (most need nothing)
        """What is done once after the last step, before the model is judged."""

    @abstractmethod
    def predict(self, workers: int, name: str) -> list[dict[str, Any]]:
        """Run the model on `rows_N` once; return results in COCO's format, ``image_id`` the row.

        Raises:
            Interrupted: a signal came; the trained state is saved, so only this pass is run again.
        """

    def score(self, results: list[dict[str, Any]]) -> dict[str, Any]:
        """Metrics of results, percent; see `mls.transfer.rescore`."""
        return scored(self.task, self.store, results)

    def derived(self) -> dict[str, Any]:
        """Values that follow from the task and the data, for the artifact's ``params.json``."""
        return {"total_steps": self.total, "train_images": self.train_images}


def made_by(task: TransferConfig) -> type[TransferTask]:
    """The class that trains a task; it is imported here, since a backend may not be installed.

    Raises:
        MlsError: it is not; says how to install it.
    """
    if task.backend == "detectron2":
        require_detectron2("backend 'detectron2'")
    found: type[TransferTask] = pkgutil.resolve_name(task.made_by)
    return found
