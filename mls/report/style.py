"""How every figure looks, and how it is written.

with plain_style():
    save(figure, Path("figures/curves"))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# Okabe and Ito, https://jfly.uni-koeln.de/color/: told apart with any kind of colour vision.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000", "#F0E442")
LIGHT = ("#E69F00", "#56B4E9", "#CC79A7", "#F0E442")
"""Of these, the colours on which black text reads better than white."""
LINES = ("-", "--", ":", "-.")
HATCHES = ("", "////", "....", "xxxx")
"""More runs than colours: the next round has another line or hatching."""
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


def legend_below(figure: Figure, entries: Mapping[str, Any]) -> None:
    """One legend for the whole figure, under it."""
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=min(len(entries), 4))
