"""Bytes that a job needs on disk: its finished artifact, its resumable checkpoints, its downloads.

    artifact_bytes(job, jobs)       # 377 MB: backbone.safetensors and checkpoint.pt of a pretraining
    peak_bytes(job, jobs, keep=2)   # of work/<id>/ while it runs: three checkpoints, one of them being written
    download_bytes(job)             # of the archives of a data set

The bytes of a network's tensors are exact (`mls.cost.networks`); files are slightly larger, for names and the rows of
curves. Predictions are a guess: how many there are depends on the images. None means unknown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mls.config.catalog import needed
from mls.config.datasets import ScenesDataset
from mls.config.experiment import Backbone, Pretrain
from mls.config.methods import TRAINED
from mls.config.probes import FrozenProbe, RetrievalProbe, SgdProbe, TrainedProbe
from mls.config.transfers import SemanticTransfer
from mls.cost.workload import Jobs, data_of, evaluated_images, work_of
from mls.data import classification, scenes, voc
from mls.pipeline.plan import DATA_LOCK, Job, read_lock

if TYPE_CHECKING:
    from mls.cost.networks import Sizes  # torch is imported when something is counted

FLOAT32 = 4
CLASSES = {
    "coco": 80,  # https://cocodataset.org/#explore
    "voc": len(voc.CLASSES),
    "scenes": len(scenes.CLASSES),
    "cityscapes": 19,  # `mls.data.cityscapes.label_ids`
    **classification.CLASSES,
}
"""Number of classes of each source whose classes are fixed."""


BOX, MASK, SEGMENT, RANKED = 100 * 110, 100 * 300, 20 * 3_000, 2_000
"""Bytes of the predictions for an image: 100 boxes, their masks, the pixels of 20 classes, a retrieval. A guess."""
TABLES = 2_000_000
"""Bytes of an experiment's tables and figures; a guess."""


def artifact_bytes(job: Job, jobs: Jobs) -> int | None:
    """Bytes of the large files of the finished artifact; None if the number of images is unknown.

    A probe's scores are float32. A data set that keeps its source's files takes at most as much as its
    archives.
    """
    config = job.config
    if job.stage == "tables":
        return TABLES
    if job.stage == "data":
        return _store_bytes(job)
    if isinstance(config, Pretrain):
        from mls.cost.networks import backbone_sizes

        return backbone_sizes(config.backbone).state + checkpoint_bytes(job, jobs)
    if job.stage == "features":
        images = work_of(job, jobs)
        return images and images * feature_count(job, jobs) * np.dtype(config.dtype).itemsize
    images, classes = evaluated_images(job, jobs), classes_of(job, jobs)
    if isinstance(config, FrozenProbe | TrainedProbe):
        each = RANKED if isinstance(config, RetrievalProbe) else classes and classes * FLOAT32
    elif isinstance(config, SemanticTransfer):
        each = SEGMENT
    else:
        each = BOX + MASK * (config.kind == "instance")
    return None if images is None or each is None else images * each


def peak_bytes(job: Job, jobs: Jobs, keep: int) -> int:
    """Bytes of ``work/<id>/`` while the job runs: ``keep`` checkpoints, and the next before the oldest is deleted.

    0 if it saves none.
    """
    return checkpoint_bytes(job, jobs) * (keep + 1)


def checkpoint_bytes(job: Job, jobs: Jobs) -> int:
    """Bytes of a checkpoint: the tensors that training changes, and the optimiser's state; 0 if nothing is trained."""
    found = _sizes(job, jobs)
    return found[0].state + found[1] * found[0].trained if found else 0


def training_bytes(job: Job, jobs: Jobs) -> int:
    """Bytes of a training's tensors whatever the batch: a checkpoint's, gradients, and a frozen backbone."""
    from mls.cost.networks import backbone_sizes

    found = _sizes(job, jobs)
    frozen = isinstance(job.config, SgdProbe) or not found
    gradients = found[0].trained if found else 0
    return checkpoint_bytes(job, jobs) + gradients + frozen * backbone_sizes(backbone_of(job, jobs)).state


def _sizes(job: Job, jobs: Jobs) -> tuple[Sizes, int] | None:
    """Bytes of what a job trains, and the tensors that its optimiser keeps per weight; None if it trains nothing."""
    from mls.cost import networks

    config = job.config
    if isinstance(config, Pretrain):
        # the momentum and, for AdamW, the mean of the squared gradient
        kept = {"sgd": int(config.optimizer.momentum > 0), "lars": 1, "adamw": 2}[config.optimizer.name]
        return (networks.pretraining_sizes(config), kept) if config.method in TRAINED else None
    if not isinstance(config, TrainedProbe) and job.stage != "transfer":
        return None
    of_task = networks.classifier_sizes if isinstance(config, TrainedProbe) else networks.transfer_sizes
    return of_task(config, backbone_of(job, jobs), classes_of(job, jobs) or CLASSES["coco"]), int(config.momentum > 0)


def download_bytes(job: Job) -> int | None:
    """Bytes of the archives of a data set; unpacked below ``$MLS_DATA``, they take about as much."""
    if job.stage != "data" or isinstance(job.config, ScenesDataset) or job.config.root:
        return 0
    sizes = [archive.size for archive in needed(job.config)]
    return None if getattr(job.config, "subset", None) or None in sizes else sum(size or 0 for size in sizes)


def _store_bytes(data: Job) -> int | None:
    config = data.config
    if isinstance(config, ScenesDataset):
        return 3 * config.size**2 * (config.train + config.val + config.test) if config.format == "raw" else None
    if config.format == "raw" or config.short_side:
        return None
    pinned = [entry["bytes"] for entry in read_lock(DATA_LOCK).values() if entry["sha256"] == data.params["digest"]]
    return pinned[0] if pinned else download_bytes(data)


def classes_of(job: Job, jobs: Jobs) -> int | None:
    """Classes of the data set that a task reads, with the background that `mls.transfer.index_masks` adds."""
    data = data_of(job, jobs)
    classes = CLASSES.get(data.config.source) if data else None
    background = isinstance(job.config, SemanticTransfer) and data and data.config.source != "cityscapes"
    return classes and classes + bool(background)


def backbone_of(job: Job, jobs: Jobs) -> Backbone:
    """The backbone that a job trains or reads."""
    backbone: Backbone = (job if job.stage == "pretrain" else jobs[job.inputs["pretrain"]]).config.backbone
    return backbone


def feature_count(job: Job, jobs: Jobs) -> int:
    """Numbers per image of the features that a job extracts or reads."""
    from mls.models.backbone import LAYERS, feature_dims

    return feature_dims(backbone_of(job, jobs))[LAYERS.index(job.config.layer)] * job.config.pool**2
