"""What the paper's Figures 3 and 4 show of one pretraining: cosines with the dictionary, and the nearest entries.

    after = final_state(job.config, open_artifact(job.path))
    pair = first_pair(store, job.config, job.seed)
    before = score_query(initial_state(job.config, job.seed), pair, place=3)       # Fig. 3, left
    queries = nearest_entries(after, store, rows, boxes)                           # Fig. 4

Fig. 3: the views of the run's own first batch go through a state just as in the training loop (training mode: batch
statistics, shuffled keys; float32), their keys are enqueued, and one query of the batch is compared with all D
entries. "Before" is thus the random dictionary with one batch of real keys, "after" the run's last dictionary with new
keys of the same images; both contain the query's own key. The paper's plots agree for Q_g (before training, 16 entries
stand apart). Its z.Q_z before training shows no such entries, so the paper plotted it before enqueueing; here both are
plotted at the same moment.

Fig. 4: the run itself labels (Eq. 7) in training mode. A single image has no batch statistics, so here the backbone is
in evaluation mode, and the crop's colours are not augmented.

Shapes: B images of a batch, D dictionary entries, G backbone and d embedding dimensions, C channels,
H x W pixels, N queries.
"""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mls.config.experiment import Pretrain
from mls.config.methods import Mls
from mls.data.augment import MEAN, STD, crop, crop_boxes, draw
from mls.data.image_store import ImageStore
from mls.data.loader import TwoViews
from mls.methods.method import Method, Pair, build_method
from mls.pipeline.artifact import Artifact, how_to_mend
from mls.runtime import streams
from mls.runtime.checkpoint import NAME
from mls.runtime.errors import DamagedArtifact
from mls.train.pairs import pair_of

BINS = np.linspace(-1, 1, 101)
"""Edges of the histograms: cosines from -1 to 1 in steps of 0.02."""
NEAREST_ENTRIES = 4
"""Nearest entries of each query [paper, Fig. 4]."""


@dataclass(frozen=True)
class QueryScores:
    """One query against a whole dictionary."""

    cosines_D: dict[str, NDArray[np.float64]]
    """``backbone``: g.Q_g, ``mlp``: z.Q_z."""
    known_D: NDArray[np.bool_]
    """Which entries are keys; the others are random directions."""
    own: int
    """The entry that is the query's own key."""


@dataclass(frozen=True)
class Neighbour:
    """An entry of the dictionary, and the crop that its key came from."""

    entry: int
    row: int
    box: tuple[int, int, int, int]
    """Top, left, height, width of the key's crop, in pixels of the stored image."""
    cosine: float
    shared: list[str]
    """Classes that both its image and the query's have."""


@dataclass(frozen=True)
class Query:
    """A crop of an image, and its nearest known entries in Q_g, nearest first."""

    row: int
    box: tuple[int, int, int, int]
    classes: list[str]
    neighbours: list[Neighbour]


def topk_of(config: Pretrain) -> int:
    """k of a run, at most D; MoCo has no k and gets the paper's."""
    return min((config.mls if config.method == "mls" else Mls()).topk, config.moco.queue_size)


# ------------------------------------------------------------------------------------------- states


