"""The curves of an experiment's pretrainings: as figures, and as one file of numbers.

figure = draw_losses(curves, labels, runs)         # curves: pretrain id -> its curves.csv
figure = draw_mechanism(curves, labels, runs)      # what the multi-label term does to the embeddings
figure = draw_agreement(curves, labels, runs, positives)  # how well the pseudo-labels agree with the ground truth
text = merge(curves, labels, runs)

Three arguments recur:
    curves: pretrain id -> DataFrame of its ``curves.csv``, with a column ``epoch``.
    labels: pretrain id -> ``run:seed``; several if runs are equal (shown as ``a = b``).
    runs: all run names in the order of colours.
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
from mls.report.style import MANY, legend_below, look, panels

LOSSES = {name: title for entry in METHODS.values() for name, title in entry.losses.items()}
"""Column of ``curves.csv`` -> the title of its panel, in the panels' order."""
POINTS = 400
"""Maximum number of points of a curve; more would only make the file large."""
LABEL = 24
"""Letters of a legend's entry that names several runs."""
MANY_LINES = 8
"""With more runs than this, each has one line for all its seeds."""
BANDS = "line: mean over seeds; band: from their least to their greatest"
GRADIENTS = "gradient on z: lambda multi-label / InfoNCE"

Curves = Mapping[str, pd.DataFrame]
Labels = Mapping[str, list[str]]
Panel = tuple[tuple[str, ...], Callable[[pd.DataFrame], "pd.Series[float]"]]
"""The columns that a panel needs, and the curve it draws from them."""

MECHANISM: dict[str, Panel] = {
    "length of the mean of Q_z": (("queue_mean",), itemgetter("queue_mean")),
    # |z - k|^2 = 2 - 2 cos
    "cosine of z and its key": (("alignment",), lambda f: 1 - f["alignment"] / 2),
    GRADIENTS: (
        ("weight", "grad_ml", "grad_nce"),
        lambda f: (f["weight"] * f["grad_ml"] / f["grad_nce"]).where(f["weight"] > 0),
    ),
    "cosine of the two gradients": (("grad_cosine",), itemgetter("grad_cosine")),
    "agreement above chance, each run's own k": (
        ("agreement", "agreement_base"),
        lambda f: f["agreement"] - f["agreement_base"],
    ),
    "online kNN on val": (("knn",), itemgetter("knn")),
}
"""Title -> panel."""
AGREEMENT: dict[str, tuple[str, Any]] = {
    "agreement": ("agreement: shares a class with its image", "-"),
    "agreement_base": ("chance: the same for all entries", ":"),
}
"""Column -> its entry in the legend, and its line."""


class RunCurves(NamedTuple):
    """A run that trained: its name in legends, its place in the order of runs, and the curves of each seed."""

    name: str
    place: int
    frames: list[pd.DataFrame]


def draw_losses(curves: Curves, labels: Labels, runs: list[str]) -> Figure:
    """One panel per loss and one line per pretraining, or per run if there are many; each run has its colour."""
    columns = [c for c in LOSSES if any(c in frame and frame[c].notna().any() for frame in curves.values())] or ["loss"]
    losses: dict[str, Panel] = {LOSSES.get(c, c): ((c,), itemgetter(c)) for c in columns}
    return draw_panels(losses, min(3, len(losses)), by_run(curves, labels, runs))


def draw_mechanism(curves: Curves, labels: Labels, runs: list[str]) -> Figure | None:
    """A panel for each of `MECHANISM` whose columns some run has; None if there is none."""
    logged = [set(frame) for frame in curves.values()]
    shown = {title: panel for title, panel in MECHANISM.items() if any(one.issuperset(panel[0]) for one in logged)}
    return draw_panels(shown, 3, by_run(curves, labels, runs)) if shown else None


def draw_panels(shown: Mapping[str, Panel], across: int, trained: list[RunCurves]) -> Figure:
    """Panels in rows of ``across``; a run without a panel's columns has no line in it."""
    # the width of a single panel would make a tower of a long legend
    least, legend = (8.8, 1.0) if len(trained) > MANY else (0.0, 0.4)
    figure, all_axes = panels(len(shown), across, (4.2, 3.0), (0.4, legend), least)
    entries: dict[str, Any] = {}
    banded = False
    for axes, (title, (columns, curve)) in zip(all_axes, shown.items(), strict=True):
        for run in trained:
            frames = [values(frame, curve) for frame in run.frames if set(columns) <= set(frame)]
            if not frames:
                continue
            band = len(frames) > 1 and len(trained) > MANY_LINES
            banded |= band
            entries.setdefault(run.name, (draw_band if band else draw_lines)(axes, frames, run.place))
        axes.set(xlabel="epoch", title=title)
        if title == GRADIENTS:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(PlainLogFormatter())
            axes.yaxis.set_minor_formatter(PlainLogFormatter())
        epoch_axis(axes, 6)
    legend_below(figure, entries, BANDS if banded else "")
    return figure


