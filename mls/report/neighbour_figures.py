"""The paper's Figures 3 and 4, drawn from one finished pretraining.

- ``fig3.png``, ``fig3.pdf``: cosines of one train image's query view with all entries of Q_g and Q_z,
  before and after training; ``fig3.json``: their mean, standard deviation and so on, to compare.
- ``fig4.png``, ``fig4.pdf``: crops of images that pretraining never saw, and the crops whose keys are
  their nearest entries in Q_g.

``mls.report.neighbours`` says exactly what is computed, and ``mls.report.drawing`` writes the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import StrMethodFormatter

from mls.data.image_store import ImageStore
from mls.methods.method import Method
from mls.pipeline.artifact import Artifact
from mls.pipeline.plan import Job
from mls.report import neighbours
from mls.report.style import PALETTE, panels
from mls.runtime.errors import MlsError


class Space(NamedTuple):
    """How one of the two spaces is drawn."""

    title: str
    colour: str
    dark: str
    """The same hue for thin lines and text."""
    hatch: str
    """Distinguishes the spaces without colours."""


SPACES = {
    "backbone": Space("backbone, g·Q_g", PALETTE[0], "#003f66", ""),
    "mlp": Space("MLP, z·Q_z", PALETTE[1], "#7a5200", "////"),
}
OPACITY = 0.35
"""Of a histogram, so that the one behind it shows."""
LEAST_COUNT = 0.6
"""Where the axis of counts begins: below 1, so that a single entry is visible."""
QUERY, ENTRY = PALETTE[3], PALETTE[7]
"""The paper's red and yellow, in tones that any kind of colour vision distinguishes."""
CAPTION_WIDTH = 28
"""Characters that fit under an image."""
NAMED_CLASSES = 2
"""Class names written out under an image; the rest are counted."""


def finished(job: Job, artifact: Artifact, name: str) -> Method[Any]:
    """Return the state that a pretraining ended with.

    Args:
        job: a pretraining by a method that trains.
        artifact: what it made.
        name: how messages call it.

    Raises:
        DamagedArtifact: its checkpoint cannot be read, or does not fit its params.
        MlsError: its dictionary holds no key.
    """
    after = neighbours.final_state(job.config, artifact)
    if not after.dictionary.known_D.any():
        raise MlsError(
            f"{name} ended with a dictionary without keys: every step was skipped as not finite "
            f"(nonfinite_steps in {job.path / 'metrics.json'}); lower pretrain.optimizer.lr and pretrain again"
        )
    return after


# -------------------------------------------------------------------------------------------- Fig. 3


def scores_figure(job: Job, after: Method[Any], store: ImageStore, seed: int = 0) -> tuple[Figure, dict[str, Any]]:
    """Fig. 3 of a pretraining, and the content of ``fig3.json``; the caller's RNG is left as it was.

    Args:
        job: the pretraining.
        after: the state it ended with; see `finished`.
        store: its training images.
        seed: decides which image of the first batch is the query.
    """
    pair, place = neighbours.first_pair(store, job.config, job.seed), neighbours.sample_place(job.config, seed)
    states = {"before": neighbours.initial_state(job.config, job.seed), "after": after}
    scores = {name: neighbours.score_query(state, pair, place) for name, state in states.items()}
    row, topk = int(pair.row_B[place]), neighbours.topk_of(job.config)
    numbers: dict[str, Any] = {
        "pretrain": job.id,
        "seed": seed,
        "query": {"row": row, "name": store.name(row)},
        "topk": topk,
        "entries": len(scores["after"].known_D),
        "bins": [-1.0, 1.0, len(neighbours.BINS) - 1],  # of the ``counts``
    }
    for name, one in scores.items():
        by_space = {space: neighbours.summary(cosine_D, topk, one.own) for space, cosine_D in one.cosines_D.items()}
        numbers[name] = {"known": int(one.known_D.sum()), **by_space}
    return draw_scores(scores, topk, job.config.epochs), numbers