def initial_state(config: Pretrain, seed: int) -> Method[Any]:
    """Return the state that a run begins with, a function of its params and seed; the caller's RNG is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # as mls.runtime.device.set_up does
        return build_method(config)


def final_state(config: Pretrain, artifact: Artifact) -> Method[Any]:
    """Return the state that a run ended with, on the CPU.

    Raises:
        DamagedArtifact: its checkpoint cannot be read, or does not fit these params.
    """
    file = artifact.file(NAME)
    method = initial_state(config, 0)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        method.load_state_dict(state["method"])
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise DamagedArtifact(f"{file} can't be read ({reason}). {how_to_mend(artifact.path)}") from error
    return method


# -------------------------------------------------------------------------------------------- Fig. 3


def first_pair(store: ImageStore, config: Pretrain, seed: int) -> Pair:
    """Return the views of the run's first step, as the training loop makes them.

    Raises:
        MlsError: names the image that does not decode.
    """
    # only one batch is read, so loading all images onto the device would not pay
    views = TwoViews(store, config.model_copy(update={"resident": "no"}), seed)
    return pair_of(views[0], views, config, 0, torch.device("cpu"))


def sample_place(config: Pretrain, seed: int) -> int:
    """Return the place in the first batch of the query: an image whose own key stays in the dictionary."""
    stay = min(config.batch_size, config.moco.queue_size)  # from a batch of more than D keys only the last D stay
    return config.batch_size - stay + int(streams.queries(seed).integers(stay))


@torch.no_grad()
def score_query(method: Method[Any], pair: Pair, place: int) -> QueryScores:
    """Return the cosines of one query with all D entries after enqueueing its batch's keys; ``method`` is not changed.

    Args:
        method: the state, on the CPU, whatever device trained it.
        pair: a whole batch.
        place: of the query in the batch; see `sample_place`.
    """
    method = copy.deepcopy(method).train()  # embedding and enqueueing change running statistics and dictionary
    embedded = method.embed(pair)
    dictionary, keys = method.dictionary, embedded.keys
    dictionary.enqueue(keys, torch.tensor(True))
    g_G = F.normalize(embedded.g_query_BG[place], dim=0)
    cosines_D = {"backbone": dictionary.g_DG @ g_G, "mlp": dictionary.z_Dd @ embedded.z_query_Bd[place]}
    return QueryScores(
        {space: cosine_D.double().clamp(-1, 1).numpy() for space, cosine_D in cosines_D.items()},
        dictionary.known_D.numpy(),
        own=(int(dictionary.pointer) - (len(keys.row_N) - place)) % len(dictionary.row_D),
    )


def summary(cosine_D: NDArray[np.float64], topk: int, own: int) -> dict[str, Any]:
    """Return the numbers of one histogram, to six decimals: those readable from the paper's plots, and the counts.

    Args:
        cosine_D: of one query with all entries.
        topk: k; ``cut_off`` is the k-th greatest cosine.
        own: entry of the query's own key.
    """
    values = {
        "mean": cosine_D.mean(),
        "std": cosine_D.std(),
        **{f"percentile_{p}": np.percentile(cosine_D, p) for p in (5, 50, 95)},
        "cut_off": np.sort(cosine_D)[-topk],
        "own_key": cosine_D[own],
    }
    above = {f"above_{limit}": int((cosine_D > limit).sum()) for limit in (0.4, 0.5)}
    counts = np.histogram(cosine_D, BINS)[0].tolist()
    return {name: round(float(value), 6) for name, value in values.items()} | above | {"counts": counts}


# -------------------------------------------------------------------------------------------- Fig. 4


def sample_queries(store: ImageStore, count: int, seed: int, scale: list[float]) -> tuple[NDArray[np.int64], Any]:
    """Return rows (N,) and crops (N, 4: top, left, height, width) of query images.

    They are val images, which pretraining never sees, or train images if there are no val images.

    Args:
        store: holds the images.
        count: how many are wanted; fewer if the store has fewer.
        seed: decides the choice and the crops.
        scale: least and greatest share of the image's area in a crop.
    """
    rows = val if len(val := store.split("val")) else store.split("train")
    chosen_N = streams.queries(seed).choice(rows, min(count, len(rows)), replace=False)
    sizes_N2 = np.array([store.size(int(row)) for row in chosen_N], dtype=np.int64)
    return chosen_N, crop_boxes(draw(seed, 0, chosen_N, 0), sizes_N2, scale)


@torch.no_grad()
def nearest_entries(
    method: Method[Any], store: ImageStore, rows_N: NDArray[np.int64], boxes_N4: NDArray[np.int64]
) -> list[Query]:
    """Find the `NEAREST_ENTRIES` nearest known entries of each crop in Q_g (Eq. 7), or all if fewer are known.

    Args:
        method: its online backbone encodes, in evaluation mode; it is not changed.
        store: holds the queries' images and those that the dictionary's rows refer to.
        rows_N: the queries' images.
        boxes_N4: their crops: top, left, height, width.

    Raises:
        MlsError: names the image that does not decode.
    """
    dictionary = method.dictionary
    known = dictionary.known_D.nonzero()[:, 0]
    g_NG = encode_crops(method, store, rows_N, boxes_N4)
    cosine_NK = (g_NG @ dictionary.g_DG[known].T).clamp(-1, 1)
    order_NK = cosine_NK.argsort(dim=1, descending=True, stable=True)[:, :NEAREST_ENTRIES]
    queries = []
    for i, (row, box) in enumerate(zip(rows_N.tolist(), boxes_N4.tolist(), strict=True)):
        found = []
        for at in order_NK[i].tolist():
            entry = int(known[at])
            source, place = int(dictionary.row_D[entry]), tuple(dictionary.box_D4[entry].tolist())
            shared = classes_of(store, row, source)
            found.append(Neighbour(entry, source, place, float(cosine_NK[i, at]), shared))
        queries.append(Query(row, tuple(box), classes_of(store, row), found))
    return queries


def encode_crops(
    method: Method[Any], store: ImageStore, rows_N: NDArray[np.int64], boxes_N4: NDArray[np.int64]
) -> Tensor:
    """Return the L2-normalised features (N, G) of crops by the online backbone in evaluation mode, float32."""
    mean_C11, std_C11 = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    backbone, augment = copy.deepcopy(method.backbone).eval(), method.config.augment
    parts = []
    for row, box_4 in zip(rows_N, boxes_N4, strict=True):
        image_CHW = crop(store.decode(int(row)), box_4, augment.crop, augment.interpolation).float() / 255
        parts.append(backbone(((image_CHW - mean_C11) / std_C11)[None]))
    return F.normalize(torch.cat(parts), dim=1)


def classes_of(store: ImageStore, *rows: int) -> list[str]:
    """Names of the classes that all of these images have."""
    return [store.classes[c] for c in np.flatnonzero(store.labels(rows).all(axis=0))]
