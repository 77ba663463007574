"""The pretraining stage: from a run's params to ``backbone.safetensors``, whatever the method.

mls pretrain mls            # by hand, the run `mls` of params.yaml
"""

from __future__ import annotations

import json
from typing import Any

from torch import nn

from mls.data.loader import TwoViews
from mls.data.store import Store
from mls.experiment.params import Pretrain
from mls.experiment.stage import Context
from mls.methods.mls import MLS
from mls.methods.moco import MoCo
from mls.models.backbone import build_backbone, save_backbone
from mls.models.foreign import load_imagenet, load_weights
from mls.train.checkpoint import NAME, save_checkpoint
from mls.train.loop import Trainer, write_curves
from mls.train.runtime import set_up

METHODS: dict[str, type[MoCo]] = {"moco": MoCo, "mls": MLS}


def run(context: Context) -> None:
    """Make the pretraining artifact: weights, and for trained ones final state, curves and metrics."""
    config: Pretrain = context.job.config
    device = set_up(context.execution, context.job.seed)
    metrics: dict[str, Any] = {"steps": 0}
    backbone: nn.Module
    if config.method in METHODS:
        views = TwoViews(Store(context.inputs["data"].path), config, context.job.seed)
        trainer = Trainer(context, METHODS[config.method](config), views, device)
        trainer.run()
        save_checkpoint(trainer.state(), context.out / NAME)
        write_curves(trainer.curves, context.out / "curves.csv")
        timing = "".join(f"{step},{rate:.1f}\n" for step, rate in trainer.speed)
        (context.out / "timing.csv").write_text(f"step,images_per_s\n{timing}", encoding="utf-8")
        derived = {"steps": views.steps, "steps_per_epoch": views.steps_per_epoch, "train_images": len(views.rows)}
        (context.out / "derived.json").write_text(json.dumps(derived), encoding="utf-8")
        last = trainer.curves[-1]
        metrics = {"steps": views.steps} | {k: v for k, v in last.items() if k not in ("step", "epoch", "lr")}
        backbone = trainer.method.backbone
    elif config.method == "weights":
        backbone = load_weights(config, context.log)
    elif config.method == "imagenet":
        backbone = load_imagenet(config)
    else:
        backbone = build_backbone(config.backbone)
    save_backbone(backbone, context.out / "backbone.safetensors")
    (context.out / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True) + "\n", encoding="utf-8")
