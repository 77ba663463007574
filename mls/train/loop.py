"""The pretraining loop: exact resume, checkpoints, curves, many ranks.

Killed at any instant, the same command continues from the last checkpoint and ends with the same bytes as an
undisturbed run (on a CPU, with equal threads and ranks): data order, augmentation and the keys' permutation are
functions of seed and step; everything else is in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mls.config.experiment import Pretrain
from mls.data.loader import TwoViews, ViewBatch, batches
from mls.data.resident import Resident
from mls.methods.method import Method, Pair
from mls.models.batchnorm import RunningStatistics
from mls.pipeline.plan import payload
from mls.pipeline.runner import Context
from mls.runtime.checkpoint import load_resumable, rng_state, save_resumable, set_rng_state
from mls.runtime.collectives import broadcast, check_same_step, mean_over_ranks, rank, world
from mls.runtime.device import autocast, workers_of
from mls.runtime.errors import DeterministicError, Interrupted, MlsError
from mls.runtime.progress import Bar
from mls.runtime.signals import InterruptGuard
from mls.train.diagnostics import CollapseWatch, diagnose
from mls.train.log import Curves
from mls.train.online_knn import OnlineKnn
from mls.train.optimizer import build_optimizer, masked_step
from mls.train.pairs import layout_of, pair_of
from mls.train.schedule import warmup_cosine
from mls.train.step_values import LateReader, LateStep, Window, dump
from mls.train.weights_biases import RunInfo

LOG_EVERY = 20
"""Steps averaged into one row of ``curves.csv``, or an epoch if that is shorter (a constant: the artifact has them)."""
KNN_TIMES = 30
"""Maximum number of online kNN evaluations in a run, each at the end of an epoch."""
NONFINITE, ASKED = "nonfinite", "asked"
"""Flags of a step that the host reads with its values: some rank's loss or gradient is not finite; some rank got a
signal to stop. They are not in the curves."""


class Trainer:
    """State of one pretraining run, from step 0 to the last.

    Weights, optimiser state, dictionary and running statistics are equal on all ranks at the end of each step, so that
    any rank's state is the checkpoint. Ranks differ only in their images.
    """

    def __init__(
        self, context: Context, config: Pretrain, method: Method[Any], views: TwoViews, device: torch.device
    ) -> None:
        self.context, self.config, self.views, self.device = context, config, views, device
        self.method = method.to(device).to(memory_format=layout_of(config)).train()
        if config.compile:
            self.method.compile_encoders()
        self.model: Callable[[Pair], dict[str, Tensor]] = self.method
        if world() > 1:
            self.model = DistributedDataParallel(self.method)
            # By default DDP sends rank 0's buffers to all ranks in each forward. Ours are equal already, and the
            # dictionary is large. (Set afterwards: as an argument it would also skip the broadcast at the start.)
            self.model.broadcast_buffers = False
        self.parameters = [p for p in method.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(self.parameters, config.optimizer)
        self.statistics = RunningStatistics(self.method)
        self.step = self.nonfinite = 0
        self.stop = False
        self.loss_names: list[str] = []
        self.collapse = CollapseWatch()
        self.window, self.late = Window(), LateReader()
        job, project = context.job, context.plan.loaded.experiment.experiment
        info = RunInfo(job.id, context.label, project, payload(job))
        self.curves = Curves(context.work, context.execution.trackers, info=info, write=rank() == 0)
        self.images_per_s = 0.0
        self.knn = OnlineKnn(views.store, config.augment.crop, device)
        self.resident = None
        if config.resident == "cuda":
            self.resident = Resident(views.store, views.rows, context.execution.threads).to(device)
        labels_RC = views.store.labels(range(len(views.store)))
        # With unlabelled images among them, most pairs could not agree, and the share would mean nothing.
        labelled = labels_RC.any() and not len(views.store.split("unlabeled"))
        self.labels_RC = torch.from_numpy(labels_RC).to(device) if labelled else None
        method.use_labels(self.labels_RC)

    # ------------------------------------------------------------------------------------- the run

    def run(self) -> None:
        """Train to the end, resuming from ``work/<id>/checkpoint-*.pt`` if there is one.

        Raises:
            Interrupted: a signal arrived; the state is saved.
            DeterministicError: too many steps were not finite; the last checkpoint is kept.
        """
        self._resume()
        self._explain()
        name, execution = f"{self.context.job.stage} {self.context.label}", self.context.execution
        workers = workers_of(execution.workers, execution.threads, self.device)
        bar = Bar(name, self.views.steps, done=self.step, hidden=rank() > 0)
        with self.curves, InterruptGuard() as guard, bar:
            for batch in batches(self.views, self.step, workers):
                self._train_step(batch, asked=guard.asked is not None)
                self._record()
                note = f"loss {self.curves.rows[-1]['loss']:.3f}" if self.curves.rows else ""
                bar.advance(1, count=self.config.batch_size, note=note)
                if self.stop:
                    self._save()
                    raise Interrupted("stopped by a signal after saving; run the same command to go on")
                if self.step % execution.checkpoint_every == 0 and self.step < self.views.steps:
                    self._save()
                if world() == 1:  # several ranks must stop at the same step, so they agree on it in `_handle`
                    guard.stop_if_asked(self._save)
            self._handle(self.late.drain())
        self.images_per_s = bar.rate

    def _train_step(self, batch: ViewBatch, *, asked: bool = False) -> None:
        """Train one step; ``asked``: this rank got a signal to stop.

        Nothing here reads a value on the host. Whether the step is finite stays a flag on the device that masks every
        change, and all ranks mask alike, since the flag is reduced over them.
        """
        rng = rng_state()
        pair = pair_of(batch, self.views, self.config, self.step, self.device, self.resident)
        rate = warmup_cosine(self.step, self.views.steps, self.views.steps_per_epoch, self.config.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # The forward moves the running statistics, before it is known whether the step is finite.
        statistics, counts = self.statistics.read(), self.statistics.counts()
        with autocast(self.device, self.config.precision):
            losses = self.model(pair)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        own = {k: v.detach() for k, v in losses.items()} | diagnose(self.method, pair.row_B, self.labels_RC)
        own["grad_norm"] = norm
        own[NONFINITE] = ~torch.isfinite(losses["loss"].detach() + norm)
        own[ASKED] = torch.tensor(asked)
        # Values and flags share one all-reduce, and in the LateReader one copy to the host.
        own_V = torch.stack([v.to(self.device, norm.dtype, non_blocking=True) for v in own.values()])
        values = dict(zip(own, mean_over_ranks(own_V).unbind(), strict=True))
        finite = values[NONFINITE] == 0

        masked_step(self.optimizer, finite)
        # After the optimiser: the key encoder follows the new weights. After `diagnose`: it enqueues this batch's keys.
        self.method.finish_step(finite)
        # Each rank's statistics are of its own groups; their mean is what one rank with all groups would have.
        self.statistics.write(torch.where(finite, mean_over_ranks(self.statistics.read()), statistics))
        self.statistics.uncount(finite, counts)
        self.step += 1
        self.loss_names = list(losses)
        self.window.add({k: v for k, v in values.items() if k not in (NONFINITE, ASKED)}, finite)
        self._handle(self.late.exchange(self.step - 1, values, batch, rng))

    def _handle(self, late: LateStep | None) -> None:
        """Act on what the host learns of the last step: count and dump a non-finite one, stop if any rank was asked to.

        Raises:
            DeterministicError: more non-finite steps than ``execution.max_nonfinite``.
        """
        if late is None:
            return
        if late.values[NONFINITE]:
            self.nonfinite += 1
            images = [self.views.store.name(int(row)) for row in late.batch.rows_B]
            epoch = late.step // self.views.steps_per_epoch
            folder = self.context.work / "nonfinite" / f"rank-{rank()}"
            file = dump(late, folder, images=images, epoch=epoch, seed=self.views.seed)
            shown = ", ".join(f"{k} {late.values[k]:g}" for k in (*self.loss_names, "grad_norm"))
            most = self.context.execution.max_nonfinite
            message = f"step {late.step} is not finite ({shown}); it changed nothing; its batch is in {file}"
            if self.nonfinite > most:
                raise DeterministicError(
                    f"{message}. That is one more than execution.max_nonfinite ({most}); lower pretrain.optimizer.lr"
                )
            self.context.log(f"{message} ({self.nonfinite} of at most {most})")
        self.stop |= world() > 1 and late.values[ASKED] > 0

    # ---------------------------------------------------------------------------------- the curves

    def _record(self) -> None:
        """Make the window a row of the curves: every `LOG_EVERY` steps, at each online kNN and at the end."""
        per_epoch = self.views.steps_per_epoch
        epoch, in_epoch = divmod(self.step, per_epoch)
        last = self.step == self.views.steps
        evaluate = self.knn.available and (last or (in_epoch == 0 and epoch % -(-self.config.epochs // KNN_TIMES) == 0))
        if not (self.step % min(LOG_EVERY, per_epoch) == 0 or evaluate or last):
            return
        row = {"step": self.step, "epoch": round(self.step / per_epoch, 4), "lr": self.optimizer.param_groups[0]["lr"]}
        row |= self.method.scheduled_at((self.step - 1) / per_epoch) | self.window.means()
        if evaluate:
            dictionary = self.method.dictionary
            eager = torch.compiler.set_stance("force_eager") if self.config.compile else nullcontext()
            with eager:  # compiling for one pass in evaluation mode would take longer than the pass
                row["knn"] = self.knn.score(self.method.key_backbone, dictionary.g_DG, dictionary.row_D)
        self.curves.add(row)
        if message := self.collapse.message(row):
            self.context.log(message)

    def _explain(self) -> None:
        """Log what would otherwise puzzle a reader of the curves."""
        size, images = self.config.moco.queue_size, len(self.views.rows)
        if self.method.negatives and size > images / 4:
            self.context.log(
                f"warning: moco.queue_size {size} is more than a quarter of the {images} train images: an image often "
                "meets its own earlier keys as negatives (the paper's queue holds 1/29 of the images)"
            )
        if self.method.negatives and self.step * self.config.batch_size < size:
            self.context.log(
                "the dictionary begins as random directions: the loss rises until it is full of keys, "
                f"at step {-(-size // self.config.batch_size)}; this is normal"
            )

    # ---------------------------------------------------------------------------------- the state

    def state(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on (there is no gradient scaler: bf16 needs none)."""
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
        """Restore what `state` returned."""
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.nonfinite = state["step"], state["nonfinite"]
        self.curves.resume(state["curves"])
        self.window.load(state["window"], self.device)
        set_rng_state(state["rng"])

    def _resume(self) -> None:
        work = self.context.work
        state, problems = load_resumable(work)
        for problem in problems:
            self.context.log(problem)
        if state is not None:
            try:
                self.load(state)
                ranks = state["world"]
            except (KeyError, RuntimeError, ValueError, TypeError) as error:
                raise MlsError(f"{work} was saved by different code ({error}); remove it to start again") from error
            self.context.log(f"resumes at step {self.step} of {self.views.steps}")
            if ranks != world():
                self.context.log(f"saved with {ranks} ranks, continues with {world()}: the last digits will differ")
        check_same_step(self.step, work)
        self.collapse = CollapseWatch(self.curves.rows)

    def _save(self) -> None:
        """Save on rank 0 while the others wait: torchrun ends the job soon after any rank has left."""
        self._handle(self.late.drain())
        if rank() == 0:
            save_resumable(self.state(), self.context.work, self.step, self.context.execution.keep_checkpoints)
            self.curves.saved()
        broadcast(True)
