"""`mls data check`: each defect is found, counted and named, and a clean set is called clean."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle
from rich.console import Console
from ruamel.yaml import YAML

from mls.config.datasets import ScenesDataset
from mls.data import build_store, scenes
from mls.data.check import SHOWN_EXCLUDED, Report, check_artifact, print_report
from mls.data.writer import Record, encode_mask, write_store
from mls.pipeline.plan import plan_file
from mls.pipeline.runner import run_stage
from mls.runtime.errors import DamagedArtifact, MlsError
from tests.conftest import SMALL

W, H = 20, 10
CLASSES = ["cat", "dog"]


def polygon(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def item(box: tuple[float, float, float, float] = (2, 2, 8, 5), **changes: Any) -> dict[str, Any]:
    good = {"category_id": 1, "bbox": list(box), "area": box[2] * box[3], "iscrowd": 0, "segmentation": polygon(*box)}
    return {**good, **changes}


def record(name: str, split: str, *annotations: dict[str, Any], **changes: Any) -> Record:
    values: dict[str, Any] = {"data": name.encode(), "classes": [0], "width": W, "height": H, **changes}
    return Record(name, split, annotations=list(annotations), **values)


def report_of(out: Path, *records: Record, excluded: list[dict[str, str]] | None = None) -> Report:
    write_store(out, records, CLASSES, True, excluded or [])
    return check_artifact(out, "pets")


def whole(*annotations: dict[str, Any], **changes: Any) -> list[Record]:
    """A set that is clean except for these annotations of its first image; each split has both classes."""
    others = [record(f"{split}.jpg", split, item(), item(category_id=2), classes=[0, 1]) for split in ("val", "test")]
    full = record("b.jpg", "train", item(), item(category_id=2), classes=[0, 1])
    return [record("a.jpg", "train", *annotations, **changes), full, *others]


def found(report: Report) -> dict[str, tuple[int, bool]]:
    return {finding.what: (finding.count, finding.contradicts) for finding in report.findings}


def test_a_clean_set_has_no_findings(tmp_path: Path) -> None:
    report = report_of(tmp_path, *whole(item(), item(iscrowd=1)))
    assert report.findings == [] and report.difficult is None and report.crowds == 1
    assert report.images_S.tolist() == [2, 1, 1, 0]
    assert report.positives_SC.tolist() == [[2, 1], [1, 1], [1, 1], [0, 0]]
    assert report.instances_SC.tolist() == [[3, 1], [1, 1], [1, 1], [0, 0]]
    assert report.sizes_23.tolist() == [[W] * 3, [H] * 3]
    assert report.bytes_3.tolist() == [5, 8, 5 + 5 + 7 + 8]


def crowd(mask_HW: np.ndarray[Any, Any]) -> dict[str, Any]:
    """A compressed RLE."""
    encoded = rle.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


NOTHING = {"size": [H, W], "counts": [H * W]}
DEFECTS: dict[str, tuple[dict[str, Any], str, bool]] = {
    "stray class": (item(category_id=3), "annotations of an image or class that is not there", True),
    "box a little outside": (item((13, 2, 8.5, 5)), "boxes reaching over the image's edge by 2 px or less", False),
    "box above": (item((2, -1, 5, 5)), "boxes reaching over the image's edge by 2 px or less", False),
    "flat box": (item((2, 2, 0, 5), segmentation=polygon(2, 2, 1, 5)), "boxes of no width or height", False),
    "no mask": (item(segmentation=[]), "objects without a mask", False),
    "empty mask": (item(segmentation=NOTHING), "objects whose mask covers no pixel", False),
    "empty mask of a line": (item((2, 2, 8, 0.3), segmentation=NOTHING), "objects whose mask covers no pixel", False),
    "mask 3 px wider": (
        item(segmentation=polygon(2, 2, 11, 5)),
        "masks that differ from their box by more than 2 px",
        False,
    ),
    "mask elsewhere": (item(segmentation=polygon(13, 2, 5, 5)), "masks that do not meet their box", True),
    "mask of another image": (
        item(segmentation=crowd(np.ones((12, 20)))),
        "images whose annotations are for another size",
        True,
    ),
    "RLE too short": (item(segmentation={"size": [H, W], "counts": [3, 4]}), "masks that can't be decoded", True),
    "RLE too long": (
        item(segmentation={"size": [H, W], "counts": crowd(np.ones((H, 3 * W)))["counts"]}),
        "masks that can't be decoded",
        True,
    ),
    "RLE of nonsense": (item(segmentation={"size": [H, W], "counts": "ü"}), "masks that can't be decoded", True),
    "polygon of two points": (
        item(segmentation=[[1, 1, 5, 5]]),
        "objects whose polygons have fewer than three points",
        False,
    ),
    "odd polygon": (item(segmentation=[[2, 2, 9, 2, 9, 7, 2]]), "masks that can't be decoded", True),
    "polygon far away": (item(segmentation=[[2, 2, 4e7, 2, 9, 7]]), "masks that can't be decoded", True),
    "another class": (item(category_id=2), "images whose classes are not those of their annotations", True),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_of_an_annotation_is_found(defect: str, tmp_path: Path) -> None:
    bad, what, contradicts = DEFECTS[defect]
    report = report_of(tmp_path, *whole(item(), bad))
    assert found(report) == {what: (1, contradicts)}
    (finding,) = report.findings
    assert "annotation 2" in finding.examples[0] or finding.examples == ["a.jpg"]
    assert bool(report.contradictions) == contradicts


def test_a_finding_has_its_count_and_its_largest_distance(tmp_path: Path) -> None:
    over = [item((15, 2, 5 + far, 5), segmentation=[]) for far in (3, 7, 4, 5)]
    report = report_of(tmp_path, *whole(*over))
    (finding,) = report.contradictions
    assert finding.what == "boxes reaching over the image's edge by more than 2 px"
    assert (finding.count, finding.worst, len(finding.examples)) == (4, 7, 3)
    assert finding.examples[0] == "annotation 1 (cat) of a.jpg"


def test_polygons_and_both_kinds_of_rle_are_clean(tmp_path: Path) -> None:
    mask_HW = np.zeros((H, W))
    mask_HW[2:7, 2:10] = 1
    runs = [2 * H + 2, *[5, 5] * 7, 5, H * W - 2 * H - 2 - 75]
    kinds: list[Any] = [crowd(mask_HW), {"size": [H, W], "counts": runs}, [*polygon(2, 2, 3, 5), *polygon(7, 2, 3, 5)]]
    assert report_of(tmp_path, *whole(*(item(segmentation=kind) for kind in kinds))).findings == []


def test_difficult_objects_are_counted_but_are_not_labels(tmp_path: Path) -> None:
    flags = [item(difficult=0), item(category_id=2, difficult=1), item(difficult=1)]
    report = report_of(tmp_path, *whole(*flags))
    assert report.difficult == 2 and report.findings == []


def test_a_class_without_positives_is_flagged_in_its_split(tmp_path: Path) -> None:
    records = [record("a", "train", classes=[0, 1]), record("b", "val"), record("c", "test", classes=[1])]
    report = report_of(tmp_path, *records)
    assert found(report) == {
        "classes without an image in val": (1, False),
        "classes without an image in test": (1, False),
    }
    assert [finding.examples for finding in report.findings] == [["dog"], ["cat"]]


def test_equal_images_are_found_within_and_across_splits(tmp_path: Path) -> None:
    both: dict[str, Any] = {"classes": [0, 1]}
    records = [
        record("a", "train", data=b"same", **both),
        record("b", "train", data=b"same", **both),
        record("c", "train", data=b"other"),
        record("d", "val", data=b"same", **both),
        record("e", "test", data=b"other", **both),
        record("f", "test", data=b"same", **both),
        record("g", "test", data=b"own", **both),
    ]
    report = report_of(tmp_path, *records)
    assert found(report) == {
        "images of test that are also in train, byte for byte": (2, True),
        "images of test that are also in val, byte for byte": (1, True),
        "sets of equal images that have different classes": (1, True),
        "images of val that are also in train, byte for byte": (1, False),
        "images of train that repeat another of train, byte for byte": (1, False),
    }
    assert {example for finding in report.findings for example in finding.examples} == {
        *("e = c", "f = a", "f = d", "c = e", "d = a", "b = a"),
    }


def test_unlabeled_images_have_no_classes_but_their_content_counts(tmp_path: Path) -> None:
    """They have no column in the table and lack no class, but copies of them are found."""
    extra = [record(name, "unlabeled", classes=[], data=name[:1].encode()) for name in ("t.jpg", "u.jpg", "u2.jpg")]
    copied = record("v.jpg", "unlabeled", classes=[], data=b"val.jpg")
    report = report_of(tmp_path, *whole(item(), data=b"t"), *extra, copied)
    assert report.images_S.tolist() == [2, 1, 1, 4] and report.positives_SC[3].tolist() == [0, 0]
    assert found(report) == {
        "images of unlabeled that are also in train, byte for byte": (1, False),
        "images of unlabeled that are also in val, byte for byte": (1, False),
        "images of unlabeled that repeat another of unlabeled, byte for byte": (1, False),
    }
    text = printed(report)
    assert re.search(r"images +8: train 2, val 1, test 1, unlabeled 4; 0 left out", text)
    assert re.search(r"^class +train images +instances +val images +instances +test images +instances *$", text, re.M)
    assert re.search(r"^cat +2 +2 +1 +1 +1 +1 *$", text, re.MULTILINE)


def test_a_test_image_among_the_unlabeled_contradicts(tmp_path: Path) -> None:
    copied = record("v.jpg", "unlabeled", classes=[], data=b"test.jpg")
    report = report_of(tmp_path, *whole(item()), copied)
    assert found(report) == {"images of unlabeled that are also in test, byte for byte": (1, True)}


def masked(mask_HW: np.ndarray[Any, Any], name: str = "a.jpg", **changes: Any) -> Record:
    return record(name, "train", mask=encode_mask(mask_HW.astype(np.uint8)), **changes)


def masks_of(out: Path, first: Record) -> Report:
    """The other masks show both classes on half of their pixels, and no class on the rest."""
    both_HW = np.full((H, W), 255)
    both_HW[: H // 2] = np.arange(W) % 2
    rest: dict[str, Any] = {"mask": encode_mask(both_HW.astype(np.uint8)), "classes": [0, 1]}
    return report_of(out, first, *(record(f"{split}.jpg", split, **rest) for split in ("train", "val", "test")))


BAD_MASKS: dict[str, tuple[Any, str]] = {
    "another size": (masked(np.zeros((W, H))), "masks of another size than their image"),
    "class of no name": (masked(np.full((H, W), 2)), "masks of images with a class that is not there"),
    "class that labels lack": (masked(np.ones((H, W))), "masks of images with a class that the image's labels lack"),
    "damaged": (record("a.jpg", "train", mask=b"nonsense"), "masks of images that can't be decoded"),
}


@pytest.mark.parametrize("kind", BAD_MASKS)
def test_each_bad_mask_is_found(kind: str, tmp_path: Path) -> None:
    bad, what = BAD_MASKS[kind]
    report = masks_of(tmp_path, bad)
    assert found(report) == {what: (1, True)} and report.masks == (3 if kind == "damaged" else 4)
    assert report.findings[0].examples[0].startswith("a.jpg")


def test_good_masks_have_no_findings(tmp_path: Path) -> None:
    report = masks_of(tmp_path, masked(np.full((H, W), 255)))  # a label that its mask lacks: shrunk away
    assert report.findings == [] and (report.masks, report.ignored) == (4, (1 + 3 / 2) / 4)
    text = printed(report)
    assert re.search(r"masks +4; 62\.5% of their pixels belong to no class", text)
    assert "none: classes of images and pixels only" in text


def test_images_without_a_mask_are_noted(tmp_path: Path) -> None:
    report = masks_of(tmp_path, record("a.jpg", "train"))
    assert found(report) == {"labelled images without a mask": (1, False)}
    assert report.findings[0].examples == ["a.jpg"]


def test_image_sizes_are_those_of_the_index(tmp_path: Path) -> None:
    write_store(tmp_path, whole(item()), CLASSES, True, [])
    file = tmp_path / "annotations.json"
    file.write_text(re.sub(r'"id": 2, "width": 20', '"id": 2, "width": 21', file.read_text()))
    report = check_artifact(tmp_path, "pets")
    assert found(report) == {"images whose annotations are for another size": (1, True)}
    assert report.findings[0].examples == ["val.jpg: annotated as 21 x 10 px"]


@pytest.mark.parametrize("damage", [lambda text: text[:-1], lambda text: text[:300], lambda text: "[" + text])
def test_damaged_annotations_are_named(damage: Any, tmp_path: Path) -> None:
    write_store(tmp_path, whole(item()), CLASSES, True, [])
    file = tmp_path / "annotations.json"
    file.write_text(damage(file.read_text()))
    with pytest.raises(DamagedArtifact, match=r"annotations\.json.*make it again"):
        check_artifact(tmp_path, "pets")


def test_a_set_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MlsError, match="holds no image"):
        report_of(tmp_path)


def printed(report: Report, **options: Any) -> str:
    text = io.StringIO()
    print_report(report, Console(file=text, soft_wrap=True, **options))
    return text.getvalue()


def test_the_printed_report(tmp_path: Path) -> None:
    excluded = [{"name": f"{i:02d}.jpg", "reason": "is [bold]empty[/]"} for i in range(SHOWN_EXCLUDED + 5)]
    text = printed(report_of(tmp_path, *whole(item(), item((15, 2, 9, 5), segmentation=[])), excluded=excluded))
    assert "\x1b" not in text, "no colours without a terminal"
    assert "unlabeled" not in text and "raw" not in text and "pixels" not in text
    assert re.search(r"images +4: train 2, val 1, test 1; 25 left out", text)
    assert re.search(r"width +20 to 20 px, median 20", text)
    assert re.search(r"^cat +2 +3 +1 +1 +1 +1$", text.replace(" \n", "\n"), re.MULTILINE)
    assert "19.jpg: is [bold]empty[/]" in text and "20.jpg" not in text and "... and 5 more" in text
    assert (
        "1 boxes reaching over the image's edge by more than 2 px (at most 4.0 px): annotation 2 (cat) of a.jpg" in text
    )
    assert "1 objects without a mask: annotation 2" in text and text.endswith("1 kinds of contradiction\n")


def test_colours_on_a_terminal(tmp_path: Path) -> None:
    assert "\x1b[" in printed(report_of(tmp_path, *whole(item())), force_terminal=True, color_system="standard")


def test_generated_scenes_are_clean(tmp_path: Path) -> None:
    config = ScenesDataset(source="scenes", train=30, val=20, test=20, size=48)
    write_store(tmp_path, scenes.records(config), scenes.CLASSES, True, [])
    report = check_artifact(tmp_path, "scenes")
    assert report.contradictions == [] and report.images_S.tolist() == [30, 20, 20, 0]
    assert report.instances_SC.sum() == len(json.loads((tmp_path / "annotations.json").read_text())["annotations"])


def test_the_command_reports_and_changes_nothing(
    in_tmp: Path, run_mls: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("params.yaml").open("w") as file:
        YAML(typ="safe").dump(SMALL, file)
    assert run_mls("data", "check") == 1
    assert "usage: mls data check NAME" in capsys.readouterr().err
    assert run_mls("data", "check", "scenes") == 1
    assert "is not made yet; run: mls data scenes -e params.yaml" in capsys.readouterr().err
    plan = plan_file(Path("params.yaml"))
    (job,) = plan.find("data", "scenes")
    run_stage(plan, job, build_store.run)
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in job.path.iterdir()}
    capsys.readouterr()
    assert run_mls("data", "check", "scenes") == 0
    assert capsys.readouterr().out.endswith("nothing contradicts\n")
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in job.path.iterdir()} == before
    text = (job.path / "annotations.json").read_text()
    (job.path / "annotations.json").write_text(text.replace('"height": 32, "id": 0', '"height": 31, "id": 0'))
    assert run_mls("data", "check", "scenes") == 1
    captured = capsys.readouterr()
    assert "  1 images whose annotations are for another size: train/0000000.jpg" in captured.out
    assert captured.err.endswith("mls data: scenes: contradicts itself, see the report\n")
