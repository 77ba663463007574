"""The pretraining stage: from a run's params to ``backbone.safetensors``, whatever the method.

mls pretrain mls                                       # by hand, the run `mls` of params.yaml
torchrun --nproc-per-node 2 -m mls pretrain mls        # the same on two GPUs; pretrain.batch_size stays the global one
"""

from __future__ import annotations

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
from mls.runtime.files import write_csv, write_json
from mls.train.log import write_curves
from mls.train.loop import Trainer


def run(context: Context) -> None:
    """Make the pretraining artifact: the weights; for trained methods also final state, curves and metrics.

    All ranks train, and rank 0 writes.
    """
    config: Pretrain = context.job.config
    if rank() > 0 and config.method not in TRAINED:
        return
    device = set_up(context.execution.device, context.execution.threads, context.job.seed)
    metrics: dict[str, Any] = {"steps": 0}
    backbone: nn.Module
    if config.method in TRAINED:
        trainer = train(context, config, device)
        if rank() > 0:
            return
        metrics = write_training(context, trainer)
        backbone = trainer.method.get_submodule(trainer.method.exported)
    elif config.method == "weights":
        backbone = load_weights(config, context.log)
    elif config.method == "imagenet":
        backbone = load_imagenet(config)
    else:
        backbone = build_backbone(config.backbone)
    save_backbone(backbone, context.out / "backbone.safetensors")
    write_json(metrics, context.out / "metrics.json", indent=1)


def train(context: Context, config: Pretrain, device: torch.device) -> Trainer:
    """Train this rank's share of a run; return the finished trainer.

    Raises:
        MlsError: the device or the number of ranks does not fit the params.
    """
    check_ranks(config, device)
    if config.resident == "cuda" and device.type != "cuda":
        raise MlsError("pretrain.resident is 'cuda', but this run is on the CPU; use 'cpu' or 'no'")
    store, threads = ImageStore(context.inputs["data"].path), context.execution.threads
    views = TwoViews(store, config, context.job.seed, rank(), world(), threads)
    trainer = Trainer(context, config, build_method(config), views, device)
    trainer.run()
    return trainer


def check_ranks(config: Pretrain, device: torch.device) -> None:
    """Check that this number of ranks can compute what the params say.

    Raises:
        MlsError: it can't; says what to set.
    """
    splits = config.moco.bn_splits
    if world() == 1:
        return
    if splits == 1 and device.type != "cuda":
        raise MlsError(
            f"moco.bn_splits 1 over {world()} ranks is SyncBN, which torch only has for GPUs; "
            f"set moco.bn_splits to a multiple of {world()}, or use one rank"
        )
    if splits > 1 and splits % world():
        raise MlsError(
            f"the {splits} groups of moco.bn_splits can't be shared evenly by {world()} ranks; "
            f"use a number of ranks that divides {splits}"
        )


def write_training(context: Context, trainer: Trainer) -> dict[str, Any]:
    """Write final state, curves, speed and derived values of a training; return its metrics."""
    views, rows = trainer.views, trainer.curves.rows
    save_checkpoint(trainer.state(), context.out / NAME)
    write_curves(rows, context.out / "curves.csv")
    write_csv([{"step": trainer.step, "images_per_s": trainer.images_per_s}], context.out / "timing.csv")
    derived = {"steps": views.steps, "steps_per_epoch": views.steps_per_epoch, "train_images": len(views.rows)}
    write_json(derived, context.out / "derived.json")
    last = {k: v for row in rows for k, v in row.items() if k not in ("step", "epoch", "lr") and not math.isnan(v)}
    return last | {"steps": views.steps, "nonfinite_steps": trainer.nonfinite}
