"""Images with their objects outlined: generated scenes, and what fine-tuned detectors find in test images.

The tables stage draws ``scenes-<id>`` and ``detections-<task>``, several runs side by side, only for generated scenes;
`mls draw` draws one transfer, with any data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mls.data.image_store import ImageStore
from mls.pipeline.artifact import Artifact
from mls.report.class_figures import table_tasks
from mls.report.style import LIGHT, PALETTE, panels
from mls.transfer.instances import decode_mask, has_mask

SCENES = 12
DETECTORS = ("instance", "detection")
"""Kinds of transfer whose predictions are objects."""
TEST_IMAGES = 6
DETECTOR_RUNS = 3
LEAST_SCORE = 0.3
"""Score of the faintest prediction that is drawn."""
TITLE_WIDTH = 28
"""Characters that fit above an image."""

Results = list[dict[str, Any]]


def draw_scenes(store: ImageStore) -> Figure:
    """The first test images with boxes, masks and class names."""
    truth = store.ground_truth("test")
    rows = [int(row) for row in store.split("test")[:SCENES]]
    figure, all_axes = panels(-(-len(rows) // 4) * 4, 4, (2.3, 2.35), (0, 0))
    for axes in all_axes:
        axes.axis("off")
    for axes, row in zip(all_axes, rows, strict=False):
        show_image(axes, store, row)
        for one in truth["annotations"]:
            if one["image_id"] == row:
                outline(axes, one, truth)
    return figure


def show_image(axes: Axes, store: ImageStore, row: int) -> None:
    """An image, its pixels as they are stored; later drawing does not move its edges."""
    axes.imshow(store.decode(row).permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.autoscale(False)


def outline(axes: Axes, one: Mapping[str, Any], truth: Mapping[str, Any]) -> None:
    """One object on an image: tinted mask with its contour, box, and class (and score) at the box's upper corner.

    Args:
        axes: with the image; see `show_image`.
        one: ``category_id``, ``bbox`` (x, y, width, height, pixels) and, if it has one, ``segmentation``, in COCO's
            format of annotations or, with ``score``, of results.
        truth: COCO dictionary with the ``categories``.
    """
    names = {category["id"]: category["name"] for category in truth["categories"]}
    colour = PALETTE[sorted(names).index(one["category_id"]) % len(PALETTE)]
    right, bottom = axes.get_xlim()[1] + 0.5, axes.get_ylim()[0] + 0.5
    if has_mask(one.get("segmentation") or []):
        # with a border, so that contours close at the image's edge
        mask_HW = np.pad(decode_mask(one["segmentation"], int(bottom), int(right)), 1)
        x_W, y_H = (np.arange(-1, side - 1) for side in (mask_HW.shape[1], mask_HW.shape[0]))
        axes.contourf(x_W, y_H, mask_HW, levels=[0.5, 2], colors=[colour], alpha=0.18)
        axes.contour(x_W, y_H, mask_HW, levels=[0.5], colors=[colour], linewidths=0.9)
    x, y, width, height = one["bbox"]
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, edgecolor=colour, linewidth=1.2))
    leftwards = x + width / 2 > right / 2  # words grow towards the middle of the image
    axes.text(
        x - 0.5 + width * leftwards,
        y - 0.5,
        names[one["category_id"]] + (f" {one['score']:.2f}" if "score" in one else ""),
        fontsize=6,
        color="black" if colour in LIGHT else "white",
        horizontalalignment="right" if leftwards else "left",
        verticalalignment="bottom" if y > bottom / 10 else "top",
        bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8},
    )


# --------------------------------------------------------------------------------------- detections


def detectors(params: Mapping[str, Any], transfers: Mapping[str, Artifact]) -> dict[str, dict[str, Artifact]]:
    """Task -> row -> its transfer of the first seed and trial, for the first `DETECTOR_RUNS` different transfers."""
    found: dict[str, dict[str, Artifact]] = {}
    for row, task, pairs in table_tasks(params):
        artifact = transfers.get(pairs[0][1])
        if artifact and artifact.manifest["params"]["kind"] in DETECTORS:
            rows = found.setdefault(task, {})
            if len(rows) < DETECTOR_RUNS and all(artifact.path != other.path for other in rows.values()):
                rows.setdefault(row, artifact)
    return dict(sorted(found.items()))


def draw_detections(
    store: ImageStore, results: Mapping[str, Results], images: int = TEST_IMAGES, note: str = ""
) -> Figure:
    """A row per test image: the ground truth, then a column per run; boxes, masks, classes and scores.

    Args:
        store: holds the images and their annotations.
        results: title of a column -> entries in COCO's results format.
        images: how many of the test split; all of them if there are fewer.
        note: appended to the words under the figure.
    """
    truth = store.ground_truth("test")
    rows = [int(row) for row in store.split("test")[:images]]
    columns = 1 + len(results)
    figure, all_axes = panels(len(rows) * columns, columns, (2.1, 2.1), (0.2, 0.7))
    for axes, title in zip(all_axes, ("ground truth", *results), strict=False):
        axes.set_title(fill(title, TITLE_WIDTH), fontsize=8)
    real = [one for one in truth["annotations"] if not one["iscrowd"]]
    kept = [[one for one in found if one["score"] >= LEAST_SCORE] for found in results.values()]
    for i, axes in enumerate(all_axes):
        row, found = rows[i // columns], (real, *kept)[i % columns]
        axes.axis("off")
        show_image(axes, store, row)
        here = [one for one in found if one["image_id"] == row]
        for one in sorted(here, key=lambda one: one.get("score", 0.0)):  # the most certain is on top
            outline(axes, one, truth)
        if not here and found is not real:
            axes.text(0.5, -0.02, "nothing found", transform=axes.transAxes, fontsize=7, ha="center", va="top")
    figure.supxlabel(f"predictions with a score of at least {LEAST_SCORE:g}{note}", fontsize=8)
    return figure
