"""The schema of transfer tasks: each kind and backend has its own keys, and errors name them as the file does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mls.config.load import ExperimentError, check
from mls.config.transfers import Detectron2Detector, SemanticTransfer, TorchvisionDetector
from tests.conftest import SMALL, plan_of, small

PLAIN = {"backbone": {"name": "resnet50"}}
"""A backbone that Detectron2 has."""


def problems_of(task: dict[str, Any], metric: str = "", **changes: Any) -> str:
    table = {"main": {"columns": [f"task.{metric}"]}} if metric else SMALL["tables"]
    with pytest.raises(ExperimentError) as caught:
        check(small(transfer={"task": task}, tables=table, **changes), Path("x.yaml"))
    return str(caught.value)


def task_of(task: dict[str, Any], **changes: Any) -> Any:
    raw = small(transfer={"task": {"dataset": "scenes", **task}}, pretrain={**SMALL["pretrain"], **PLAIN}, **changes)
    return check(raw, Path("x.yaml")).experiment.transfer["task"]


def test_kind_and_backend_choose_the_schema() -> None:
    assert type(task_of({"kind": "instance"})) is TorchvisionDetector
    assert type(task_of({"kind": "detection", "backend": "torchvision"})) is TorchvisionDetector
    assert type(task_of({"kind": "instance", "backend": "detectron2"})) is Detectron2Detector
    assert type(task_of({"kind": "detection", "backend": "detectron2", "architecture": "c4"})) is Detectron2Detector
    assert type(task_of({"kind": "semantic"})) is SemanticTransfer


def test_c4_on_coco_is_what_orl_tobias_and_s3l_train() -> None:
    """Their files agree key by key (docs/protocols.md): Base-RCNN-C4-BN, R_50_C4_1x and its variant for RGB."""
    task = Detectron2Detector(kind="instance", backend="detectron2", dataset="coco", architecture="c4")
    assert (task.extra_norm, task.freeze_at, task.norm, task.precise_bn > 0) == (True, 0, "SyncBN", True)
    assert (task.proposals, task.batch_size, task.lr, task.splits) == (1000, 16, 0.02, ("train", "val"))
    assert (task.train_sizes, task.test_size) == ([640, 672, 704, 736, 768, 800], 800)
    assert [round(share * task.iterations) for share in (*task.steps, 1)] == [60_000, 80_000, 90_000]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"dataset": "scenes"}, "transfer.task: kind must be 'instance', 'detection' or 'semantic'"),
        ({"kind": "instnce"}, "transfer.task: kind must be 'instance', 'detection' or 'semantic' (is 'instnce')"),
        ({"kind": "instance", "backend": "d2"}, "transfer.task.backend: Input should be 'torchvision' (is 'd2')"),
        ({"kind": "semantic", "backend": "detectron2"}, "transfer.task.backend: Input should be 'torchvision'"),
        ({"kind": "instance", "epocs": 1}, "transfer.task.epocs: unknown key; did you mean 'epochs'?"),
        ({"kind": "instance", "backend": "detectron2", "epochs": 1}, "transfer.task.epochs: unknown key"),
        ({"kind": "instance", "backend": "detectron2", "norn": "BN"}, "task.norn: unknown key; did you mean 'norm'?"),
        ({"kind": "semantic", "crop": [64]}, "transfer.task.crop: List should have at least 2 items"),
        ({"kind": "semantic", "output_stride": 7}, "transfer.task.output_stride: Input should be 4, 8, 16 or 32"),
        ({"kind": "semantic", "head": "psn"}, "transfer.task.head: Input should be 'psp', 'psa' or 'fcn'"),
        ({"kind": "semantic", "head": "psa", "pools": [1]}, "transfer.task: head 'psa' has no pools: leave that out"),
        ({"kind": "semantic", "attention_window": 9}, "task: head 'psp' has no attention_window: leave that out"),
        (
            {"kind": "semantic", "head": "fcn", "pools": [1], "aux_weight": 0.4},
            "transfer.task: head 'fcn' has no pools, aux_weight: leave that out",
        ),
        (
            {"kind": "semantic", "steps": [0.7, 0.9], "min_lr": 0.0},
            "transfer.task: with steps, min_lr would not be read: leave that out",
        ),
        (
            {"kind": "semantic", "inference": "slide", "crop": [64, 64], "stride": [64, 65]},
            "transfer.task: stride [64, 65] leaves gaps between windows of [64, 64]",
        ),
        (
            {"kind": "instance", "backend": "detectron2", "max_size": 700},
            "transfer.task: max_size 700 is less than a shorter side",
        ),
        (
            {"kind": "instance", "backend": "detectron2", "architecture": "c4", "box_head": "2fc", "fpn_norm": "none"},
            "transfer.task: architecture 'c4' has no fpn_norm, box_head: leave that out",
        ),
        (
            {"kind": "instance", "backend": "detectron2", "extra_norm": False},
            "transfer.task: architecture 'fpn' has no extra_norm: leave that out",
        ),
        ({"kind": "semantic", "stride": [9, 9]}, "transfer.task: inference 'whole' has no stride: leave it out"),
    ],
)
def test_errors_name_keys_as_in_the_file(task: dict[str, Any], message: str) -> None:
    assert message in problems_of({"dataset": "scenes", **task})


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [
        ("instance", {"source": "voc"}, "'own' has boxes; kind 'instance' is trained on boxes and masks"),
        ("instance", {"source": "cityscapes"}, "'own' has index masks; kind 'instance' is trained on boxes and masks"),
        ("detection", {"source": "cityscapes"}, "'own' has index masks; kind 'detection' is trained on boxes, or on"),
        ("detection", {"source": "folder"}, "'own' has labels; kind 'detection' is trained on boxes, or on boxes and"),
        ("semantic", {"source": "voc"}, "'own' has boxes; kind 'semantic' is trained on boxes and masks, or on"),
        ("semantic", {"source": "pets"}, "'own' has labels; kind 'semantic' is trained on boxes and masks, or on"),
    ],
)
def test_data_sets_without_the_needed_annotations_are_errors(kind: str, source: dict[str, Any], message: str) -> None:
    text = problems_of({"kind": kind, "dataset": "own"}, datasets={**SMALL["datasets"], "own": source})
    assert f"transfer.task.dataset: {message}" in text


def test_backbones_that_detectron2_lacks_are_errors() -> None:
    task = {"kind": "instance", "backend": "detectron2", "architecture": "c4", "dataset": "scenes"}
    text = problems_of(task)
    assert "Detectron2's ResNets have width 1.0 and stem imagenet, unlike those of random, moco-v2, mls" in text
    assert (
        "transfer.task.architecture: 'c4' needs resnet50 or resnet101, unlike the backbone of random, moco-v2, mls"
        in text
    )
    runs = {"plain": PLAIN, "narrow": {"backbone": {"name": "resnet50", "width": 0.5, "stem": "imagenet"}}}
    base = {**SMALL["pretrain"], "backbone": {"name": "resnet50"}}
    text = problems_of(task, runs=runs, pretrain=base)
    assert "unlike those of narrow; 'torchvision' takes any" in text and "1 problem(s)" in text


@pytest.mark.parametrize(
    ("task", "metric", "known"),
    [
        ({"kind": "detection"}, "mask_AP", "task 'task' gives box_AP, box_AP50, box_AP75, box_APs, box_APm, box_APl"),
        ({"kind": "semantic"}, "box_AP", "task 'task' gives mIoU, mAcc, aAcc"),
        ({"kind": "instance"}, "voc_AP", "task 'task' gives box_AP"),
    ],
)
def test_columns_are_metrics_of_the_kind(task: dict[str, Any], metric: str, known: str) -> None:
    assert known in problems_of({"dataset": "scenes", **task}, metric)


def test_only_detectron2_gives_vocs_own_metrics() -> None:
    data = {**SMALL["datasets"], "voc07": {"source": "voc"}}
    base = {**SMALL["pretrain"], **PLAIN}
    task = {"kind": "detection", "dataset": "voc07"}
    table = {"main": {"columns": ["task.voc_AP"]}}
    theirs = {"task": {**task, "backend": "detectron2"}}
    plan_of(small(datasets=data, pretrain=base, transfer=theirs, tables=table))
    assert "task 'task' gives box_AP" in problems_of(task, "voc_AP", datasets=data, pretrain=base)


def test_other_batch_sizes_scale_steps_by_the_linear_rule() -> None:
    quarter = task_of({"kind": "instance", "backend": "detectron2", "batch_size": 4})
    assert (quarter.scale, quarter.total_steps) == (0.25, 360_000)
    whole = task_of({"kind": "instance", "backend": "detectron2"})
    assert (whole.scale, whole.total_steps) == (1, 90_000)
    for task, drops in ((whole, [60_000, 80_000]), (quarter, [240_000, 320_000])):
        assert [math.floor(share * task.total_steps) for share in task.steps] == drops


def test_not_implemented_columns_name_no_task_of_the_file() -> None:
    task = {"seg": {"kind": "semantic", "dataset": "scenes"}}
    table = {"main": {"columns": ["seg.mIoU"], "not_implemented": ["upernet.mIoU"]}}
    plan = plan_of(small(transfer=task, tables=table))
    assert plan.tables.params["tables"]["main"]["not_implemented"] == ["upernet.mIoU"]
    for column in ("seg.mAcc", "upernet"):
        wrong = {"main": {**table["main"], "not_implemented": [column]}}
        with pytest.raises(ExperimentError, match=f"tables.main.not_implemented: '{column}' must be"):
            plan_of(small(transfer=task, tables=wrong))
