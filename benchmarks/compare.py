"""How near the pretraining loop comes to the machine's own limit, beside lightly's MoCo-v2 on the same JPEGs.

    make bench                                                                    # both cases below, on 2 cores
    python benchmarks/compare.py --backbone resnet18 --crop 64 --batch 64
    python benchmarks/compare.py --backbone resnet50 --crop 224 --batch 32 --steps 4 --warm-up 2
    python benchmarks/compare.py --backbone resnet50 --crop 224 --batch 256 --sides ours shrunk-resident-cuda lightly

Measured for each side, in images (pairs of views) a second: ``data``, the path from files to augmented views alone;
``fixed``, the step on one batch of views that is always the same, which is what this machine can do; ``end_to_end``,
both together. ``of_fixed`` = end_to_end / fixed. Machines are noisy, so sides take turns, each in a process of its own,
and there ``fixed`` and ``end_to_end`` do; medians are kept, and ratios are of what was measured one after the other.
Lines go to benchmarks/results/compare.csv.

Our sides differ in how the images are kept: ``ours``, the files as they come; ``resident``, decoded once;
``shrunk``, ``short_side`` of twice the crop; ``shrunk-raw``, the same as pixels; ``shrunk-resident-cuda``, a short side
of 256 and all of it on the GPU. lightly reads the files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import torchvision
from record import append

RESULTS = Path(__file__).resolve().parent / "results" / "compare.csv"
SIDES: dict[str, tuple[dict[str, object], str]] = {
    "ours": ({}, "no"),
    "resident": ({}, "cpu"),
    "shrunk": ({"short_side": 0}, "no"),
    "shrunk-raw": ({"short_side": 0, "format": "raw"}, "no"),
    "shrunk-resident-cuda": ({"short_side": 256}, "cuda"),
}
"""Side -> changes of the dataset's entry (a short side of 0 means twice the crop), ``pretrain.resident``."""
PEERS = {"lightly": "fp32", "lightly-bf16": "bf16"}
"""Side -> precision: what lightly's example does, and the same with our precision and memory layout."""
MEASURES = ("data", "fixed", "end_to_end")
Rates = dict[str, list[float]]
"""Images a second of each measure, in the order they were taken."""


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=Path, help="folder of JPEGs (default: $MLS_DATA/coco-tiny)")
    parser.add_argument("--copies", type=int, default=10, help="how often each image is there")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16", help="of our sides")
    parser.add_argument("--steps", type=int, default=16, help="that are timed, a round and measure")
    parser.add_argument("--warm-up", type=int, default=6, help="steps before: full queues, chosen kernels")
    parser.add_argument("--repeats", type=int, default=2, help="of each measure, in one process")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--sides", nargs="+", choices=[*SIDES, *PEERS])
    parser.add_argument("--side", choices=[*SIDES, *PEERS], help=argparse.SUPPRESS)  # what one process measures
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure_peer(args) if args.side in PEERS else measure_ours(args)))
        return
    sides = args.sides or ["ours", "resident", "shrunk-raw", *PEERS]
    with tempfile.TemporaryDirectory() as folder:
        prepare(args, Path(folder), sides)
        turns = [{side: run_side(args, side, Path(folder)) for side in sides} for _ in range(args.rounds)]
    rows = [summary(args, side, turns) for side in sides]
    append(RESULTS, rows)
    for row in rows:
        rates = "  ".join(f"{name} {row[name]:>8}" for name in (*MEASURES, "of_fixed", "of_lightly"))
        print(f"{row['backbone']} {row['crop']} px  {row['side']:12} {rates}")


# ---------------------------------------------------------------------------------------- the rounds


def prepare(args: argparse.Namespace, folder: Path, sides: list[str]) -> None:
    """Copy the JPEGs, and make the stores that our sides read."""
    base = args.images or Path(os.environ.get("MLS_DATA", "downloads")) / "coco-tiny"
    files = sorted(base.rglob("*.jpg"))
    if not files:
        sys.exit(f"no JPEGs below {base}; give --images FOLDER, or set MLS_DATA")
    photos = folder / "photos"
    photos.mkdir()
    lines = ["file,split,label"]
    for copy in range(args.copies):
        for i, file in enumerate(files):
            name = f"{copy:03d}-{i:05d}.jpg"
            shutil.copy(file, photos / name)
            lines.append(f"{name},{'test' if copy == i == 0 else 'train'},a")
    (photos / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for side in sides:
        if side in SIDES:
            make_store(args, side, folder)


def make_store(args: argparse.Namespace, side: str, folder: Path) -> None:
    """Run the data stage on the copies."""
    import mls.data.build_store
    from mls.pipeline.runner import Context

    out = folder / side
    out.mkdir()
    plan = plan_of(args, side, folder)
    (job,) = plan.stage("data")
    with patch("mls.data.sources.check_content"):  # copies of a folder have no digest anywhere
        mls.data.build_store.run(Context(job, side, out, out, plan.loaded.experiment.execution, {}, plan))


def run_side(args: argparse.Namespace, side: str, folder: Path) -> Rates:
    """Measure one side in a process of its own; torch's settings of one do not reach the other."""
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--side", side],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    rates: Rates = json.loads(done.stdout.splitlines()[-1])
    print(f"{side:12} {json.dumps(rates)}", file=sys.stderr, flush=True)
    return rates


def summary(args: argparse.Namespace, side: str, turns: list[dict[str, Rates]]) -> dict[str, object]:
    """One line of the results."""
    from mls.pipeline.provenance import code

    rates = {name: round(median(rate for turn in turns for rate in turn[side][name]), 1) for name in MEASURES}
    pairs = [pair for turn in turns for pair in zip(turn[side]["end_to_end"], turn[side]["fixed"], strict=True)]
    of_lightly = [
        median(turn[side]["end_to_end"]) / median(turn["lightly"]["end_to_end"]) for turn in turns if "lightly" in turn
    ]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "side": side,
        "backbone": args.backbone,
        "crop": args.crop,
        "batch": args.batch,
        "workers": args.workers,
        "precision": PEERS.get(side, args.precision),
        **rates,
        "of_fixed": round(median(end_to_end / fixed for end_to_end, fixed in pairs), 3),
        "of_lightly": round(median(of_lightly), 2) if of_lightly else "",
        "measured": f"{args.rounds} x {args.repeats}",
        "steps": args.steps,
        "machine": gpu or f"{cpu_name()}, {args.threads} threads of {os.cpu_count()} cores",
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "code": (code()["revision"] or "")[:10] + ("+" if code()["dirty"] else ""),
    }


