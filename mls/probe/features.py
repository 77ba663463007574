"""Frozen, globally pooled features of a store's images.

    features_ND = extract(backbone, store, store.split("train"), image_size=224, device=device)

Shape legend: N images, D features, B images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.resnet import ResNet
from torchvision.transforms.v2 import functional

from mls.data.augment import MEAN, STD
from mls.data.store import Store
from mls.train.interrupt import InterruptGuard
from mls.train.progress import Bar

BATCH = 64


def extract(
    backbone: ResNet,
    store: Store,
    rows: Sequence[int] | NDArray[np.int64],
    image_size: int,
    device: torch.device,
    *,
    workers: int = 0,
    name: str = "features",
) -> NDArray[np.float32]:
    """Return the pooled features of some images, float32 (N, D), computed in float32.

    The backbone is put in evaluation mode and moved to ``device``; nothing of it is changed.

    Args:
        backbone: a ResNet without its classifier.
        store: holds the images.
        rows: which images.
        image_size: see `prepare`.
        device: where the backbone runs.
        workers: threads that prepare images (0: none beside the caller); no effect on the result.
        name: of the progress bar.

    Raises:
        Interrupted: a signal came; there is nothing to resume, features take minutes at most.
    """
    backbone.eval().to(device)
    mean_C11, std_C11 = (torch.tensor(v, device=device).view(3, 1, 1) for v in (MEAN, STD))
    parts: list[NDArray[np.float32]] = []
    with (
        ThreadPoolExecutor(max(1, workers)) as pool,
        torch.inference_mode(),
        InterruptGuard() as guard,
        Bar(name, len(rows)) as bar,
    ):
        for start in range(0, len(rows), BATCH):
            guard.stop_if_asked(lambda: None)
            chunk = [int(row) for row in rows[start : start + BATCH]]
            prepared = pool.map(lambda row: prepare(store.decode(row), image_size), chunk)
            images_BCHW = torch.stack(list(prepared)).to(device).float() / 255
            parts.append(backbone((images_BCHW - mean_C11) / std_C11).float().cpu().numpy())
            bar.advance(len(chunk), count=len(chunk))
    return np.concatenate(parts)


def prepare(image_CHW: Tensor, side: int) -> Tensor:
    """Resize so that a square of ``side`` pixels is just covered (bilinear, antialiased), then crop its middle.

    uint8 (3, H, W) in, uint8 (3, side, side) out; the aspect ratio is kept.
    """
    image_CHW = functional.resize(image_CHW, [side], antialias=True)
    cropped: Tensor = functional.center_crop(image_CHW, [side, side]).contiguous()
    return cropped