def draw_agreement(curves: Curves, labels: Labels, runs: list[str], positives: Mapping[str, int]) -> Figure | None:
    """A panel per run that logs it: solid the agreement, dotted that of random entries; None if no run logs it.

    Several seeds are drawn as their mean, with a band from the least to the greatest. ``agreement`` is the share of
    the positives that share a class with their image, ``agreement_base`` the same share of all entries. Fewer
    positives are nearer and agree more often, so each title has their number, from ``positives``, by pretrain id.
    """
    k_of = {short(names(labels[one], runs)): positives[one] for one in curves}
    trained = by_run({one: frame for one, frame in curves.items() if set(AGREEMENT) <= set(frame)}, labels, runs)
    if not trained:
        return None
    across = min(4, len(trained))
    figure, all_axes = panels(len(trained), across, (2.5, 2.2), (0.5, 0.6), 4.6, sharex=True, sharey=True)
    for i, (axes, run) in enumerate(zip(all_axes, trained, strict=True)):
        for column, (_, line) in AGREEMENT.items():
            frames = [values(frame, itemgetter(column)) for frame in run.frames]
            (draw_band if len(frames) > 1 else draw_lines)(axes, frames, run.place, linestyle=line)
        title = f"{run.name}, k = {k_of[run.name]}"
        axes.set_title(title, fontsize=8 if len(title) <= 34 else 6)
        epoch_axis(axes, 4)
        if i + across >= len(trained):  # the lowest of its column
            axes.set_xlabel("epoch")
            axes.tick_params(labelbottom=True)
        if i % across == 0:
            axes.set_ylabel("share of positives")
    handles = {title: Line2D([], [], color="0.25", linestyle=line) for title, line in AGREEMENT.values()}
    legend_below(figure, handles, BANDS if any(len(run.frames) > 1 for run in trained) else "")
    return figure


class PlainLogFormatter(LogFormatter):
    """Numbers such as 0.3: matplotlib's own are powers in TeX, which `STYLE` does not parse, or 3e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """The number, or nothing if the axis would be crowded."""
        return f"{x:g}" if super().__call__(x, pos) else ""


def epoch_axis(axes: Axes, ticks: int) -> None:
    """At most that many ticks at whole epochs, a grid, and little room beside the curves."""
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    axes.grid(True, color="0.9")
    axes.margins(x=0.02)


def by_run(curves: Curves, labels: Labels, runs: list[str]) -> list[RunCurves]:
    """The trainings of each run, both in order."""
    found: dict[str, RunCurves] = {}
    named = {one: names(labels[one], runs) for one in curves}
    for one in sorted(curves, key=lambda one: (runs.index(named[one][0]), labels[one], one)):
        run = RunCurves(short(named[one]), runs.index(named[one][0]), [])
        found.setdefault(run.name, run).frames.append(curves[one])
    return list(found.values())


def short(equal: list[str]) -> str:
    """Equal runs in a legend: ``mls = k[topk=20]``, as many as fit, then how many more; runs before sweep points."""
    text, *others = sorted(equal, key=lambda name: "[" in name)
    while others and len(text) + len(others[0]) < LABEL:
        text += f" = {others.pop(0)}"
    return text + (f" (+{len(others)})" if others else "")


def values(frame: pd.DataFrame, curve: Callable[[pd.DataFrame], pd.Series[float]]) -> pd.DataFrame:
    """Columns ``epoch`` and ``value`` of one training, without gaps."""
    return pd.DataFrame({"epoch": frame["epoch"], "value": curve(frame)}).dropna()


def draw_lines(axes: Axes, frames: list[pd.DataFrame], place: int, **other: Any) -> Line2D:
    """A line per training of the run at this place; return the first. ``other``: for matplotlib's ``plot``."""
    own = look(place)
    style: dict[str, Any] = {"color": own.colour, "linestyle": own.line, "linewidth": 1.2} | other
    lines = []
    for frame in map(thin, frames):
        marker = "o" if len(frame) == 1 else ""  # one point draws no line
        lines += axes.plot(frame["epoch"], frame["value"], marker=marker, **style)
    return lines[0]


def draw_band(axes: Axes, frames: list[pd.DataFrame], place: int, **other: Any) -> Line2D:
    """The mean over the seeds of the run at this place, and a band from the least to the greatest.

    Only epochs that all seeds have: the mean of the others would jump.
    """
    by_epoch = pd.concat(frames).groupby("epoch")["value"].agg(["mean", "min", "max", "count"])
    kept = thin(by_epoch[by_epoch["count"] == len(frames)].reset_index())
    axes.fill_between(kept["epoch"], kept["min"], kept["max"], color=look(place).colour, alpha=0.18, linewidth=0)
    return draw_lines(axes, [kept.rename(columns={"mean": "value"})], place, **other)


def thin(frame: pd.DataFrame) -> pd.DataFrame:
    """Average neighbouring rows, so that at most `POINTS` are left."""
    return frame.groupby(np.arange(len(frame)) // math.ceil(max(len(frame), 1) / POINTS)).mean()


def names(labels: list[str], runs: list[str]) -> list[str]:
    """Distinct run names of a training's labels, in the order of ``runs``."""
    return sorted({run_name(label) for label in labels}, key=runs.index)


def run_name(label: str) -> str:
    """``mls`` of ``mls:0``."""
    return label.rsplit(":", 1)[0]


def merge(curves: Curves, labels: Labels, runs: list[str]) -> str:
    """All curves as one CSV: ``run``, ``seed``, then the columns of all; at most `POINTS` rows of each training."""
    frames = {
        (" = ".join(names(labels[one], runs)), int(labels[one][0].rsplit(":", 1)[1])): thin(frame)
        for one, frame in curves.items()
    }
    merged = pd.concat(dict(sorted(frames.items())), names=["run", "seed"])
    return merged.droplevel(-1).to_csv(float_format="%.6g", lineterminator="\n")
