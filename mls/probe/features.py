"""The features stage: a frozen backbone's pooled features of a data set's labelled images, for every probe of them.

    python -m mls features linear/mls:0

    features_ND = extract(backbone, store, store.split("train"), Features(image_size=224), device=device)

Writes ``features.npy``, ``images.parquet`` and ``classes.json`` (see ``mls.probe.feature_set``), and ``timing.csv``.
Threads decode the next images while the backbone works on the current ones.

Shape legend: N images, D features or logits, B images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.resnet import ResNet

from mls.config.experiment import Backbone
from mls.config.probes import Features
from mls.config.views import Interpolation
from mls.data.eval_view import normalise, square
from mls.data.image_store import LABELLED, ImageStore
from mls.models.backbone import LAYERS, channels_last, feature_maps, load_backbone
from mls.pipeline.artifact import Artifact
from mls.pipeline.runner import Context
from mls.probe import feature_set
from mls.probe.feature_set import check_finite, count_not_finite
from mls.runtime.device import autocast, set_up, workers_of
from mls.runtime.errors import MlsError
from mls.runtime.files import write_csv
from mls.runtime.progress import Bar
from mls.runtime.signals import InterruptGuard
from mls.train.finetune import read_ahead

BATCH = 64
SEED = 1000
"""Nothing here draws random numbers; this fixes the state of every generator all the same."""

Rows = Sequence[int] | NDArray[np.int64]


def run(context: Context) -> None:
    """Make a features artifact.

    Raises:
        MlsError: a split without images, or features that are not finite.
        Interrupted: a signal came; there is nothing to save.
    """
    config: Features = context.job.config
    device = set_up(context.execution.device, context.execution.threads, SEED)
    workers = workers_of(context.execution.workers, context.execution.threads, device)
    store, backbone = ImageStore(context.inputs["data"].path), load_pretrained(context.inputs["pretrain"])
    splits = LABELLED if config.test else ("train", "val")
    rows = {split: store.split(split) for split in splits}
    if empty := [split for split, found in rows.items() if not len(found)]:
        raise MlsError(f"probes need images of {', '.join(splits)}; this dataset has no {' and no '.join(empty)}")
    features: dict[str, feature_set.Features] = {}
    started = time.perf_counter()
    for split, found in rows.items():
        name = f"features {context.label}: {split}"
        features[split] = extract(backbone, store, found, config, device, workers=workers, name=name)
        check_finite(features[split], split)
        with np.errstate(over="ignore"):  # checked next
            features[split] = features[split].astype(config.dtype, copy=False)
        check_range(features[split], split)
    seconds, images = time.perf_counter() - started, sum(map(len, rows.values()))
    feature_set.write(context.out, store, features)
    write_csv([{"images": images, "seconds": seconds, "images_per_s": images / seconds}], context.out / "timing.csv")


def check_range(features_ND: feature_set.Features, split: str) -> None:
    """Reject features too large for the type that they are stored as.

    Raises:
        MlsError: says how many images of which split have any.
    """
    if bad := count_not_finite(features_ND):
        raise MlsError(
            f"dtype: features of {bad} of {len(features_ND)} {split} images are beyond {features_ND.dtype}'s largest "
            f"number, {np.finfo(features_ND.dtype).max:g}; use dtype: float32"
        )


def load_pretrained(pretrain: Artifact) -> ResNet:
    """Load the backbone of a pretraining, on the CPU."""
    layout = Backbone.model_validate(pretrain.read_json("params.json")["resolved"]["backbone"])
    return load_backbone(layout, pretrain.file("backbone.safetensors"))


def extract(
    backbone: ResNet,
    store: ImageStore,
    rows: Rows,
    config: Features,
    device: torch.device,
    *,
    workers: int = 0,
    name: str = "features",
) -> NDArray[np.float32]:
    """Return the pooled features of some images, float32 (N, D).

    The backbone is put in evaluation mode, moved to ``device`` and laid out for it; its values are not changed.

    Args:
        backbone: a ResNet without its classifier.
        store: holds the images.
        rows: which images.
        config: size of the images, stage of the backbone, precision.
        device: where the backbone runs.
        workers: threads that prepare images (0 means one); no effect on the result.
        name: of the progress bar.

    Raises:
        Interrupted: a signal came; there is nothing to resume, extraction starts again.
        MlsError: an image does not decode; names it.
    """
    backbone.eval().to(device)
    channels_last(backbone)

    def features(images_BCHW: Tensor) -> Tensor:
        with autocast(device, config.precision):
            return pool(backbone, images_BCHW, config.layer, config.pool)

    squares = prepared(
        store, rows, config.image_size, config.resize, config.fit, workers, interpolation=config.interpolation
    )
    return outputs_of(features, squares, len(rows), device, name)


def outputs_of(
    network: Callable[[Tensor], Tensor], squares: Iterator[Tensor], images: int, device: torch.device, name: str
) -> NDArray[np.float32]:
    """Run a network in evaluation mode on batches of images; return its outputs, float32 (N, D).

    Args:
        network: takes normalised images (B, C, H, W) on ``device``.
        squares: batches that `prepared` yields.
        images: their number, for the progress bar.
        device: where the network runs.
        name: of the progress bar.

    Raises:
        Interrupted: a signal came; only this pass has to be run again.
    """
    outputs_ND, done = np.empty((images, 0), dtype=np.float32), 0
    with torch.inference_mode(), InterruptGuard() as guard, Bar(name, images) as bar:
        for images_BCHW in squares:
            guard.stop_if_asked(lambda: None)
            output_BD = network(normalise(images_BCHW, device)).float().cpu().numpy()
            if not done:  # only now their width is known
                outputs_ND = np.empty((images, output_BD.shape[1]), dtype=np.float32)
            outputs_ND[done : done + len(output_BD)] = output_BD
            done += len(output_BD)
            bar.advance(len(output_BD), count=len(output_BD))
    return outputs_ND


def pool(backbone: ResNet, images_BCHW: Tensor, layer: str, places: Literal[1, 2] = 1) -> Tensor:
    """Return the output of one of the four stages, averaged over all positions, (B, D).

    With two ``places``, it is averaged over the four squares that lack one row and one column at the border, (B, 4 D):
    a channel's upper left, upper right, lower left and lower right.

    Raises:
        MlsError: two places, and an output of a single position.
    """
    if layer == LAYERS[-1] and places == 1:
        pooled_BD: Tensor = backbone(images_BCHW)
        return pooled_BD
    map_BDHW = feature_maps(backbone, images_BCHW, layer)[str(LAYERS.index(layer))]
    if places == 1:
        return map_BDHW.mean(dim=(2, 3))
    height, width = map_BDHW.shape[2:]
    if min(height, width) < 2:
        raise MlsError(f"pool: 2 needs at least 2 x 2 positions; {layer} has {height} x {width}: raise image_size")
    return F.avg_pool2d(map_BDHW, (height - 1, width - 1), stride=1).flatten(1)


def prepared(
    store: ImageStore,
    rows: Rows,
    side: int,
    resize: int | None,
    fit: Literal["crop", "squash"],
    workers: int,
    interpolation: Interpolation = "bilinear",
) -> Iterator[Tensor]:
    """Yield images as `mls.data.eval_view.square` makes them, uint8 (B, C, H, W), prepared ahead by threads."""

    def load(row: int) -> Tensor:
        return square(store.decode(int(row)), side, resize, fit, interpolation)

    batches = (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))
    return map(partial(torch.stack, dim=0), read_ahead(batches, load, workers))
