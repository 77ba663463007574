"""Shared by the tests of Detectron2's detectors; it must be installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mls.config.experiment import Execution
from mls.config.transfers import Detectron2Detector
from mls.transfer.detectron2 import Detectron2Detection
from mls.transfer.interface import Given
from tests.transfer.support import live

PAPER: dict[str, dict[str, Any]] = {
    "table 1": {"kind": "instance", "architecture": "fpn"},
    "table 2": {"kind": "instance", "architecture": "c4"},
    "table 4": {"kind": "detection", "architecture": "c4"},
}
"""The paper's models."""


def task_of(**changes: Any) -> Detectron2Detector:
    """A detector that trains in seconds: three steps of two images."""
    small = {"kind": "instance", "iterations": 3, "batch_size": 2, "reference_batch": 2, "warmup_steps": 2}
    small |= {"train_sizes": [48, 64], "test_size": 64, "max_size": 96, "rois": 8, "precise_bn": 2, "lr": 0.01}
    return Detectron2Detector.model_validate({"backend": "detectron2", "dataset": "rectangles", **small, **changes})


def run(given: Given, task: Detectron2Detector, execution: Execution, work: Path) -> Detectron2Detection:
    """One process's life: set up, build, train, finish."""
    transfer, _ = live(Detectron2Detection, task, given, execution, work)
    transfer.finish(1, "test")
    return transfer
