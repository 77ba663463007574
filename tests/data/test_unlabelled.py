"""A folder of images without labels: all of them train, at any depth, and only pretraining may use them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from mls.config.datasets import FolderDataset
from mls.data.folder import read_listing
from mls.download.reader import Reader
from mls.pipeline.plan import plan_file
from mls.runtime.errors import MlsError
from tests.conftest import SMALL, plan_of, small

CONFIG = FolderDataset(source="folder", labels=False)


def draw(file: Path, seed: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels_HW3 = np.random.default_rng(seed).integers(256, size=(40, 40, 3), dtype=np.uint8)
    kinds = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".gif": "GIF"}
    Image.fromarray(pixels_HW3).save(file, kinds[file.suffix.lower()])


def test_every_image_at_any_depth_is_a_train_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["b.JPG", "a/deep/er/c.png", "a/b.webp", "a/a.gif", "z.jpeg"]
    for name in names:
        draw(tmp_path / name)
    for other in ("notes.txt", "a/labels.csv", ".hidden.jpg", ".trash/d.jpg"):
        draw(tmp_path / "b.JPG")
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes(b"x")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "a")
    elsewhere = tmp_path.with_name("elsewhere")
    draw(elsewhere / "linked.jpg")
    (tmp_path / "more").symlink_to(elsewhere)
    listing = read_listing(CONFIG, Reader(tmp_path))
    assert [entry.name for entry in listing.entries] == sorted([*names, "more/linked.jpg"])
    assert {entry.split for entry in listing.entries} == {"train"} and listing.classes == []
    assert "2 files that are not images by their names are left out" in capsys.readouterr().err


def test_fewer_than_two_images_are_an_error(tmp_path: Path) -> None:
    draw(tmp_path / "one.jpg")
    with pytest.raises(MlsError, match="holds 1 images"):
        read_listing(CONFIG, Reader(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    draw(tmp_path / "a" / "one.jpg")
    (tmp_path / "a").chmod(0)
    with pytest.raises(MlsError, match="a can't be read"):
        read_listing(CONFIG, Reader(tmp_path))


def test_without_labels_csv_the_error_says_both_ways(tmp_path: Path) -> None:
    with pytest.raises(MlsError, match=r"labels\.csv is missing; write it or, .* set labels: false"):
        read_listing(FolderDataset(source="folder"), Reader(tmp_path))


def test_tasks_on_a_set_without_labels_are_refused() -> None:
    data = {"datasets": {**SMALL["datasets"], "birds": {"source": "folder", "labels": False}}}
    task = {"linear": {**SMALL["probe"]["linear"], "dataset": "birds"}}
    with pytest.raises(
        MlsError, match=r"probe\.linear\.dataset: 'birds' has no labels, so only pretraining can use it"
    ):
        plan_of(small(**data, probe=task))
    with pytest.raises(MlsError, match="val_share without effect"):
        plan_of(small(datasets={**SMALL["datasets"], "birds": {"source": "folder", "labels": False, "val_share": 0.2}}))


def test_a_run_pretrains_on_it_and_is_probed_on_another_set(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch, run_mls: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for n in range(20):
        draw(in_tmp / "pictures" / f"{n % 3}" / f"{n}.jpg", n)
    data = {"birds": {"source": "folder", "root": str(in_tmp / "pictures"), "labels": False}}
    raw = small(datasets={**SMALL["datasets"], **data}, pretrain={**SMALL["pretrain"], "dataset": "birds"})
    YAML().dump(raw, in_tmp / "params.yaml")
    for command in (("data", "birds", "--pin"), ("data", "scenes"), ("data", "check", "birds"), ("pretrain", "mls")):
        assert run_mls(*command) == 0, command
    assert run_mls("draw", "mls:0") == 0 and run_mls("features", "linear/mls") == 0
    assert run_mls("probe", "linear/mls") == 0
    plan = plan_file(Path("params.yaml"))
    (job,) = plan.find("pretrain", "mls")
    metrics = json.loads((job.path / "metrics.json").read_text())
    assert metrics["info_nce"] > 0 and "agreement" not in metrics and "knn" not in metrics
    assert json.loads((job.path / "params.json").read_text())["derived"]["train_images"] == 20
