"""The paper's Figures 3 and 4, drawn from one finished pretraining.

    mls draw mls                          # the run `mls` of params.yaml, into drawn/<id>/
    mls draw mls:1 -e experiments/scenes-3seeds.yaml -o figures --images 4 --seed 2

- ``fig3.png``, ``fig3.pdf``: cosines of one train image's query view and all entries of Q_g and Q_z,
  before and after training; ``fig3.json``: their mean, standard deviation and so on, to compare.
- ``fig4.png``, ``fig4.pdf``: crops of images that pretraining never saw, and the crops whose keys are
  their nearest entries in Q_g.

What exactly is computed: ``mls.report.neighbours``. Files are the same bytes for the same artifact and
arguments (at equal threads). Of photos these pictures are for the eyes of who holds the photos.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import StrMethodFormatter

from mls.config.methods import TRAINED
from mls.data.image_store import ImageStore
from mls.methods.method import Method
from mls.pipeline.artifact import Artifact, open_artifact
from mls.pipeline.plan import Job, Plan
from mls.pipeline.runner import open_inputs
from mls.report.neighbours import (
    BINS,
    NEIGHBOURS,
    Query,
    Scores,
    first_pair,
    initial,
    nearest,
    sample_place,
    sample_queries,
    score,
    summary,
    topk_of,
    trained,
)
from mls.report.style import PALETTE, plain_style, save
from mls.runtime.errors import DamagedArtifact, MlsError
from mls.runtime.locks import say

SPACES = {"backbone": "backbone, g·Q_g", "mlp": "MLP, z·Q_z"}
COLOURS = {"backbone": PALETTE[0], "mlp": PALETTE[1]}
DARK = {"backbone": "#003f66", "mlp": "#7a5200"}
"""The same hues for thin lines and text."""
HATCH = {"backbone": "", "mlp": "////"}
"""LateStep apart without colours too."""
FILL = 0.35
"""Opacity of a histogram: the one behind shows."""
LEAST = 0.6
"""Where the axis of counts begins: below 1, so that a single entry is seen."""
QUERY, ENTRY = PALETTE[3], PALETTE[7]
"""The paper's red and yellow, in tones that any kind of colour vision tells apart."""
LINE = 28
"""Characters that fit under a picture."""
NAMES = 2
"""Class names written out under a picture; of more only the number."""


