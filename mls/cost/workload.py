"""How much work there is: the images of a data set, and the images that a job processes.

    images_of(data)             # {"train": 113556, "val": 4731, "test": 5000}, or None if unknown
    work_of(job, jobs)          # 45,363,200: epochs x steps x batch of a pretraining

Counts come from the experiment file, the catalog's official counts, or the index of a finished data set. The formulas
are those of the stages: `mls.data.loader.TwoViews`, `mls.probe.finetune.Views`, ``mls.transfer``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pyarrow.parquet as pq

from mls.config.catalog import PUBLISHED, expected
from mls.config.datasets import ScenesDataset
from mls.config.experiment import Pretrain
from mls.config.methods import TRAINED
from mls.config.probes import Features, Trained
from mls.config.transfers import TransferSection
from mls.data.listing import hold_out
from mls.pipeline.artifact import MANIFEST
from mls.pipeline.plan import Job

Jobs = Mapping[str, Job]
"""Id -> job, for all planned jobs and all that are finished here."""


def data_of(job: Job, jobs: Jobs) -> Job | None:
    """The data set that a job reads, itself or through its features; None if it is unknown or there is none."""
    if job.stage in ("data", "tables"):
        return job if job.stage == "data" else None
    source = jobs.get(job.inputs.get("data") or job.inputs.get("features", ""))
    return data_of(source, jobs) if source else None


def images_of(data: Job) -> dict[str, int] | None:
    """Images per split, before undecodable ones are excluded; None if neither file nor catalog knows.

    Official counts are only used if published checksums identify the data: your own copy may be a part of it.
    """
    config = data.config
    if isinstance(config, ScenesDataset):
        return {"train": config.train, "val": config.val, "test": config.test}
    subset = getattr(config, "subset", None)
    counts = expected(config) if str(data.params["digest"]).startswith(PUBLISHED) else None
    if subset and subset.images:
        counts = {"train": subset.images, "test": subset.test}
    if counts is None:
        if not (data.path / MANIFEST).exists():
            return None
        splits = pq.read_table(data.path / "index.parquet", columns=["split"])["split"]
        return dict(Counter(splits.to_pylist()))
    if "val" not in counts:
        held_out = len(hold_out(counts["train"], config.val_share, config.seed))
        counts = {**counts, "train": counts["train"] - held_out, "val": held_out}
    return counts


def evaluated_images(job: Job, jobs: Jobs) -> int | None:
    """Images on which a task is evaluated: those of test or, with ``test: false``, of val."""
    return _images(job, jobs, "test" if getattr(job.config, "test", True) else "val")


def work_of(job: Job, jobs: Jobs) -> int | None:
    """Images processed by a job, counting every training epoch, but not the one pass over test at the end.

    Detectors trained by epochs count images without instances too, though training leaves them out (1 % of COCO). A
    pretraining without training is 0. None if the number of images is unknown, and for tables.
    """
    config = job.config
    if isinstance(config, Pretrain):
        if config.method not in TRAINED:
            return 0
        images = _images(job, jobs, "train", "unlabeled")
        return images and images // config.batch_size * config.epochs * config.batch_size
    if isinstance(config, Trained | TransferSection):
        steps = config.steps_on(_images(job, jobs, *config.splits))
        return steps and steps * config.batch_size
    if isinstance(config, Features):
        return _images(job, jobs, "train", "val", *(["test"] if config.test else []))
    return _images(job, jobs, "train", "val", "test", "unlabeled") if job.stage == "data" else None


def _images(job: Job, jobs: Jobs, *splits: str) -> int | None:
    data = data_of(job, jobs)
    counts = images_of(data) if data else None
    return None if counts is None else sum(counts.get(split, 0) for split in splits)
