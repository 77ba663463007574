"""How long an image takes: measured here by finished artifacts, or recorded by others in ``throughput.csv``.

    measured = measure(read_finished(), jobs)           # from artifacts/*/*/artifact.json alone
    rate = measured_here(job, jobs, measured, "auto") or recorded(job, jobs)
    rate.hours(work_of(job, jobs)), rate.unit           # 92.0, "V100-h"

Hours are those of one GPU (wall time x ranks), named after the GPU, or of one core of a CPU (wall time x threads x
ranks). Neither is ever converted into the other. ``throughput.csv`` holds public figures alone, each with what was
measured, how it was published, in what it differs from the protocol here, and where it stands.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from statistics import median
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mls.config.datasets import Dataset
from mls.config.experiment import Pretrain
from mls.config.identity import canonical
from mls.config.probes import Features, ProbeConfig
from mls.config.transfers import TransferConfig
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
    *("augment.crop", "moco.queue_size", "moco.projection_dim", "moco.bn_splits", "optimizer.name"),
    *("byol.hidden_dim", "slotcon.hidden_dim", "slotcon.prototypes"),
    *("image_size", "resize", "layer", "strengths", "costs", "folds", "low_shot", "samples", "ks", "batchnorm"),
    *("train_sizes", "test_size", "max_size", "norm", "freeze_at", "fpn_norm", "box_head", "head_norm", "extra_norm"),
    *("fpn_channels", "head_channels", "rois", "proposals", "output_stride", "crop", "inference", "stride"),
    *("source", "size", "short_side", "format"),
)
"""Params that decide how long an image takes. Others say how many there are (epochs), or change numbers alone."""
GIVEN = ("stage", "data", "method", "kind", "backend", "architecture", "backbone", "augment.crop", "test_size")
"""Columns of ``throughput.csv`` that say what a row holds for; an empty one, for any."""
PROXIES = {
    "mls": (
        "moco",
        "mls is taken as moco-v2, which it is plus one loss (1.04 x on a CPU, benchmarks/results/peers.csv)",
    )
}
"""Method of which nobody published a figure -> the one whose figure stands for it, and why."""


@dataclass(frozen=True)
class Rate:
    """Seconds an image on one device, and how we know."""

    seconds: float
    unit: str
    """Of the hours that follow from it: ``V100-h``, or ``CPU-h`` of one core."""
    source: str
    notes: tuple[str, ...] = ()
    """What a reader of the hours should know."""

    def hours(self, images: int) -> float:
        """Hours of one device."""
        return self.seconds * images / 3600


@dataclass(frozen=True)
class Finished:
    """A finished artifact, by its ``artifact.json``."""

    job: Job
    made: dict[str, Any]
    size: int
    """Bytes of all its files."""

    @property
    def unit(self) -> str:
        """``CPU-h``, or that of the GPU that made it."""
        device = self.made.get("device", "cpu")  # none is named where torch was not used
        processor = self.made["machine"].split(",")[0]
        return CPU if device in ("cpu", processor) else f"{device}-h"

    @property
    def hours(self) -> float:
        """Device hours that it took; of a run that was interrupted, only those since it was last resumed."""
        devices = self.made.get("ranks", 1) * (self.made.get("threads", 1) if self.unit == CPU else 1)
        return float(self.made["wall_s"]) * devices / 3600


def read_finished() -> dict[str, Finished]:
    """Every artifact here whose params this code still reads, and names alike, by id; damaged ones are left out."""
    found = {}
    for path in sorted(ARTIFACTS.glob(f"[!.]*/*/{MANIFEST}")):
        try:
            seal = json.loads(path.read_text(encoding="utf-8"))
            job = Job(seal["stage"], _config(seal["stage"], seal["params"]), seal["params"], seal["inputs"])
            one = Finished(job, seal["made"], sum(file["size"] for file in seal["files"].values()))
            usable = job.id == seal["id"] and one.hours >= 0
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError):
            continue
        if usable:
            found[job.id] = one
    return found


def _config(stage: str, params: Mapping[str, Any]) -> Any:
    """The section that params are the essence of; what they never hold is filled in, for it decides nothing."""
    if stage == "tables":
        return None
    read = {key: value for key, value in params.items() if key not in ("seed", "trial", "digest")}
    if stage in ("probe", "transfer"):
        read["dataset"] = "data"
    if isinstance(read.get("subset"), dict) and "ids" in read["subset"]:
        del read["subset"]  # ids, where the section has the name of their file
    return SCHEMAS[stage].validate_python(read)


def traits(job: Job, jobs: Jobs) -> dict[str, Any]:
    """All that decides how long an image takes, but for the device: equal traits, equal rates."""
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
    found = {}
    for name in DECIDE:
        value: Any = payload(job)["resolved"]
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            found[name] = value
    return found


Measured = dict[str, dict[str, list[float]]]
"""Stage and traits -> unit -> seconds an image, of each finished artifact."""


def measure(finished: Mapping[str, Finished], jobs: Jobs) -> Measured:
    """Sort what was measured here by what it holds for."""
    found: Measured = defaultdict(lambda: defaultdict(list))
    for one in finished.values():
        if work := work_of(one.job, jobs):
            found[_key(one.job, jobs)][one.unit].append(3600 * one.hours / work)
    return found


def measured_here(job: Job, jobs: Jobs, measured: Measured, device: str) -> Rate | None:
    """The median of finished artifacts of the same stage and traits, on GPUs where there are any.

    Args:
        job: what is to be made.
        jobs: planned and finished ones.
        measured: of `measure`.
        device: ``execution.device`` that it would be made on; ``auto`` is either.
    """
    by_unit = measured.get(_key(job, jobs), {})
    fitting = [unit for unit in by_unit if device == "auto" or (unit == CPU) == (device == "cpu")]
    if not fitting:
        return None
    unit = max(fitting, key=lambda unit: (unit != CPU, len(by_unit[unit])))
    return Rate(median(by_unit[unit]), unit, f"measured here ({len(by_unit[unit])})")


def _key(job: Job, jobs: Jobs) -> str:
    return canonical([job.stage, traits(job, jobs)])


def recorded(job: Job, jobs: Jobs) -> Rate | None:
    """The first row of ``throughput.csv`` of which every trait that it gives is the job's, or its proxy's."""
    found, notes = {"stage": job.stage, **traits(job, jobs)}, []
    if found.get("method") in PROXIES:
        found["method"], why = PROXIES[found["method"]]
        notes.append(why)
    for row in read_recorded():
        if all(not row[name] or str(found.get(name)) == row[name] for name in GIVEN):
            source = f"{row['by']}, {row['gpus']} {row['device']} ({row['measured']})"
            notes.insert(0, f"{source}: {row['published']}; {row['differs']}; {row['source']}")
            return Rate(1 / float(row["images_per_s"]), f"{row['device']}-h", source, tuple(notes))
    return None


def read_recorded() -> list[dict[str, str]]:
    """The rows of ``throughput.csv``; ``images_per_s`` is of one of the ``gpus``."""
    text = files("mls.cost").joinpath("throughput.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
