"""Which protocol a row or a task follows, and in what it differs from the other rows' or from the paper's.

    remarks(experiment, runs, ["moco-v2", "mls", "mls-800"])      # {"mls-800": "800 epochs instead of 400"}
    against_paper(experiment, runs["mls"], beside, "mls", "detect.box_AP")   # "" where it is the paper's protocol

A table never mixes protocols unseen: whatever is said here is printed as a mark and a note.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from mls.experiment.datasets import CocoDataset, Dataset
from mls.experiment.identity import essence
from mls.experiment.methods import TRAINED
from mls.experiment.params import Experiment, Pretrain
from mls.experiment.transfers import Detectron2Detector, SemanticTransfer
from mls.report.paper import Beside

_FPN = Detectron2Detector(kind="instance", backend="detectron2", dataset="coco")
PAPER_TASKS: dict[str, BaseModel] = {
    **dict.fromkeys(("1", "6", "7", "8", "5a", "5b"), _FPN),
    "2": Detectron2Detector(kind="instance", backend="detectron2", dataset="coco", architecture="c4"),
    "3": SemanticTransfer(kind="semantic", dataset="cityscapes"),
    "4": Detectron2Detector(
        kind="detection",
        backend="detectron2",
        dataset="voc0712",
        architecture="c4",
        iterations=24_000,
        warmup_steps=100,
        steps=[0.75, 0.9167],
        train_sizes=[480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800],
    ),
}
"""Table of the paper -> how it trains and tests; experiments/paper-*.yaml say the same. Of Table 5 it states little
more than 120 epochs of fine-tuning."""
SOURCES = {"3": "cityscapes", "4": "voc"}
"""Table -> source of its task's images; of the others COCO, whole."""
TUNING_EPOCHS = 120
"""Of the sets of top-1 in Table 5."""

Facts = dict[str, str]


def described(dataset: Dataset) -> str:
    """A data set in words: its source and every key that is not at its default (of scenes all that matter)."""
    told = essence(dataset)
    words = [str(told.pop("source")), *(f"{key} {value}" for key, value in told.items() if key != "seed")]
    return ", ".join(words)


def pretraining(run: Pretrain, datasets: Mapping[str, Dataset]) -> Facts:
    """What decides whether two pretrainings can be compared: schedule, resolution, subset, network."""
    net = run.backbone
    facts = {"backbone": net.name + f" x {net.width:g}" * (net.width != 1) + f", {net.stem} stem"}
    if run.method in TRAINED:
        data = described(datasets[run.dataset or ""])
        facts |= {"data": data, "epochs": f"{run.epochs} epochs", "views": f"{run.augment.crop}-px views"}
    return facts


def differences(facts: Facts, usual: Facts) -> str:
    """``800 epochs instead of 400 epochs``; facts that only one of them has are none."""
    told = (f"{facts[key]} instead of {usual[key]}" for key in facts if key in usual and facts[key] != usual[key])
    return "; ".join(told)


def remarks(experiment: Experiment, runs: Mapping[str, Pretrain], rows: Sequence[str]) -> dict[str, str]:
    """The rows whose pretraining is not that of most rows, and in what it differs."""
    all_facts = {row: pretraining(runs[row], experiment.datasets) for row in rows}
    keys = dict.fromkeys(key for facts in all_facts.values() for key in facts)
    usual = {key: Counter(f[key] for f in all_facts.values() if key in f).most_common(1)[0][0] for key in keys}
    return {row: text for row, facts in all_facts.items() if (text := differences(facts, usual))}


# --------------------------------------------------------------------------------- against the paper


def against_paper(experiment: Experiment, run: Pretrain, beside: Beside, row: str, column: str) -> str:
    """In what a cell differs from the protocol of the paper's cell beside it; empty where in nothing that it states.

    Args:
        experiment: of the table.
        run: that the cell's row is of.
        beside: the paper's table.
        row: that claims one of its rows.
        column: ``<task>.<metric>``, that claims one of its columns.
    """
    reported = beside.reported.rows[beside.claims[row]]
    told = [*_pretraining_against(experiment, run, reported.data, reported.epochs)]
    config: Any = {**experiment.probe, **experiment.transfer}[column.split(".", 1)[0]]
    told += _task_against(config, beside.table, beside.columns[column], experiment.datasets[config.dataset])
    return "; ".join(told)


def _pretraining_against(experiment: Experiment, run: Pretrain, data: str, epochs: int | None) -> list[str]:
    method = {"": "none", "ImageNet": "imagenet"}.get(data)
    if method and run.method != method:
        return [f"method {run.method} instead of {method}"]
    paper = Pretrain(dataset="coco", epochs=epochs or run.epochs)
    theirs = pretraining(paper, {"coco": CocoDataset(source="coco")})
    return [text] if (text := differences(pretraining(run, experiment.datasets), theirs)) else []


def _task_against(config: Any, table: str, column: str, dataset: Dataset) -> list[str]:
    told = []
    if table == "5":
        if config.kind != "finetune":
            return [f"{config.kind} instead of finetune"]
        other = column != "VOC07" and config.epochs != TUNING_EPOCHS
        return [f"{config.epochs} epochs of fine-tuning instead of {TUNING_EPOCHS}"] if other else []
    source = SOURCES.get(table, "coco")
    images = described(dataset)
    if images.split(",")[0] != source or (source == "coco" and images != source):
        told.append(f"task on {images} instead of {source}")
    theirs, ours = (essence(one, defaults=True) for one in (PAPER_TASKS[table], config))
    for key in ("kind", "backend", "architecture"):
        if ours.get(key) != theirs.get(key):
            return [*told, f"{key} {ours.get(key, 'none')} instead of {theirs.get(key, 'none')}"]
    return told + [f"{key} {ours[key]} instead of {theirs[key]}" for key in theirs if ours[key] != theirs[key]]
