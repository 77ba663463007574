"""What views cost: CPU time an image, of the loader and of a training step, with and without local crops.

    python benchmarks/views.py                                  # ResNet-50; a few minutes of one core
    python benchmarks/views.py --backbone resnet18 --batch 8

One core, fp32, generated scenes of 512 px as JPEGs, MLS. A line for each kind of views is added to
benchmarks/results/views.csv.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from record import append

import mls.data.build_store
from mls.config.load import check
from mls.data.image_store import ImageStore
from mls.data.loader import TwoViews
from mls.methods.method import build_method
from mls.pipeline.plan import Job, Plan, make_plan
from mls.pipeline.provenance import code
from mls.pipeline.runner import Context
from mls.runtime.device import set_up
from mls.train.loop import Trainer

RESULTS = Path(__file__).resolve().parent / "results" / "views.csv"
LOCAL = {"crop": 160, "local_crops": {"count": 4, "overlap": 0.1}}
VIEWS: dict[str, dict[str, Any]] = {
    "two of 224": {"crop": 224},
    "two of 160": {"crop": 160},
    "two of 160, four of 96": LOCAL,
    "two of 160, four of 96, AutoAugment": {**LOCAL, "auto_augment_p": [0.5, 0.0]},
}
STEPS = 3
"""Timed, after one that is not."""


def main() -> None:
    """Measure each kind of views, and write a line for it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, augment in VIEWS.items():
            plan = plan_of(args, augment)
            row = {"views": name, **measure(plan, plan.stage("pretrain")[0])}
            row |= {"backbone": args.backbone, "batch": args.batch, "load": round(os.getloadavg()[0], 1)}
            row |= {"torch": torch.__version__, "code": (code()["revision"] or "")[:10]}
            append(RESULTS, [row])
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        os.chdir("/")


def plan_of(args: argparse.Namespace, augment: dict[str, Any]) -> Plan:
    """An experiment of a few steps."""
    raw = {
        "experiment": "benchmark",
        "datasets": {"scenes": {"source": "scenes", "train": 4 * args.batch, "val": 2, "test": 2, "size": 512}},
        "pretrain": {
            "dataset": "scenes",
            "backbone": {"name": args.backbone},
            "epochs": 100,
            "batch_size": args.batch,
            "precision": "fp32",
            "augment": augment,
            "moco": {"bn_splits": 1, "queue_size": 64},
        },
        "runs": {"mls": {}},
        "tables": {"main": {"columns": ["pretrain.info_nce"]}},
        "execution": {"threads": 1, "workers": 0},
    }
    return make_plan(check(raw, Path("benchmark.yaml")), {})


def measure(plan: Plan, job: Job) -> dict[str, object]:
    """Milliseconds of CPU time an image: to load it, and of a step with it."""
    (data,), execution = plan.stage("data"), plan.loaded.experiment.execution
    device, store = set_up("cpu", execution.threads, 0), Path("store")
    if not store.exists():
        store.mkdir()
        mls.data.build_store.run(Context(data, "scenes", store, store, execution, {}, plan))
    views = TwoViews(ImageStore(store), job.config, 0)
    work = Path(tempfile.mkdtemp(dir="."))
    trainer = Trainer(
        Context(job, "mls", work, work, execution, {}, plan), job.config, build_method(job.config), views, device
    )
    views[0]
    begun = time.process_time()
    batches = [views[step] for step in range(STEPS + 1)]
    loaded = time.process_time() - begun
    trainer._train_step(batches[0])
    begun = time.process_time()
    for batch in batches[1:]:
        trainer._train_step(batch)
    stepped = time.process_time() - begun
    images = job.config.batch_size
    return {
        "loader_ms": round(1000 * loaded / images / (STEPS + 1), 2),
        "step_ms": round(1000 * stepped / images / STEPS, 1),
    }


if __name__ == "__main__":
    main()
