"""The pretraining loop: exact resume, checkpoints, curves, many ranks.

Killed at any instant, the same command goes on from the last checkpoint and ends with the same
bytes as an undisturbed run (on a CPU at equal threads and ranks): data order, augmentation and the
keys' permutation are functions of seed and step, everything else is in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mls.data.loader import TwoViews, ViewBatch, batches
from mls.data.resident import Resident
from mls.methods.diagnostics import CollapseWatch
from mls.methods.method import Method, Pair
from mls.methods.mls import MLS, weight_at
from mls.models.batchnorm import RunningStatistics
from mls.pipeline.runner import Context
from mls.runtime.checkpoint import load_resumable, rng_state, save_resumable, set_rng_state
from mls.runtime.collectives import broadcast, gather, mean_over_ranks, rank, world
from mls.runtime.device import autocast, workers_of
from mls.runtime.errors import DeterministicError, Interrupted, MlsError
from mls.runtime.progress import Bar
from mls.runtime.signals import InterruptGuard
from mls.train.diagnose import diagnose
from mls.train.guard import LateReader, LateStep, dump
from mls.train.log import Curves
from mls.train.online_knn import OnlineKnn
from mls.train.optimizer import build_optimizer, masked_step
from mls.train.pairs import layout_of, pair_of
from mls.train.schedule import learning_rate
from mls.train.window import Window

LOG_EVERY = 20
"""Steps averaged into one row of ``curves.csv``, or an epoch where that is shorter (in the artifact, so no setting)."""
KNN_TIMES = 30
"""How often in a run, at most, the online kNN judges the backbone, always at an epoch's end."""


