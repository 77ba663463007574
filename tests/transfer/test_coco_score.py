"""Both engines score as pycocotools does on the whole set: in each class, area, recall and limit of detections."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mls.config.identity import identity_params
from mls.config.transfers import Detectron2Detector, Engine, TorchvisionDetector
from mls.data.image_store import ImageStore
from mls.transfer.coco_score import ENGINES as ENGINE_CLASSES
from mls.transfer.coco_score import STATISTICS, TARGETS, by_class, coco_metrics, evaluate_class
from mls.transfer.evaluate import score_objects
from tests.transfer.support import perfect

ENGINES = get_args(Engine)
ROUNDING = np.spacing(1)
"""pycocotools adds this to each denominator, so that its precision of a first, true detection is just below 1."""
CLASSES = 6
"""The last has objects but no predictions; the one before has predictions but no objects; the first only crowds."""
Coco = dict[str, Any]
Results = list[dict[str, Any]]


def reference(truth: Coco, results: Results, target: str) -> dict[str, Any]:
    """pycocotools on all classes at once, straight from the annotations; VOC's difficult objects are ignored."""

    class Eval(COCOeval):  # type: ignore[misc]
        def _prepare(self) -> None:
            super()._prepare()
            for truths in self._gts.values():
                for one in truths:
                    one["ignore"] = one["ignore"] or one.get("difficult", 0)

    with contextlib.redirect_stdout(io.StringIO()):
        true, found = COCO(), COCO()
        annotations = [one for one in truth["annotations"] if target == "box" or one["segmentation"]]
        true.dataset = truth | {"annotations": [dict(one) for one in annotations]}
        areas = [
            r["bbox"][2] * r["bbox"][3] if target == "box" else float(coco_mask.area(r["segmentation"]))
            for r in results
        ]
        found.dataset = truth | {
            "annotations": [
                {**r, "id": i + 1, "area": area, "iscrowd": 0}
                for i, (r, area) in enumerate(zip(results, areas, strict=True))
            ]
        }
        true.createIndex()
        found.createIndex()
        evaluation = Eval(true, found, TARGETS[target])
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {**evaluation.eval, "stats": evaluation.stats}


def as_mask(rng: np.random.Generator, box: Sequence[float], height: int, width: int, kind: int) -> Any:
    """An ellipse in a box: polygons (two, for some), a list of run lengths, or compressed ones."""
    x, y, w, h = box
    if kind == 0:
        angle_N = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        xs_N, ys_N = x + w / 2 + w / 2 * np.cos(angle_N), y + h / 2 + h / 2 * np.sin(angle_N)
        ring = np.stack([xs_N.clip(0, width), ys_N.clip(0, height)], 1).ravel().tolist()
        corner = [x, y, x + w / 3, y, x + w / 3, y + h / 3]
        return [ring, corner] if rng.random() < 0.5 else [ring]
    yy_HW, xx_HW = np.mgrid[:height, :width]
    mask_HW = ((xx_HW - x - w / 2) / (w / 2)) ** 2 + ((yy_HW - y - h / 2) / (h / 2)) ** 2 <= 1
    code = coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8))
    if kind == 1:
        return {"size": code["size"], "counts": code["counts"].decode()}
    flat_N = mask_HW.ravel(order="F")
    edges_N = np.flatnonzero(np.diff(flat_N)) + 1
    runs = np.diff([0, *edges_N.tolist(), flat_N.size]).tolist()
    return {"size": [height, width], "counts": [0, *runs] if flat_N[0] else runs}


def a_box(rng: np.random.Generator, height: int, width: int) -> list[float]:
    """Anything from small (under 32 x 32) to large (over 96 x 96)."""
    w, h = (float(rng.choice([rng.uniform(4, 30), rng.uniform(34, 90), rng.uniform(100, 140)])) for _ in range(2))
    return [float(rng.uniform(0, width - w)), float(rng.uniform(0, height - h)), w, h]


def make_truth(rng: np.random.Generator, images: int) -> Coco:
    """Images of several sizes, every fifth without objects; crowds, difficult objects and objects without a mask."""
    sizes = [(int(rng.integers(150, 200)), int(rng.integers(150, 220))) for _ in range(images)]
    annotations: list[dict[str, Any]] = []
    for image, (height, width) in enumerate(sizes):
        for _ in range(0 if image % 5 == 0 else int(rng.integers(1, 12))):
            category = int(rng.choice([1, 2, 3, 4, CLASSES]))
            crowd = category == 1 or rng.random() < 0.1
            box = a_box(rng, height, width)
            kind = int(rng.integers(1, 3)) if crowd else int(rng.integers(3))
            code = as_mask(rng, box, height, width, kind) if category == 1 or rng.random() < 0.95 else []
            area = box[2] * box[3] if rng.random() < 0.2 else box[2] * box[3] * np.pi / 4
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": box,
                    "area": float(area),
                    "iscrowd": int(crowd),
                    "difficult": int(rng.random() < 0.15),
                    "segmentation": code,
                }
            )
    return {
        "images": [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(sizes)],
        "categories": [{"id": c + 1, "name": f"class {c + 1}"} for c in range(CLASSES)],
        "annotations": annotations,
    }


