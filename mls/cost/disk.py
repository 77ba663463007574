"""Bytes that a job needs on the disk: its finished artifact, its resumable checkpoints, its downloads.

    artifact_bytes(job, jobs)       # 377 MB: backbone.safetensors and checkpoint.pt of a pretraining
    peak_bytes(job, jobs, keep=2)   # of work/<id>/ while it runs: three checkpoints, the one being written included
    download_bytes(job)             # of the archives that a data set is fetched as

Networks are built by the code that trains them, on torch's meta device, where a tensor has a size and no memory. Their
tensors' bytes are exact; files have some more for names, and the rows of the curves. None: not known.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from mls.config.catalog import needed
from mls.config.datasets import ScenesDataset
from mls.config.experiment import Backbone, Optimizer, Pretrain
from mls.config.identity import canonical, identity_params
from mls.config.methods import METHODS, TRAINED
from mls.config.probes import Features, FrozenProbe, RetrievalProbe, TrainedProbe
from mls.config.transfers import Detectron2Detector, SemanticTransfer
from mls.cost.rates import SCHEMAS
from mls.cost.workload import Jobs, data_of, judged_images, work_of
from mls.pipeline.plan import DATA_LOCK, Job, read_lock

if TYPE_CHECKING:
    from torch import nn

FLOAT32 = 4
COCO_CLASSES = 80
"""https://cocodataset.org/#explore"""


def artifact_bytes(job: Job, jobs: Jobs) -> int | None:
    """Of the finished artifact's large files.

    Features and a probe's scores are float32, and the rest of their files is small. A data set that keeps its source's
    files takes what its archives do, at most. Other data sets and the predictions of a transfer depend on what is in
    the images.
    """
    config = job.config
    if job.stage == "data":
        return _store_bytes(job)
    if isinstance(config, Pretrain):
        return _backbone(config.backbone.model_dump_json()) + _pretraining(_sized(config))
    if isinstance(config, FrozenProbe | TrainedProbe):
        classes, images = _classes(job, jobs), judged_images(job, jobs)
        return None if isinstance(config, RetrievalProbe) or not classes else images and images * classes * FLOAT32
    if isinstance(config, Features):
        from mls.models.backbone import LAYERS, feature_dims

        dims, images = feature_dims(_layout(job, jobs)), work_of(job, jobs)
        return images and images * dims[LAYERS.index(config.layer)] * FLOAT32
    return None


def peak_bytes(job: Job, jobs: Jobs, keep: int) -> int | None:
    """Of ``work/<id>/`` while the job runs: ``keep`` checkpoints, and the next one before the oldest goes.

    0 for what saves none. None where the number of classes is unknown, or Detectron2 is not installed.
    """
    config = job.config
    if isinstance(config, Pretrain):
        one: int | None = _pretraining(_sized(config))
    elif isinstance(config, TrainedProbe) or job.stage == "transfer":
        classes = _classes(job, jobs)
        layout = _layout(job, jobs).model_dump_json()
        one = classes and _fine_tuning(job.stage, config.model_dump_json(exclude_unset=True), layout, classes)
    else:
        one = 0
    return one and one * (keep + 1)


def download_bytes(job: Job) -> int | None:
    """Of the archives that a data set is fetched as; unpacked below ``$MLS_DATA``, they take about as much."""
    if job.stage != "data" or isinstance(job.config, ScenesDataset) or job.config.root:
        return 0
    if getattr(job.config, "subset", None):
        return None
    sizes = [archive.size for archive in needed(job.config)]
    return None if None in sizes else sum(size or 0 for size in sizes)


def _store_bytes(data: Job) -> int | None:
    config = data.config
    if isinstance(config, ScenesDataset):
        pixels = 3 * config.size**2 * (config.train + config.val + config.test)
        return pixels if config.format == "raw" else None
    if config.format == "raw" or config.short_side:
        return None
    pinned = [entry for entry in read_lock(DATA_LOCK).values() if entry["sha256"] == data.params["digest"]]
    return pinned[0]["bytes"] if pinned else download_bytes(data)


def _classes(job: Job, jobs: Jobs) -> int | None:
    """Classes of the data set that a task reads, with the background that `mls.transfer.index_masks` adds."""
    from mls.data import cityscapes, classification, scenes, voc

    data = data_of(job, jobs)
    known = {"coco": COCO_CLASSES, "voc": len(voc.CLASSES), "scenes": len(scenes.CLASSES)}
    known |= {"cityscapes": len(cityscapes.IDS), **classification.CLASSES}
    classes = known.get(data.config.source) if data else None
    drawn = isinstance(job.config, SemanticTransfer) and data and data.config.source != "cityscapes"
    return classes and classes + bool(drawn)


def _layout(job: Job, jobs: Jobs) -> Backbone:
    layout: Backbone = jobs[job.inputs["pretrain"]].config.backbone
    return layout


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def _trained_bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters() if parameter.requires_grad)


@cache
def _backbone(layout_json: str) -> int:
    import torch

    from mls.models.backbone import build_backbone

    with torch.device("meta"):
        return _bytes(build_backbone(Backbone.model_validate_json(layout_json)))


def _sized(config: Pretrain) -> str:
    """Of a run what decides sizes: one of another data set, schedule or seed builds its networks once."""
    read = ("method", "backbone", "optimizer", *METHODS[config.method].blocks)
    return canonical(identity_params(config, read))


@cache
def _pretraining(config_json: str) -> int:
    """Of one checkpoint: networks, dictionary, and the optimiser's state of each parameter that is trained; 0 where
    nothing is."""
    import torch

    from mls.methods.method import build_method

    config = Pretrain.model_validate_json(config_json)
    if config.method not in TRAINED:
        return 0
    with torch.device("meta"):
        method = build_method(config)
    return _bytes(method) + _optimizer_tensors(config.optimizer) * _trained_bytes(method)


def _optimizer_tensors(config: Optimizer) -> int:
    """How many tensors of its size an optimiser keeps of a parameter: momentum; AdamW its square's mean too."""
    return {"sgd": int(config.momentum > 0), "lars": 1, "adamw": 2}[config.name]


@cache
def _fine_tuning(stage: str, task_json: str, layout_json: str, classes: int) -> int | None:
    """Of one checkpoint of a fine-tuning: the model, and SGD's momentum of what is trained."""
    import torch

    from mls.transfer.detectron2_install import detectron2_problem

    task, layout = SCHEMAS[stage].validate_json(task_json), Backbone.model_validate_json(layout_json)
    if isinstance(task, Detectron2Detector) and detectron2_problem():
        return None
    with torch.device("meta"):
        if stage == "transfer":
            from mls.transfer.interface import made_by

            model = made_by(task).build(task, layout, classes)
        else:
            from mls.models.backbone import build_backbone
            from mls.probe.classifier import Classifier

            model = Classifier(build_backbone(layout), classes, task, seed=0).trained
    return _bytes(model) + (task.momentum > 0) * _trained_bytes(model)
