"""How well the pseudo-labels agree with the ground truth while a run trains.

figure = draw_agreement(curves, labels, runs)       # curves: pretrain id -> its curves.csv
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from operator import itemgetter

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mls.report.curves import BANDS, by_run, draw_band, draw_lines, values
from mls.report.style import legend_below

SHOWN = {"agreement": "-", "agreement_base": ":"}
"""Column -> line."""
ACROSS = 4


def draw_agreement(
    curves: Mapping[str, pd.DataFrame], labels: Mapping[str, list[str]], runs: list[str]
) -> Figure | None:
    """A panel per run that logs it: solid the agreement, dotted that of entries drawn by chance; None if no run does.

    Of several seeds the mean is drawn, with a band from the least to the greatest.

    Args:
        curves: pretrain id -> columns ``epoch`` and, where pseudo-labels are judged, ``agreement`` (share of the
            positives that share a class with their image) and ``agreement_base`` (the same share of all entries).
        labels: pretrain id -> ``run:seed``; several where runs are equal.
        runs: all run names in the order of colours.
    """
    logged = {one: frame for one, frame in curves.items() if set(SHOWN) <= set(frame)}
    trained = by_run(logged, labels, runs)
    if not trained:
        return None
    across = min(ACROSS, len(trained))
    down = math.ceil(len(trained) / across)
    figure = Figure(figsize=(max(2.5 * across + 0.5, 4.6), 2.2 * down + 0.6), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    all_axes = grid.ravel()
    banded = False
    for axes, run in zip(all_axes, trained, strict=False):
        for column, line in SHOWN.items():
            frames = [values(frame, itemgetter(column)) for frame in run.frames]
            banded |= len(frames) > 1
            (draw_band if len(frames) > 1 else draw_lines)(axes, frames, run.at, linestyle=line)
        axes.set_title(run.name, fontsize=8 if len(run.name) <= 34 else 6)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.grid(True, color="0.9")
        axes.margins(x=0.02)
    for axes in all_axes[len(trained) :]:
        axes.remove()
    for i, axes in enumerate(all_axes[: len(trained)]):
        if i + across >= len(trained):  # the lowest of its column
            axes.set_xlabel("epoch")
            axes.tick_params(labelbottom=True)
    for axes in grid[:, 0]:
        axes.set_ylabel("share of positives")
    handles = {
        "agreement: shares a class with its image": Line2D([], [], color="0.25", linestyle="-"),
        "chance: the same of all entries": Line2D([], [], color="0.25", linestyle=":"),
    }
    legend_below(figure, handles, BANDS if banded else "")
    return figure
