"""Figures of an experiment: training curves, what its terms do, per-class AP, a contact sheet of generated scenes.

    draw_figures(job.params, context.inputs, Path("figures"))

Each is written as PNG and as PDF, the same bytes for the same inputs. Pictures are drawn of generated
scenes only: other data sets hold photos, whose licences do not allow to publish them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from pycocotools import mask as rle

from mls.data.store import Store
from mls.experiment.artifact import Artifact
from mls.report.curves import draw_losses, draw_mechanism, run_name
from mls.report.layout import DASH
from mls.report.statistics import mean
from mls.report.style import HATCHES, LIGHT, PALETTE, legend_below, plain_style, save

PerClass = dict[str, dict[str, float]]
MOST_CLASSES = 20
SCENES = 12


def draw_figures(params: Mapping[str, Any], inputs: Mapping[str, Artifact], out: Path) -> list[str]:
    """Draw whatever the inputs allow; return the figures' names.

    Args:
        params: of the tables job: ``tables`` and ``runs`` (pretrain id -> labels such as ``mls:0``).
        inputs: opened artifacts by ``<stage>/<id>``.
        out: folder for the files; made if there is anything to draw.
    """
    runs = run_order(params)
    figures: dict[str, Figure] = {}
    with plain_style():
        if curves := read_curves(inputs):
            figures["curves"] = draw_losses(curves, params["runs"], runs)
            if mechanism := draw_mechanism(curves, params["runs"], runs):
                figures["mechanism"] = mechanism
        for (task, split), by_run in per_class_ap(params, of_stage(inputs, "probe")).items():
            if len(next(iter(by_run.values()))) <= MOST_CLASSES:
                figures[f"per_class-{task}"] = draw_per_class(f"{task}, {split}", by_run, runs)
        for one, artifact in of_stage(inputs, "data").items():
            if artifact.seal["params"].get("source") == "scenes":
                figures[f"scenes-{one}"] = draw_scenes(Store(artifact.path))
        for name, figure in figures.items():
            save(figure, out / name)
    return list(figures)


def read_curves(inputs: Mapping[str, Artifact]) -> dict[str, pd.DataFrame]:
    """``curves.csv`` of every training by pretrain id."""
    trained = of_stage(inputs, "pretrain").items()
    return {one: pd.read_csv(a.file("curves.csv")) for one, a in trained if "curves.csv" in a.seal["files"]}


def of_stage(inputs: Mapping[str, Artifact], stage: str) -> dict[str, Artifact]:
    """The inputs of one stage by id."""
    start = f"{stage}/"
    return {role.removeprefix(start): artifact for role, artifact in inputs.items() if role.startswith(start)}


def run_order(params: Mapping[str, Any]) -> list[str]:
    """Names of all runs: as the tables' rows have them, then the others by name.

    Colours follow this order. It uses lists and sorted keys alone, because that is what the
    artifact's id covers: equal mappings in another order have the same id.
    """
    rows = [row["label"] for _, table in sorted(params["tables"].items()) for row in table["rows"]]
    others = sorted(run_name(label) for labels in params["runs"].values() for label in labels)
    return list(dict.fromkeys([*rows, *others]))


# --------------------------------------------------------------------------------------- per class


def per_class_ap(params: Mapping[str, Any], probes: Mapping[str, Artifact]) -> dict[tuple[str, str], PerClass]:
    """AP per class of every classifier in a table: (task, split) -> row -> class -> mean over seeds, or NaN.

    Retrieval judges queries, not classes: it is left out.
    """
    found: dict[tuple[str, str], PerClass] = {}
    for _, table in sorted(params["tables"].items()):
        for row in table["rows"]:
            for task, pairs in row["tasks"].items():
                read = [probes[one] for one in dict.fromkeys(one for _, one in pairs) if one in probes]
                aps = [
                    p.read_json("metrics.json").get("per_class")
                    for p in read
                    if p.seal["params"]["kind"] != "retrieval"
                ]
                if aps and all(aps):
                    split = "test" if read[0].seal["params"].get("test", True) else "val"
                    found.setdefault((task, split), {})[row["label"]] = {
                        name: math.nan if any(one[name] is None for one in aps) else mean([one[name] for one in aps])
                        for name in aps[0]
                    }
    return dict(sorted(found.items()))


def draw_per_class(title: str, by_run: Mapping[str, Mapping[str, float]], runs: list[str]) -> Figure:
    """One group of bars per class, one bar per run; percent, a dash where the AP is not defined."""
    classes = list(next(iter(by_run.values())))
    group = min(max(0.5, 0.14 * len(by_run)), 15 / len(classes))  # inches
    figure = Figure(figsize=(max(5.0, 1.2 + group * len(classes)), 3.6), layout="constrained")
    axes = figure.subplots()
    places, width = np.arange(len(classes)), 0.84 / len(by_run)
    entries: dict[str, Any] = {}
    for i, (run, aps) in enumerate(by_run.items()):
        at = runs.index(run)
        centres = places + (i - (len(by_run) - 1) / 2) * width
        for x in centres[[math.isnan(aps[name]) for name in classes]]:
            axes.text(x, 0.5, DASH, ha="center")
        entries[run] = axes.bar(
            centres,
            [aps[name] for name in classes],
            width,
            color=PALETTE[at % len(PALETTE)],
            hatch=HATCHES[at // len(PALETTE) % len(HATCHES)],
            edgecolor="white",
            linewidth=0.4,
        )
    crowded = max(map(len, classes)) * 0.09 > group
    axes.set_xticks(places, classes, rotation=40 if crowded else 0, ha="right" if crowded else "center")
    axes.set(title=f"{title}: AP per class", ylabel="AP, %", ylim=(0, 100), xlim=(-0.6, len(classes) - 0.4))
    axes.tick_params(axis="x", length=0)
    axes.grid(True, axis="y", color="0.9")
    legend_below(figure, entries)
    return figure


# ------------------------------------------------------------------------------------------ scenes


def draw_scenes(store: Store) -> Figure:
    """The first test images with boxes, masks and class names."""
    truth = store.ground_truth("test")
    names = {c["id"]: c["name"] for c in truth["categories"]}
    colours = {category: PALETTE[i % len(PALETTE)] for i, category in enumerate(sorted(names))}
    rows = [int(row) for row in store.split("test")[:SCENES]]
    figure = Figure(figsize=(9.2, 2.35 * math.ceil(len(rows) / 4)), layout="constrained")
    all_axes = figure.subplots(math.ceil(len(rows) / 4), 4, squeeze=False).ravel()
    for axes in all_axes:
        axes.axis("off")
    for axes, row in zip(all_axes, rows, strict=False):
        pixels_HWC = store.decode(row).permute(1, 2, 0).numpy()
        axes.imshow(pixels_HWC, interpolation="nearest")
        axes.autoscale(False)
        for one in truth["annotations"]:
            if one["image_id"] == row:
                outline(axes, one, names[one["category_id"]], colours[one["category_id"]])
    return figure


def outline(axes: Axes, annotation: Mapping[str, Any], name: str, colour: str) -> None:
    """One object: tinted mask with its contour, box, class name at the box's upper left corner."""
    mask_HW = np.pad(rle.decode(annotation["segmentation"]), 1)  # a border, so that contours close at the image's edge
    x_W, y_H = (np.arange(-1, side - 1) for side in (mask_HW.shape[1], mask_HW.shape[0]))
    axes.contourf(x_W, y_H, mask_HW, levels=[0.5, 2], colors=[colour], alpha=0.18)
    axes.contour(x_W, y_H, mask_HW, levels=[0.5], colors=[colour], linewidths=0.9)
    x, y, width, height = annotation["bbox"]
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, edgecolor=colour, linewidth=1.2))
    axes.text(
        x - 0.5,
        y - 0.5,
        name,
        fontsize=6,
        color="black" if colour in LIGHT else "white",
        verticalalignment="bottom" if y > axes.get_ylim()[0] / 10 else "top",
        bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8},
    )
