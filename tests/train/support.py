"""Jobs, trainers and rows of curves that several tests use."""

from __future__ import annotations

import math
from pathlib import Path

from mls.data.image_store import ImageStore
from mls.data.loader import TwoViews
from mls.methods.method import build_method
from mls.pipeline.plan import Job, Plan
from mls.pipeline.runner import Context
from mls.runtime.device import set_up
from mls.train.log import Row
from mls.train.loop import Trainer


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
