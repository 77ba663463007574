"""Compute the metrics of a transfer task again from its predictions: ``mls score detect/mls``.

    print_transfer_score(task, store, artifact)

Prints a line per metric, and compares with the artifact's ``metrics.json``.
"""

from __future__ import annotations

import pkgutil
from typing import Any

from mls.config.transfers import KINDS, Detectron2Detector, SemanticTransfer, TorchvisionDetector, TransferConfig
from mls.data.image_store import ImageStore
from mls.pipeline.artifact import Artifact
from mls.probe.score import compare
from mls.transfer import evaluate
from mls.transfer.detectron2_install import require_detectron2
from mls.transfer.index_masks import IndexMasks
from mls.transfer.semantic_score import pixel_metrics


def scored(task: TransferConfig, store: ImageStore, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the metrics of a task's results on test, percent: those of its kind in `mls.config.transfers.KINDS`.

    ``per_class`` may be one of them: class -> metric -> percent.
    """
    metrics: dict[str, Any] = pkgutil.resolve_name(KINDS[task.kind].scored_by)(task, store, results)
    return metrics


def score_objects(
    task: TorchvisionDetector | Detectron2Detector, store: ImageStore, results: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return COCO's average precision of boxes and masks; with Detectron2 on VOC also VOC's own."""
    truth = evaluate.ground_truth(store, task.kind)
    metrics = evaluate.coco_metrics(truth, results, evaluate.TARGETS_OF[task.kind])
    if isinstance(task, Detectron2Detector) and evaluate.is_voc(truth):
        require_detectron2("VOC's average precision")
        from mls.transfer.voc_eval import voc_score

        metrics |= voc_score(store, truth, results)
    return metrics


def score_pixels(task: SemanticTransfer, store: ImageStore, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return intersection over union and accuracy of the classes of pixels."""
    return pixel_metrics(IndexMasks(store, "test"), results)


def print_transfer_score(task: TransferConfig, store: ImageStore, artifact: Artifact) -> None:
    """Print the metrics of an artifact's ``predictions.json``.

    Raises:
        MlsError: its ``metrics.json`` differs: names the first metric that differs, and both values.
    """
    results = artifact.read_json("predictions.json")
    metrics = scored(task, store, results)
    print(f"{len(results):,} predictions in {len(store.split('test')):,} images of test, percent.\n")
    for name, value in metrics.items():
        if name != "per_class":
            print(f"{name:10}{'-' if value is None else f'{value:.2f}':>7}")
    compare(metrics, artifact.file("metrics.json"))
    print(f"\nAgrees with {artifact.file('metrics.json')}.")
