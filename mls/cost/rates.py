"""Time per image: measured here by finished artifacts, or published by others and recorded in ``throughput.csv``.

    measured = measure(read_finished(), jobs)           # reads only artifacts/*/*/artifact.json
    rate = measured_here(job, jobs, measured, "auto") or recorded(job, jobs, read_devices()["V100"])
    rate.hours(work_of(job, jobs)), rate.unit           # 92.0, "V100-h"

Hours are those of one GPU (wall time x ranks), named after the GPU, or of one CPU core (wall time x threads x ranks).
One is never converted into the other. ``throughput.csv`` only holds public figures, each with what was measured, how it
was published, how it differs from the protocol here, and its source.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import TypeAdapter

from mls.config.datasets import Dataset
from mls.config.experiment import Pretrain
from mls.config.identity import canonical
from mls.config.probes import Features, ProbeConfig
from mls.config.transfers import TransferConfig
from mls.cost.devices import Device, read_devices
from mls.cost.workload import Jobs, data_of, work_of
from mls.pipeline.artifact import MANIFEST
from mls.pipeline.plan import ARTIFACTS, Job, payload

CPU = "CPU-h"
SCHEMAS: dict[str, TypeAdapter[Any]] = {
    "data": TypeAdapter(Dataset),
    "pretrain": TypeAdapter(Pretrain),
    "features": TypeAdapter(Features),
    "probe": TypeAdapter(ProbeConfig),
    "transfer": TypeAdapter(TransferConfig),
}
DECIDE = (
    *("method", "kind", "backend", "architecture", "batch_size", "precision", "compile", "resident", "channels_last"),
    *("augment.crop", "augment.resize", "augment.interpolation", "augment.local_crops", "augment.auto_augment_p"),
    *("moco.queue_size", "moco.projection_dim", "moco.bn_splits", "optimizer.name"),
    *("byol.hidden_dim", "slotcon.hidden_dim", "slotcon.prototypes"),
    *("image_size", "resize", "layer", "strengths", "costs", "folds", "low_shot", "samples", "ks", "batchnorm"),
    *("train_sizes", "test_size", "max_size", "norm", "freeze_at", "fpn_norm", "box_head", "head_norm", "extra_norm"),
    *("fpn_channels", "head_channels", "rois", "proposals", "output_stride", "crop", "inference", "stride"),
    *("head", "attention_window", "pools"),
    *("source", "size", "short_side", "format"),
)
"""Params that decide the time per image. Others decide how many images there are (epochs), or only change results."""
GIVEN = ("stage", "data", "method", "kind", "backend", "architecture", "backbone", "augment.crop", "test_size")
"""Columns of ``throughput.csv`` that say which jobs a row is valid for; an empty cell matches any."""
PROXIES = {
    "mls": ("moco", "mls is taken as moco-v2 plus one loss (1.04 x on a CPU, benchmarks/results/peers.csv)"),
}
"""Method without a published figure -> the method whose figure is used instead, and why."""


@dataclass(frozen=True)
class Rate:
    """Seconds per image on one device, and their source."""

    seconds: float
    unit: str
    """Unit of the hours that follow from it: ``V100-h``, or ``CPU-h`` for one core."""
    basis: str
    """``measured`` or ``published``."""
    source: str
    notes: tuple[str, ...] = ()
    """Remarks that a reader of the hours needs."""

    def hours(self, images: int) -> float:
        """Hours of one device."""
        return self.seconds * images / 3600


@dataclass(frozen=True)
class Finished:
    """A finished artifact, read from its ``artifact.json``."""

    job: Job
    made: dict[str, Any]
    """Where, when and how it was made."""
    size: int
    """Bytes of all its files."""

    @property
    def unit(self) -> str:
        """``CPU-h``, or hours of the GPU that made it."""
        device = self.made.get("device", "cpu")  # missing if torch was not used
        processor = self.made["machine"].split(",")[0]
        return CPU if device in ("cpu", processor) else f"{device}-h"

    @property
    def hours(self) -> float:
        """Device hours that it took; for an interrupted run, only those since it was last resumed."""
        devices = self.made.get("ranks", 1) * (self.made.get("threads", 1) if self.unit == CPU else 1)
        return float(self.made["wall_s"]) * devices / 3600


def read_finished() -> dict[str, Finished]:
    """Read every artifact here whose params still give its id, by id; damaged ones are left out."""
    found = {}
    for path in sorted(ARTIFACTS.glob(f"[!.]*/*/{MANIFEST}")):
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            stage, params = manifest["stage"], manifest["params"]
            job = Job(stage, _config(stage, params), params, manifest["inputs"])
            one = Finished(job, manifest["made"], sum(file["size"] for file in manifest["files"].values()))
            usable = job.id == manifest["id"] and one.hours >= 0
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if usable:
            found[job.id] = one
    return found


def _config(stage: str, params: Mapping[str, Any]) -> Any:
    """Rebuild the section from its identity params; fields that these never hold do not change the time."""
    if stage == "tables":
        return None
    read = {key: value for key, value in params.items() if key not in ("seed", "trial", "digest")}
    if stage in ("probe", "transfer"):
        read["dataset"] = "data"
    if isinstance(read.get("subset"), dict) and "ids" in read["subset"]:
        del read["subset"]  # a list of ids, but the section has the name of a file
    return SCHEMAS[stage].validate_python(read)


def traits(job: Job, jobs: Jobs) -> dict[str, Any]:
    """Everything that decides the time per image, except the device: equal traits mean equal rates."""
    found = _decisive(job)
    data, pretrain = data_of(job, jobs), job if job.stage == "pretrain" else jobs.get(job.inputs.get("pretrain", ""))
    if data and data is not job:
        found |= {f"data.{name}": value for name, value in _decisive(data).items()}
        found["data"] = data.config.source
    if pretrain:
        backbone = pretrain.config.backbone
        width = "" if backbone.width == 1 else f" x{backbone.width:g}"
        found["backbone"] = f"{backbone.name}{width}{'' if backbone.stem == 'imagenet' else f' {backbone.stem}'}"
    return found


def _decisive(job: Job) -> dict[str, Any]:
    values: dict[str, Any] = payload(job)["resolved"]
    blocks = {name: block for name, block in values.items() if isinstance(block, dict)}
    values = values | {f"{name}.{key}": value for name, block in blocks.items() for key, value in block.items()}
    return {name: values[name] for name in DECIDE if values.get(name) is not None}


Measured = dict[str, dict[str, list[float]]]
"""Stage and traits -> unit -> seconds per image, one for each finished artifact."""


def measure(finished: Mapping[str, Finished], jobs: Jobs) -> Measured:
    """Group the rates of finished artifacts by stage, traits and unit."""
    found: Measured = defaultdict(lambda: defaultdict(list))
    for one in finished.values():
        if work := work_of(one.job, jobs):
            found[_key(one.job, jobs)][one.unit].append(3600 * one.hours / work)
    return found


def measured_here(job: Job, jobs: Jobs, measured: Measured, device: str) -> Rate | None:
    """The median rate of finished artifacts with the same stage and traits, on GPUs if any were made on one.

    Args:
        job: the job to estimate.
        jobs: all planned and finished jobs.
        measured: result of `measure`.
        device: ``auto`` matches GPUs and CPUs, ``cpu`` CPUs, ``cuda`` GPUs, and ``A100-40GB`` cards whose name has
            these parts.
    """
    by_unit = measured.get(_key(job, jobs), {})
    fitting = [unit for unit in by_unit if _fits(unit, device)]
    if not fitting:
        return None
    unit = max(fitting, key=lambda unit: (unit != CPU, len(by_unit[unit])))
    return Rate(median(by_unit[unit]), unit, "measured", f"here ({len(by_unit[unit])})")


def _fits(unit: str, device: str) -> bool:
    if device in ("auto", "cpu", "cuda"):
        return device == "auto" or (unit == CPU) == (device == "cpu")
    cards = [name for name in read_devices() if all(part in unit for part in name.split("-"))]
    return device == max(cards, key=len, default="")  # an A100-40GB is no A100 of 80 GB


def _key(job: Job, jobs: Jobs) -> str:
    return canonical([job.stage, traits(job, jobs)])


def recorded(job: Job, jobs: Jobs, device: Device) -> Rate | None:
    """The rate in the first row of ``throughput.csv`` for the device and the traits of the job, or of its proxy."""
    if isinstance(job.config, Pretrain) and job.config.augment.local_crops.count:
        return None  # others' figures are of two views
    found, notes = {"stage": job.stage, **traits(job, jobs)}, []
    if found.get("method") in PROXIES:
        found["method"], why = PROXIES[found["method"]]
        notes.append(why)
    for row in read_recorded():
        if row["device"] == device.name and all(not row[name] or str(found.get(name)) == row[name] for name in GIVEN):
            source = f"{row['by']}, {row['gpus']} {row['device']} ({row['measured']})"
            notes.insert(0, f"{source}: {row['published']}; {row['differs']}; {row['source']}")
            return Rate(1 / float(row["images_per_s"]), device.unit, "published", source, tuple(notes))
    return None


def read_recorded() -> list[dict[str, str]]:
    """The rows of ``throughput.csv``; ``images_per_s`` is the rate of one GPU."""
    with Path(__file__).with_name("throughput.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))
