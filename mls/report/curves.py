"""The curves of an experiment's pretrainings: as figures, and as one file of numbers.

figure = draw_losses(curves, labels, runs)         # curves: pretrain id -> its curves.csv
figure = draw_mechanism(curves, labels, runs)      # what the multi-label term does to the embeddings
text = merge(curves, labels, runs)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter, MaxNLocator

from mls.config.methods import METHODS
from mls.report.style import MANY, legend_below, look

LOSSES = {name: title for entry in METHODS.values() for name, title in entry.losses.items()}
"""Column of ``curves.csv`` -> the title of its panel, in the panels' order."""
POINTS = 400
"""A curve has at most so many points; more would only make the file large."""

LABEL = 24
"""Letters of a legend's entry, if it names several runs."""
MANY_LINES = 8
"""Of more runs than that each has one line, whatever its seeds."""
BANDS = "line: mean over seeds; band: from their least to their greatest"

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


class Trained(NamedTuple):
    """A run that trained: its name, its place in the order of runs, and ``curves.csv`` of each seed."""

    name: str
    at: int
    frames: list[pd.DataFrame]


def draw_losses(curves: Mapping[str, pd.DataFrame], labels: Mapping[str, list[str]], runs: list[str]) -> Figure:
    """One panel per loss, one line per pretraining, or per run where there are many; a run has a colour.

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
    trained = by_run(curves, labels, runs)
    down = math.ceil(len(panels) / across)
    # a single panel's width would make a tower of a long legend
    least, legend = (8.8, 1.0) if len(trained) > MANY else (0.0, 0.4)
    figure = Figure(figsize=(max(4.2 * across + 0.4, least), 3.0 * down + legend), layout="constrained")
    all_axes = figure.subplots(down, across, squeeze=False).ravel()
    entries: dict[str, Any] = {}
    banded = False
    for axes, (title, (columns, curve)) in zip(all_axes, panels.items(), strict=False):
        for run in trained:
            frames = [values(frame, curve) for frame in run.frames if set(columns) <= set(frame)]
            if len(frames) > 1 and len(trained) > MANY_LINES:
                line, banded = draw_band(axes, frames, run.at), True
            else:
                line = draw_lines(axes, frames, run.at)
            if line is not None:
                entries.setdefault(run.name, line)
        axes.set(xlabel="epoch", title=title)
        if title == GRADIENTS:
            axes.set_yscale("log")
            for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                formatter(PlainLogFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(True, color="0.9")
        axes.margins(x=0.02)
    for axes in all_axes[len(panels) :]:
        axes.remove()
    legend_below(figure, entries, BANDS if banded else "")
    return figure


class PlainLogFormatter(LogFormatter):
    """Numbers as 0.3: matplotlib's own are powers in TeX, which `STYLE` does not parse, or 3e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """The number, or nothing where the axis would be crowded."""
        return f"{x:g}" if super().__call__(x, pos) else ""


def by_run(curves: Mapping[str, pd.DataFrame], labels: Mapping[str, list[str]], runs: list[str]) -> list[Trained]:
    """The trainings of each run, both in order; arguments as `draw_losses` has them."""
    found: dict[str, Trained] = {}
    named = {one: names(labels[one], runs) for one in curves}
    for one in sorted(curves, key=lambda one: (runs.index(named[one][0]), labels[one], one)):
        run = Trained(short(named[one]), runs.index(named[one][0]), [])
        found.setdefault(run.name, run).frames.append(curves[one])
    return list(found.values())


def short(equal: list[str]) -> str:
    """Equal runs in a legend: ``mls = k[topk=20]``, as many as fit, then how many more; runs before sweep points."""
    first, *others = sorted(equal, key=lambda name: "[" in name)
    text = first
    while others and len(text) + len(others[0]) < LABEL:
        text += f" = {others.pop(0)}"
    return text + (f" (+{len(others)})" if others else "")


def values(frame: pd.DataFrame, curve: Curve) -> pd.DataFrame:
    """Columns ``epoch`` and ``value`` of one training, without gaps."""
    return pd.DataFrame({"epoch": frame["epoch"], "value": curve(frame)}).dropna()


def draw_lines(axes: Axes, frames: list[pd.DataFrame], at: int, **other: Any) -> Line2D | None:
    """A line per training of the run at a place; return the first. ``other``: of matplotlib's ``plot``."""
    own = look(at)
    style: dict[str, Any] = {"color": own.colour, "linestyle": own.line, "linewidth": 1.2} | other
    lines = []
    for frame in map(thin, frames):
        marker = "o" if len(frame) == 1 else ""  # one point draws no line
        lines += axes.plot(frame["epoch"], frame["value"], marker=marker, **style)
    return lines[0] if lines else None


def draw_band(axes: Axes, frames: list[pd.DataFrame], at: int, **other: Any) -> Line2D | None:
    """The mean over the seeds of the run at a place, and a band from their least to their greatest.

    Only epochs that all of them have: a mean of others would jump.
    """
    by_epoch = pd.concat(frames).groupby("epoch")["value"].agg(["mean", "min", "max", "count"])
    kept = thin(by_epoch[by_epoch["count"] == len(frames)].reset_index())
    axes.fill_between(kept["epoch"], kept["min"], kept["max"], color=look(at).colour, alpha=0.18, linewidth=0)
    return draw_lines(axes, [kept.rename(columns={"mean": "value"})], at, **other)


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