def a_result(rng: np.random.Generator, truth: Coco, image: int, category: int, box: list[float]) -> dict[str, Any]:
    """One prediction, its scores tie often."""
    size = truth["images"][image]
    code = as_mask(rng, box, size["height"], size["width"], 1)
    return {
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "score": float(np.float32(rng.choice([rng.random(), rng.integers(1, 6) / 6]))),
        "segmentation": code,
    }


def at_random(rng: np.random.Generator, truth: Coco) -> Results:
    """Boxes that know nothing of the truth; more than 100 of one class in an image, every seventh image has none."""
    results = []
    for image, size in enumerate(truth["images"]):
        for _ in range(0 if image % 7 == 0 else 270 if image == 1 else int(rng.integers(1, 15))):
            category = 2 if image == 1 else int(rng.integers(1, CLASSES))
            results.append(a_result(rng, truth, image, category, a_box(rng, size["height"], size["width"])))
    return results


def like_a_detector(rng: np.random.Generator, truth: Coco) -> Results:
    """Objects found once, twice or not at all, shifted a little, some of another class, some exactly; not in order."""
    results = []
    for one in truth["annotations"]:
        size = truth["images"][one["image_id"]]
        for _ in range(int(rng.choice([0, 1, 1, 1, 2, 3]))):
            x, y, w, h = one["bbox"]
            shift_4 = rng.normal(0, float(rng.choice([0.0, 0.02, 0.1])), 4) * [w, h, w, h]
            x, y = max(0.0, x + shift_4[0]), max(0.0, y + shift_4[1])
            w, h = min(max(2.0, w + shift_4[2]), size["width"] - x), min(max(2.0, h + shift_4[3]), size["height"] - y)
            category = one["category_id"] if rng.random() < 0.8 else int(rng.integers(1, CLASSES))
            if category != CLASSES:
                results.append(a_result(rng, truth, one["image_id"], category, [float(v) for v in (x, y, w, h)]))
    return [results[i] for i in rng.permutation(len(results))]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("predict", [at_random, like_a_detector])
@pytest.mark.parametrize("seed", range(3))
def test_engines_equal_pycocotools_on_the_whole_set(predict: Any, target: str, engine: Engine, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = make_truth(rng, 30)
    results = predict(rng, truth)
    expected = reference(truth, results, target)
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    true, found = by_class(truth["annotations"], sizes), by_class(results, sizes)
    for index, category in enumerate(range(1, CLASSES + 1)):
        evaluated = evaluate_class(category, true[category], found[category], sizes, target, engine)
        for name, axis in (("precision", 2), ("recall", 1), ("scores", 2)):
            off = float(np.abs(evaluated[name] - np.take(expected[name], [index], axis)).max())
            assert off <= (ROUNDING if engine == "faster-coco-eval" and name == "precision" else 0), (name, category)
    metrics = coco_metrics(truth, results, (target,), engine)
    stats = [metrics[f"{target}_{name}"] for name in STATISTICS]
    known = [None if value < 0 else 100 * value for value in expected["stats"][:6].tolist()]
    assert stats == pytest.approx(known, abs=0 if engine == "pycocotools" else 1e-12, rel=0)
    assert metrics["per_class"]["class 1"] == {f"{target}_AP": None}, "only crowds"
    assert metrics["per_class"]["class 5"] == {f"{target}_AP": None}, "nothing to find"
    assert metrics["per_class"]["class 6"] == {f"{target}_AP": 0}, "nothing was predicted"
    if predict is like_a_detector:
        assert 10 < metrics[f"{target}_AP"] < 95


@pytest.mark.parametrize("section", [TorchvisionDetector, Detectron2Detector])
def test_the_engine_is_no_part_of_an_identity(section: type[TorchvisionDetector | Detectron2Detector]) -> None:
    fields = {"kind": "detection", "dataset": "scenes"} | (
        {"backend": "detectron2"} if section is Detectron2Detector else {}
    )
    default, other = section.model_validate(fields), section.model_validate({**fields, "engine": "pycocotools"})
    assert default.engine == "faster-coco-eval" and other.engine == "pycocotools"
    for defaults in (False, True):
        assert identity_params(default, defaults=defaults) == identity_params(other, defaults=defaults)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_task_is_scored_by_its_engine(engine: Engine, store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    for name, (index, evaluation) in ENGINE_CLASSES.items():

        def recorded(*args: Any, name: str = name, evaluation: Any = evaluation) -> Any:
            used.append(name)
            return evaluation(*args)

        monkeypatch.setitem(ENGINE_CLASSES, name, (index, recorded))
    task = TorchvisionDetector(kind="detection", dataset="scenes", engine=engine)
    truth = store.ground_truth("test")
    assert score_objects(task, store, perfect(truth))["box_AP"] == pytest.approx(100)
    assert set(used) == {engine}
