"""From a source's files to scores: its truth as predictions scores 100; class ids and crowds are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pycocotools import mask as coco_mask

from mls.config.datasets import CocoDataset, VocDataset
from mls.data import sources
from mls.data.check import check_artifact
from mls.data.image_store import ImageStore
from mls.pipeline.plan import DATA_LOCK
from mls.runtime.errors import MlsError
from mls.transfer.coco_score import coco_metrics
from mls.transfer.instances import TrainingInstances
from tests.data.support import an_object, make, make_coco, make_voc_tree, xml
from tests.transfer.support import make_record, perfect, write_records

BOTH = ("box", "mask")


@pytest.fixture
def voc_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_voc_tree(tmp_path, monkeypatch)


@pytest.fixture
def coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageStore:
    """COCO's files with ids 3, 17 and 90, triangles and crowds, made into a store."""
    root = tmp_path / "data" / "coco"
    root.mkdir(parents=True)
    make_coco(root)
    monkeypatch.setenv("MLS_DATA", str(tmp_path / "data"))
    (tmp_path / "tree").mkdir()
    monkeypatch.chdir(tmp_path / "tree")
    entry = {"source": "coco", "root": "coco", "val_share": 0.2}
    sources.pin("coco", CocoDataset.model_validate(entry), DATA_LOCK)
    return ImageStore(make(coco=entry))


def test_coco_truth_scores_100_and_class_ids_survive(coco: ImageStore) -> None:
    truth = coco.ground_truth("test")
    assert coco.classes == ["car", "cat", "toothbrush"]
    metrics = coco_metrics(truth, perfect(truth), BOTH)
    assert metrics["box_AP"] == metrics["mask_AP"] == pytest.approx(100)
    assert metrics["per_class"]["cat"] == pytest.approx({"box_AP": 100, "mask_AP": 100})
    nothing = {"box_AP": None, "mask_AP": None}
    assert metrics["per_class"]["car"] == metrics["per_class"]["toothbrush"] == nothing, "only crowds; no annotation"
    moved = [{**result, "category_id": result["category_id"] % 3 + 1} for result in perfect(truth)]
    assert coco_metrics(truth, moved, BOTH)["box_AP"] == 0
    assert coco_metrics(truth, [], BOTH)["mask_AP"] == 0


def test_detections_in_a_crowd_count_neither_way(coco: ImageStore) -> None:
    truth = coco.ground_truth("test")
    crowd = next(annotation for annotation in truth["annotations"] if annotation["iscrowd"])
    own = next(a for a in truth["annotations"] if not a["iscrowd"] and a["image_id"] == crowd["image_id"])
    crowd["category_id"] = own["category_id"]  # the same class, or nothing could be mistaken for it
    many = [
        {
            "image_id": crowd["image_id"],
            "category_id": crowd["category_id"],
            "bbox": [x, 0.0, 4.0, 4.0],
            "score": 0.99,
            "segmentation": coco_mask.frPyObjects([[x, 0.0, x + 4, 0.0, x + 4, 4.0, x, 4.0]], 10, 20)[0],
        }
        for x in (11.0, 13.0, 15.0)
    ]
    assert coco_metrics(truth, perfect(truth) + many, BOTH)["box_AP"] == pytest.approx(100)
    crowd["iscrowd"] = 0
    assert coco_metrics(truth, perfect(truth) + many, BOTH)["box_AP"] < 100


def test_crowds_are_not_trained_on(coco: ImageStore) -> None:
    trained = TrainingInstances(coco, "train+val", masks=True)
    found = [annotation for annotations in trained.values() for annotation in annotations]
    assert len(trained) == len(found) == 9, "ten images, the first without objects"
    assert not any(annotation["iscrowd"] for annotation in found)
    assert len(TrainingInstances(coco, "train", masks=True)) < 9


