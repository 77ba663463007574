"""Fine-tune a detector on a store's train images; stop at any step, go on bit for bit.

    samples = Samples(store, "train")
    history = train(detector, samples, task, seed=1000, device=device, execution=execution, work=work, log=print)

SGD with linear warm-up and step decay. Which image comes when, and whether it is flipped, follows from
``(seed, epoch)`` alone; torch's generator (the detector's sampling of regions) is part of the checkpoint.
On a CPU with equal threads a resumed run therefore repeats an uninterrupted one exactly.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torchvision.models.detection import MaskRCNN

from mls.data.store import Store
from mls.errors import DeterministicError, MlsError
from mls.experiment.params import Execution
from mls.experiment.tasks import InstanceTransfer
from mls.train.checkpoint import load_resumable, rng_state, save_resumable, set_rng_state
from mls.train.interrupt import InterruptGuard
from mls.train.progress import Bar
from mls.train.runtime import workers_of

CURVE_EVERY = 20
"""Steps between the rows of ``curves.csv`` and ``timing.csv``."""
WARMUP_FACTOR = 0.001
"""Share of the learning rate at the first step of the warm-up (Detectron2's default)."""
PREFETCH = 2
"""Batches that are prepared ahead."""

Sample = tuple[Tensor, dict[str, Tensor]]


class Samples:
    """Images of a split with their instances, as torchvision's detectors take them.

    As in Detectron2's default, instances without a mask and crowd regions are not trained on (evaluation
    ignores what lies in crowds, as COCO does), and an image without any other instance is left out.
    """

    def __init__(self, store: Store, split: str) -> None:
        """Index the instances of ``train``, ``val`` or ``test``; no image is read yet."""
        self.store = store
        self.annotations: dict[int, list[dict[str, Any]]] = {}
        for annotation in store.ground_truth(split)["annotations"]:
            if not annotation["iscrowd"] and min(annotation["bbox"][2:]) > 0 and has_mask(annotation["segmentation"]):
                self.annotations.setdefault(annotation["image_id"], []).append(annotation)
        self.rows = sorted(self.annotations)
        if not self.rows:
            raise MlsError(
                f"split {split!r} of this dataset holds no instances; the task 'instance' needs boxes and masks"
            )

    def __len__(self) -> int:
        """Images that are trained on."""
        return len(self.rows)

    def load(self, index: int, flip: bool) -> Sample:
        """Return an image, uint8 (3, H, W), and its target.

        The target holds ``boxes`` float32 (N, 4) as x1, y1, x2, y2 in pixels, ``labels`` int64 (N), 1 for the
        first class, and ``masks`` uint8 (N, H, W).
        """
        row = self.rows[index]
        image_CHW = self.store.decode(row)
        height, width = image_CHW.shape[1:]
        annotations = self.annotations[row]
        xywh_N4 = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32)
        boxes_N4 = torch.cat([xywh_N4[:, :2], xywh_N4[:, :2] + xywh_N4[:, 2:]], dim=1)
        masks_NHW = torch.from_numpy(np.stack([decode_mask(a["segmentation"], height, width) for a in annotations]))
        if flip:
            image_CHW, masks_NHW = image_CHW.flip(-1), masks_NHW.flip(-1)
            boxes_N4[:, [0, 2]] = width - boxes_N4[:, [2, 0]]
        labels_N = torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)
        return image_CHW, {"boxes": boxes_N4, "labels": labels_N, "masks": masks_NHW}


def has_mask(segmentation: list[list[float]] | dict[str, Any]) -> bool:
    """Whether there is anything to decode: a polygon needs three points (others are dropped, as in Detectron2)."""
    return isinstance(segmentation, dict) or any(len(polygon) >= 6 for polygon in segmentation)


def decode_mask(segmentation: list[list[float]] | dict[str, Any], height: int, width: int) -> np.ndarray:
    """Return COCO's polygons or run-length code (counts as a list or compressed) as uint8 (H, W) of 0 and 1."""
    if isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        segmentation = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(segmentation)


@dataclass
class History:
    """What the training was like: the rows of ``curves.csv`` and ``timing.csv``."""

    curves: list[dict[str, float]] = field(default_factory=list)
    timing: list[dict[str, float]] = field(default_factory=list)


def total_steps(task: InstanceTransfer, images: int) -> int:
    """Optimiser steps of the whole training; every batch is full."""
    return max(1, round(task.epochs * images / task.batch_size))


def learning_rate(task: InstanceTransfer, step: int, total: int) -> float:
    """Learning rate of step ``step`` (from 0): linear warm-up times a tenth per drop that has passed."""
    progress = min(1.0, step / task.warmup_steps) if task.warmup_steps else 1.0
    warm = WARMUP_FACTOR + (1 - WARMUP_FACTOR) * progress
    drops = sum(step >= math.floor(share * total) for share in task.steps)
    return task.lr * warm * 0.1**drops


