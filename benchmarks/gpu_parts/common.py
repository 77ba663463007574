"""What the parts share: arguments, the lines that they print, the clock.

if __name__ == "__main__":
    main(run)                               # run(bench): measure in order of value

with attempt("densecl"):                    # a failure is said, and the next measurement goes on
    emit("densecl, one fixed batch", 2900, "pairs/s", batch=256)
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mls.config.experiment import Backbone, Execution
from mls.config.load import check
from mls.data.image_store import ImageStore
from mls.pipeline.plan import Plan, make_plan
from mls.runtime.device import set_up
from mls.runtime.errors import MlsError

PHOTOS = "photos"
"""The store that the part ``data`` makes; the other parts read it."""


@dataclass(frozen=True)
class Bench:
    """What a part is given."""

    device: torch.device
    smoke: bool
    """Tiny shapes and a few steps: to see that it works."""
    execution: Execution

    @property
    def backbone(self) -> dict[str, Any]:
        """Layout of the network that is measured."""
        return {"name": "resnet18", "width": 0.125, "stem": "small"} if self.smoke else {"name": "resnet50"}

    @property
    def label(self) -> str:
        """The network's name in the results."""
        return "a tiny ResNet" if self.smoke else "ResNet-50"

    def layout(self) -> Backbone:
        """`backbone` as the models take it."""
        return Backbone(**self.backbone)


def main(run: Callable[[Bench], None]) -> None:
    """Set up torch and run a part in the working folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    threads = 1 if args.smoke else len(os.sched_getaffinity(0))
    execution = Execution(device=args.device, threads=threads, workers=1 if args.smoke else "auto")
    run(Bench(set_up(args.device, threads, 0), args.smoke, execution))


# ------------------------------------------------------------------------------------------ what is said


def say(**said: object) -> None:
    """Print a line that `benchmarks/gpu.py` reads."""
    print("@" + json.dumps(said), flush=True)


def emit(measured: str, value: float, unit: str, **more: object) -> None:
    """Report a number; ``more`` are other columns of the results: batch, peak_GiB, goal, note."""
    say(row={"measured": measured, "value": float(f"{value:.4g}"), "unit": unit, **more})


@contextmanager
def attempt(measured: str) -> Iterator[None]:
    """Say why a measurement fails or is left out, and go on."""
    try:
        yield
    except ModuleNotFoundError as error:
        say(left_out=f"{measured}: needs {error.name}, which is not installed")
    except MlsError as error:
        say(failed=f"{measured}: {error}")
    except Exception as error:
        traceback.print_exc()
        say(failed=f"{measured}: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}")
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


# ------------------------------------------------------------------------------------------ time and memory


def wait() -> None:
    """Until the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_a_step(bench: Bench, step: Callable[[], object], seconds: float = 4.0) -> float:
    """Repeat a step for about ``seconds`` after a warm-up (cuDNN chooses its kernels); return the mean."""
    if bench.smoke:
        return clock(step, 2)
    clock(step, 8)
    return clock(step, max(5, min(400, round(seconds / clock(step, 3)))))


def clock(step: Callable[[], object], times: int) -> float:
    """Seconds a step."""
    wait()
    start = time.perf_counter()
    for _ in range(times):
        step()
    wait()
    return (time.perf_counter() - start) / times


@contextmanager
def peak(bench: Bench) -> Iterator[Callable[[], float | str]]:
    """Yield a function: the peak of the GPU's memory since the block was entered, GiB; on a CPU an empty cell."""
    on_gpu = bench.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    yield lambda: round(torch.cuda.max_memory_allocated() / 2**30, 2) if on_gpu else ""


# ------------------------------------------------------------------------------------------ what is measured


def plan_of(bench: Bench, pretrain: dict[str, Any], data: dict[str, Any] | None = None) -> Plan:
    """An experiment of one run."""
    entry = data or {"source": "scenes", "train": 100_000}  # not read: the part has a store
    raw = {
        "experiment": "gpu",
        "datasets": {"pictures": entry},
        "pretrain": {"dataset": "pictures", "backbone": bench.backbone, **pretrain},
        "runs": {"run": {}},
        "probe": {"linear": {"kind": "linear", "dataset": "pictures"}},
        "tables": {"main": {"columns": ["linear.mAP"]}},
        "execution": bench.execution.model_dump(),
    }
    return make_plan(check(raw, Path("gpu.yaml")), {})


def photos() -> ImageStore:
    """The store of the part ``data``."""
    return ImageStore(Path(PHOTOS))
