"""The curves of an experiment's pretrainings: as figures, and as one file of numbers.

figure = draw_losses(curves, labels, runs)         # curves: pretrain id -> its curves.csv
figure = draw_mechanism(curves, labels, runs)      # what the multi-label term does to the embeddings
text = merge(curves, labels, runs)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from mls.report.style import LINES, PALETTE, legend_below

LOSSES = {
    "info_nce": "InfoNCE",
    "multi_label": "multi-label loss",
    "dense": "InfoNCE of matched cells (DenseCL)",
    "prediction": "prediction (BYOL)",
    "grouping": "grouping (SlotCon)",
    "slots": "InfoNCE of slots (SlotCon)",
}
POINTS = 400
"""A curve has at most so many points; more would only make the file large."""

GRADIENTS = "gradient on z: lambda multi-label / InfoNCE"

Curve = Callable[[pd.DataFrame], "pd.Series[float]"]
MECHANISM: dict[str, tuple[tuple[str, ...], Curve]] = {
    "length of the mean of Q_z": (("queue_mean",), itemgetter("queue_mean")),
    # |z - k|^2 = 2 - 2 cos
    "cosine of z and its key": (("alignment",), lambda f: 1 - f["alignment"] / 2),
    GRADIENTS: (
        ("weight", "grad_ml", "grad_nce"),
        lambda f: (f["weight"] * f["grad_ml"] / f["grad_nce"]).where(f["weight"] > 0),
    ),
    "cosine of the two gradients": (("grad_cosine",), itemgetter("grad_cosine")),
    "pseudo-labels: agreement above chance": (
        ("agreement", "agreement_base"),
        lambda f: f["agreement"] - f["agreement_base"],
    ),
    "online kNN on val": (("knn",), itemgetter("knn")),
}
"""Panel -> the columns it needs, and what is drawn of them."""


def draw_losses(curves: Mapping[str, pd.DataFrame], labels: Mapping[str, list[str]], runs: list[str]) -> Figure:
    """One panel per loss, one line per pretraining; the seeds of a run share its colour.

    Args:
        curves: pretrain id -> columns ``epoch``, ``loss`` and one per loss.
        labels: pretrain id -> ``run:seed``; several where runs are equal (shown as ``a = b``).
        runs: all run names in the order of colours.
    """
    columns = [c for c in LOSSES if any(c in frame and frame[c].notna().any() for frame in curves.values())] or ["loss"]
    panels: dict[str, tuple[tuple[str, ...], Curve]] = {LOSSES.get(c, c): ((c,), itemgetter(c)) for c in columns}
    return draw_panels(panels, min(3, len(panels)), curves, labels, runs)


def draw_mechanism(
    curves: Mapping[str, pd.DataFrame], labels: Mapping[str, list[str]], runs: list[str]
) -> Figure | None:
    """What the term does: a panel for each of `MECHANISM` that some run has the columns of; as `draw_losses`."""
    panels = {
        title: (columns, curve)
        for title, (columns, curve) in MECHANISM.items()
        if any(set(columns) <= set(frame) for frame in curves.values())
    }
    return draw_panels(panels, 3, curves, labels, runs) if panels else None


def draw_panels(
    panels: Mapping[str, tuple[tuple[str, ...], Curve]],
    across: int,
    curves: Mapping[str, pd.DataFrame],
    labels: Mapping[str, list[str]],
    runs: list[str],
) -> Figure:
    """Panels in rows of ``across``; a run without a panel's columns has no line in it."""
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(4.2 * across + 0.4, 3.0 * down + 0.4), layout="constrained")
    all_axes = figure.subplots(down, across, squeeze=False).ravel()
    named = {one: names(labels[one], runs) for one in curves}
    order = sorted(curves, key=lambda one: (runs.index(named[one][0]), labels[one], one))
    entries: dict[str, Any] = {}
    for axes, (title, (columns, curve)) in zip(all_axes, panels.items(), strict=False):
        for one in order:
            if not set(columns) <= set(curves[one]):
                continue
            frame = thin(pd.DataFrame({"epoch": curves[one]["epoch"], "value": curve(curves[one])}).dropna())
            at = runs.index(named[one][0])
            colour, dashes = PALETTE[at % len(PALETTE)], LINES[at // len(PALETTE) % len(LINES)]
            marker = "o" if len(frame) == 1 else ""  # one point draws no line
            (line,) = axes.plot(
                frame["epoch"], frame["value"], color=colour, linestyle=dashes, marker=marker, linewidth=1.2
            )
            entries.setdefault(" = ".join(named[one]), line)
        axes.set(xlabel="epoch", title=title)
        if title == GRADIENTS:
            axes.set_yscale("log")
            for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                formatter(LogFormatter())  # the default writes powers in TeX, which `STYLE` does not parse
        axes.grid(True, color="0.9")
        axes.margins(x=0.02)
    for axes in all_axes[len(panels) :]:
        axes.remove()
    legend_below(figure, entries)
    return figure


def thin(frame: pd.DataFrame) -> pd.DataFrame:
    """Average neighbouring rows, so that at most `POINTS` are left."""
    return frame.groupby(np.arange(len(frame)) // math.ceil(max(len(frame), 1) / POINTS)).mean()


def names(labels: list[str], runs: list[str]) -> list[str]:
    """Distinct run names of a training's labels, in the order of ``runs``."""
    return sorted({run_name(label) for label in labels}, key=runs.index)


def run_name(label: str) -> str:
    """``mls`` of ``mls:0``."""
    return label.rsplit(":", 1)[0]


def merge(curves: Mapping[str, pd.DataFrame], labels: Mapping[str, list[str]], runs: list[str]) -> str:
    """All curves as one CSV: ``run``, ``seed``, then the columns of all; at most `POINTS` rows of each training.

    Args:
        curves: pretrain id -> its ``curves.csv``.
        labels: pretrain id -> ``run:seed``; equal runs are one training, called ``a = b``.
        runs: all run names in the order of the figures.
    """
    frames = {
        (" = ".join(names(labels[one], runs)), int(labels[one][0].rsplit(":", 1)[1])): thin(frame)
        for one, frame in curves.items()
    }
    merged = pd.concat(dict(sorted(frames.items())), names=["run", "seed"])
    return merged.droplevel(-1).to_csv(float_format="%.6g", lineterminator="\n")
