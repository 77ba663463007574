"""Scores equal those of Detectron2's evaluators, on VOC by its own rule; its checkpoints can be read and written.

Skipped where Detectron2 is not installed; ``mls doctor`` says how to.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from mls.config.experiment import Execution
from mls.data.image_store import ImageStore
from mls.data.writer import Record
from mls.models.backbone import build_backbone
from mls.models.foreign import translate
from mls.models.weights_file import read_tensors
from mls.transfer.coco_score import coco_metrics
from mls.transfer.interface import Given
from tests.transfer.support import R50, make_record, make_store, perfect, write_records

pytest.importorskip("detectron2", reason="needs detectron2 (README: Detectron2)")

from mls.transfer import detectron2_model
from mls.transfer.detectron2 import Detectron2Detection
from mls.transfer.export import export_backbone
from mls.transfer.voc_eval import voc_score, year_of
from tests.transfer.detectron2_support import PAPER, run, task_of

# ------------------------------------------------------------------------------------------ scoring


def noisy(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """The truth with boxes that are a little off, some classes wrong, some found twice, in no order."""
    rng = np.random.default_rng(0)
    results = perfect(truth) + perfect(truth)[::3]
    for result in results:
        result["bbox"] = [round(max(0.5, v + float(rng.normal(0, 1.2))), 2) for v in result["bbox"]]
        result["score"] = round(float(rng.random()), 5)
        if rng.random() < 0.1:
            result["category_id"] = result["category_id"] % 3 + 1
    return results


def test_scores_are_those_of_its_own_evaluator(tmp_path: Path) -> None:
    from detectron2.evaluation.coco_evaluation import COCOEvaluator, _evaluate_predictions_on_coco
    from pycocotools.coco import COCO

    truth = make_store(tmp_path / "data", test=30).ground_truth("test")
    results = noisy(truth)
    (tmp_path / "truth.json").write_text(json.dumps(truth | {"info": {}}))
    coco = COCO(str(tmp_path / "truth.json"))
    metrics = coco_metrics(truth, results, ("box", "mask"))
    evaluator = COCOEvaluator.__new__(COCOEvaluator)
    evaluator._logger = logging.getLogger("detectron2")
    for target, iou_type in (("box", "bbox"), ("mask", "segm")):
        copied = [dict(result) for result in results]
        evaluation = _evaluate_predictions_on_coco(coco, copied, iou_type)
        theirs = evaluator._derive_coco_results(evaluation, iou_type, class_names=["red", "green", "blue"])
        assert 5 < metrics[f"{target}_AP"] < 95
        for name in ("AP", "AP50", "AP75", "APs"):
            assert metrics[f"{target}_{name}"] == pytest.approx(theirs[name], abs=1e-9), (target, name)
        for name in ("red", "green", "blue"):
            assert metrics["per_class"][name][f"{target}_AP"] == pytest.approx(theirs[f"AP-{name}"], abs=1e-9)


@pytest.fixture
def voc(tmp_path: Path) -> ImageStore:
    """A store as VOC's: difficult objects, no masks."""
    records = [make_record(split, number) for split in ("train", "test") for number in range(8)]
    for record in records:
        for index, annotation in enumerate(record.annotations):
            annotation |= {"segmentation": [], "difficult": int(index == 0 and record.split == "test"), "truncated": 0}
    return named(tmp_path / "voc", records, 2007)


def named(folder: Path, records: list[Record], *years: int) -> ImageStore:
    """Write records under VOC's names, years in turn."""
    store = write_records(folder, records)
    names = [f"VOC{years[i % len(years)]}/JPEGImages/{i:06d}.jpg" for i in range(len(store))]
    store._names = pa.chunked_array([names])
    return store


