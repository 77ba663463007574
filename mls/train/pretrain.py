"""The pretraining stage: from a run's params to ``backbone.safetensors``, whatever the method.

mls pretrain mls                                       # by hand, the run `mls` of params.yaml
torchrun --nproc-per-node 2 -m mls pretrain mls        # the same on two GPUs; pretrain.batch_size stays the global one
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import nn

from mls.config.experiment import Pretrain
from mls.config.methods import TRAINED
from mls.data.image_store import ImageStore
from mls.data.loader import TwoViews
from mls.methods.method import build_method
from mls.models.backbone import build_backbone, save_backbone
from mls.models.foreign import load_imagenet, load_weights
from mls.pipeline.runner import Context
from mls.runtime.checkpoint import NAME, save_checkpoint
from mls.runtime.collectives import rank, world
from mls.runtime.device import set_up
from mls.runtime.errors import MlsError
from mls.train.log import write_curves
from mls.train.loop import Trainer


def run(context: Context) -> None:
    """Make the pretraining artifact: weights, and for trained ones final state, curves and metrics.

    With several ranks all of them train and rank 0 writes. The running statistics of batch norm that
    are kept are the mean over groups and ranks.
    """
    config: Pretrain = context.job.config
    if rank() > 0 and config.method not in TRAINED:
        return
    device = set_up(context.execution.device, context.execution.threads, context.job.seed)
    metrics: dict[str, Any] = {"steps": 0}
    backbone: nn.Module
    if config.method in TRAINED:
        check_ranks(config, device)
        if config.resident == "cuda" and device.type != "cuda":
            raise MlsError("pretrain.resident is 'cuda', but this run is on the CPU; use 'cpu' or 'no'")
        store, threads = ImageStore(context.inputs["data"].path), context.execution.threads
        views = TwoViews(store, config, context.job.seed, rank(), world(), threads)
        trainer = Trainer(context, build_method(config), views, device)
        trainer.run()
        if rank() > 0:
            return
        write_trained(context, trainer, views)
        last = {k: v for row in trainer.curves.rows for k, v in row.items() if not math.isnan(v)}
        metrics = {k: v for k, v in last.items() if k not in ("step", "epoch", "lr")}
        metrics |= {"steps": views.steps, "nonfinite_steps": trainer.nonfinite}
        backbone = trainer.method.get_submodule(trainer.method.exported)
    elif config.method == "weights":
        backbone = load_weights(config, context.log)
    elif config.method == "imagenet":
        backbone = load_imagenet(config)
    else:
        backbone = build_backbone(config.backbone)
    save_backbone(backbone, context.out / "backbone.safetensors")
    (context.out / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def check_ranks(config: Pretrain, device: torch.device) -> None:
    """Stop where so many ranks can't compute what the params say.

    Raises:
        MlsError: says what to set.
    """
    splits = config.moco.bn_splits
    if world() == 1:
        return
    if splits == 1 and device.type != "cuda":
        raise MlsError(
            f"moco.bn_splits 1 over {world()} ranks is SyncBN, which torch has for GPUs alone; "
            f"set moco.bn_splits to a multiple of {world()}, or use one rank"
        )
    if splits > 1 and splits % world():
        raise MlsError(
            f"moco.bn_splits {splits} groups can't be shared evenly by {world()} ranks; "
            "use a number of ranks that divides it"
        )


def write_trained(context: Context, trainer: Trainer, views: TwoViews) -> None:
    """Write what only a trained backbone has: final state, curves, speed, derived values."""
    save_checkpoint(trainer.state(), context.out / NAME)
    write_curves(trainer.curves.rows, context.out / "curves.csv")
    timing = "".join(f"{step},{rate:.1f}\n" for step, rate in trainer.speed)
    (context.out / "timing.csv").write_text(f"step,images_per_s\n{timing}", encoding="utf-8")
    derived = {"steps": views.steps, "steps_per_epoch": views.steps_per_epoch, "train_images": len(views.rows)}
    (context.out / "derived.json").write_text(json.dumps(derived), encoding="utf-8")
