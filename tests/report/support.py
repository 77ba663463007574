"""Tiny experiments whose artifacts hold made-up numbers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from torch import Tensor

import mls.data.build_store
import mls.train.pretrain
from mls.data.writer import Record, write_store
from mls.methods.method import Embedded, Pair
from mls.methods.moco import MoCo
from mls.pipeline.artifact_store import building
from mls.pipeline.plan import Job, Plan
from mls.pipeline.runner import run_stage
from mls.report.build_tables import run
from tests.conftest import plan_of, small

SCENES = {"source": "scenes", "train": 4, "val": 2, "test": 2, "size": 32}


PREDICTIONS = [
    {"image_id": 6, "category_id": 1, "bbox": [4.0, 8.0, 20.0, 12.0], "score": 0.9},
    {"image_id": 6, "category_id": 2, "bbox": [0.0, 0.0, 9.0, 9.0], "score": 0.2},
]
"""What every detector found in the first test image of `write_scenes`, and nothing in the second."""


LOGGED = {"steps": 40, "info_nce": 4.15049, "alignment": 0.25, "queue_mean": 0.5}


def small_plan(**changes: Any) -> Plan:
    """Two runs, one linear probe, one detection task; keyword arguments replace whole sections."""
    raw: dict[str, Any] = {
        "experiment": "tiny",
        "datasets": {"scenes": SCENES},
        "pretrain": {"dataset": "scenes", "batch_size": 4, "moco": {"bn_splits": 2}},
        "runs": {"random": {"method": "none"}, "mls": {}},
        "probe": {"linear": {"kind": "linear", "dataset": "scenes"}},
        "transfer": {"detect": {"kind": "instance", "dataset": "scenes"}},
        "tables": {"main": {"columns": ["linear.mAP", "detect.box_AP"]}},
    }
    return plan_of({**raw, **changes})


def write_inputs(plan: Plan, metrics: Callable[[str], dict[str, Any]]) -> None:
    """Make every artifact that the tables read.

    Args:
        plan: what to make, in the current folder.
        metrics: first label of a probe or transfer job (``linear/mls:0``) -> its metrics.json.
            Pretrainings that train have `LOGGED` in theirs.
    """
    for job in plan.jobs.values():
        if job.stage == "tables":
            continue
        with building(job) as out:
            if job.stage in ("probe", "transfer"):
                (out / "metrics.json").write_text(json.dumps(metrics(plan.labels[job.id][0])))
                if job.stage == "transfer":
                    (out / "predictions.json").write_text(json.dumps(PREDICTIONS))
            elif job.stage == "pretrain":
                trained = job.config.method in ("mls", "moco")
                (out / "metrics.json").write_text(json.dumps(LOGGED if trained else {"steps": 0}))
                if trained:
                    (out / "curves.csv").write_text(curves(job))
            elif job.stage == "data":
                write_scenes(out)


def curves(job: Job) -> str:
    """Forty logged steps of two losses."""
    rows = [f"{i},{i / 10},0.1,{9 - i / 10},{8 - i / 10},{0.7 - i / 100}" for i in range(job.seed, job.seed + 40)]
    return "\n".join(["step,epoch,lr,loss,info_nce,multi_label", *rows, ""])


def write_scenes(out: Path) -> None:
    """A store of eight images, each with one square object."""
    records = []
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for i in range(count):
            pixels_HWC = np.full((32, 32, 3), 200, dtype=np.uint8)
            mask_HW = np.zeros((32, 32), dtype=np.uint8, order="F")
            mask_HW[8:20, 4:24] = 1
            pixels_HWC[mask_HW == 1] = (30, 60, 90 + i)
            file = io.BytesIO()
            Image.fromarray(pixels_HWC).save(file, "PNG")
            coded = rle.encode(mask_HW)
            shape = {"size": coded["size"], "counts": coded["counts"].decode()}
            found = {"category_id": 1 + i % 2, "bbox": [4, 8, 20, 12], "area": 240, "iscrowd": 0, "segmentation": shape}
            records.append(Record(f"{i}.png", split, file.getvalue(), 32, 32, [i % 2], [found]))
    write_store(out, records, ["disc", "star"], True, [])


def make_tables(plan: Plan) -> Path:
    """Run the tables stage; return its artifact."""
    run_stage(plan, plan.tables, run)
    return plan.tables.path


@dataclass
class FinishedRun:
    """A finished pretraining, and how it began."""

    plan: Plan
    job: Job
    initial: dict[str, Tensor]
    """State of the method before the first step."""
    first: Embedded
    """What its first step made."""


@contextmanager
def finished_runs(folder: Path) -> Iterator[dict[str, FinishedRun]]:
    """Pretrain `mls` and `moco-v2` of the small experiment in a folder, and stay in it."""
    plan = plan_of(small())
    threads, made = torch.get_num_threads(), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_stage(plan, plan.stage("data")[0], mls.data.build_store.run)
        for name in ("mls", "moco-v2"):
            (job,) = plan.find("pretrain", name)
            with patch.context() as inner:
                initial, first = watch(inner)
                run_stage(plan, job, mls.train.pretrain.run)
            made[name] = FinishedRun(plan, job, initial, first[0])
        yield made
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def watch(patch: pytest.MonkeyPatch) -> tuple[dict[str, Tensor], list[Embedded]]:
    """Record the next run's first state and what its steps made."""
    initial: dict[str, Tensor] = {}
    steps: list[Embedded] = []
    original = MoCo.embed

    def embed(self: MoCo, pair: Pair) -> Embedded:
        if not initial:
            initial.update({key: value.clone() for key, value in self.state_dict().items()})
        steps.append(original(self, pair))
        return steps[-1]

    patch.setattr(MoCo, "embed", embed)
    return initial, steps
