"""The pretraining loop: exact resume, checkpoints, curves.

Killed at any instant, the same command goes on from the last checkpoint and ends with the same
bytes as an undisturbed run (on a CPU at equal threads): data order and augmentation are functions
of seed and step, everything else is in the checkpoint.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mls.data.augment import ColourAugment
from mls.data.loader import TwoViews, batches
from mls.errors import DeterministicError, MlsError
from mls.experiment.stage import Context
from mls.methods.moco import MoCo
from mls.models.backbone import channels_last
from mls.train.checkpoint import NAME, load_checkpoint, rng_state, save_checkpoint, set_rng_state
from mls.train.interrupt import InterruptGuard
from mls.train.progress import Bar
from mls.train.runtime import autocast
from mls.train.schedule import cosine

LOG_EVERY = 20
"""Steps averaged into one row of ``curves.csv``, or an epoch where that is shorter (in the artifact, so no setting)."""


class Trainer:
    """State of one pretraining run, from step 0 to the last."""

    def __init__(self, context: Context, method: MoCo, views: TwoViews, device: torch.device) -> None:
        self.context, self.views, self.device = context, views, device
        self.config = views.config
        self.method = method
        channels_last(self.method.to(device))
        self.method.train()
        chosen = self.config.optimizer
        self.parameters = [p for p in method.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(
            self.parameters, lr=chosen.lr, momentum=chosen.momentum, weight_decay=chosen.weight_decay
        )
        self.augment = ColourAugment(self.config.augment)
        self.log_every = min(LOG_EVERY, views.steps_per_epoch)
        self.step = 0
        self.window: dict[str, Tensor] = {}
        self.curves: list[dict[str, float]] = []
        self.speed: list[tuple[int, float]] = []

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""
        return {
            "step": self.step,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "window": self.window,
            "curves": self.curves,
            "rng": rng_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken."""
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.curves = state["step"], state["curves"]
        self.window = {name: value.to(self.device) for name, value in state["window"].items()}
        set_rng_state(state["rng"])

    def run(self) -> None:
        """Train to the end, resuming from ``work/<id>/checkpoint.pt`` where there is one.

        Raises:
            Interrupted: a signal came; the state is saved.
            DeterministicError: a loss that is not finite.
        """
        file = self.context.work / NAME
        state, problem = load_checkpoint(file)
        if problem:
            self.context.log(problem)
        if state is not None:
            try:
                self.load(state)
            except (KeyError, RuntimeError, ValueError, TypeError) as error:
                raise MlsError(f"{file} was saved by other code ({error}); remove it to start again") from error
            self.context.log(f"resumes at step {self.step} of {self.views.steps}")
        name = f"{self.context.job.stage} {self.context.label}"
        workers = self.context.execution.workers
        with InterruptGuard() as guard, Bar(name, self.views.steps, done=self.step) as bar:
            for batch in batches(self.views, self.step, workers):
                losses = self._train_step(batch.crops_VBCHW, batch.draws_VBU)
                self._record(losses, bar)
                if self.step % self.context.execution.checkpoint_every == 0 and self.step < self.views.steps:
                    save_checkpoint(self.state(), file)
                guard.stop_if_asked(lambda: save_checkpoint(self.state(), file))
        self.speed.append((self.step, bar.rate))

    def _train_step(self, crops_VBCHW: Tensor, draws_VBU: Tensor) -> dict[str, Tensor]:
        crops_VBCHW = crops_VBCHW.to(self.device, non_blocking=True)
        draws_VBU = draws_VBU.to(self.device, non_blocking=True)
        query_BCHW, key_BCHW = (self.augment(crops_VBCHW[v], draws_VBU[v]) for v in (0, 1))
        for group in self.optimizer.param_groups:
            group["lr"] = cosine(self.step, self.views.steps, self.config.optimizer.lr)
        with autocast(self.device, self.config.precision):
            losses: dict[str, Tensor] = self.method(query_BCHW, key_BCHW)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if not bool(torch.isfinite(losses["loss"] + norm)):
            values = ", ".join(f"{name} {value.item():g}" for name, value in losses.items())
            raise DeterministicError(
                f"loss or gradient are not finite at step {self.step} ({values}, gradient norm {norm.item():g}), "
                "nothing was updated with it; lower pretrain.optimizer.lr"
            )
        self.optimizer.step()
        self.method.finish_step()
        self.step += 1
        return {name: value.detach() for name, value in losses.items()}

    def _record(self, losses: dict[str, Tensor], bar: Bar) -> None:
        """Add to the running window; every `log_every` steps, and at the end, make it a row."""
        for name, value in losses.items():
            self.window[name] = self.window.get(name, torch.zeros((), device=self.device)) + value
        note = ""
        last = self.step == self.views.steps
        if self.step % self.log_every == 0 or last:
            count = self.step - int(self.curves[-1]["step"] if self.curves else 0)
            means = {name: float(value) / count for name, value in self.window.items()}
            epoch = self.step / self.views.steps_per_epoch
            lr = self.optimizer.param_groups[0]["lr"]
            self.curves.append({"step": self.step, "epoch": round(epoch, 4), "lr": lr, **means})
            self.window = {}
        if self.curves:
            note = f"loss {self.curves[-1]['loss']:.3f}"
        bar.advance(1, count=self.config.batch_size, note=note)


def write_curves(curves: list[dict[str, float]], path: Path) -> None:
    """Write the rows of the run as CSV, numbers with 6 significant digits."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(curves[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in curves)
