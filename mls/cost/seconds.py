"""Seconds of one core: what data, probes on features, scores and tables take, from what was measured.

    seconds_of(job, jobs)       # Seconds(592.0, "measured", "4.8 ms an image")
    scoring_seconds(job, jobs)  # 26.7: COCO's boxes and masks of 5,000 images

The measurements are those of docs/scaling.md and benchmarks/results. They hold for COCO; elsewhere they are scaled by
what they should be proportional to, and called a guess.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from mls.config.datasets import ScenesDataset
from mls.config.probes import KnnProbe, LinearProbe, RetrievalProbe, SvmProbe
from mls.config.transfers import SemanticTransfer
from mls.cost.disk import classes_of, feature_count
from mls.cost.workload import Jobs, data_of, evaluated_images, images_of, work_of
from mls.pipeline.plan import Job

MEASURED, GUESS = "measured", "guess (x 3)"
PHOTOS = {"coco": (480, 640), "voc": (375, 500), "cityscapes": (1024, 2048)}
"""Source -> height and width of most of its photos, pixels."""
READ = 4.8e-3
"""Of checking, decoding and writing one of COCO's images (scale.csv)."""
SCENE, SCENE_PIXEL = 2.2e-3, 3.5e-7
"""Of generating a scene, and each of its pixels (32 to 128 px)."""
LINEAR = 1729 / (113_556 * 2048 * 80 * 5)
"""Of each train image, feature, class and strength of the linear probe (probe_scale.csv)."""
AT_SIZE = 2048
"""Features of the measured probes; with others, seconds are scaled."""
RANKED = 294 / (5_000 * 113_556 * 2048)
"""Of each query, gallery image and feature of a retrieval (probe_scale.csv)."""
SVM = 6.0 / (14_000 * 2048)
"""Of each train image and feature of one of LIBLINEAR's fits (probe_scale.csv)."""
SCORED_BOXES, SCORED_MASKS, TRUTH = 8.1 / 5_000, 18.6 / 5_000, 1.3 / 5_000
"""Of scoring the boxes, the masks, and reading the ground truth of an image (scoring.csv, scale.csv)."""
SCORED_PIXEL = 3e-8
"""Of counting a pixel of a semantic prediction; a guess."""
TABLES = 30.0
"""Of an experiment's tables and figures; a guess."""


class Seconds(NamedTuple):
    """CPU seconds of a job, and how they are known."""

    value: float
    basis: str
    why: str


def photo_of(data: Job) -> tuple[int, int]:
    """Return the height and width of most images of a data set, pixels: of COCO's, if its source is not known."""
    if isinstance(data.config, ScenesDataset):
        return data.config.size, data.config.size
    height, width = PHOTOS.get(data.config.source, PHOTOS["coco"])
    short = min(data.config.short_side or height, height)
    return short, round(width * short / height)


def seconds_of(job: Job, jobs: Jobs) -> Seconds | None:
    """Return what a job takes that needs no accelerator; None for others, or if its number of images is unknown."""
    if job.stage == "tables":
        return Seconds(TABLES, GUESS, f"{TABLES:.0f} s")
    images, data = work_of(job, jobs), data_of(job, jobs)
    if not images or not data:
        return None
    if job.stage == "data":
        return _reading(data, images)
    if job.stage == "probe" and not hasattr(job.config, "batch_size"):
        return _fitting(job, jobs, data)
    return None


def _reading(data: Job, images: int) -> Seconds:
    config = data.config
    if isinstance(config, ScenesDataset):
        each = SCENE + SCENE_PIXEL * config.size**2
        return Seconds(each * images, MEASURED, f"{1e3 * each:.1f} ms an image")
    height, width = PHOTOS.get(config.source, PHOTOS["coco"])
    each = READ * height * width / math.prod(PHOTOS["coco"])
    whole = config.source == "coco" and not config.short_side
    return Seconds(each * images, MEASURED if whole else GUESS, f"{1e3 * each:.1f} ms an image, by COCO's pixels")


def _fitting(job: Job, jobs: Jobs, data: Job) -> Seconds | None:
    counts, classes = images_of(data), classes_of(job, jobs) or 100
    if counts is None:
        return None
    config, width, train, tested = (
        job.config,
        feature_count(job, jobs),
        counts["train"],
        evaluated_images(job, jobs) or 0,
    )
    at_size = data.config.source == "coco" and train > 100_000 and width == AT_SIZE
    if isinstance(config, LinearProbe):
        value = LINEAR * train * width * classes * len(config.strengths)
        at_size = at_size and len(config.strengths) == 5
    elif isinstance(config, KnnProbe | RetrievalProbe):
        queries = tested + (counts.get("val", 0) if isinstance(config, KnnProbe) else 0)
        value, at_size = RANKED * queries * train * width, at_size and isinstance(config, RetrievalProbe)
    elif isinstance(config, SvmProbe):
        train += counts.get("val", 0)
        seen = classes * (len(config.costs) * (config.folds - 1) + 1) * train
        drawn = sum(k * classes for k in config.low_shot) * config.samples * classes * len(config.costs)
        value, at_size = SVM * width * (seen + drawn), False
    else:  # a probe that was added: as if it went through the features once for each class
        value, at_size = LINEAR * train * width * classes, False
    return Seconds(value, MEASURED if at_size else GUESS, "of COCO's size" if at_size else "scaled from COCO's size")


def scoring_seconds(job: Job, jobs: Jobs) -> float:
    """Return what scoring a transfer's predictions takes."""
    data, images = data_of(job, jobs), evaluated_images(job, jobs) or 0
    if job.stage != "transfer" or data is None:
        return 0.0
    if isinstance(job.config, SemanticTransfer):
        return SCORED_PIXEL * math.prod(photo_of(data)) * images
    return (TRUTH + SCORED_BOXES + SCORED_MASKS * (job.config.kind == "instance")) * images
