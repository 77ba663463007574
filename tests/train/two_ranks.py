"""Steps of one small run in float64, on as many ranks as there are; what they give is written for a test.

torchrun --standalone --nproc-per-node 2 -m tests.train.two_ranks OUT STEPS      # in the test's folder
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from mls.data.loader import TwoViews, batches
from mls.data.store import Store
from mls.experiment.artifact import open_artifact
from mls.experiment.plan import Plan
from mls.experiment.stage import Context
from mls.methods.mls import MLS
from mls.train.distributed import process_group, rank, world
from mls.train.loop import Trainer
from mls.train.runtime import set_up
from tests.conftest import SMALL, plan_of, small


def plan() -> Plan:
    """8 epochs of 3 steps of 8 images; batch norm in 2 groups of 4."""
    return plan_of(
        small(pretrain={**SMALL["pretrain"], "epochs": 8, "moco": {**SMALL["pretrain"]["moco"], "bn_splits": 2}})
    )


def trace(steps: int) -> dict[str, Any]:
    """Train; return each step's losses, and after the first step gradients, dictionary and all else."""
    chosen = plan()
    (job,) = chosen.find("pretrain", "mls")
    data = open_artifact(chosen.stage("data")[0].path)
    execution = chosen.loaded.experiment.execution
    context = Context(job, "mls", Path(f"unused-{rank()}"), Path(f"work-{world()}"), execution, {"data": data}, chosen)
    torch.set_default_dtype(torch.float64)
    try:
        device = set_up(execution, 0)
        views = TwoViews(Store(data.path), job.config, 0, rank(), world())
        trainer = Trainer(context, MLS(job.config), views, device)
        found: dict[str, Any] = {"losses": [], "world": world()}
        for batch in batches(views, 0, 0):
            trainer._train_step(batch, False)
            means = trainer.window.means()
            found["losses"].append([means[k] for k in ("loss", "info_nce", "multi_label", "accuracy", "grad_norm")])
            if trainer.step == 1:
                found["gradients"] = {n: p.grad for n, p in trainer.method.named_parameters() if p.grad is not None}
                found["state"] = {name: value.clone() for name, value in trainer.method.state_dict().items()}
            if trainer.step == steps:
                return found
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
    raise AssertionError("more steps asked for than there are")


if __name__ == "__main__":
    with process_group():
        result = trace(int(sys.argv[2]))
        if rank() == 0:
            torch.save(result, sys.argv[1])
