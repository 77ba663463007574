"""The paper's experiments hold what their sources say, and what docs/protocols.md and docs/classification.md claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mls.config.experiment import Experiment
from mls.config.load import load
from mls.config.probes import FinetuneProbe
from mls.config.transfers import Detectron2Detector

ROOT = Path(__file__).parents[2]
FILES = sorted(path.stem for path in (ROOT / "experiments").glob("paper-*.yaml"))
PLAIN, RESIZED = 256, None
"""``augment.resize`` of a plain crop, and of a random resized one."""
RECIPES: dict[str, tuple[Any, ...]] = {
    # epochs, lr, schedule, weight decay, augment.resize, batchnorm, mixup
    "cub200": (120, 0.1, "cosine", 5e-4, PLAIN, "train", 0.0),
    "cub200-mixup": (120, 0.1, "cosine", 5e-4, PLAIN, "train", 1.0),
    "cub200-30": (30, 0.01, "step", 5e-4, RESIZED, "train", 0.0),
    "pets": (120, 0.01, "step", 5e-4, RESIZED, "train", 0.0),
    "cars": (120, 0.001, "step", 5e-4, RESIZED, "frozen", 0.0),
    "aircraft": (120, 0.001, "step", 5e-4, RESIZED, "frozen", 0.0),  # its script: 60 epochs
    "voc07-224": (60, 0.01, "cosine", 1e-5, PLAIN, "frozen", 0.0),
    "flowers102": (120, 0.01, "step", 5e-4, RESIZED, "train", 0.0),  # no script: as Pets
    "dtd": (120, 0.01, "step", 5e-4, RESIZED, "train", 0.0),
}
"""S3L's scripts at b2dff93e: main_train.sh and main_train_mixup.sh, and the folders of classification_benchmark."""


def experiment(name: str) -> Experiment:
    """Load one of the paper's files."""
    return load(ROOT / "experiments" / f"{name}.yaml").experiment


@pytest.mark.parametrize("task", RECIPES)
def test_each_set_of_table_5_has_its_scripts_recipe(task: str) -> None:
    config = experiment("paper-table5").probe[task]
    assert isinstance(config, FinetuneProbe)
    found = (config.epochs, config.lr, config.schedule, config.weight_decay)
    assert (*found, config.augment.resize, config.batchnorm, config.mixup) == RECIPES[task]
    assert (config.batch_size, config.momentum, config.augment.crop, config.resize) == (64, 0.9, 224, 256)
    assert config.augment.scale == [0.08, 1.0], "torchvision's default, which S3L takes"
    if config.schedule == "step":
        thirds = [config.epochs / 3, config.epochs / 1.5]
        assert [share * config.epochs for share in config.steps] == pytest.approx(thirds, abs=0.01)


def test_every_recipe_of_table_5_is_checked() -> None:
    tuned = {name for name, task in experiment("paper-table5").probe.items() if task.kind == "finetune"}
    assert tuned - set(RECIPES) == {"voc07", "coco-tuned"}, "these two are CSRA's"


@pytest.mark.parametrize("name", FILES)
def test_pretraining_sees_nearly_all_of_coco(name: str) -> None:
    coco: Any = experiment(name).datasets["coco"]
    assert coco.val_share == 0.001


@pytest.mark.parametrize("name", FILES)
def test_wherever_fpn_is_used_both_box_heads_are(name: str) -> None:
    loaded = experiment(name)
    tasks = {key: task for key, task in loaded.transfer.items() if isinstance(task, Detectron2Detector)}
    fpn = {key: (one.box_head, one.head_norm, one.fpn_norm) for key, one in tasks.items() if one.architecture == "fpn"}
    if not fpn:
        return
    assert fpn == {"detect": ("4conv1fc", "SyncBN", "SyncBN"), "detect-2fc": ("2fc", "none", "SyncBN")}
    for title, table in loaded.tables.items():
        if any(column.startswith("detect.") for column in table.columns) and title != "heads":
            other = loaded.tables[f"{title}-2fc"]
            shared = [column for column in table.columns if column.startswith("detect.")]
            assert other.columns == [column.replace("detect.", "detect-2fc.") for column in shared], title
            assert (other.rows, other.baseline, other.plot) == (table.rows, table.baseline, table.plot)
            if table.paper and other.paper:
                assert (other.paper.table, other.paper.rows) == (table.paper.table, table.paper.rows)
                assert list(other.paper.columns.values()) == list(table.paper.columns.values())
            assert bool(table.paper) == bool(other.paper)
