"""Pictures with their objects outlined: the contact sheet of a generated data set.

figure = draw_scenes(ImageStore(path))
outline(axes, annotation, "disc", PALETTE[0])       # one object, of ground truth or predicted
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mls.data.image_store import ImageStore
from mls.report.style import LIGHT, PALETTE
from mls.transfer.instances import decode_mask, has_mask

SCENES = 12


def draw_scenes(store: ImageStore) -> Figure:
    """The first test images with boxes, masks and class names."""
    truth = store.ground_truth("test")
    names, colours = classes(truth)
    rows = [int(row) for row in store.split("test")[:SCENES]]
    figure = Figure(figsize=(9.2, 2.35 * math.ceil(len(rows) / 4)), layout="constrained")
    all_axes = figure.subplots(math.ceil(len(rows) / 4), 4, squeeze=False).ravel()
    for axes in all_axes:
        axes.axis("off")
    for axes, row in zip(all_axes, rows, strict=False):
        show(axes, store, row)
        for one in truth["annotations"]:
            if one["image_id"] == row:
                outline(axes, one, names[one["category_id"]], colours[one["category_id"]])
    return figure


def classes(truth: Mapping[str, Any]) -> tuple[dict[int, str], dict[int, str]]:
    """Category id -> name, and -> colour, of a COCO dictionary."""
    names = {category["id"]: category["name"] for category in truth["categories"]}
    return names, {category: PALETTE[i % len(PALETTE)] for i, category in enumerate(sorted(names))}


def show(axes: Axes, store: ImageStore, row: int) -> None:
    """An image, its pixels as they are stored; what is drawn on it later does not move its edges."""
    axes.imshow(store.decode(row).permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.autoscale(False)


def outline(axes: Axes, annotation: Mapping[str, Any], name: str, colour: str) -> None:
    """One object on a shown image: tinted mask with its contour, box, and words at the box's upper corner.

    Args:
        axes: with the image; see `show`.
        annotation: ``bbox`` (x, y, width, height, pixels) and, where it has one, ``segmentation``, as COCO has them.
        name: what is written.
        colour: of `PALETTE`.
    """
    right, bottom = axes.get_xlim()[1] + 0.5, axes.get_ylim()[0] + 0.5
    if has_mask(annotation.get("segmentation") or []):
        # a border, so that contours close at the image's edge
        mask_HW = np.pad(decode_mask(annotation["segmentation"], int(bottom), int(right)), 1)
        x_W, y_H = (np.arange(-1, side - 1) for side in (mask_HW.shape[1], mask_HW.shape[0]))
        axes.contourf(x_W, y_H, mask_HW, levels=[0.5, 2], colors=[colour], alpha=0.18)
        axes.contour(x_W, y_H, mask_HW, levels=[0.5], colors=[colour], linewidths=0.9)
    x, y, width, height = annotation["bbox"]
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, edgecolor=colour, linewidth=1.2))
    leftwards = x + width / 2 > right / 2  # words grow towards the middle of the image
    axes.text(
        x - 0.5 + width * leftwards,
        y - 0.5,
        name,
        fontsize=6,
        color="black" if colour in LIGHT else "white",
        horizontalalignment="right" if leftwards else "left",
        verticalalignment="bottom" if y > bottom / 10 else "top",
        bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8},
    )
