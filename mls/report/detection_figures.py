"""What fine-tuned detectors find in test images, beside the ground truth.

    mls draw detect/mls                   # of one transfer, whatever its data, into drawn/<id>/

The tables stage draws ``detections-<task>``, several runs side by side, of generated scenes alone. Pictures of photos
are for the eyes of who holds the photos.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure

from mls.data.image_store import ImageStore
from mls.pipeline.artifact import Artifact, open_artifact
from mls.pipeline.plan import Job, Plan
from mls.pipeline.runner import open_inputs
from mls.report.scene_figures import classes, outline, show
from mls.report.style import plain_style, save
from mls.runtime.errors import DamagedArtifact, MlsError
from mls.runtime.locks import say

DETECTORS = ("instance", "detection")
"""Kinds of transfer whose predictions are objects."""
IMAGES = 6
RUNS = 3
LEAST = 0.3
"""Score of the faintest prediction that is drawn."""
LINE = 28
"""Characters that fit above a picture."""

Results = list[dict[str, Any]]


def detectors(params: Mapping[str, Any], transfers: Mapping[str, Artifact]) -> dict[str, dict[str, Artifact]]:
    """Task -> row -> its transfer of the first seed and trial, of the first `RUNS` rows whose transfers differ."""
    found: dict[str, dict[str, Artifact]] = {}
    for _, table in sorted(params["tables"].items()):
        for row in table["rows"]:
            for task, pairs in row["tasks"].items():
                artifact = transfers.get(pairs[0][1])
                if artifact is None or artifact.manifest["params"]["kind"] not in DETECTORS:
                    continue
                rows = found.setdefault(task, {})
                if len(rows) < RUNS and all(artifact.path != other.path for other in rows.values()):
                    rows.setdefault(row["label"], artifact)
    return dict(sorted(found.items()))


def draw_detections(store: ImageStore, results: Mapping[str, Results], images: int = IMAGES, note: str = "") -> Figure:
    """A row per test image: the ground truth, then a column per run; boxes, masks, classes and scores.

    Args:
        store: holds the images and their annotations.
        results: title of a column -> entries in COCO's results format.
        images: the first so many of the test split; all of them where there are fewer.
        note: behind the words under the figure.
    """
    truth = store.ground_truth("test")
    names, colours = classes(truth)
    rows = [int(row) for row in store.split("test")[:images]]
    columns = 1 + len(results)
    figure = Figure(figsize=(2.1 * columns + 0.2, 2.1 * len(rows) + 0.7), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, title in zip(grid[0], ("ground truth", *results), strict=True):
        axes.set_title(fill(title, LINE), fontsize=8)
    real = [one for one in truth["annotations"] if not one["iscrowd"]]
    kept = [[one for one in found if one["score"] >= LEAST] for found in results.values()]
    for line, row in zip(grid, rows, strict=True):
        for axes, found in zip(line, (real, *kept), strict=True):
            axes.axis("off")
            show(axes, store, row)
            here = [one for one in found if one["image_id"] == row]
            for one in sorted(here, key=lambda one: one.get("score", 0.0)):  # the surest is on top
                category = one["category_id"]
                score = f" {one['score']:.2f}" if "score" in one else ""
                outline(axes, one, names[category] + score, colours[category])
            if not here and found is not real:
                axes.text(0.5, -0.02, "nothing found", transform=axes.transAxes, fontsize=7, ha="center", va="top")
    figure.supxlabel(f"predictions with a score of at least {LEAST:g}{note}", fontsize=8)
    return figure


def draw_transfer(plan: Plan, job: Job, out: Path, images: int = IMAGES) -> list[Path]:
    """Draw what one finished transfer found; return the files.

    Args:
        plan: that plans the job.
        job: a transfer that finds boxes.
        out: folder for ``detections.png`` and ``detections.pdf``; made if needed.
        images: test images; fewer where the data set has fewer.

    Raises:
        MlsError: it is no detector, or an artifact is missing or damaged; says what to do.
    """
    name = plan.name(job)
    if images < 1:
        raise MlsError(f"--images must be at least 1, not {images}")
    if job.config.kind not in DETECTORS:
        can = [plan.labels[one.id][0] for one in plan.stage("transfer") if one.config.kind in DETECTORS]
        raise MlsError(
            f"{name} has kind {job.config.kind!r}, which finds no objects; {plan.loaded.path} can draw: "
            f"{', '.join(can) or 'none of its transfers'}"
        )
    try:
        results = open_artifact(job.path).read_json("predictions.json")
    except DamagedArtifact as error:
        make = f"mls transfer {plan.labels[job.id][0]} -e {plan.loaded.path}"
        raise MlsError(f"{name} can't be drawn: {error}. The command that makes it: {make}") from error
    data = open_inputs(plan, job)["data"]
    with plain_style():
        save(draw_detections(ImageStore(data.path), {plan.labels[job.id][0]: results}, images), out / "detections")
    if data.manifest["params"].get("source") != "scenes":
        say(f"{out}/detections.* show photos of the data set; don't publish them without the photos' licences")
    return [out / f"detections.{end}" for end in ("png", "pdf")]
