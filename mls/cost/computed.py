"""What a job takes of a GPU: its operations, counted, and its memory; and what to change if a card has less.

    work = computed(job, jobs)
    work.hours(read_devices()["A100"])      # operations / (peak x the share of it that ResNet-50 reaches)
    work.memory(parts=8)                    # bytes on each of eight GPUs

Memory is that of weights, gradients and the optimiser, of what is alive at the peak of a step (`mls.cost.count`), and
of CUDA and its libraries: an estimate, to about 30 %. Data, SVMs and tables need no GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mls.config.datasets import ScenesDataset
from mls.config.experiment import Execution, Pretrain
from mls.config.probes import Features, FrozenProbe, SvmProbe, TrainedProbe
from mls.config.transfers import Detectron2Detector, SemanticTransfer, TorchvisionDetector
from mls.cost.devices import Device
from mls.cost.disk import FLOAT32, backbone_of, classes_of, feature_count, training_bytes
from mls.cost.seconds import photo_of, scoring_seconds
from mls.cost.workload import Jobs, data_of, evaluated_images, images_of, work_of
from mls.pipeline.leases import trains_together
from mls.pipeline.plan import Job

CONTEXT = 1_000_000_000
"""Bytes that CUDA, its libraries and their workspaces take beside the tensors; a guess."""
ROOM = 0.9
"""Share of a card's memory that a job may be estimated to take: some is lost to fragments."""
EXTRACTED = 64
"""Images of a batch of which features are extracted (`mls.probe.features.BATCH`)."""


@dataclass(frozen=True)
class Work:
    """What a job takes of GPUs."""

    each: float
    """Operations for an image, as a step takes them."""
    images: float
    """Images, in units of a step's: evaluating one takes a third of training on it."""
    precision: str
    cpu_s: float
    """Seconds for which the GPU waits, while predictions are scored."""
    fixed: float
    """Bytes on each GPU, whatever the batch."""
    image: float
    """Bytes for each image of a batch."""
    batch: int
    """Images of a step, over all ranks."""

    def hours(self, device: Device) -> float:
        """Hours of one device."""
        return (self.each * self.images / device.rate(self.precision) + self.cpu_s) / 3600

    def memory(self, parts: int = 1) -> float:
        """Bytes on each GPU, if the batch is divided into parts: over ranks, or over the steps of an accumulation."""
        return self.fixed + self.image * math.ceil(self.batch / parts)


def computed(job: Job, jobs: Jobs) -> Work | None:
    """Count what a job takes of a GPU; None if it needs none, or its images or their shape are unknown."""
    config: Any = job.config
    images, data = work_of(job, jobs), data_of(job, jobs)
    if not images or not data or job.stage == "data" or isinstance(config, FrozenProbe):
        return None
    from mls.cost import networks

    backbone, batch, precision = backbone_of(job, jobs), EXTRACTED, getattr(config, "precision", "fp32")
    if isinstance(config, Pretrain):
        step = networks.pretraining_step(config)
    elif isinstance(config, TrainedProbe):
        step = networks.classifier_step(config, backbone)
    elif isinstance(config, Features):
        step = networks.extraction_step(config, backbone)
    elif isinstance(config, networks.COUNTED):
        step = networks.transfer_step(config, backbone, classes_of(job, jobs) or 80, _side(config, data))
    else:
        return None
    evaluated = (evaluated_images(job, jobs) or 0) / 3 if job.stage in ("probe", "transfer") else 0
    return Work(
        each=step.operations,
        images=images + evaluated,
        precision=precision,
        cpu_s=scoring_seconds(job, jobs),
        fixed=CONTEXT + training_bytes(job, jobs) + _resident(job, jobs, data),
        image=step.memory,
        batch=getattr(config, "batch_size", batch),
    )


def _side(task: TorchvisionDetector | Detectron2Detector | SemanticTransfer, data: Job) -> int:
    """Side of a square as large as a detector's mean padded image, pixels; semantic segmentation has its own crops."""
    from mls.cost.detectors import padded_side

    if isinstance(task, SemanticTransfer):
        return 0
    grouped = isinstance(task, Detectron2Detector)
    short = max(task.train_sizes) if isinstance(task, Detectron2Detector) else task.image_size
    if isinstance(data.config, ScenesDataset):  # squares, which are not padded
        return 32 * math.ceil(short / 32)
    return padded_side(short, task.batch_size, grouped)


def _resident(job: Job, jobs: Jobs, data: Job) -> int:
    """Bytes of the decoded images that a pretraining keeps on the GPU."""
    if getattr(job.config, "resident", "no") != "cuda":
        return 0
    return 3 * math.prod(photo_of(data)) * (images_of(data) or {}).get("train", 0)


def memory_of(job: Job, jobs: Jobs, work: Work | None, parts: int) -> int | None:
    """Bytes on each GPU that a job uses; 0 if it uses none, None if unknown."""
    if work:
        return round(work.memory(parts))
    if isinstance(job.config, FrozenProbe) and not isinstance(job.config, SvmProbe):
        data = data_of(job, jobs)
        counts = images_of(data) if data else None
        return None if counts is None else CONTEXT + counts["train"] * feature_count(job, jobs) * FLOAT32
    needs_none = job.stage in ("data", "tables") or isinstance(job.config, SvmProbe) or work_of(job, jobs) == 0
    return 0 if needs_none else None


def parts_of(job: Job, execution: Execution) -> int:
    """Parts into which the batch of a job is divided: by its ranks and, where it has the key, by ``accumulate``."""
    ranks = execution.gpus * execution.nodes if trains_together(job) else 1
    return ranks * int(getattr(job.config, "accumulate", 1))


def _shares(job: Job, parts: int) -> Iterator[int]:
    """Yield into how many more parts the batch of a job can be divided, as its section and validation allow."""
    batch = int(getattr(job.config, "batch_size", 1))
    least = 2 if isinstance(job.config, Pretrain | SemanticTransfer) else 1  # images that batch norm needs
    splits = job.config.moco.bn_splits if isinstance(job.config, Pretrain) else 1
    for n in range(2 * parts, batch // least + 1, parts):
        if batch % n == 0 and (splits == 1 or splits % n == 0):
            yield n


def too_large(job: Job, work: Work | None, memory: int | None, parts: int, device: Device) -> str | None:
    """Say that a job does not fit on a card, and what to change; None if it does."""
    if device.memory is None or not memory or memory <= ROOM * device.memory:
        return None
    need = next((n for n in _shares(job, parts) if work and work.memory(n) <= ROOM * device.memory), 0)
    accumulate, remedies = int(getattr(job.config, "accumulate", 1)), []
    if need and trains_together(job):
        remedies.append(f"set execution.gpus: {need // accumulate}")
    if need and "accumulate" in type(job.config).model_fields:
        remedies.append(f"set accumulate: {need // parts * accumulate}")
    if work and work.precision == "fp32" and "precision" in type(job.config).model_fields:
        remedies.append("set precision: bf16, which takes less")
    return (
        f"does not fit: it needs about {memory / 1e9:.0f} of {device.name}'s {device.memory / 1e9:.0f} GB, of which "
        f"{ROOM:.0%} can be counted on; " + (", or ".join(remedies) or "only a larger card will do")
    )