@lru_cache(maxsize=2)
def epoch_order(images: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The samples of an epoch in their order, int64 (N,), and which of them are flipped, bool (N,)."""
    rng = np.random.default_rng((seed, epoch))
    return rng.permutation(images), rng.random(images) < 0.5


def plan_batch(step: int, batch_size: int, images: int, seed: int) -> list[tuple[int, bool]]:
    """Sample index and flip of each image of a batch; a batch may reach into the next epoch."""
    planned = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(position, images)
        order_N, flips_N = epoch_order(images, seed, epoch)
        planned.append((int(order_N[place]), bool(flips_N[place])))
    return planned


def batches(samples: Samples, batch_size: int, seed: int, steps: range, workers: int) -> Iterator[list[Sample]]:
    """Yield the batches of ``steps``, prepared ahead by threads (decoding releases Python's lock)."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        ahead: deque[list[Future[Sample]]] = deque()
        try:
            for step in steps:
                planned = plan_batch(step, batch_size, len(samples), seed)
                ahead.append([pool.submit(samples.load, index, flip) for index, flip in planned])
                if len(ahead) > PREFETCH:
                    yield [future.result() for future in ahead.popleft()]
            while ahead:
                yield [future.result() for future in ahead.popleft()]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def make_optimizer(detector: nn.Module, task: InstanceTransfer) -> torch.optim.SGD:
    """SGD; normalisation layers are not decayed (Detectron2's default)."""
    norms = {id(p) for module in detector.modules() if isinstance(module, _NormBase) for p in module.parameters()}
    groups = [
        {"params": [p for p in detector.parameters() if id(p) not in norms], "weight_decay": task.weight_decay},
        {"params": [p for p in detector.parameters() if id(p) in norms], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=task.lr, momentum=task.momentum)


def to_device(batch: list[Sample], device: torch.device) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Move a batch and scale its pixels to [0, 1]."""
    images = [image_CHW.to(device).float() / 255 for image_CHW, _ in batch]
    return images, [{key: value.to(device) for key, value in target.items()} for _, target in batch]


def train(
    detector: MaskRCNN,
    samples: Samples,
    task: InstanceTransfer,
    *,
    seed: int,
    device: torch.device,
    execution: Execution,
    work: Path,
    log: Callable[[str], None],
    name: str = "transfer",
) -> History:
    """Train in place, from the newest checkpoint in ``work`` where there is one; leaves the final state there.

    Raises:
        DeterministicError: a loss is not finite; nothing was updated with it.
        Interrupted: a signal came; the state is saved.
    """
    total = total_steps(task, len(samples))
    optimizer = make_optimizer(detector, task)
    history, done = History(), 0
    state, problems = load_resumable(work)
    for problem in problems:
        log(problem)
    if state is not None:
        detector.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        set_rng_state(state["rng"])
        history, done = History(state["curves"], state["timing"]), int(state["step"])
        log(f"going on from step {done} of {total}")

    def save() -> None:
        save_resumable(
            {
                "step": done,
                "model": detector.state_dict(),
                "optimizer": optimizer.state_dict(),
                "rng": rng_state(),
                "curves": history.curves,
                "timing": history.timing,
            },
            work,
            done,
            execution.keep_checkpoints,
        )

    detector.train()
    since, since_step = time.perf_counter(), done
    workers = workers_of(execution, device)
    with InterruptGuard() as guard, Bar(name, total, done=done) as bar:
        for batch in batches(samples, task.batch_size, seed, range(done, total), workers):
            guard.stop_if_asked(save)
            lr = learning_rate(task, done, total)
            for group in optimizer.param_groups:
                group["lr"] = lr
            losses = detector(*to_device(batch, device))
            loss = torch.stack(list(losses.values())).sum()
            value = float(loss.detach())
            if not math.isfinite(value):
                parts = ", ".join(f"{key} {float(part.detach()):.3g}" for key, part in losses.items())
                raise DeterministicError(
                    f"the loss is not finite at step {done} of {total} ({parts}); "
                    f"lower lr (now {task.lr}) or raise warmup_steps (now {task.warmup_steps})"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if done % CURVE_EVERY == 0 or done == total - 1:
                parts_now = {key: float(part.detach()) for key, part in losses.items()}
                history.curves.append({"step": done, "loss": value, **parts_now, "lr": lr})
                now = time.perf_counter()
                rate = (done + 1 - since_step) * task.batch_size / (now - since)
                history.timing.append({"step": done, "images_per_s": rate})
                since, since_step = now, done + 1
            done += 1
            bar.advance(1, count=len(batch), note=f"loss {value:.3f}")
            if done % execution.checkpoint_every == 0 and done < total:
                save()
        save()
        guard.stop_if_asked(lambda: None)
    return history