def boxes(truth: dict[str, Any], difficult: bool) -> list[dict[str, Any]]:
    return [
        {**{key: a[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.9}
        for a in truth["annotations"]
        if difficult or not a["difficult"]
    ]


def test_voc_truth_scores_100_and_no_results_0(voc: ImageStore) -> None:
    truth = voc.ground_truth("test")
    for difficult in (True, False):  # neither to be found nor a mistake to find
        results = boxes(truth, difficult)
        assert voc_score(voc, truth, results) == pytest.approx({"voc_AP": 100, "voc_AP50": 100, "voc_AP75": 100})
        assert coco_metrics(truth, results, ("box",))["box_AP"] == pytest.approx(100)
    assert voc_score(voc, truth, []) == {"voc_AP": 0, "voc_AP50": 0, "voc_AP75": 0}
    assert coco_metrics(truth, [], ("box",))["box_AP"] == 0


@pytest.mark.parametrize(
    ("years", "expected"),
    [
        ((2007,), 100 * (6 * 1 + 5 * 2 / 3) / 11),  # precision at recalls 0, 0.1, ..., 1
        ((2012,), 100 * (0.5 * 1 + 0.5 * 2 / 3)),  # area under the curve
        ((2007, 2012), 100 * (0.5 * 1 + 0.5 * 2 / 3)),
    ],
)
def test_each_year_has_its_rule(tmp_path: Path, years: tuple[int, ...], expected: float) -> None:
    """Two objects: found, a mistake, found."""
    records = [make_record("train", 0), make_record("test", 1, instances=1), make_record("test", 2, instances=1)]
    for record in records:
        for annotation in record.annotations:
            annotation |= {"segmentation": [], "difficult": 0, "truncated": 0, "category_id": 1}
        record.classes = [0]
    store = named(tmp_path / "voc", records, *years)
    truth = store.ground_truth("test")
    first, second = boxes(truth, True)
    wrong = {**first, "bbox": [0.0, 0.0, 2.0, 2.0], "score": 0.5}
    metrics = voc_score(store, truth, [first, wrong, {**second, "score": 0.1}])
    assert year_of(store, truth) == (2007 if years == (2007,) else 2012)
    assert metrics["voc_AP50"] == pytest.approx(expected) and metrics["voc_AP"] == pytest.approx(expected)


def test_voc_boxes_keep_their_pixels(voc: ImageStore) -> None:
    """A box one pixel too wide on each side is the worse the smaller: an inclusive edge read as exclusive shows."""
    truth = voc.ground_truth("test")
    results = boxes(truth, False)
    for result in results:
        x, y, w, h = result["bbox"]
        result["bbox"] = [x, y, w + 1, h]
    ious = [r["bbox"][2] - 1 for r in results]
    lowest = min(w / (w + 1) for w in ious)
    metrics = voc_score(voc, truth, results)
    assert metrics["voc_AP75"] == pytest.approx(100)
    assert (metrics["voc_AP"] < 100) == (lowest < 0.95)


def test_voc_tasks_report_vocs_metrics(voc: ImageStore, start: Given, execution: Execution, tmp_path: Path) -> None:
    transfer = run(replace(start, store=voc), task_of(**PAPER["table 4"]), execution, tmp_path / "work")
    assert transfer.train_images == 8, "difficult objects are trained on"
    assert set(transfer.score([])) == {f"box_{n}" for n in ("AP", "AP50", "AP75", "APs", "APm", "APl")} | {
        *("voc_AP", "voc_AP50", "voc_AP75", "per_class")
    }


# ------------------------------------------------------------------------------------------- export


@pytest.mark.parametrize("which", ["table 1", "table 2"])
def test_an_exported_backbone_is_read_by_its_checkpointer(
    which: str, resnet50: Path, tmp_path: Path, log: list[str]
) -> None:
    from detectron2.checkpoint import DetectionCheckpointer

    out = tmp_path / "mls.pth"
    export_backbone(R50, resnet50, "detectron2", out, log.append)
    assert "features of one image are equal" in log[0]
    task = task_of(**PAPER[which])
    model = Detectron2Detection.build(task, R50, classes=3)
    DetectionCheckpointer(model).load(f"{out}?matching_heuristics=True")
    own, stored = model.state_dict(), load_file(resnet50)
    for name, tensor in stored.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(own[detectron2_model.place(name, task.architecture)], tensor), name


@pytest.mark.parametrize("which", PAPER)
def test_a_checkpoint_of_its_own_becomes_a_backbone(which: str, start: Given, tmp_path: Path) -> None:
    """`method: weights` with a fine-tuned detector: C5 is in the heads of some."""
    model = Detectron2Detection(task_of(**PAPER[which]), start).model
    torch.save({"model": model.state_dict()}, tmp_path / "model_final.pth")
    net = build_backbone(R50)
    state, network, unused = translate(read_tensors(tmp_path / "model_final.pth"), net.state_dict(), tmp_path)
    assert network.scheme == "Detectron2's" and unused
    stored = load_file(start.weights)
    assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())