def draw_neighbours(plan: Plan, job: Job, out: Path, images: int = 6, seed: int = 0) -> list[Path]:
    """Draw both figures of a finished pretraining; the caller's RNG is undisturbed.

    Args:
        plan: that plans the job.
        job: a pretraining by a method that trains.
        out: folder for the files; made if needed.
        images: queries in Fig. 4; fewer where the data set has fewer.
        seed: decides which images are queries, and their crops.

    Returns:
        The files, in order.

    Raises:
        MlsError: the method keeps no dictionary, the dictionary is empty, or an artifact is missing or
            damaged; says what to do.
    """
    name = plan.name(job)
    if images < 1 or seed < 0:
        raise MlsError(f"--images must be at least 1 and --seed at least 0, not {images} and {seed}")
    if job.config.method not in TRAINED:
        can = [plan.labels[one.id][0] for one in plan.stage("pretrain") if one.config.method in TRAINED]
        raise MlsError(
            f"{name} has method {job.config.method!r}, which trains nothing and keeps no dictionary to draw; "
            f"{plan.loaded.path} can draw: {', '.join(can) or 'none of its runs'}"
        )
    try:
        after = finished(job, open_artifact(job.path), name)
    except DamagedArtifact as error:
        make = f"mls pretrain {plan.labels[job.id][0]} -e {plan.loaded.path}"
        raise MlsError(f"{name} can't be drawn: {error}. The command that makes it: {make}") from error
    data = open_inputs(plan, job)["data"]
    store = ImageStore(data.path)
    with plain_style():
        figure, told = scores_figure(job, after, store, seed)
        save(figure, out / "fig3")
        save(queries_figure(job, after, store, images, seed), out / "fig4")
    (out / "fig3.json").write_text(json.dumps(told, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if data.manifest["params"].get("source") != "scenes":
        say(f"{out}/fig4.* show photos of the data set; don't publish them without the photos' licences")
    return [out / file for file in ("fig3.png", "fig3.pdf", "fig3.json", "fig4.png", "fig4.pdf")]


def finished(job: Job, artifact: Artifact, name: str) -> Method[Any]:
    """Return the state that a pretraining ended with.

    Args:
        job: a pretraining by a method that trains.
        artifact: what it made.
        name: what a person calls it.

    Raises:
        DamagedArtifact: its checkpoint can't be read, or is not of these params.
        MlsError: its dictionary holds no key.
    """
    after = trained(job.config, artifact)
    if not after.dictionary.known_D.any():
        raise MlsError(
            f"{name} ended with a dictionary without keys: every step was skipped as not finite "
            f"(nonfinite_steps in {job.path / 'metrics.json'}); lower pretrain.optimizer.lr and pretrain again"
        )
    return after


# -------------------------------------------------------------------------------------------- Fig. 3


def scores_figure(job: Job, after: Method[Any], store: ImageStore, seed: int = 0) -> tuple[Figure, dict[str, object]]:
    """Fig. 3 of a pretraining, and its numbers; the caller's RNG is undisturbed.

    Args:
        job: the pretraining.
        after: the state it ended with; see `finished`.
        store: what it was trained on.
        seed: decides which image of the first batch is the query.
    """
    pair, place = first_pair(store, job.config, job.seed), sample_place(job.config, seed)
    scores = {"before": score(initial(job.config, job.seed), pair, place), "after": score(after, pair, place)}
    row, topk = int(pair.row_B[place]), topk_of(job.config)
    about = {"pretrain": job.id, "seed": seed, "query": {"row": row, "name": store.name(row)}}
    return draw_scores(scores, topk, job.config.epochs), about | numbers(scores, topk)


def numbers(scores: Mapping[str, Scores], topk: int) -> dict[str, object]:
    """What ``fig3.json`` holds of the scores; ``counts`` are those of `BINS`."""
    told: dict[str, object] = {
        "topk": topk,
        "entries": len(scores["after"].known_D),
        "bins": [-1.0, 1.0, len(BINS) - 1],
    }
    for state, one in scores.items():
        told[state] = {
            "known": int(one.known_D.sum()),
            "backbone": summary(one.backbone_D, topk, one.own),
            "mlp": summary(one.mlp_D, topk, one.own),
        }
    return told


def draw_scores(scores: Mapping[str, Scores], topk: int, epochs: int) -> Figure:
    """Two panels, before and after; in each the histograms of both spaces, counts on a logarithmic scale.

    Args:
        scores: ``before`` and ``after``.
        topk: k of the cut-off that is marked.
        epochs: of the training, for the title.
    """
    figure = Figure(figsize=(8.2, 4.2), layout="constrained")
    both = figure.subplots(1, 2, sharex=True, sharey=True)
    titles = {"before": "before training", "after": f"after {epochs} epoch{'s' if epochs > 1 else ''}"}
    cosines = np.concatenate([v for one in scores.values() for v in (one.backbone_D, one.mlp_D)])
    highest = max(np.histogram(v, BINS)[0].max() for one in scores.values() for v in (one.backbone_D, one.mlp_D))
    top = LEAST * (highest / LEAST) ** 1.25  # the upper fifth is for mean and deviation
    both[0].set(yscale="log", ylim=(LEAST, top), xlim=(cosines.min() - 0.06, cosines.max() + 0.06))
    both[0].yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    both[0].set_ylabel("entries")
    for axes, (state, one) in zip(both, scores.items(), strict=True):
        keys = f"{int(one.known_D.sum()):,} of {len(one.known_D):,} entries are keys"
        axes.set_title(f"{titles[state]}\n{keys}", pad=30)
        axes.set_xlabel("cosine with a dictionary entry")
        axes.grid(True, color="0.92")
        for lane, (space, cosine_D) in enumerate({"backbone": one.backbone_D, "mlp": one.mlp_D}.items()):
            draw_histogram(axes, summary(cosine_D, topk, one.own), space, lane)
    handles: list[Artist] = [
        Patch(facecolor=to_rgba(COLOURS[s], FILL), edgecolor=DARK[s], hatch=HATCH[s], label=SPACES[s]) for s in SPACES
    ]
    handles += [
        Line2D([], [], color="0.25", marker="o", markersize=4, label="mean ± standard deviation"),
        Line2D([], [], color="0.25", linestyle="--", label=f"top-{topk} cut-off"),
        Line2D([], [], color="0.25", linestyle="", marker="v", markersize=6, label="the query's own key"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handlelength=1.6, columnspacing=1.4)
    return figure


def draw_histogram(axes: Axes, told: Mapping[str, Any], space: str, lane: int) -> None:
    """One histogram with its cut-off and own key; mean and deviation above it, the numbers above the panel."""
    dark, across = DARK[space], axes.get_xaxis_transform()
    height = 0.96 - 0.06 * lane
    axes.stairs(told["counts"], BINS, baseline=0.1, fill=True, color=COLOURS[space], alpha=FILL, linewidth=0)
    axes.stairs(told["counts"], BINS, baseline=0.1, color=dark, linewidth=1.0, hatch=HATCH[space])
    axes.plot([told["cut_off"]] * 2, [0, 0.85], transform=across, color=dark, linestyle="--", linewidth=1.2)
    axes.errorbar(
        told["mean"], height, xerr=told["std"], transform=across, color=dark, fmt="o", markersize=4, capsize=2.5
    )
    axes.plot(told["own_key"], 0.025, "v", transform=across, color=dark, markersize=7, markeredgecolor="white")
    text = f"{SPACES[space]}: {told['mean']:.3f} ± {told['std']:.3f}, cut-off {told['cut_off']:.3f}"
    place = (0.5, 1.075 - 0.06 * lane)
    axes.text(*place, text, transform=axes.transAxes, color=dark, ha="center", va="bottom", fontsize=8)


# -------------------------------------------------------------------------------------------- Fig. 4


def queries_figure(job: Job, after: Method[Any], store: ImageStore, images: int = 6, seed: int = 0) -> Figure:
    """Fig. 4 of a pretraining; arguments as `scores_figure` and `draw_neighbours` have them."""
    return draw_queries(store, nearest(after, store, *sample_queries(store, images, seed, job.config.augment.scale)))


def draw_queries(store: ImageStore, queries: Sequence[Query]) -> Figure:
    """One row per query: its image and crop, then its nearest entries' images and crops, nearest first."""
    labelled = bool(store.labels(range(len(store))).any())
    shape = (len(queries), 1 + NEIGHBOURS)
    figure = Figure(figsize=(1.55 * shape[1], 1.85 * shape[0] + 0.3), layout="constrained")
    grid = figure.subplots(*shape, squeeze=False)
    for axes in grid.ravel():
        axes.axis("off")
    for axes, title in zip(grid[0], ("query", "nearest", "2nd", "3rd", "4th"), strict=True):
        axes.set_title(title)
    for line, query in zip(grid, queries, strict=True):
        draw_crop(line[0], store, query.row, query.box, QUERY, listed(query.classes) if labelled else "")
        for axes, one in zip(line[1:], query.neighbours, strict=False):
            shared = f"shared: {listed(one.shared)}" if one.shared else "no class shared"
            draw_crop(axes, store, one.row, one.box, ENTRY, f"{one.cosine:.2f}" + f"\n{shared}" * labelled)
    return figure


def draw_crop(
    axes: Axes, store: ImageStore, row: int, box: tuple[int, int, int, int], colour: str, caption: str
) -> None:
    """One image, a crop's outline on it, words under it."""
    axes.axis("on")
    axes.set(xticks=[], yticks=[], anchor="N")
    axes.spines[:].set_visible(False)
    axes.imshow(store.decode(row).permute(1, 2, 0).numpy())
    top, left, height, width = box
    frame = Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=colour, linewidth=1.8)
    frame.set(path_effects=[withStroke(linewidth=3.4, foreground="black")], clip_on=False)
    axes.add_patch(frame)
    axes.set_xlabel("\n".join(fill(line, LINE) for line in caption.split("\n")), fontsize=7, labelpad=3)


def listed(names: Sequence[str]) -> str:
    """Some names, and how many more."""
    more = len(names) - NAMES
    return (", ".join(names[:NAMES]) + (f" +{more}" if more > 0 else "")) or "no class"
