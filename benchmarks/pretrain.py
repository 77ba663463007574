"""How fast a pretraining step is, and what memory it takes: the real engine on generated pictures.

python benchmarks/pretrain.py --backbone resnet50 --crop 224 --batch 256 --steps 200          # one GPU
torchrun --nproc-per-node 8 benchmarks/pretrain.py --bn-splits 1 --steps 200                  # SyncBN on eight
python benchmarks/pretrain.py --backbone resnet18 --width 0.5 --crop 48 --batch 128 --steps 20 --method moco

Each step is timed twice over: fed by the loader, and fed by one fixed batch; the ratio says what the
input pipeline costs. A line is added to benchmarks/results/pretrain.csv.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterable
from itertools import islice, repeat
from pathlib import Path

import torch
from record import append

import mls.data.build_store
from mls.config.load import check
from mls.config.methods import TRAINED
from mls.data.image_store import ImageStore
from mls.data.loader import TwoViews, ViewBatch, batches
from mls.methods.method import build_method
from mls.pipeline.plan import make_plan
from mls.pipeline.provenance import code
from mls.pipeline.runner import Context
from mls.runtime.collectives import process_group, rank, world
from mls.runtime.device import set_up
from mls.train.loop import Trainer
from mls.train.pretrain import check_ranks

RESULTS = Path(__file__).resolve().parent / "results" / "pretrain.csv"
WARM_UP = 5
"""Steps before the clock starts (cuDNN chooses its kernels, workers fill their queues)."""


def main() -> None:
    """Measure and write one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--method", choices=TRAINED, default="mls")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--batch", type=int, default=256, help="global batch size")
    parser.add_argument("--bn-splits", type=int, default=8)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, process_group():
        os.chdir(folder)
        row = measure(args)
        if rank() == 0:
            append(RESULTS, [row])
            print("\n".join(f"{name:24} {value}" for name, value in row.items()))


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Run the engine over generated pictures a little larger than the crop; each rank makes its own."""
    images = max(1024, 4 * args.batch)
    size = min(512, max(32, args.crop * 5 // 4))
    raw = {
        "experiment": "benchmark",
        "datasets": {"scenes": {"source": "scenes", "train": images, "val": 8, "test": 8, "size": size}},
        "pretrain": {
            "dataset": "scenes",
            "method": args.method,
            "backbone": {"name": args.backbone, "width": args.width, "stem": "imagenet" if args.crop > 96 else "small"},
            "epochs": 2 * (args.steps + WARM_UP),
            "batch_size": args.batch,
            "precision": args.precision,
            "compile": args.compile,
            "augment": {"crop": args.crop},
            "moco": {"bn_splits": args.bn_splits, "queue_size": min(4096, 4 * args.batch)},
        },
        "runs": {"run": {}},
        "probe": {"linear": {"kind": "linear", "dataset": "scenes"}},
        "tables": {"main": {"columns": ["linear.mAP"]}},
        "execution": {"threads": args.threads, "workers": args.workers},
    }
    plan = make_plan(check(raw, Path("benchmark.yaml")), {})
    (data,), (job,) = plan.stage("data"), plan.stage("pretrain")
    execution = plan.loaded.experiment.execution
    device = set_up(execution.device, execution.threads, 0)
    check_ranks(job.config, device)
    store = Path("store")
    store.mkdir()
    mls.data.build_store.run(Context(data, "scenes", store, store, execution, {}, plan))
    views = TwoViews(ImageStore(store), job.config, 0, rank(), world())
    context = Context(job, "run", Path("out"), Path("work"), execution, {}, plan)
    context.work.mkdir()
    trainer = Trainer(context, job.config, build_method(job.config), views, device)
    loaded = clock(trainer, batches(views, 0, args.workers), args.steps)
    fixed = clock(trainer, repeat(views[0]), args.steps)
    gpu = device.type == "cuda"
    return {
        "method": args.method,
        "backbone": f"{args.backbone} x{args.width:g}",
        "crop": args.crop,
        "batch": args.batch,
        "bn_splits": args.bn_splits,
        "precision": args.precision,
        "compile": args.compile,
        "ranks": world(),
        "steps": args.steps,
        "images_per_s": round(args.batch / loaded, 1),
        "of_fixed_batch": round(fixed / loaded, 3),
        "peak_GiB": round(torch.cuda.max_memory_allocated() / 2**30, 2) if gpu else "",
        "device": torch.cuda.get_device_name() if gpu else f"CPU, {args.threads} threads",
        "torch": torch.__version__,
        "code": (code()["revision"] or "")[:10],
    }


def clock(trainer: Trainer, feed: Iterable[ViewBatch], steps: int) -> float:
    """Seconds per step after the warm-up."""
    start = 0.0
    for done, batch in enumerate(islice(feed, WARM_UP + steps)):
        if done == WARM_UP:
            wait()
            start = time.perf_counter()
        trainer._train_step(batch)
    wait()
    return (time.perf_counter() - start) / steps


def wait() -> None:
    """Until the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
