"""How every figure looks, and how it is written.

with plain_style():
    save(figure, Path("figures/curves"))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mls.report.tables import Summary

# Okabe and Ito, https://jfly.uni-koeln.de/color/: distinguishable with any kind of colour vision.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000", "#F0E442")
LIGHT = ("#E69F00", "#56B4E9", "#CC79A7", "#F0E442")
"""The colours on which black text reads better than white."""
LINES = ("-", "--", "-.", ":")
HATCHES = ("", "////", "....", "xxxx")
"""Lines and hatches distinguish runs in print without colours; see `look`."""
MANY = 16
"""With more runs than this, a legend has six columns and figures are wider."""
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "pdf.fonttype": 42,
    "savefig.dpi": 160,
    "text.parse_math": False,
}


@contextmanager
def plain_style() -> Iterator[None]:
    """Use matplotlib's defaults and `STYLE`, and ignore the user's matplotlibrc."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def save(figure: Figure, path: Path) -> list[Path]:
    """Write ``<path>.png`` and ``<path>.pdf`` without dates and program names, so bytes repeat; return both."""
    path.parent.mkdir(parents=True, exist_ok=True)
    png, pdf = Path(f"{path}.png"), Path(f"{path}.pdf")
    figure.savefig(png, metadata={"Software": None})
    figure.savefig(pdf, metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return [png, pdf]


class Look(NamedTuple):
    """How one run is drawn, in every figure."""

    colour: str
    line: str
    hatch: str


def look(index: int) -> Look:
    """How the run with this index in the order of runs is drawn.

    Seven colours and four lines (or hatches) both advance with every run, so neighbours differ in both, and 28 runs
    look different. Yellow is only for pictures: a yellow line is lost on white paper.
    """
    return Look(PALETTE[index % 7], LINES[index % len(LINES)], HATCHES[index % len(HATCHES)])


def panels(
    count: int,
    across: int,
    size: tuple[float, float],
    margin: tuple[float, float],
    least_width: float = 0.0,
    **sharing: Any,
) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels in rows of ``across``; the last row may be shorter.

    Args:
        count: number of panels.
        across: panels in a full row.
        size: width and height of a panel, inches.
        margin: what the figure adds to its panels, inches.
        least_width: of the figure, inches.
        sharing: ``sharex`` and ``sharey`` of matplotlib's ``subplots``.
    """
    down = -(-count // across)
    width, height = size[0] * across + margin[0], size[1] * down + margin[1]
    figure = Figure(figsize=(max(width, least_width), height), layout="constrained")
    all_axes = figure.subplots(down, across, squeeze=False, **sharing).ravel()
    for axes in all_axes[count:]:
        axes.remove()
    return figure, list(all_axes[:count])


def error_bars(
    axes: Axes, places: Sequence[float], summaries: Sequence[Summary], direction: Literal["x", "y"], **style: Any
) -> None:
    """Draw the t-intervals of the summaries that have one, along x or y."""
    known = [(at, s.mean, s.half_width) for at, s in zip(places, summaries, strict=True) if s.half_width is not None]
    if known:
        at, means, widths = zip(*known, strict=True)
        x, y = (means, at) if direction == "x" else (at, means)
        style[f"{direction}err"] = widths
        axes.errorbar(x, y, fmt="none", **style)


def legend_below(figure: Figure, entries: Mapping[str, Any], note: str = "") -> None:
    """One legend under the whole figure, in as many columns as fit; many entries get a smaller font.

    Args:
        figure: with a constrained layout.
        entries: label -> handle.
        note: a line in small print that explains how to read the figure.
    """
    size = 9 if len(entries) <= 8 else 8 if len(entries) <= MANY else 7
    # inches: handle and gaps, then letters that are about half as wide as high
    entry = (4.2 + 0.55 * max(map(len, entries), default=0)) * size / 72
    most = 4 if len(entries) <= MANY else 6
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=max(1, min(most, len(entries), int(figure.get_figwidth() / entry))),
        fontsize=size,
        columnspacing=1.4,
        title=note or None,
        title_fontsize=7.5,
    )
