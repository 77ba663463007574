"""Bytes that a job needs on disk: its finished artifact, its resumable checkpoints, its downloads.

    artifact_bytes(job, jobs)       # 377 MB: backbone.safetensors and checkpoint.pt of a pretraining
    peak_bytes(job, jobs, keep=2)   # of work/<id>/ while it runs: three checkpoints, one of them being written
    download_bytes(job)             # of the archives of a data set

Networks are built by the code that trains them, on torch's meta device, where tensors have a size but no memory. The
bytes of their tensors are exact; files are slightly larger, for names and the rows of curves. None means unknown.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mls.config.catalog import needed
from mls.config.datasets import ScenesDataset
from mls.config.experiment import Backbone, Pretrain
from mls.config.identity import canonical, identity_params
from mls.config.methods import METHODS, TRAINED
from mls.config.probes import Features, FrozenProbe, RetrievalProbe, TrainedProbe
from mls.config.transfers import Detectron2Detector, SemanticTransfer
from mls.cost.rates import SCHEMAS
from mls.cost.workload import Jobs, data_of, evaluated_images, work_of
from mls.data import classification, scenes, voc
from mls.methods.method import build_method
from mls.models.backbone import LAYERS, build_backbone, feature_dims
from mls.pipeline.plan import DATA_LOCK, Job, read_lock
from mls.probe.classifier import Classifier
from mls.transfer.detectron2_install import detectron2_problem
from mls.transfer.interface import made_by

FLOAT32 = 4
CLASSES = {
    "coco": 80,  # https://cocodataset.org/#explore
    "voc": len(voc.CLASSES),
    "scenes": len(scenes.CLASSES),
    "cityscapes": 19,  # `mls.data.cityscapes.label_ids`
    **classification.CLASSES,
}
"""Number of classes of each source whose classes are fixed."""


def artifact_bytes(job: Job, jobs: Jobs) -> int | None:
    """Bytes of the large files of the finished artifact; None if they depend on what is in the images.

    A probe's scores are float32. A data set that keeps its source's files takes at most as much as its
    archives.
    """
    config = job.config
    if job.stage == "data":
        return _store_bytes(job)
    if isinstance(config, Pretrain):
        return _backbone_bytes(config.backbone) + _pretraining_bytes(_sizing_params(config))
    if isinstance(config, FrozenProbe | TrainedProbe):
        classes, images = _classes(job, jobs), evaluated_images(job, jobs)
        return None if isinstance(config, RetrievalProbe) or not classes else images and images * classes * FLOAT32
    if isinstance(config, Features):
        width, images = feature_dims(_backbone(job, jobs))[LAYERS.index(config.layer)], work_of(job, jobs)
        return images and images * width * config.pool**2 * np.dtype(config.dtype).itemsize
    return None


def peak_bytes(job: Job, jobs: Jobs, keep: int) -> int | None:
    """Bytes of ``work/<id>/`` while the job runs: ``keep`` checkpoints, and the next before the oldest is deleted.

    0 if it saves none. None if the number of classes is unknown, or Detectron2 is not installed.
    """
    config = job.config
    one: int | None = 0
    if isinstance(config, Pretrain):
        one = _pretraining_bytes(_sizing_params(config))
    elif isinstance(config, TrainedProbe) or job.stage == "transfer":
        classes, task = _classes(job, jobs), config.model_dump_json(exclude_unset=True)
        one = classes and _fine_tuning_bytes(job.stage, task, _backbone(job, jobs), classes)
    return one and one * (keep + 1)


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


def _classes(job: Job, jobs: Jobs) -> int | None:
    """Classes of the data set that a task reads, with the background that `mls.transfer.index_masks` adds."""
    data = data_of(job, jobs)
    classes = CLASSES.get(data.config.source) if data else None
    background = isinstance(job.config, SemanticTransfer) and data and data.config.source != "cityscapes"
    return classes and classes + bool(background)


def _backbone(job: Job, jobs: Jobs) -> Backbone:
    backbone: Backbone = jobs[job.inputs["pretrain"]].config.backbone
    return backbone


def _checkpoint_bytes(module: nn.Module, kept: int) -> int:
    """Bytes of a network and of ``kept`` tensors that the optimiser keeps for each trained parameter."""
    trained = sum(parameter.nbytes for parameter in module.parameters() if parameter.requires_grad)
    return sum(tensor.nbytes for tensor in module.state_dict().values()) + kept * trained


class _Undrawn(TorchFunctionMode):
    """Leave out the drawing of initial values, which on the meta device takes most of the time, and changes no size."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in (torch.Tensor.normal_, torch.Tensor.uniform_) else func(*args, **(kwargs or {}))


@cache
def _backbone_bytes(backbone: Backbone) -> int:
    with torch.device("meta"), _Undrawn():
        return _checkpoint_bytes(build_backbone(backbone), kept=0)


def _sizing_params(config: Pretrain) -> str:
    """The params that decide sizes: runs that differ in data set, schedule or seed share one cached result."""
    return canonical(identity_params(config, ("method", "backbone", "optimizer", *METHODS[config.method].blocks)))


@cache
def _pretraining_bytes(config_json: str) -> int:
    """Bytes of a checkpoint: networks, dictionary and the optimiser's state; 0 if nothing is trained."""
    config = Pretrain.model_validate_json(config_json)
    if config.method not in TRAINED:
        return 0
    # the momentum and, for AdamW, the mean of the squared gradient
    kept = {"sgd": int(config.optimizer.momentum > 0), "lars": 1, "adamw": 2}[config.optimizer.name]
    with torch.device("meta"), _Undrawn():
        return _checkpoint_bytes(build_method(config), kept)


@cache
def _fine_tuning_bytes(stage: str, task_json: str, backbone: Backbone, classes: int) -> int | None:
    """Bytes of a checkpoint of a fine-tuning: the model, and SGD's momentum of its trained parameters."""
    task = SCHEMAS[stage].validate_json(task_json)
    if isinstance(task, Detectron2Detector) and detectron2_problem():
        return None
    with torch.device("meta"), _Undrawn():
        if stage == "transfer":
            model = made_by(task).build(task, backbone, classes)
        else:
            model = Classifier(build_backbone(backbone), classes, task, seed=0).trained
    return _checkpoint_bytes(model, kept=int(task.momentum > 0))
