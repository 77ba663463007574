"""Pretraining's step: of one fixed batch, end to end, compiled, of the peers; its peak memory and its slowest kernels.

``fixed`` repeats the step on views that are on the device already: what the machine can do. End to end, images come
from the loader. Both use the real engine, with the paper's recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from gpu_parts.common import Bench, attempt, clock, emit, main, peak, photos, plan_of, say, seconds_a_step
from mls.data.loader import TwoViews, ViewBatch, batches
from mls.methods.method import build_method
from mls.pipeline.runner import Context
from mls.runtime.device import workers_of
from mls.train import loop
from mls.train.pairs import pair_of

BATCH, LEAST_BATCH = 256, 32
PEERS = ("moco", "densecl", "byol", "slotcon")
STEP_GOAL, SHARE_GOAL = ">= 3,000 on an H100-class card", ">= 0.9"
SECONDS = 10.0
"""Of an end-to-end measurement: long beside the time in which the loader's workers fill their queues."""
GRAPHS: dict[str, Any] = {"mode": "reduce-overhead"}
"""Arguments of torch.compile that record CUDA graphs."""
TINY: dict[str, Any] = {
    "augment": {"crop": 32},
    "moco": {"queue_size": 16, "bn_splits": 2},
    "mls": {"topk": 2},
    "byol": {"hidden_dim": 16, "projection_dim": 8},
    "slotcon": {"prototypes": 6, "hidden_dim": 16, "projection_dim": 8},
}
"""Changes for the smoke run."""


def run(bench: Bench) -> None:
    """Measure, in order of value."""
    batch = 8 if bench.smoke else fitting(bench)
    with attempt("JPEGs"):
        end_to_end(bench, batch, "no")
    with attempt("resident: cuda"):
        end_to_end(bench, batch, "cuda")
    with attempt("compile"):
        fixed_only(bench, "mls", batch, "compile", {"compile": True}, {})
    for method in PEERS:
        with attempt(method):
            fixed_only(bench, method, batch, "one fixed batch", {"method": method}, None)
    with attempt("CUDA graphs"):
        fixed_only(bench, "mls", batch, "compile with CUDA graphs", {"compile": True}, GRAPHS)


def fitting(bench: Bench) -> int:
    """Return the paper's batch size or, where the GPU's memory is less, the largest half of a half of it that fits."""
    batch = BATCH
    while batch > LEAST_BATCH:
        with attempt(""):
            try:
                clock(fixed_step(trainer_of(bench, batch, {})), 1)
                return batch
            except torch.OutOfMemoryError:
                say(left_out=f"batch {batch} does not fit in the GPU's memory")
        batch //= 2
    return batch


def end_to_end(bench: Bench, batch: int, resident: str) -> None:
    """Emit the rates of one fixed batch, of the loader and of both; with JPEGs also the kernels of a step."""
    trainer = trainer_of(bench, batch, {"resident": resident})
    what = f"mls, {bench.label}"
    with peak(bench) as peak_GiB:
        fixed = seconds_a_step(bench, fixed_step(trainer), 6)
    if resident == "no":
        emit(f"{what}: one fixed batch", batch / fixed, "pairs/s", batch=batch, peak_GiB=peak_GiB(), goal=STEP_GOAL)
        with attempt("profile of a step"):
            profile(bench, fixed_step(trainer))
    source = "JPEGs" if resident == "no" else "resident: cuda"
    loading = loaded(bench, trainer, lambda batch: None, 4)
    emit(f"{source}: the loader alone", batch / loading, "pairs/s", batch=batch)
    with peak(bench) as peak_GiB:
        both = loaded(bench, trainer, trainer._train_step, SECONDS)
    emit(f"{what}: end to end from {source}", batch / both, "pairs/s", batch=batch, peak_GiB=peak_GiB())
    emit(f"{what}: end to end from {source}, of fixed", fixed / both, "share", batch=batch, goal=SHARE_GOAL)