def test_voc_truth_scores_100_and_difficult_objects_count_neither_way(voc_root: Path) -> None:
    difficult = an_object("cat", (1, 1, 14, 14), "<difficult>1</difficult>")
    (voc_root / "VOC2007/Annotations/000009.xml").write_text(xml("000009", an_object(), difficult))
    sources.pin("voc", VocDataset(source="voc"), DATA_LOCK)
    store = ImageStore(make(voc={"source": "voc"}))
    truth = store.ground_truth("test")
    results = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in truth["annotations"]]
    without = [result for result, a in zip(results, truth["annotations"], strict=True) if not a["difficult"]]
    assert len(without) == len(results) - 1
    for found in (results, without):
        metrics = coco_metrics(truth, found, ("box",))
        assert metrics["box_AP"] == pytest.approx(100)
        assert metrics["per_class"]["cat"] == {"box_AP": None}
    (hard,) = [result for result in results if result not in without]
    easy = truth | {"annotations": [a | {"difficult": 0} for a in truth["annotations"]]}
    assert coco_metrics(easy, without, ("box",))["box_AP"] == pytest.approx(50), "one of two classes"
    twice = [*results, hard | {"score": 0.8}]
    assert coco_metrics(truth, twice, ("box",))["box_AP"] == pytest.approx(100), (
        "a class of difficult objects has no AP"
    )
    assert json.dumps(truth) == json.dumps(store.ground_truth("test")), "nothing is written into it"


def test_classes_that_occur_only_in_train_or_only_in_test(tmp_path: Path) -> None:
    """The first has no score and no part in the mean; the second is scored, and not found."""
    records = [make_record(split, number) for split in ("train", "test") for number in range(4)]
    for record in records:
        for annotation in record.annotations:
            annotation["category_id"] = 1 if record.split == "train" else 2 + annotation["category_id"] % 2
        record.classes = sorted({annotation["category_id"] - 1 for annotation in record.annotations})
    store = write_records(tmp_path / "lacking", records)
    truth = store.ground_truth("test")
    trained = TrainingInstances(store, "train", masks=True)
    assert {a["category_id"] for annotations in trained.values() for a in annotations} == {1}
    green = [result for result in perfect(truth) if result["category_id"] == 2]
    metrics = coco_metrics(truth, green, BOTH)
    assert metrics["per_class"]["red"] == {"box_AP": None, "mask_AP": None}
    assert metrics["per_class"]["green"] == pytest.approx({"box_AP": 100, "mask_AP": 100})
    assert metrics["per_class"]["blue"] == {"box_AP": 0, "mask_AP": 0}
    assert metrics["box_AP"] == pytest.approx(50)


def test_objects_of_no_area_are_left_out_where_masks_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A polygon of two points, which pycocotools takes for a box, a mask of no pixel and a box of no height."""
    root = tmp_path / "data" / "coco"
    root.mkdir(parents=True)
    bad = ({"segmentation": [[1, 2, 8, 5]]}, {"segmentation": [[1, 2, 5, 2, 1, 2]]}, {"bbox": [1.5, 2, 8, 0]})
    make_coco(root, lambda raw: [raw["annotations"][i].update(values) for i, values in enumerate(bad)])
    file = root / "annotations/instances_val2017.json"
    raw = json.loads(file.read_text())
    raw["annotations"][0].update(bad[0])
    file.write_text(json.dumps(raw))
    monkeypatch.setenv("MLS_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    entry = {"source": "coco", "root": "coco", "val_share": 0.2, "max_excluded": 0.5}
    sources.pin("coco", CocoDataset.model_validate(entry), DATA_LOCK)
    with pytest.raises(MlsError, match=r"max_excluded = 0.01 of 14 objects can't be used: train2017/0.*2.jpg annotat"):
        make(coco={**entry, "max_excluded": 0.01})
    store = ImageStore(make(coco=entry))
    assert "4 of 14 objects have no area" in capsys.readouterr().err
    excluded = json.loads((store.path / "excluded.json").read_text())
    assert len(store) == 14 and [item["object"] for item in excluded] == [
        f"annotation {i}" for i in (998, 997, 996, 949)
    ]
    report = check_artifact(store.path, "coco")
    assert (report.degenerate, report.excluded) == (4, [])
    assert ("objects whose mask covers no pixel", 1) in [(finding.what, finding.count) for finding in report.findings]
    masks = [finding.what for finding in report.contradictions if "image" not in finding.what]
    assert not masks, "what the data stage accepts is no contradiction"
    counts = [sum(map(len, TrainingInstances(store, "train+val", masks=masks).values())) for masks in (False, True)]
    assert counts == [8, 6]
    truth = store.ground_truth("test")
    found = perfect({**truth, "annotations": truth["annotations"][2:]})
    assert coco_metrics(truth, found, ("mask",))["mask_AP"] == pytest.approx(100)
