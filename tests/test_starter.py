"""`mls init` on each kind of data: its file validates, is planned, and says what can't work before it writes."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mls.config.experiment import Pretrain
from mls.config.load import load
from mls.pipeline.plan import plan_file, read_lock
from mls.runtime.errors import MlsError
from mls.starter import write
from mls.starter.look import SAMPLE, entry_of, look
from mls.starter.measure import _load, seconds_per_image
from mls.starter.write import start
from tests.data.support import make_coco, make_voc_tree
from tests.data.test_unlabelled import draw

Run = Callable[..., int]


def second(config: Pretrain, images: list[Path], threads: int) -> float:
    """A hundredth of a second an image, instead of a measurement."""
    assert images and all(path.is_file() for path in images) and len(images) <= 2 * SAMPLE
    return 0.01


def pictures(root: Path, count: int = 80, labels: str = "") -> Path:
    """Pictures of 40 x 40, with a labels.csv of one column ``label`` or of two classes."""
    rows = []
    for n in range(count):
        draw(root / f"{n % 2}" / f"{n:03}.jpg", n)
        cells = {"single": [f"class {n % 3}"], "multi": [str(n % 2), str(n // 2 % 2)]}.get(labels, [])
        rows.append([f"{n % 2}/{n:03}.jpg", "test" if n < 10 else "train", *cells])
    if labels:
        with (root / "labels.csv").open("w", newline="") as opened:
            header = {"single": ["label"], "multi": ["sea", "trees"]}[labels]
            csv.writer(opened).writerows([["file", "split", *header], *rows])
    return root


@pytest.mark.parametrize(
    ("labels", "columns", "runs"),
    [
        ("", ["pretrain.info_nce", "pretrain.alignment", "pretrain.uniformity", "pretrain.queue_mean"], 2),
        ("single", ["linear.top1"], 3),
        ("multi", ["linear.mAP"], 3),
    ],
)
def test_a_folder_becomes_an_experiment(in_tmp: Path, labels: str, columns: list[str], runs: int) -> None:
    root = pictures(in_tmp / "birds", labels=labels)
    path = start("birds", "folder", root, None, 1.0, second)
    assert path == Path("experiments/birds.yaml") and set(read_lock(Path("data.lock"))) == {"birds"}
    loaded = load(path)
    assert loaded.experiment.tables["main"].columns == columns and len(loaded.runs) == runs
    train = 80 if not labels else 63  # of 70, a tenth becomes val
    assert f"{train} train" in path.read_text()
    at_once = min(2, len(os.sched_getaffinity(0)))
    config = loaded.runs["mls"]
    assert config.epochs == min(400, int(0.8 * 3600 * at_once / (2 * train * 0.01)))
    assert config.moco.queue_size == config.batch_size == 8 and config.augment.crop == 32
    assert plan_file(path).stage("pretrain")


def test_coco_and_voc_get_a_detector_for_what_they_have(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "FEWEST", 1)
    (in_tmp / "coco").mkdir()
    make_coco(in_tmp / "coco")
    text = start("street", "coco", in_tmp / "coco", "small", 1.0, second).read_text()
    assert "kind: instance" in text and "detect.mask_AP" in text
    root = make_voc_tree(in_tmp, monkeypatch)
    text = start("rooms", "voc", root, "small", 1.0, second).read_text()
    assert "kind: detection" in text and "detect.mask_AP" not in text


def test_what_is_there_is_not_overwritten(in_tmp: Path) -> None:
    root = pictures(in_tmp / "birds")
    path = start("birds", "folder", root, None, 1.0, second)
    before, lock = path.read_bytes(), Path("data.lock").read_bytes()
    with pytest.raises(MlsError, match=r"birds\.yaml is there already"):
        start("birds", "folder", root, None, 2.0, second)
    assert path.read_bytes() == before
    path.unlink()
    with pytest.raises(MlsError, match=r"data\.lock, entry 'birds' is there already"):
        start("birds", "folder", root, None, 2.0, second)
    assert Path("data.lock").read_bytes() == lock


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, "can't name an experiment"),
        ({"count": 31}, "31 train images are too few; 32 are the least"),
        ({"like": "paper"}, "too few for the paper's batch and dictionary"),
        ({"hours": 0.0001}, "one epoch of both trainings takes"),
        ({"root": "nowhere"}, "nowhere is not a folder"),
        ({"kind": "coco"}, "needs instances_<split>.json"),
        ({"kind": "voc"}, "holds neither VOC2007"),
    ],
)
def test_what_can_not_work_is_said_and_nothing_is_written(in_tmp: Path, changes: dict[str, Any], message: str) -> None:
    pictures(in_tmp / "birds", changes.get("count", 80))
    given: dict[str, Any] = {
        "name": "birds",
        "kind": "folder",
        "root": "birds",
        "like": "small",
        "hours": 1.0,
    } | changes
    with pytest.raises(MlsError, match=message):
        start(given["name"], given["kind"], in_tmp / given["root"], given["like"], given["hours"], second)
    assert not Path("experiments").exists() and not Path("data.lock").exists()


@pytest.mark.parametrize(
    ("like", "images", "batch", "queue", "topk"),
    [
        ("small", 32, 8, 8, 2),
        ("small", 900, 64, 64, 2),
        ("small", 2_077, 128, 256, 6),
        ("small", 118_000, 128, 4096, 20),
        ("paper", 2_048, 256, 256, 6),
        ("paper", 10_000, 256, 1024, 20),
        ("paper", 118_000, 256, 4096, 20),
    ],
)
def test_batch_and_dictionary_follow_the_number_of_images(
    in_tmp: Path, like: str, images: int, batch: int, queue: int, topk: int
) -> None:
    found = replace(look("birds", entry_of("folder", pictures(in_tmp / "birds", 40))), counts={"train": images})
    recipe = write.choose(found, like)
    assert (recipe.batch, recipe.queue, recipe.topk) == (batch, queue, topk)


@pytest.mark.parametrize("name", ["2024", "1e3", "null", "on", "a.b"])
def test_names_that_yaml_reads_otherwise_are_quoted(in_tmp: Path, name: str) -> None:
    root = pictures(in_tmp / "birds \U0001f426")
    loaded = load(start(name, "folder", root, None, 1.0, second))
    assert loaded.experiment.experiment == name and loaded.runs["mls"].dataset == name
    assert getattr(loaded.experiment.datasets[name], "root", None) == str(root)


def test_a_file_that_can_not_be_pinned_is_not_kept(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MlsError("the disk is full")

    monkeypatch.setattr(write, "pin", full)
    with pytest.raises(MlsError, match="full"):
        start("birds", "folder", pictures(in_tmp / "birds"), None, 1.0, second)
    assert not list(Path("experiments").iterdir()) and not Path("data.lock").exists()


def test_large_pictures_are_stored_smaller(in_tmp: Path) -> None:
    (in_tmp / "big").mkdir()
    for n in range(40):
        Image.new("RGB", (300, 200), (n, 0, 0)).save(in_tmp / "big" / f"{n}.png")
    config = load(start("big", "folder", in_tmp / "big", "small", 1.0, second)).experiment.datasets["big"]
    assert getattr(config, "short_side", None) == 128


def test_the_papers_recipe_is_the_schemas(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "PAPER_FEWEST", 40)
    monkeypatch.setattr(write, "choose", lambda p, like: write.Recipe(like, 224, None, 256, 512, 12, resident=False))
    config = load(start("birds", "folder", pictures(in_tmp / "birds"), "paper", 5.0, second)).runs["mls"]
    changed = {"dataset": "birds", "epochs": config.epochs, "moco": {"queue_size": 512}, "mls": {"topk": 12}}
    assert config == Pretrain.model_validate({"method": "mls", **changed})


def test_a_measurement_takes_real_steps(in_tmp: Path) -> None:
    found = look("birds", entry_of("folder", pictures(in_tmp / "birds")))
    small = {"name": "resnet18", "width": 0.125, "stem": "small"}
    config = Pretrain.model_validate(
        {"dataset": "birds", "backbone": small, "batch_size": 8, "augment": {"crop": 16}, "precision": "fp32"}
        | {"moco": {"queue_size": 16, "bn_splits": 1}, "mls": {"topk": 2}}
    )
    wide = config.model_copy(update={"augment": config.augment.model_copy(update={"crop": 96})})
    seconds = [seconds_per_image(one, found.samples, 1) for one in (config, wide)]
    assert 0 < seconds[0] < seconds[1], "36 times the pixels"


def test_a_damaged_picture_does_not_stop_the_measurement(in_tmp: Path) -> None:
    """torchvision's decoder would end the process at such a PNG."""
    for n in range(4):
        draw(in_tmp / "birds" / f"{n}.png", n)
    damaged = bytearray((in_tmp / "birds" / "0.png").read_bytes())
    damaged[len(damaged) // 2] ^= 255
    (in_tmp / "birds" / "0.png").write_bytes(damaged)
    config = Pretrain.model_validate({"dataset": "birds", "augment": {"crop": 16}})
    assert _load(config, sorted((in_tmp / "birds").iterdir())) > 0
    assert _load(config, [in_tmp / "birds" / "0.png"]) == 0


def test_the_written_experiment_runs_to_its_table(
    in_tmp: Path, run_mls: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command, as a person gives it; with fewer epochs than it chose."""
    pictures(in_tmp / "birds")
    (in_tmp / "params.yaml").touch()
    assert run_mls("init", "birds", "--folder", str(in_tmp / "birds"), "--hours", "0.5") == 0
    path = Path("experiments/birds.yaml")
    assert f"make reproduce EXPERIMENT={path}" in capsys.readouterr().out
    assert re.search(r"both trainings: about \d+ (s|min), extrapolated", path.read_text())
    shorter = path.read_text().replace(f"epochs: {load(path).runs['mls'].epochs}", "epochs: 1", 1)
    path.write_text(shorter)
    for command in (("data", "birds"), ("pretrain", "moco-v2"), ("pretrain", "mls"), ("tables", "birds"), ("show",)):
        assert run_mls(*command, "-e", str(path)) == 0, command
    assert "pretrain.info_nce" in capsys.readouterr().out
    assert "exported to torchvision's names, not to timm" in shorter
    assert run_mls("export", "mls", "--format", "torchvision", "-e", str(path)) == 0
    assert Path("mls-0-torchvision.safetensors").is_file()
    assert run_mls("export", "mls", "--format", "timm", "-e", str(path)) != 0


def test_images_that_can_not_be_opened_are_left_to_the_data_stage(in_tmp: Path) -> None:
    root = pictures(in_tmp / "birds", 40)
    (root / "0" / "000.jpg").write_bytes(b"no image")
    assert look("birds", entry_of("folder", root)).side == 40
    for file in root.rglob("*.jpg"):
        file.write_bytes(np.zeros(9, np.uint8).tobytes())
    with pytest.raises(MlsError, match="none of 40 images can be opened"):
        look("birds", entry_of("folder", root))


@pytest.mark.parametrize("hours", ["0", "-1", "nan", "inf", "two"])
def test_hours_are_a_number_above_zero(
    in_tmp: Path, run_mls: Run, capsys: pytest.CaptureFixture[str], hours: str
) -> None:
    (in_tmp / "params.yaml").touch()
    assert run_mls("init", "birds", "--folder", "birds", f"--hours={hours}") == 2
    assert "argument --hours" in capsys.readouterr().err