def fixed_only(
    bench: Bench, method: str, batch: int, how: str, changes: dict[str, Any], compiled: dict[str, Any] | None
) -> None:
    """Emit the rate of one fixed batch.

    Args:
        bench: the device.
        method: for the name of the measurement.
        batch: pairs.
        how: for the name.
        changes: of the run.
        compiled: arguments of torch.compile, None without it.
    """
    if bench.smoke and compiled is not None:  # code for a CPU takes a compiler and a minute
        compiled = {"backend": "eager"}
    torch.compiler.reset()  # or a second mode would find what the first one compiled
    with patch.object(torch, "compile", partial(torch.compile, **(compiled or {}))), peak(bench) as peak_GiB:
        step = fixed_step(trainer_of(bench, batch, changes))

        def begun() -> None:
            torch.compiler.cudagraph_mark_step_begin()
            step()

        first = clock(begun if compiled else step, 1)
        each = seconds_a_step(bench, begun if compiled else step)
    note = "" if compiled is None else f"the first step took {first:.0f} s"
    name = f"{method}, {bench.label}: {how}"
    emit(name, batch / each, "pairs/s", batch=batch, peak_GiB=peak_GiB(), note=note)


def trainer_of(bench: Bench, batch: int, changes: dict[str, Any]) -> loop.Trainer:
    """A trainer before its first step: the paper's recipe at 224 px in bf16."""
    pretrain: dict[str, Any] = {"epochs": 10**6, "batch_size": batch, **changes}
    if bench.smoke:
        pretrain |= TINY
    elif batch < BATCH:
        pretrain["moco"] = {"bn_splits": max(1, 8 * batch // BATCH)}  # groups of 32 images, as with 256
    plan = plan_of(bench, pretrain)
    (job,) = plan.stage("pretrain")
    context = Context(job, "run", Path("out"), Path("work"), bench.execution, {}, plan)
    views = TwoViews(photos(), job.config, 0, threads=bench.execution.threads)
    return loop.Trainer(context, job.config, build_method(job.config), views, bench.device)


def fixed_step(trainer: loop.Trainer) -> Callable[[], None]:
    """A step on views that are always the same."""
    made = trainer.views[0]
    pair = pair_of(made, trainer.views, trainer.config, 0, trainer.device, trainer.resident)

    def step() -> None:
        with patch.object(loop, "pair_of", lambda *_: pair):
            trainer._train_step(made)

    return step


def loaded(bench: Bench, trainer: loop.Trainer, work: Callable[[ViewBatch], object], seconds: float) -> float:
    """Return the seconds a step of some work on batches from the loader."""
    execution = bench.execution
    feed = batches(trainer.views, 0, workers_of(execution.workers, execution.threads, bench.device))
    return seconds_a_step(bench, lambda: work(next(feed)), seconds)


def profile(bench: Bench, step: Callable[[], None]) -> None:
    """Say which kernels take most of a step."""
    steps, on_gpu = 3, bench.device.type == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CPU, *[torch.profiler.ProfilerActivity.CUDA] * on_gpu]
    with torch.profiler.profile(activities=kinds) as found:
        clock(step, steps)
    if on_gpu:  # an operator has the time of its kernels too: each counts once
        events = [event for event in found.key_averages() if event.device_type.name == "CUDA"]
        times = {event.key: (event.self_device_time_total, event.count) for event in events}
    else:
        times = {event.key: (event.self_cpu_time_total, event.count) for event in found.key_averages()}
    total = sum(time for time, _ in times.values())
    say(note=f"kernels of a step, {total / steps / 1000:.1f} ms in all:")
    for name, (time, count) in sorted(times.items(), key=lambda one: -one[1][0])[:12]:
        say(note=f"  {time / total:6.1%} {time / steps / 1000:8.2f} ms {count / steps:6.0f} times  {name[:80]}")


if __name__ == "__main__":
    main(run)
