"""Shared by all tests: a small experiment, a tiny generated store, a quiet and private folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mls import cli
from mls.config.load import check
from mls.pipeline.plan import Plan, make_plan

os.environ["MLS_PLAIN"] = "1"
for place in ("MLS_STORE", "MLS_WORK"):  # tests must not touch a developer's own
    os.environ.pop(place, None)
os.environ["MLS_ROOT"] = "."  # they work in folders of their own, which are no clones

SLOW = (
    "workflow/",
    "cost/test_count.py",
    "cost/test_paper.py",
    "download/test_download",
    "download/test_fetch.py",
    "data/test_build_store.py",
    "data/test_decode.py",
    "data/test_fuzz.py",
    "gpu/",
    "methods/test_pins.py",
    "models/test_batchnorm.py",
    "pipeline/test_artifact_store.py",
    "pipeline/test_launch.py",
    "pipeline/test_leases.py",
    "pipeline/test_make.py",
    "pipeline/test_watch.py",
    "report/test_figures.py",
    "report/test_neighbour_figures.py",
    "report/test_pages.py",
    "report/test_publish.py",
    "runtime/test_collectives.py",
    "runtime/test_ranks.py",
    "runtime/test_surroundings.py",
    "runtime/test_waiting.py",
    "test_cli.py",
    "test_docs.py",
    "test_doctor.py",
    "test_extending.py",
    "test_gpu_benchmark.py",
    "test_layers.py",
    "test_site.py",
    "test_starter.py",
    "train/test_drill.py",
    "train/test_log.py",
    "train/test_loop.py",
    "train/test_step.py",
    "train/test_weights_biases.py",
    "transfer/",
)
"""Tests that start processes, train for long or read the whole repository; `make test-fast` leaves them out."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of `SLOW`, and begin with them, so that no worker waits for the other's last long test."""
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


SMALL: dict[str, Any] = {
    "experiment": "small",
    "datasets": {"scenes": {"source": "scenes", "train": 24, "val": 8, "test": 8, "size": 32}},
    "pretrain": {
        "dataset": "scenes",
        "backbone": {"name": "resnet18", "width": 0.125, "stem": "small"},
        "epochs": 3,
        "batch_size": 8,
        "precision": "fp32",
        "augment": {"crop": 16, "blur_sigma": [0.1, 0.5]},
        "optimizer": {"lr": 0.03},
        "moco": {"queue_size": 20, "projection_dim": 8, "momentum": 0.9, "bn_splits": 2},
        "mls": {"topk": 3},
    },
    "runs": {"random": {"method": "none"}, "moco-v2": {"method": "moco"}, "mls": {}},
    "probe": {"linear": {"kind": "linear", "dataset": "scenes", "image_size": 32}},
    "tables": {"main": {"columns": ["linear.mAP"]}},
    "execution": {"threads": 1, "workers": 0, "checkpoint_every": 2},
}
PEERS: dict[str, Any] = {
    "densecl": {"method": "densecl", "augment": {"crop": 32}},
    "byol": {"method": "byol", "byol": {"momentum": 0.9, "hidden_dim": 16, "projection_dim": 8}},
    "slotcon": {
        "method": "slotcon",
        "augment": {"crop": 32},
        "slotcon": {"prototypes": 6, "momentum": 0.9, "hidden_dim": 16, "projection_dim": 8},
    },
}
"""Runs of the methods to compare with; of a view of 32 pixels the map has 2 x 2 cells."""


def small(**changes: Any) -> dict[str, Any]:
    """The small experiment with some top-level keys replaced."""
    return {**SMALL, **changes}


MULTICROP = {
    "multicrop": {
        "augment": {"auto_augment_p": [0.5, 0.0], "local_crops": {"count": 2, "size": 16, "scale": [0.1, 0.3]}},
    }
}
"""MLS with the views of the paper's ancestor."""


def with_peers(**changes: Any) -> dict[str, Any]:
    """The small experiment with a run of every method and of local crops, and some top-level keys replaced."""
    return small(runs={**SMALL["runs"], **PEERS, **MULTICROP}, **changes)


def plan_of(raw: dict[str, Any], lock: dict[str, Any] | None = None) -> Plan:
    """Check and plan a mapping."""
    return make_plan(check(raw, Path("small.yaml")), lock or {})


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random weights and tensors of a test are the same whatever ran before it, and on which worker."""
    torch.manual_seed(0)


@pytest.fixture
def run_mls(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the command in this process with some arguments; returns its exit code."""

    def run(*args: str) -> int:
        monkeypatch.setattr(sys, "argv", ["mls", *args])
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run the test in an empty folder of its own (artifacts/ and work/ are relative)."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
