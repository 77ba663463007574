"""Train a few steps of small runs in float64, on as many ranks as there are, and save the results for a test.

torchrun --standalone --nproc-per-node 2 -m tests.train.two_ranks OUT METHOD,SPLITS,STEPS[,POISONED STEP] ...
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from mls.data.image_store import ImageStore
from mls.data.loader import TwoViews, batches
from mls.methods.method import Method, build_method
from mls.pipeline.artifact import open_artifact
from mls.pipeline.plan import Plan
from mls.pipeline.runner import Context
from mls.runtime.collectives import process_group, rank, world
from mls.runtime.device import set_up
from mls.train.loop import Trainer
from tests.conftest import SMALL, plan_of, with_peers


def plan(splits: int) -> Plan:
    """8 epochs of 3 steps of 16 images; groups of batch norm need at least 4 images: with 2 the gradients explode."""
    data = {"scenes": {**SMALL["datasets"]["scenes"], "train": 48}}
    moco = {**SMALL["pretrain"]["moco"], "bn_splits": splits}
    pretrain = {**SMALL["pretrain"], "epochs": 8, "batch_size": 16, "moco": moco}
    return plan_of(with_peers(datasets=data, pretrain=pretrain))


def trace(run: str, splits: int, steps: int, poisoned: int = -1) -> dict[str, Any]:
    """Train; return each step's losses, gradients and state after the first step, and the state at the end.

    At the step ``poisoned`` the last rank's loss is NaN; ``changed`` names what that step changed, which should be
    nothing.
    """
    chosen = plan(splits)
    (job,) = chosen.find("pretrain", run)
    data = open_artifact(chosen.stage("data")[0].path)
    execution = chosen.loaded.experiment.execution
    work = Path(f"work-{world()}")
    context = Context(job, run, Path("unused"), work, execution, {"data": data}, chosen)
    torch.set_default_dtype(torch.float64)
    try:
        device = set_up(execution.device, execution.threads, 0)
        views = TwoViews(ImageStore(data.path), job.config, 0, rank(), world())
        method = build_method(job.config)
        trainer = Trainer(context, job.config, method, views, device)
        original = method.losses

        def losses(e: Any) -> dict[str, torch.Tensor]:
            factor = torch.nan if trainer.step == poisoned and rank() == world() - 1 else 1.0
            return {name: value * factor for name, value in original(e).items()}

        method.losses = losses  # type: ignore[method-assign]
        found: dict[str, Any] = {"losses": [], "world": world()}
        for batch in batches(views, 0, 0):
            before = snapshot(method)
            trainer._train_step(batch)
            if trainer.step == poisoned + 1:
                found["changed"] = [n for n, value in snapshot(method).items() if not torch.equal(value, before[n])]
            means = trainer.window.means()
            found["losses"].append([means[k] for k in (*trainer.loss_names, "accuracy", "grad_norm")])
            if trainer.step == 1:
                found["gradients"] = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
                found["state"] = snapshot(method)
            if trainer.step == steps:
                trainer._handle(trainer.late.drain())
                return {**found, "nonfinite": trainer.nonfinite, "last": snapshot(method)}
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
    raise AssertionError("more steps asked for than there are")


def snapshot(method: Method[Any]) -> dict[str, torch.Tensor]:
    """Everything the method holds."""
    return {name: value.clone() for name, value in method.state_dict().items()}


if __name__ == "__main__":
    with process_group():
        out, *cases = sys.argv[1:]
        results = {}
        for case in cases:
            run, *numbers = case.split(",")
            results[case] = trace(run, *map(int, numbers))
        if rank() == 0:
            torch.save(results, out)