class Trainer:
    """State of one pretraining run, from step 0 to the last; equal on every rank."""

    def __init__(self, context: Context, method: Method[Any], views: TwoViews, device: torch.device) -> None:
        self.context, self.views, self.device = context, views, device
        self.config = views.config
        self.method = method.to(device).to(memory_format=layout_of(self.config)).train()
        if self.config.compile:
            self.method.compile_encoders()
        self.model: Callable[[Pair], dict[str, Tensor]] = self.method
        if world() > 1:
            self.model = DistributedDataParallel(self.method)
            self.model.broadcast_buffers = False  # they are equal on all ranks, and the dictionary is large
        self.parameters = [p for p in method.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(self.parameters, self.config.optimizer)
        self.statistics = RunningStatistics(self.method)
        self.step = self.nonfinite = 0
        self.stop = False
        self.losses: list[str] = []
        self.names: list[str] = []
        self.collapse = CollapseWatch()
        self.window, self.late = Window(), LateReader()
        self.curves = Curves(context.work, context.execution.trackers if rank() == 0 else [], write=rank() == 0)
        self.speed: list[tuple[int, float]] = []
        self.knn = OnlineKnn(views.store, self.config.augment.crop, device)
        labels_RC = views.store.labels(range(len(views.store)))
        threads = context.execution.threads
        on_gpu = self.config.resident == "cuda"
        self.resident = Resident(views.store, views.rows, threads).to(device) if on_gpu else None
        labelled = labels_RC.any() and not len(views.store.split("unlabeled"))  # else many would agree with nobody
        self.labels_RC = torch.from_numpy(labels_RC).to(device) if labelled else None
        if isinstance(method, MLS) and self.config.mls.label_space == "truth":
            if self.labels_RC is None:
                raise MlsError("pretrain.mls.label_space is 'truth', but not every train image has labels")
            method.truth_RC = self.labels_RC

    # ------------------------------------------------------------------------------------- the run

    def run(self) -> None:
        """Train to the end, resuming from ``work/<id>/checkpoint-*.pt`` where there are any.

        Raises:
            Interrupted: a signal came; the state is saved.
            DeterministicError: too many steps were not finite; the last checkpoint is kept.
        """
        self._resume()
        self._explain()
        name = f"{self.context.job.stage} {self.context.label}"
        hidden = rank() > 0
        workers = workers_of(self.context.execution.workers, self.context.execution.threads, self.device)
        with self.curves, InterruptGuard() as guard, Bar(name, self.views.steps, done=self.step, hidden=hidden) as bar:
            for batch in batches(self.views, self.step, workers):
                self._train_step(batch, asked=guard.asked is not None)
                self._record()
                note = f"loss {self.curves.rows[-1]['loss']:.3f}" if self.curves.rows else ""
                bar.advance(1, count=self.config.batch_size, note=note)
                if self.stop:
                    self._save()
                    raise Interrupted("stopped by a signal after saving; run the same command to go on")
                if self.step % self.context.execution.checkpoint_every == 0 and self.step < self.views.steps:
                    self._save()
                if world() == 1:  # together they stop at a step that all agree on
                    guard.stop_if_asked(self._save)
            self._handle(self.late.drain())
        self.speed.append((self.step, bar.rate))

    def _train_step(self, batch: ViewBatch, *, asked: bool = False) -> None:
        """One step; ``asked``: this rank has got a signal to stop."""
        rng = rng_state()
        pair = pair_of(batch, self.views, self.step, self.device, self.resident)
        rate = learning_rate(self.step, self.views.steps, self.views.steps_per_epoch, self.config.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        before, counts = self.statistics.read(), self.statistics.counts()
        with autocast(self.device, self.config.precision):
            losses = self.model(pair)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        values = {k: v.detach() for k, v in losses.items()} | diagnose(self.method, pair.row_B, self.labels_RC)
        values["grad_norm"] = norm
        values["nonfinite"] = ~torch.isfinite(losses["loss"].detach() + norm)
        values["asked"] = torch.tensor(asked)
        told_V = mean_over_ranks(
            torch.stack([v.to(self.device, norm.dtype, non_blocking=True) for v in values.values()])
        )
        finite = told_V[-2] == 0

        masked_step(self.optimizer, finite)
        self.method.finish_step(finite)
        self.statistics.write(torch.where(finite, mean_over_ranks(self.statistics.read()), before))
        self.statistics.uncount(finite, counts)
        self.step += 1
        self.losses, self.names = list(losses), list(values)
        self.window.add(self.names[:-2], told_V[:-2], finite)
        self._handle(self.late.exchange(self.step - 1, told_V, batch, rng))

    def _handle(self, heard: LateStep | None) -> None:
        """What the host learns of the last step: count and dump one that was not finite; was any rank asked to stop?

        Raises:
            DeterministicError: one more than ``execution.max_nonfinite``.
        """
        if heard is None:
            return
        values = dict(zip(self.names, heard.values, strict=True))
        if values["nonfinite"]:
            self.nonfinite += 1
            names = [self.views.store.name(int(row)) for row in heard.batch.rows_B]
            epoch = heard.step // self.views.steps_per_epoch
            folder = self.context.work / "nonfinite" / f"rank-{rank()}"
            file = dump(heard, values, self.views.seed, epoch, names, folder)
            said = ", ".join(f"{k} {values[k]:g}" for k in (*self.losses, "grad_norm"))
            most = self.context.execution.max_nonfinite
            message = f"step {heard.step} is not finite ({said}); it changed nothing; its batch is in {file}"
            if self.nonfinite > most:
                raise DeterministicError(
                    f"{message}. That is one more than execution.max_nonfinite ({most}); lower pretrain.optimizer.lr"
                )
            self.context.log(f"{message} ({self.nonfinite} of at most {most})")
        self.stop |= world() > 1 and values["asked"] > 0

    # ---------------------------------------------------------------------------------- the curves

    def _record(self) -> None:
        """Every `LOG_EVERY` steps, at an online kNN and at the end, make the window a row of the curves."""
        per_epoch, epochs = self.views.steps_per_epoch, self.config.epochs
        epoch, in_epoch = divmod(self.step, per_epoch)
        last = self.step == self.views.steps
        judge = self.knn.available and (last or (in_epoch == 0 and epoch % -(-epochs // KNN_TIMES) == 0))
        if not (self.step % min(LOG_EVERY, per_epoch) == 0 or judge or last):
            return
        row = {"step": self.step, "epoch": round(self.step / per_epoch, 4), "lr": self.optimizer.param_groups[0]["lr"]}
        if isinstance(self.method, MLS):
            row["weight"] = weight_at(self.config.mls, (self.step - 1) / per_epoch)
        row |= self.window.means()
        if judge:
            dictionary = self.method.dictionary
            eager = torch.compiler.set_stance("force_eager") if self.config.compile else nullcontext()
            with eager:  # compiling for one pass in evaluation mode would take longer than the pass
                row["knn"] = self.knn.score(self.method.key_backbone, dictionary.g_DG, dictionary.row_D)
        self.curves.add(row)
        message = self.collapse.message(row)
        if message:
            self.context.log(message)

    def _explain(self) -> None:
        """Say what a reader of the log would otherwise wonder about."""
        size, images = self.config.moco.queue_size, len(self.views.rows)
        if self.method.negatives and size > images / 4:
            self.context.log(
                f"warning: moco.queue_size {size} is more than a quarter of the {images} train images: an image often "
                "meets its own earlier keys as negatives (the paper's is 1/29)"
            )
        if self.method.negatives and self.step * self.config.batch_size < size:
            self.context.log(
                "the dictionary begins as random directions: the loss rises until it is full of keys, "
                f"at step {-(-size // self.config.batch_size)}; this is normal"
            )

    # ---------------------------------------------------------------------------------- the state

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on (there is no gradient scaler: bf16 needs none)."""
        return {
            "step": self.step,
            "nonfinite": self.nonfinite,
            "world": world(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "window": self.window.state(),
            "curves": self.curves.rows,
            "rng": rng_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken."""
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.nonfinite = state["step"], state["nonfinite"]
        self.curves.resume(state["curves"])
        self.window.load(state["window"], self.device)
        set_rng_state(state["rng"])

    def _resume(self) -> None:
        state, problems = load_resumable(self.context.work)
        for problem in problems:
            self.context.log(problem)
        if state is not None:
            try:
                self.load(state)
                ranks = state["world"]
            except (KeyError, RuntimeError, ValueError, TypeError) as error:
                place = self.context.work
                raise MlsError(f"{place} was saved by other code ({error}); remove it to start again") from error
            self.context.log(f"resumes at step {self.step} of {self.views.steps}")
            if ranks != world():
                self.context.log(f"saved with {ranks} ranks, goes on with {world()}: the last digits will differ")
        steps = gather(torch.tensor([self.step])).tolist()
        if len(set(steps)) > 1:
            raise MlsError(f"ranks found other checkpoints (of steps {steps}); all must see one {self.context.work}")
        self.collapse = CollapseWatch(self.curves.rows)

    def _save(self) -> None:
        """Rank 0 writes, the others wait: torchrun ends the job soon after one rank has left."""
        self._handle(self.late.drain())
        if rank() == 0:
            save_resumable(self.state(), self.context.work, self.step, self.context.execution.keep_checkpoints)
        broadcast(True)
