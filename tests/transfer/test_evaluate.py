"""Scores are COCO's: 100 for the truth itself, 0 for nothing; whole artifacts repeat byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mls.config.experiment import Backbone, Execution
from mls.config.probes import METRICS
from mls.config.transfers import TorchvisionDetector
from mls.data.image_store import ImageStore
from mls.pipeline.artifact import Artifact
from mls.runtime.errors import MlsError
from mls.transfer import run_transfer
from mls.transfer.coco_score import coco_metrics
from mls.transfer.evaluate import as_result
from mls.transfer.torchvision import detections_to_coco
from tests.transfer.support import perfect

BOTH = ("box", "mask")


def test_truth_scores_100(store: ImageStore, capsys: pytest.CaptureFixture[str]) -> None:
    truth = store.ground_truth("test")
    before = json.dumps(truth, sort_keys=True)
    metrics = coco_metrics(truth, perfect(truth), BOTH)
    assert {key for key in metrics if key != "per_class"} == set(METRICS["instance"])
    assert metrics["box_AP"] == pytest.approx(100)
    assert metrics["mask_AP50"] == pytest.approx(100)
    assert metrics["box_APs"] == pytest.approx(100)  # all rectangles are smaller than 32 x 32 pixels
    assert metrics["box_APl"] is None and metrics["mask_APm"] is None
    present = {annotation["category_id"] - 1 for annotation in truth["annotations"]}
    for index, name in enumerate(store.classes):
        expected = pytest.approx(100) if index in present else None
        assert metrics["per_class"][name] == {"box_AP": expected, "mask_AP": expected}
    assert capsys.readouterr().out == ""
    assert json.dumps(truth, sort_keys=True) == before


def test_no_results_score_0(store: ImageStore) -> None:
    metrics = coco_metrics(store.ground_truth("test"), [], BOTH)
    assert metrics["box_AP"] == metrics["mask_AP"] == metrics["box_AP50"] == metrics["mask_APs"] == 0
    assert metrics["box_APm"] is None


def test_boxes_and_masks_are_scored_apart(store: ImageStore) -> None:
    truth = store.ground_truth("test")
    results = perfect(truth)
    for result in results:
        result["bbox"] = [0.0, 0.0, 1.0, 1.0]
    metrics = coco_metrics(truth, results, BOTH)
    assert metrics["box_AP"] == 0
    assert metrics["mask_AP"] == pytest.approx(100)


def test_scores_equal_those_of_pycocotools(store: ImageStore, tmp_path: Path) -> None:
    from pycocotools.cocoeval import COCOeval

    truth = store.ground_truth("test")
    rng = np.random.default_rng(0)
    results = perfect(truth)
    for result in results:
        result["bbox"] = [max(0.0, v + float(rng.normal(0, 1.5))) for v in result["bbox"]]
        result["score"] = round(float(rng.random()), 5)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    coco = COCO(tmp_path / "truth.json")
    evaluation = COCOeval(coco, coco.loadRes([dict(result) for result in results]), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    metrics = coco_metrics(truth, results, BOTH)
    assert 0 < metrics["box_AP"] < 100
    assert metrics["box_AP"] == pytest.approx(100 * evaluation.stats[0])
    assert metrics["box_AP75"] == pytest.approx(100 * evaluation.stats[2])


def test_detections_become_coco_results() -> None:
    masks = torch.zeros(1, 1, 8, 10)
    masks[0, 0, 2:5, 1:7] = 0.8
    found = {
        "boxes": torch.tensor([[1.004, 2.0, 7.0, 5.0]]),
        "labels": torch.tensor([3]),
        "scores": torch.tensor([0.1234567]),
        "masks": masks,
    }
    (result,) = detections_to_coco(7, found)
    assert result["image_id"] == 7 and result["category_id"] == 3
    assert result["bbox"] == [1.004, 2.0, 5.9960003, 3.0]  # 7 - 1.004 in float32
    assert result["score"] == 0.1234567
    assert np.array_equal(coco_mask.decode(result["segmentation"]), masks[0, 0].numpy() > 0.5)
    assert detections_to_coco(7, {key: value[:0] for key, value in found.items()}) == []


def test_results_hold_what_the_model_said() -> None:
    """Every score and coordinate is the same float32 after a trip through JSON."""
    rng = np.random.default_rng(0)
    scores_N = np.float32(1) - rng.random(500, np.float32) ** 8  # many near 1, one float apart
    boxes_N4 = rng.uniform(0, 1333, (500, 4)).astype(np.float32)
    results = [
        as_result(0, 1, box, score, None) for box, score in zip(boxes_N4.tolist(), scores_N.tolist(), strict=True)
    ]
    read = json.loads(json.dumps(results))
    assert np.array_equal(np.array([result["score"] for result in read], np.float32), scores_N)
    assert np.array_equal(np.array([result["bbox"] for result in read], np.float32), boxes_N4)
    assert np.array_equal(np.argsort([r["score"] for r in read], stable=True), np.argsort(scores_N, stable=True))
    assert max(len(repr(result["score"]).lstrip("0.").partition("e")[0]) for result in read) <= 9


def test_scores_that_five_decimals_would_tie_are_ranked(store: ImageStore) -> None:
    """The true detection has the higher score by 0.000003, and comes second in the list: it counts first."""
    truth = store.ground_truth("test")
    first = truth["annotations"][0]
    truth = truth | {"annotations": [first]}
    x, y, w, h = first["bbox"]
    found = {
        "boxes": torch.tensor([[x + 90, y, x + 90 + w, y + h], [x, y, x + w, y + h]]),
        "labels": torch.tensor([first["category_id"]] * 2),
        "scores": torch.tensor([0.999991, 0.999994]),
    }
    results = detections_to_coco(first["image_id"], found)
    assert coco_metrics(truth, results, ("box",))["box_AP"] == pytest.approx(100)
    rounded = [result | {"score": round(result["score"], 5)} for result in results]
    assert coco_metrics(truth, rounded, ("box",))["box_AP"] == pytest.approx(50, abs=1)


def run_stage(
    store: ImageStore, config: Backbone, weights: Path, task: TorchvisionDetector, execution: Execution, folder: Path
) -> dict[str, bytes]:
    """Run the stage function as `run_stage` would; return its files."""
    pretrain = folder / "pretrain"
    pretrain.mkdir(parents=True)
    (pretrain / "backbone.safetensors").write_bytes(weights.read_bytes())
    (pretrain / "params.json").write_text(json.dumps({"resolved": {"backbone": config.model_dump(mode="json")}}))
    files: dict[str, object] = {"backbone.safetensors": {}, "params.json": {}}
    out, work = folder / "out", folder / "work"
    out.mkdir()
    work.mkdir()
    context = SimpleNamespace(
        job=SimpleNamespace(config=task, seed=0),
        label="detect/test:0",
        out=out,
        work=work,
        execution=execution,
        inputs={"data": Artifact(store.path, {}), "pretrain": Artifact(pretrain, {"files": files})},
        log=lambda message: None,
    )
    run_transfer.run(context)  # type: ignore[arg-type]
    return {file.name: file.read_bytes() for file in out.iterdir()}


def test_stage_repeats_byte_for_byte(
    store: ImageStore, config: Backbone, weights: Path, task: TorchvisionDetector, execution: Execution, tmp_path: Path
) -> None:
    # a high learning rate and more steps: there must be predictions for this test to mean anything
    task = task.model_copy(update={"epochs": 10.0, "lr": 0.05})
    first = run_stage(store, config, weights, task, execution, tmp_path / "first")
    second = run_stage(store, config, weights, task, execution, tmp_path / "second")
    assert set(first) == {"metrics.json", "predictions.json", "curves.csv", "timing.csv", "derived.json"}
    del first["timing.csv"], second["timing.csv"]
    assert first == second
    results = json.loads(first["predictions.json"])
    assert results
    assert {result["image_id"] for result in results} <= set(store.split("test").tolist())
    metrics = json.loads(first["metrics.json"])
    assert set(METRICS["instance"]) <= set(metrics)
    assert metrics["n_train"] == 7 and metrics["n_test"] == 5
    assert json.loads(first["derived.json"]) == {"seed": 1000, "total_steps": 35, "train_images": 7}
    header = first["curves.csv"].decode().splitlines()[0].split(",")
    assert header[0] == "step" and header[-1] == "lr" and "loss_mask" in header


def test_scores_are_computed_again_and_compared(
    store: ImageStore,
    config: Backbone,
    weights: Path,
    task: TorchvisionDetector,
    execution: Execution,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What `mls score` does with a finished transfer, and with one whose numbers were changed."""
    run_stage(store, config, weights, task.model_copy(update={"epochs": 10.0, "lr": 0.05}), execution, tmp_path / "a")
    out = tmp_path / "a" / "out"
    artifact = Artifact(out, {"files": {file.name: {} for file in out.iterdir()}})
    run_transfer.print_transfer_score(task, store, artifact)
    metrics = json.loads((out / "metrics.json").read_text())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{metrics['n_predictions']} predictions in 5 images of test, percent."
    assert f"box_AP50  {metrics['box_AP50']:7.2f}" in lines and "box_APl         -" in lines
    assert lines[-1] == f"Agrees with {out / 'metrics.json'}."
    (out / "metrics.json").write_text(json.dumps(metrics | {"mask_AP": metrics["mask_AP"] + 0.1}))
    with pytest.raises(MlsError, match=r"says mask_AP = .*its predictions say"):
        run_transfer.print_transfer_score(task, store, artifact)
