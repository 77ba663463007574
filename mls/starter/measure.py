"""How long one image takes in pretraining on this machine: a few steps on random pixels, a few images decoded."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from mls.config.experiment import Pretrain
from mls.data.augment import crop, crop_boxes, draw
from mls.data.decode import decode, prove
from mls.methods.method import Pair, build_method
from mls.runtime.device import autocast, set_up
from mls.runtime.errors import MlsError

STEPS = 3
"""Timed, after one that is not."""
DECODED = 8


def seconds_per_image(config: Pretrain, images: list[Path], threads: int) -> float:
    """Seconds of one job per image: two views cut, both encoders, backward.

    Args:
        config: the run with the costliest method. The batch is at most 64, so that this takes seconds.
        images: files of the data set; what can't be decoded is skipped.
        threads: CPU threads of the job.
    """
    device = set_up("auto", threads, 0)
    size, side = min(config.batch_size, 64), config.augment.crop
    method = build_method(config.model_copy(update={"batch_size": size})).to(device).train()
    views = torch.randn(2, size, 3, side, side, device=device)
    rows, flips = torch.arange(size, device=device), torch.zeros(2, size, dtype=torch.bool, device=device)
    order = torch.arange(size, device=device) if config.moco.bn_splits > 1 else None
    pair = Pair(views[0], views[1], rows, rows[:, None].repeat(2, 1, 4), flips, order, 0.0)
    taken: list[float] = []
    for _ in range(1 + STEPS):
        begun = time.perf_counter()
        with autocast(device, config.precision):
            loss = method(pair)["loss"]
        loss.backward()
        method.finish_step(torch.ones((), dtype=torch.bool, device=device))
        loss.item()  # waits for the device
        taken.append(time.perf_counter() - begun)
    step = min(taken[1:]) / size
    return step + _load(config, images) if device.type == "cpu" else step  # beside a GPU, other processes load


def _load(config: Pretrain, images: list[Path]) -> float:
    """Seconds to cut two crops of an image, and to decode it unless it stays in memory."""
    taken: list[float] = []
    for path in images[:: max(1, len(images) // DECODED)][:DECODED]:
        try:
            data = path.read_bytes()
            prove(data, path.name)  # some damaged files would abort the process
        except (MlsError, OSError):
            continue
        begun = time.perf_counter()
        image_CHW = decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), path.name)
        decoded = time.perf_counter()
        size_12 = torch.tensor([[image_CHW.shape[2], image_CHW.shape[1]]]).numpy()
        for view in (0, 1):
            u_1U = draw(0, 0, torch.tensor([0]).numpy(), view)
            crop(image_CHW, crop_boxes(u_1U, size_12, config.augment.scale)[0], config.augment.crop)
        begun += decoded - begun if config.resident == "cpu" else 0.0
        taken.append(time.perf_counter() - begun)
    return min(taken, default=0.0)
