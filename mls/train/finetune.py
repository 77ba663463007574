"""The fine-tuning loop of probes and transfer tasks: stop at any step, resume bit for bit, on one rank or several.

    history = finetune(training, execution=execution, work=work, log=log, name="transfer detect/mls:0")
    for batch in read_ahead(planned, load, workers=2): ...

A `FineTuning` holds what differs between trainings. Its batches depend only on the seed and the step, and the state of
torch's generator (a detector's sampling of regions, dropout) is part of the checkpoint. On a CPU at equal threads, a
resumed run therefore writes the same bytes as an uninterrupted one.

Several ranks share each batch. Their losses are such that the mean over ranks is the loss of the whole batch, so
DistributedDataParallel's mean of the gradients is the gradient of one process.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mls.config.experiment import Execution
from mls.runtime.checkpoint import load_resumable, rng_state, save_resumable, set_rng_state
from mls.runtime.collectives import broadcast, check_same_step, mean_over_ranks, rank, stop_together, world
from mls.runtime.device import workers_of
from mls.runtime.errors import DeterministicError
from mls.runtime.progress import Bar
from mls.runtime.signals import InterruptGuard

CURVE_EVERY = 20
"""Steps between the rows of ``curves.csv`` and ``timing.csv``."""
PREFETCH = 2
"""Number of batches that are prepared ahead."""

Loaded = TypeVar("Loaded")
Planned = TypeVar("Planned")


@dataclass
class History:
    """Rows of ``curves.csv`` (step, loss and its parts, lr) and of ``timing.csv`` (step, images_per_s)."""

    curves: list[dict[str, float]] = field(default_factory=list)
    timing: list[dict[str, float]] = field(default_factory=list)


class FineTuning(ABC):
    """A model with its optimiser, and the batches that it learns from."""

    model: nn.Module
    """On its device."""
    optimizer: torch.optim.Optimizer
    """A parameter group may hold ``times``: its learning rate in units of the schedule's."""
    batch_size: int
    """Images of each step, over all ranks; every batch is full."""
    total: int
    """Optimiser steps of the whole training."""

    @property
    def trained(self) -> nn.Module:
        """The part of the model that training changes, which a checkpoint holds."""
        return self.model

    @property
    def accumulate(self) -> int:
        """Equal parts of a step's batch, one after another; their gradients are added up."""
        return 1

    @abstractmethod
    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""

    @abstractmethod
    def batches(self, steps: range, workers: int) -> Generator[Any]:
        """Yield this rank's share of each part of some steps' batches, prepared by ``workers`` threads.

        They depend only on seed, step and rank.
        """

    @abstractmethod
    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Return named scalar losses of such a share; their sum is minimised, on average over ranks and parts."""

    def remedy(self, step: int) -> str:
        """Say what to do about a loss or a gradient that is not finite at this step."""
        return "lower lr, or raise warmup_steps"


def finetune(
    training: FineTuning, *, execution: Execution, work: Path, log: Callable[[str], None], name: str
) -> History:
    """Train in place, from the newest checkpoint in ``work`` if there is one; save the final state there.

    Args:
        training: the model and its batches.
        execution: threads and checkpoints.
        work: folder of the checkpoints, the same for all ranks; rank 0 writes them.
        log: takes a line.
        name: of the progress bar.

    Raises:
        DeterministicError: a loss or a gradient is not finite; this step updates nothing, on any rank.
        Interrupted: a signal came, to any rank; the state is saved.
        MlsError: ranks see different checkpoints.
    """
    model, optimizer, total, parts = training.model, training.optimizer, training.total, training.accumulate
    history, done = History(), 0
    state, problems = load_resumable(work)
    for problem in problems:
        log(problem)
    if state is not None:
        training.trained.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if "rng" in state:  # older checkpoints of probes lack it, which is safe: a probe's training draws nothing
            set_rng_state(state["rng"])
        history, done = History(state["curves"], state["timing"]), int(state["step"])
        log(f"going on from step {done} of {total}")
        if (before := state.get("world", 1)) != world():
            log(f"saved with {before} ranks, goes on with {world()}: random draws, or the last digits, will differ")
    check_same_step(done, work)
    if parts > 1:
        size = training.batch_size // parts
        log(
            f"{parts} parts of {size} images a step: batch norm sees {size} images at a time, not {training.batch_size}"
        )

    def save() -> None:
        weights, moments = training.trained.state_dict(), optimizer.state_dict()
        rows = {"curves": history.curves, "timing": history.timing}
        state = {"step": done, "model": weights, "optimizer": moments, "rng": rng_state(), "world": world(), **rows}
        if rank() == 0:
            save_resumable(state, work, done, execution.keep_checkpoints)
        broadcast(True)  # the others wait: torchrun ends the job soon after any rank has left

    model.train()
    losses_of: Callable[[Any], dict[str, Tensor]] = training.losses
    if world() > 1:
        losses_of = DistributedDataParallel(_Losses(training))
        losses_of.broadcast_buffers = False  # they are equal already
    since, since_step = time.perf_counter(), done
    workers = workers_of(execution.workers, execution.threads, next(model.parameters()).device)
    with (
        InterruptGuard() as guard,
        Bar(name, total, done=done, hidden=rank() > 0) as bar,
        closing(training.batches(range(done, total), workers)) as batches,
    ):
        while done < total:
            stop_together(guard, save)
            lr = training.learning_rate(done)
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("times", 1.0)
            optimizer.zero_grad()
            losses = _backward(losses_of, batches, parts)
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            own_V = torch.stack([torch.stack(list(losses.values())).sum(), norm, *losses.values()])
            value, norm_value, *values = mean_over_ranks(own_V).tolist()  # the step's one wait for the device
            if not math.isfinite(value) or not math.isfinite(norm_value):
                shown = ", ".join(f"{key} {part:.3g}" for key, part in zip(losses, values, strict=True))
                what = "gradient" if math.isfinite(value) else "loss"
                raise DeterministicError(
                    f"the {what} is not finite at step {done} of {total} ({shown}); the learning rate is {lr:.3g}: "
                    + training.remedy(done)
                )
            optimizer.step()
            if done % CURVE_EVERY == 0 or done == total - 1:
                history.curves.append({"step": done, "loss": value, **dict(zip(losses, values, strict=True)), "lr": lr})
                now = time.perf_counter()
                rate = (done + 1 - since_step) * training.batch_size / (now - since)
                history.timing.append({"step": done, "images_per_s": rate})
                since, since_step = now, done + 1
            done += 1
            bar.advance(1, count=training.batch_size, note=f"loss {value:.3f}")
            if done % execution.checkpoint_every == 0 and done < total:
                save()
        save()
        stop_together(guard, lambda: None)
    return history


class _Losses(nn.Module):
    """A training's losses as a module's forward, which DistributedDataParallel needs."""

    def __init__(self, training: FineTuning) -> None:
        super().__init__()
        self.model, self.losses = training.model, training.losses

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return self.losses(batch)


def _backward(losses_of: Callable[[Any], dict[str, Tensor]], batches: Generator[Any], parts: int) -> dict[str, Tensor]:
    """Add up the gradients of a step's parts, and exchange them with the last; return losses, means over the parts."""
    means: dict[str, Tensor] = {}
    for part in range(1, parts + 1):
        waits = isinstance(losses_of, DistributedDataParallel) and part < parts
        with losses_of.no_sync() if waits else nullcontext():  # type: ignore[attr-defined]
            losses = {name: loss / parts for name, loss in losses_of(next(batches)).items()}
            torch.stack(list(losses.values())).sum().backward()
        means = {name: loss.detach() + means.get(name, 0) for name, loss in losses.items()}
    return means


def places(step: int, batch_size: int, images: int) -> list[tuple[int, int]]:
    """Return the epoch of each image of a batch, and its place in that epoch.

    Epochs follow each other without a gap: every batch is full, and one may begin in an epoch and end in the next.
    """
    return [divmod(position, images) for position in range(step * batch_size, (step + 1) * batch_size)]


def read_ahead(
    planned: Iterable[Iterable[Planned]], load: Callable[[Planned], Loaded], workers: int
) -> Generator[list[Loaded]]:
    """Yield loaded batches, prepared ahead by threads (decoding releases Python's lock).

    Args:
        planned: what to load for each batch.
        load: loads one sample.
        workers: threads (0 means one); no effect on the batches.
    """
    with ThreadPoolExecutor(max(1, workers)) as pool:
        submitted = ([pool.submit(load, one) for one in batch] for batch in planned)
        ahead = deque(islice(submitted, PREFETCH))
        try:
            while ahead:
                ahead.extend(islice(submitted, 1))
                yield [future.result() for future in ahead.popleft()]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
