"""Fine-tune a model; stop at any step, go on bit for bit.

    history = fit(transfer, execution=execution, work=work, log=print, name="transfer detect/mls:0")

Which image comes when, and what is done to it, follows from the seed and the step alone; torch's generator (a
detector's sampling of regions, dropout) is part of the checkpoint. On a CPU with equal threads a resumed run
therefore repeats an uninterrupted one exactly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from mls.config.experiment import Execution
from mls.runtime.checkpoint import load_resumable, rng_state, save_resumable, set_rng_state
from mls.runtime.device import workers_of
from mls.runtime.errors import DeterministicError
from mls.runtime.progress import Bar
from mls.runtime.signals import InterruptGuard
from mls.transfer.interface import TransferTask

CURVE_EVERY = 20
"""Steps between the rows of ``curves.csv`` and ``timing.csv``."""
WARMUP_FACTOR = 0.001
"""Share of the learning rate at the first step of the warm-up (Detectron2's default)."""


@dataclass
class History:
    """What the training was like: the rows of ``curves.csv`` and ``timing.csv``."""

    curves: list[dict[str, float]] = field(default_factory=list)
    timing: list[dict[str, float]] = field(default_factory=list)


def warm_up_and_drops(lr: float, step: int, total: int, warmup_steps: float, drops: list[float]) -> float:
    """Learning rate of step ``step`` (from 0): linear warm-up times a tenth per drop that has passed.

    Args:
        lr: before the drops.
        step: from 0.
        total: steps of the whole schedule.
        warmup_steps: over which the rate rises from `WARMUP_FACTOR` of it.
        drops: as shares of the schedule.
    """
    progress = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    warm = WARMUP_FACTOR + (1 - WARMUP_FACTOR) * progress
    return lr * warm * 0.1 ** sum(step >= math.floor(share * total) for share in drops)


def undecayed_norms(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """What is trained, in two groups: normalisation layers are not decayed (Detectron2's default)."""
    norms = {id(p) for module in model.modules() if isinstance(module, _NormBase) for p in module.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if id(p) not in norms], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in norms], "weight_decay": 0.0},
    ]


def fit(
    transfer: TransferTask,
    *,
    execution: Execution,
    work: Path,
    log: Callable[[str], None],
    name: str = "transfer",
) -> History:
    """Train in place, from the newest checkpoint in ``work`` where there is one; leaves the final state there.

    Raises:
        DeterministicError: a loss or a gradient is not finite; nothing was updated with it.
        Interrupted: a signal came; the state is saved.
    """
    model, optimizer, total = transfer.model, transfer.optimizer, transfer.total
    history, done = History(), 0
    state, problems = load_resumable(work)
    for problem in problems:
        log(problem)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        set_rng_state(state["rng"])
        history, done = History(state["curves"], state["timing"]), int(state["step"])
        log(f"going on from step {done} of {total}")

    def save() -> None:
        save_resumable(
            {
                "step": done,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "rng": rng_state(),
                "curves": history.curves,
                "timing": history.timing,
            },
            work,
            done,
            execution.keep_checkpoints,
        )

    model.train()
    since, since_step = time.perf_counter(), done
    device = next(model.parameters()).device
    workers = workers_of(execution.workers, execution.threads, device)
    with (
        InterruptGuard() as guard,
        Bar(name, total, done=done) as bar,
        closing(transfer.batches(range(done, total), workers)) as batches,
    ):
        for batch in batches:
            guard.stop_if_asked(save)
            lr = transfer.learning_rate(done)
            for group in optimizer.param_groups:
                group["lr"] = lr
            losses = transfer.losses(batch)
            loss = torch.stack(list(losses.values())).sum()
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            value, norm_value = torch.stack([loss.detach(), norm]).tolist()  # the step's one wait for the device
            if not math.isfinite(value) or not math.isfinite(norm_value):
                parts = ", ".join(f"{key} {float(part.detach()):.3g}" for key, part in losses.items())
                what = "gradient" if math.isfinite(value) else "loss"
                raise DeterministicError(
                    f"the {what} is not finite at step {done} of {total} ({parts}); the learning rate is {lr:.3g}: "
                    "lower lr, or let it rise more slowly"
                )
            optimizer.step()
            if done % CURVE_EVERY == 0 or done == total - 1:
                parts_now = {key: float(part.detach()) for key, part in losses.items()}
                history.curves.append({"step": done, "loss": value, **parts_now, "lr": lr})
                now = time.perf_counter()
                rate = (done + 1 - since_step) * transfer.batch_size / (now - since)
                history.timing.append({"step": done, "images_per_s": rate})
                since, since_step = now, done + 1
            done += 1
            bar.advance(1, count=len(batch), note=f"loss {value:.3f}")
            if done % execution.checkpoint_every == 0 and done < total:
                save()
        save()
        guard.stop_if_asked(lambda: None)
    return history
