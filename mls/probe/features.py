"""Frozen, globally pooled features of a store's images.

    features_ND = extract(backbone, store, store.split("train"), Features(image_size=224), device=device)

Threads decode the next images while the backbone works on the current ones.

Shape legend: N images, D features or logits, B images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.resnet import ResNet

from mls.config.probes import Features
from mls.data.eval_view import normalise, square
from mls.data.image_store import ImageStore
from mls.models.backbone import LAYERS, channels_last, feature_maps
from mls.runtime.device import autocast
from mls.runtime.progress import Bar
from mls.runtime.signals import InterruptGuard
from mls.train.finetune import read_ahead

BATCH = 64

Rows = Sequence[int] | NDArray[np.int64]


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
            return pool(backbone, images_BCHW, config.layer)

    squares = prepared(store, rows, config.image_size, config.resize, config.fit, workers)
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
    parts: list[NDArray[np.float32]] = []
    with torch.inference_mode(), InterruptGuard() as guard, Bar(name, images) as bar:
        for images_BCHW in squares:
            guard.stop_if_asked(lambda: None)
            parts.append(network(normalise(images_BCHW, device)).float().cpu().numpy())
            bar.advance(len(images_BCHW), count=len(images_BCHW))
    return np.concatenate(parts)


def pool(backbone: ResNet, images_BCHW: Tensor, layer: str) -> Tensor:
    """Return the output of one of the four stages, averaged over all positions, (B, D)."""
    if layer == LAYERS[-1]:
        pooled_BD: Tensor = backbone(images_BCHW)
        return pooled_BD
    return feature_maps(backbone, images_BCHW, layer)[str(LAYERS.index(layer))].mean(dim=(2, 3))


def prepared(
    store: ImageStore, rows: Rows, side: int, resize: int | None, fit: Literal["crop", "squash"], workers: int
) -> Iterator[Tensor]:
    """Yield images as `mls.data.eval_view.square` makes them, uint8 (B, C, H, W), prepared ahead by threads."""

    def load(row: int) -> Tensor:
        return square(store.decode(int(row)), side, resize, fit)

    batches = (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))
    return map(partial(torch.stack, dim=0), read_ahead(batches, load, workers))
