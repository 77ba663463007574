"""Jobs, trainers and rows of curves that several tests use, and a watch over reads of tensors on the host."""

from __future__ import annotations

import math
import traceback
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mls.data.image_store import ImageStore
from mls.data.loader import TwoViews
from mls.methods.method import build_method
from mls.pipeline.plan import Job, Plan
from mls.pipeline.runner import Context
from mls.runtime.device import set_up
from mls.train.log import Row
from mls.train.loop import Trainer

READS = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
)


class HostReads(TorchDispatchMode):
    """Record each read of a tensor's value, or of a result's size, on the host: on a GPU each would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS or (
            func is torch.ops.aten.index.Tensor and any(i.dtype == torch.bool for i in args[1] if i is not None)
        ):
            self.found.append(traceback.format_stack(limit=6)[0])
        return func(*args, **(kwargs or {}))


def job_of(plan: Plan, run: str) -> Job:
    """The pretraining of a run."""
    (job,) = plan.find("pretrain", run)
    return job


def trainer_of(plan: Plan, run: str = "mls") -> Trainer:
    """A trainer before its first step."""
    job = job_of(plan, run)
    execution = plan.loaded.experiment.execution
    device = set_up(execution.device, execution.threads, 0)
    views = TwoViews(ImageStore(plan.stage("data")[0].path), job.config, 0)
    context = Context(job, run, Path("out"), job.work, execution, {}, plan)
    return Trainer(context, job.config, build_method(job.config), views, device)


def rows_until(step: int) -> list[Row]:
    """A row every 10 steps; every third has a knn, and step 20's loss is unknown."""
    rows: list[Row] = []
    for one in range(10, step + 1, 10):
        rows.append({"step": one, "loss": math.nan if one == 20 else 7 - one / 1000, "lr": 0.03})
        if one % 30 == 0:
            rows[-1]["knn"] = one / 100
    return rows
