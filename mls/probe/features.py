"""Frozen, globally pooled features of a store's images.

    features_ND = extract(backbone, store, store.split("train"), Features(image_size=224), device=device)

The next images are decoded while the backbone is at work on the last.

Shape legend: N images, D features, B images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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

BATCH = 64
AHEAD = 2
"""Batches that are prepared ahead."""


def extract(
    backbone: ResNet,
    store: ImageStore,
    rows: Sequence[int] | NDArray[np.int64],
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
        workers: threads that prepare images (0: one); no effect on the result.
        name: of the progress bar.

    Raises:
        Interrupted: a signal came; there is nothing to resume, extraction starts again.
        MlsError: names the image that does not decode.
    """
    backbone.eval().to(device)
    channels_last(backbone)
    parts: list[NDArray[np.float32]] = []
    batches = prepared(store, rows, config.image_size, config.resize, config.fit, workers)
    with torch.inference_mode(), InterruptGuard() as guard, Bar(name, len(rows)) as bar:
        for images_BCHW in batches:
            guard.stop_if_asked(lambda: None)
            with autocast(device, config.precision):
                pooled_BD = pool(backbone, normalise(images_BCHW, device), config.layer)
            parts.append(pooled_BD.float().cpu().numpy())
            bar.advance(len(images_BCHW), count=len(images_BCHW))
    return np.concatenate(parts)


def pool(backbone: ResNet, images_BCHW: Tensor, layer: str) -> Tensor:
    """Return the output of one of the four stages, averaged over all places (B, D)."""
    if layer == LAYERS[-1]:
        pooled_BD: Tensor = backbone(images_BCHW)
        return pooled_BD
    return feature_maps(backbone, images_BCHW, layer)[str(LAYERS.index(layer))].mean(dim=(2, 3))


def prepared(
    store: ImageStore,
    rows: Sequence[int] | NDArray[np.int64],
    side: int,
    resize: int | None,
    fit: Literal["crop", "squash"],
    workers: int,
) -> Iterator[Tensor]:
    """Yield images as `square` makes them, uint8 (B, C, H, W), prepared ahead by threads."""

    def load(row: int) -> Tensor:
        return square(store.decode(row), side, resize, fit)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        ahead: deque[list[Future[Tensor]]] = deque()
        try:
            for start in range(0, len(rows), BATCH):
                ahead.append([pool.submit(load, int(row)) for row in rows[start : start + BATCH]])
                if len(ahead) > AHEAD:
                    yield torch.stack([future.result() for future in ahead.popleft()])
            while ahead:
                yield torch.stack([future.result() for future in ahead.popleft()])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
