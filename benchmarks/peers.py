"""What each method costs: the trained runs of an experiment, step by step, beside one another.

python benchmarks/peers.py experiments/scenes-peers.yaml
python benchmarks/peers.py experiments/paper-peers.yaml --generated 280 --batch 32 --steps 2 --rounds 2

Each run is a process of its own, so that its peak memory is its own; the runs take turns, ``--rounds`` times, and
times are compared within a round, since the machine may be shared. A step is the real engine's, fed by its loader,
diagnostics and all (where loading may be the limit, take many more steps than a few times its workers). Lines are added
to benchmarks/results/peers.csv: images a second (median), time an image and peak memory, the first run's being 1.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from record import append

import mls.data.build_store
from mls.config.load import check, read_yaml
from mls.config.methods import TRAINED
from mls.data.image_store import ImageStore
from mls.data.loader import TwoViews, batches
from mls.methods.method import build_method
from mls.pipeline.artifact import open_artifact
from mls.pipeline.plan import Plan, make_plan, read_lock
from mls.pipeline.provenance import code
from mls.pipeline.runner import Context
from mls.runtime.device import set_up, workers_of
from mls.train.loop import Trainer

RESULTS = Path(__file__).resolve().parent / "results" / "peers.csv"
WARM_UP = 2
"""Steps before the clock starts."""


def main() -> None:
    """Measure and write a line for each run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--generated", type=int, metavar="SIDE", help="pictures of this size instead of its data")
    parser.add_argument("--batch", type=int, help="instead of the experiment's; so much every run has then")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    runs = [label for label, run in planned(args).loaded.runs.items() if run.method in TRAINED]
    found: dict[str, list[tuple[float, float]]] = {run: [] for run in runs}
    pictures = tempfile.TemporaryDirectory() if args.generated else None
    args.pictures = Path(pictures.name) if pictures else None
    if args.pictures:
        apart(draw, args)
    for number in range(args.rounds):
        for run in runs:
            found[run].append(apart(measure, args, run))
            print(
                f"round {number}  {run:12} {found[run][-1][0]:.3f} s an image, {found[run][-1][1]:.0f} MiB", flush=True
            )
    write([line(args, run, found[run], found[runs[0]]) for run in runs])


def apart(function: Callable[..., Any], *arguments: object) -> Any:
    """What a function returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        return alone.submit(function, *arguments).result()


def draw(args: argparse.Namespace) -> None:
    """Make the store of generated pictures."""
    plan = planned(args)
    (source,) = plan.stage("data")
    execution = plan.loaded.experiment.execution
    mls.data.build_store.run(Context(source, "scenes", args.pictures, args.pictures, execution, {}, plan))


def planned(args: argparse.Namespace) -> Plan:
    """The experiment's plan, its data and batch replaced where that was asked for."""
    raw = read_yaml(args.experiment)
    if args.generated:
        size = {"source": "scenes", "train": 512, "val": 8, "test": 8, "size": args.generated}
        raw["datasets"] = dict.fromkeys(raw["datasets"], size)
    if args.batch:
        for section in (raw["pretrain"], *raw["runs"].values()):
            section["batch_size"] = args.batch
    return make_plan(check(raw, args.experiment), read_lock(Path("data.lock")))


def measure(args: argparse.Namespace, run: str) -> tuple[float, float]:
    """Seconds an image, and the peak memory of the process (of the GPU, where there is one), MiB."""
    plan = planned(args)
    job = plan.find("pretrain", run)[0]
    execution = plan.loaded.experiment.execution
    device = set_up(execution.device, execution.threads, 0)
    with tempfile.TemporaryDirectory() as folder:
        (source,) = plan.inputs(job)
        store = ImageStore(args.pictures or open_artifact(source.path).path)
        context = Context(job, run, Path(folder), Path(folder), execution, {}, plan)
        views = TwoViews(store, job.config, 0, threads=execution.threads)
        trainer = Trainer(context, job.config, build_method(job.config), views, device)
        start = 0.0
        feed = batches(views, 0, workers_of(execution.workers, execution.threads, device))
        for done in range(WARM_UP + args.steps):
            if done == WARM_UP:
                start = clock(device)
            trainer._train_step(next(feed))
        took = (clock(device) - start) / args.steps / job.config.batch_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return took, torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else peak


def clock(device: torch.device) -> float:
    """Now, when the GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def line(args: argparse.Namespace, run: str, found: Any, first: Any) -> dict[str, object]:
    """One line of the results."""
    config = planned(args).find("pretrain", run)[0].config
    times, peaks = zip(*found, strict=True)
    ratios = [time / base for time, (base, _) in zip(times, first, strict=True)]
    execution = planned(args).loaded.experiment.execution
    gpu = set_up(execution.device, execution.threads, 0).type == "cuda"
    return {
        "experiment": args.experiment.stem,
        "run": run,
        "backbone": f"{config.backbone.name} x{config.backbone.width:g}",
        "crop": config.augment.crop,
        "batch": config.batch_size,
        "queue": config.moco.queue_size,
        "images_per_s": f"{1 / statistics.median(times):.4g}",
        "time_of_first": f"{statistics.median(ratios):.2f}",
        "lowest": f"{min(ratios):.2f}",
        "highest": f"{max(ratios):.2f}",
        "peak_MiB": round(max(peaks)),
        "memory_of_first": f"{max(peaks) / max(peak for _, peak in first):.2f}",
        "device": torch.cuda.get_device_name() if gpu else f"CPU, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "code": (code()["revision"] or "")[:10],
    }


def write(rows: list[dict[str, object]]) -> None:
    """Append lines."""
    append(RESULTS, rows)


if __name__ == "__main__":
    main()
