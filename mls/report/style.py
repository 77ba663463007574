"""How every figure looks, and how it is written.

with plain_style():
    save(figure, Path("figures/curves"))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

# Okabe and Ito, https://jfly.uni-koeln.de/color/: told apart with any kind of colour vision.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000", "#F0E442")
LIGHT = ("#E69F00", "#56B4E9", "#CC79A7", "#F0E442")
"""Of these, the colours on which black text reads better than white."""
LINES = ("-", "--", "-.", ":")
HATCHES = ("", "////", "....", "xxxx")
"""In print without colours runs are told apart by these; see `look`."""
MANY = 16
"""Of more runs than that a legend has six columns, and figures are wider."""
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
    """matplotlib's defaults and `STYLE`, whatever a person's matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def save(figure: Figure, path: Path) -> None:
    """Write ``<path>.png`` and ``<path>.pdf`` without dates and program names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(f"{path}.png", metadata={"Software": None})
    figure.savefig(f"{path}.pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})


class Look(NamedTuple):
    """How one run is drawn, in every figure."""

    colour: str
    line: str
    hatch: str


def look(at: int) -> Look:
    """How the run at a place in the order of runs is drawn.

    Of seven colours and four lines (or hatchings) each advances with every run, so neighbours differ in both, and 28
    runs have a look of their own. Yellow is left to pictures: as a line it is lost on white paper.
    """
    return Look(PALETTE[at % 7], LINES[at % len(LINES)], HATCHES[at % len(HATCHES)])


def legend_below(figure: Figure, entries: Mapping[str, Any], note: str = "") -> None:
    """One legend for the whole figure, under it, in as many columns as fit; of many entries smaller.

    Args:
        figure: with a constrained layout.
        entries: label -> handle.
        note: a line in small print, how to read the figure.
    """
    size = 9 if len(entries) <= 8 else 8 if len(entries) <= MANY else 7
    # inches: handle and gaps, then letters of about half their height
    entry = (4.2 + 0.55 * max(map(len, entries), default=0)) * size / 72
    most = 4 if len(entries) <= MANY else 6
    columns = max(1, min(most, len(entries), int(figure.get_figwidth() / entry)))
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=columns,
        fontsize=size,
        columnspacing=1.4,
        title=note or None,
        title_fontsize=7.5,
    )