def draw_scores(scores: Mapping[str, neighbours.QueryScores], topk: int, epochs: int) -> Figure:
    """A panel per state, with the histograms of both spaces, counts on a logarithmic scale.

    Args:
        scores: ``before`` and ``after``.
        topk: k of the cut-off that is marked.
        epochs: of the training, for the title.
    """
    figure, both = panels(2, 2, (4.1, 4.2), (0, 0), sharex=True, sharey=True)
    titles = {"before": "before training", "after": f"after {epochs} epoch{'s' if epochs > 1 else ''}"}
    all_cosines = [cosine_D for one in scores.values() for cosine_D in one.cosines_D.values()]
    cosines = np.concatenate(all_cosines)
    highest = max(np.histogram(cosine_D, neighbours.BINS)[0].max() for cosine_D in all_cosines)
    top = LEAST_COUNT * (highest / LEAST_COUNT) ** 1.25  # the upper fifth is for mean and deviation
    both[0].set(yscale="log", ylim=(LEAST_COUNT, top), xlim=(cosines.min() - 0.06, cosines.max() + 0.06))
    both[0].yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    both[0].set_ylabel("entries")
    for axes, (state, one) in zip(both, scores.items(), strict=True):
        keys = f"{int(one.known_D.sum()):,} of {len(one.known_D):,} entries are keys"
        axes.set_title(f"{titles[state]}\n{keys}", pad=30)
        axes.set_xlabel("cosine with a dictionary entry")
        axes.grid(True, color="0.92")
        for lane, (space, cosine_D) in enumerate(one.cosines_D.items()):
            draw_histogram(axes, neighbours.summary(cosine_D, topk, one.own), SPACES[space], lane)
    handles: list[Artist] = [
        Patch(facecolor=to_rgba(s.colour, OPACITY), edgecolor=s.dark, hatch=s.hatch, label=s.title)
        for s in SPACES.values()
    ]
    handles += [
        Line2D([], [], color="0.25", marker="o", markersize=4, label="mean ± standard deviation"),
        Line2D([], [], color="0.25", linestyle="--", label=f"top-{topk} cut-off"),
        Line2D([], [], color="0.25", linestyle="", marker="v", markersize=6, label="the query's own key"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handlelength=1.6, columnspacing=1.4)
    return figure


def draw_histogram(axes: Axes, numbers: Mapping[str, Any], space: Space, lane: int) -> None:
    """One histogram with its cut-off and own key; mean and deviation above it, the numbers above the panel."""
    across = axes.get_xaxis_transform()
    axes.stairs(
        numbers["counts"], neighbours.BINS, baseline=0.1, fill=True, color=space.colour, alpha=OPACITY, linewidth=0
    )
    axes.stairs(numbers["counts"], neighbours.BINS, baseline=0.1, color=space.dark, linewidth=1.0, hatch=space.hatch)
    style: dict[str, Any] = {"transform": across, "color": space.dark}
    axes.plot([numbers["cut_off"]] * 2, [0, 0.85], linestyle="--", linewidth=1.2, **style)
    axes.errorbar(numbers["mean"], 0.96 - 0.06 * lane, xerr=numbers["std"], fmt="o", markersize=4, capsize=2.5, **style)
    axes.plot(numbers["own_key"], 0.025, "v", markersize=7, markeredgecolor="white", **style)
    text = f"{space.title}: {numbers['mean']:.3f} ± {numbers['std']:.3f}, cut-off {numbers['cut_off']:.3f}"
    place = (0.5, 1.075 - 0.06 * lane)
    axes.text(*place, text, transform=axes.transAxes, color=space.dark, ha="center", va="bottom", fontsize=8)


# -------------------------------------------------------------------------------------------- Fig. 4


def queries_figure(job: Job, after: Method[Any], store: ImageStore, images: int = 6, seed: int = 0) -> Figure:
    """Fig. 4 of a pretraining; arguments as for `scores_figure` and `mls.report.drawing.draw_job`."""
    chosen = neighbours.sample_queries(store, images, seed, job.config.augment.scale)
    return draw_queries(store, neighbours.nearest_entries(after, store, *chosen))


def draw_queries(store: ImageStore, queries: Sequence[neighbours.Query]) -> Figure:
    """One row per query: its image and crop, then its nearest entries' images and crops, nearest first."""
    labelled = bool(store.labels(range(len(store))).any())
    across = 1 + neighbours.NEAREST_ENTRIES
    figure, all_axes = panels(len(queries) * across, across, (1.55, 1.85), (0, 0.3))
    for axes in all_axes:
        axes.axis("off")
    for axes, title in zip(all_axes, ("query", "nearest", "2nd", "3rd", "4th"), strict=False):
        axes.set_title(title)
    for i, query in enumerate(queries):
        first, *others = all_axes[i * across : (i + 1) * across]
        draw_crop_outline(first, store, query.row, query.box, QUERY, listed(query.classes) if labelled else "")
        for axes, one in zip(others, query.neighbours, strict=False):
            shared = f"shared: {listed(one.shared)}" if one.shared else "no class shared"
            draw_crop_outline(axes, store, one.row, one.box, ENTRY, f"{one.cosine:.2f}" + f"\n{shared}" * labelled)
    return figure


def draw_crop_outline(
    axes: Axes, store: ImageStore, row: int, box: tuple[int, int, int, int], colour: str, caption: str
) -> None:
    """One image, a crop's outline on it, a caption under it."""
    axes.axis("on")
    axes.set(xticks=[], yticks=[], anchor="N")
    axes.spines[:].set_visible(False)
    axes.imshow(store.decode(row).permute(1, 2, 0).numpy())
    top, left, height, width = box
    frame = Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=colour, linewidth=1.8)
    frame.set(path_effects=[withStroke(linewidth=3.4, foreground="black")], clip_on=False)
    axes.add_patch(frame)
    axes.set_xlabel("\n".join(fill(line, CAPTION_WIDTH) for line in caption.split("\n")), fontsize=7, labelpad=3)


def listed(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = len(names) - NAMED_CLASSES
    return (", ".join(names[:NAMED_CLASSES]) + (f" +{more}" if more > 0 else "")) or "no class"
