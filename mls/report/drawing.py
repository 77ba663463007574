"""`mls draw`: the paper's Figures 3 and 4 of a finished pretraining, or what a finished detector finds.

    mls draw mls                          # the run `mls` of params.yaml, into drawn/<id>/
    mls draw mls:1 -e experiments/scenes-3seeds.yaml -o figures --images 4 --seed 2
    mls draw detect/mls                   # one transfer, with any data set

The same artifact and arguments give the same bytes (with the same number of threads). Pictures of photos may only be
shown to people who have the photos.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mls.config.methods import TRAINED
from mls.data.image_store import ImageStore
from mls.pipeline.artifact import open_artifact
from mls.pipeline.plan import Job, Plan
from mls.pipeline.runner import open_inputs
from mls.report.figures import is_generated
from mls.report.neighbour_figures import finished, queries_figure, scores_figure
from mls.report.object_figures import DETECTORS, draw_detections
from mls.report.style import plain_style, save
from mls.runtime.errors import DamagedArtifact, MlsError
from mls.runtime.files import write_json
from mls.runtime.locks import say


def draw_job(plan: Plan, job: Job, out: Path, images: int = 6, seed: int = 0) -> list[Path]:
    """Draw a finished job; the caller's RNG is left as it was.

    Args:
        plan: the job's plan.
        job: a pretraining by a method that trains, or a transfer that finds boxes.
        out: folder for the files, made if needed: ``fig3.*`` and ``fig4.*`` of a pretraining, ``detections.*`` of a
            transfer.
        images: queries in Fig. 4, or test images; fewer if the data set has fewer.
        seed: of a pretraining's figures: decides which images are queries, and their crops.

    Returns:
        The files, in order.

    Raises:
        MlsError: the job or an argument cannot be drawn, the method's dictionary is empty, or an artifact is missing
            or damaged; says what to do.
    """
    if images < 1 or seed < 0:
        raise MlsError(f"--images must be at least 1 and --seed at least 0, not {images} and {seed}")
    pretrained = job.stage == "pretrain"
    if problem := undrawable(job):
        others = ", ".join(plan.labels[one.id][0] for one in plan.stage(job.stage) if not undrawable(one))
        raise MlsError(f"{plan.name(job)} {problem}; {plan.loaded.path} can draw: {others or 'nothing'}")
    try:
        artifact = open_artifact(job.path)
        made: Any = finished(job, artifact, plan.name(job)) if pretrained else artifact.read_json("predictions.json")
    except DamagedArtifact as error:
        command = f"mls {job.stage} {plan.labels[job.id][0]} -e {plan.loaded.path}"
        raise MlsError(f"{plan.name(job)} can't be drawn: {error}. The command that makes it: {command}") from error
    data = open_inputs(plan, job)["data"]
    store, files = ImageStore(data.path), []
    with plain_style():
        if pretrained:
            figure, numbers = scores_figure(job, made, store, seed)
            files = [*save(figure, out / "fig3"), out / "fig3.json"]
            write_json(numbers, out / "fig3.json", indent=1)
            pictures = save(queries_figure(job, made, store, images, seed), out / "fig4")
        else:
            pictures = save(draw_detections(store, {plan.labels[job.id][0]: made}, images), out / "detections")
    if not is_generated(data):
        say(f"{pictures[0].with_suffix('.*')} show photos of the data set; don't publish them without their licences")
    return files + pictures


def undrawable(job: Job) -> str:
    """Why a job cannot be drawn; empty if it can."""
    config = job.config
    if job.stage == "transfer":
        return "" if config.kind in DETECTORS else f"has kind {config.kind!r}, which finds no objects"
    trains = config.method in TRAINED
    return "" if trains else f"has method {config.method!r}, which trains nothing and keeps no dictionary to draw"
