"""From a trained detector to its scores: images in batches, results in COCO's format, the metrics of a task.

for rows, images in in_batches(rows_N, 2, store.decode, workers, name):
    results += [as_result(row, label, xywh, score, None), ...]
metrics = score_objects(task, store, results)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from mls.config.transfers import Detectron2Detector, TorchvisionDetector
from mls.data.image_store import ImageStore
from mls.runtime.collectives import rank, stop_together, world
from mls.runtime.errors import MlsError
from mls.runtime.progress import Bar
from mls.runtime.signals import InterruptGuard
from mls.train.finetune import read_ahead
from mls.transfer.detectron2_install import require_detectron2
from mls.transfer.instances import has_mask

Loaded = TypeVar("Loaded")


def in_batches(
    rows_N: np.ndarray, size: int, load: Callable[[int], Loaded], workers: int, name: str
) -> Iterator[tuple[list[int], list[Loaded]]]:
    """Yield batches of rows and their loaded images, without gradients, and show progress.

    Each rank gets some of the batches of one process, in rank order: ``join`` in `mls.runtime.collectives` puts the
    results together.

    Args:
        rows_N: the images, of all ranks.
        size: images per batch.
        load: loads the image of a row.
        workers: threads that load ahead; no effect on the result.
        name: of the progress bar.

    Raises:
        Interrupted: a signal came, to any rank; the trained model is in the checkpoint, so only this pass is run again.
    """
    starts = np.array_split(np.arange(0, len(rows_N), size), world())[rank()]
    batches = [rows_N[start : start + size].tolist() for start in starts]
    images = read_ahead(batches, load, workers)
    bar = Bar(name, sum(map(len, batches)), hidden=rank() > 0)
    with torch.inference_mode(), InterruptGuard() as guard, bar, contextlib.closing(images):
        for rows, loaded in zip(batches, images, strict=True):
            if guard.asked:
                break
            yield rows, loaded
            bar.advance(len(rows), count=len(rows))
        stop_together(guard, lambda: None)  # not in each batch: ranks would wait for the slowest one each time


def ground_truth(store: ImageStore, kind: str) -> dict[str, Any]:
    """Return the test split's annotations, a COCO dictionary.

    Raises:
        MlsError: the split holds no image, no instance or, for kind ``instance``, no mask.
    """
    truth = store.ground_truth("test")
    if not len(store.split("test")):
        raise MlsError("the test split of this dataset is empty: there is nothing to evaluate a detector on")
    if not any(not item["iscrowd"] and not item.get("difficult", 0) for item in truth["annotations"]):
        needs = "boxes and masks" if kind == "instance" else "boxes"
        raise MlsError(f"the test split of this dataset holds no instances; the task {kind!r} needs {needs}")
    if kind == "instance" and not any(has_mask(item["segmentation"]) for item in truth["annotations"]):
        raise MlsError("the test split of this dataset holds boxes, but no masks; the task 'detection' needs no masks")
    return truth


def as_result(row: int, label: int, xywh: Sequence[float], score: float, code: dict[str, Any] | None) -> dict[str, Any]:
    """Return an entry of COCO's results, with the model's own numbers: a rounded score would tie with its neighbours.

    Args:
        row: the image.
        label: category id, 1 for the first class.
        xywh: left, top, width, height, pixels, float32.
        score: 0 to 1, float32.
        code: the mask, see `mls.transfer.instances.as_json`; None without.
    """
    entry = {"image_id": row, "category_id": label, "bbox": [shortest(v) for v in xywh], "score": shortest(score)}
    return entry | ({"segmentation": code} if code else {})


def shortest(value: float) -> float:
    """Return the shortest decimal number that is this one in float32.

    It has 9 digits at most, where the same value as a float64 has 17. Order and ties between values stay as they are.
    """
    return float(str(np.float32(value)))


def score_objects(
    task: TorchvisionDetector | Detectron2Detector, store: ImageStore, results: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return COCO's average precision of boxes and masks; with Detectron2 on VOC also VOC's own."""
    from mls.transfer.coco_score import coco_metrics  # training needs no scoring library

    truth = ground_truth(store, task.kind)
    metrics = coco_metrics(truth, results, ("box", "mask") if task.kind == "instance" else ("box",), task.engine)
    # Only VOC's annotations say whether an object is difficult.
    if isinstance(task, Detectron2Detector) and any("difficult" in item for item in truth["annotations"]):
        require_detectron2("VOC's average precision")
        from mls.transfer.voc_eval import voc_score

        metrics |= voc_score(store, truth, results)
    return metrics