def cpu_name() -> str:
    """As the kernel calls it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


# -------------------------------------------------------------------------------------------- a side


def rate_of(args: argparse.Namespace, work: Iterable[object]) -> float:
    """Images a second of an iterable that works as it is read, one batch an item."""
    items = iter(work)
    for _ in range(args.warm_up):
        next(items)
    wait()
    start = time.perf_counter()
    for _ in range(args.steps):
        next(items)
    wait()
    return args.batch * args.steps / (time.perf_counter() - start)


def measured(args: argparse.Namespace, *measures: Callable[[], float]) -> Rates:
    """Take each measure in turn, ``--repeats`` times."""
    rows = [[measure() for measure in measures] for _ in range(args.repeats)]
    return {
        name: [round(rate, 1) for rate in rates] for name, rates in zip(MEASURES, zip(*rows, strict=True), strict=True)
    }


def wait() -> None:
    """Until the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def plan_of(args: argparse.Namespace, side: str, folder: Path) -> Any:
    """The experiment that a side is measured with: MoCo-v2, as lightly's."""
    from mls.config.load import check
    from mls.pipeline.plan import make_plan

    entry, resident = SIDES[side]
    if entry.get("short_side") == 0:
        entry = {**entry, "short_side": 2 * args.crop}
    raw = {
        "experiment": "benchmark",
        "datasets": {"photos": {"source": "folder", "root": str(folder / "photos"), "val_share": 1e-9, **entry}},
        "pretrain": {
            "dataset": "photos",
            "method": "moco",
            "backbone": {"name": args.backbone},
            "epochs": 10**6,
            "batch_size": args.batch,
            "precision": args.precision,
            "resident": resident,
            "augment": {"crop": args.crop},
            "moco": {"queue_size": 4096, "projection_dim": 128, "bn_splits": 1},
        },
        "runs": {"run": {}},
        "probe": {"linear": {"kind": "linear", "dataset": "photos"}},
        "tables": {"main": {"columns": ["linear.top1"]}},
        "execution": {"threads": args.threads, "workers": args.workers},
    }
    return make_plan(check(raw, Path("benchmark.yaml")), {"photos": {"sha256": "of copies"}})


def measure_ours(args: argparse.Namespace) -> Rates:
    """Our loop: the real engine, store and loader."""
    from mls.data.image_store import ImageStore
    from mls.data.loader import TwoViews, batches
    from mls.methods.method import build_method
    from mls.pipeline.runner import Context
    from mls.runtime.device import set_up
    from mls.train import loop
    from mls.train.pairs import pair_of

    plan = plan_of(args, args.side, Path())
    (job,) = plan.stage("pretrain")
    execution = plan.loaded.experiment.execution
    device = set_up(execution.device, execution.threads, 0)
    views = TwoViews(ImageStore(Path(args.side)), job.config, 0, threads=args.threads)
    work = Path(tempfile.mkdtemp(dir=Path.cwd()))
    context = Context(job, "run", work, work, execution, {}, plan)
    trainer = loop.Trainer(context, job.config, build_method(job.config), views, device)
    made = views[0]
    pair = pair_of(made, views, job.config, 0, device, trainer.resident)

    def stepped(feed: Iterable[Any]) -> Iterator[None]:
        for batch in feed:
            trainer._train_step(batch)
            yield

    def prepared() -> Iterator[object]:
        for step, batch in enumerate(batches(views, 0, args.workers)):
            yield pair_of(batch, views, job.config, step, device, trainer.resident)

    def fixed() -> float:
        with patch.object(loop, "pair_of", lambda *_: pair):
            return rate_of(args, stepped(repeat(made)))

    return measured(
        args,
        lambda: rate_of(args, prepared()),
        fixed,
        lambda: rate_of(args, stepped(batches(views, 0, args.workers))),
    )


def measure_peer(args: argparse.Namespace) -> Rates:
    """lightly's MoCo-v2."""
    from lightly_moco import Peer, loader

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    peer = Peer(args.backbone, PEERS[args.side])

    def feed() -> Any:
        return loader(Path("photos"), args.crop, args.batch, args.workers)

    def stepped(batches: Iterable[Any]) -> Iterator[None]:
        for batch in batches:
            peer.step(batch)
            yield

    fixed_batch = next(iter(feed()))
    return measured(
        args,
        lambda: rate_of(args, feed()),
        lambda: rate_of(args, stepped(repeat(fixed_batch))),
        lambda: rate_of(args, stepped(feed())),
    )


if __name__ == "__main__":
    main()
