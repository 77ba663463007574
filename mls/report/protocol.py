"""Which protocol a row or a task follows, and in what it differs from the other rows' or from the paper's.

    remarks(experiment, runs, ["moco-v2", "mls", "mls-800"])      # {"mls-800": "800 epochs instead of 400 epochs"}
    against_paper(experiment, runs["mls"], beside, "mls", "detect.box_AP")   # "" where it is the paper's protocol

A table never mixes protocols unseen: whatever is said here is printed as a mark and a note.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

from pydantic import BaseModel

from mls.config.datasets import CocoDataset, Dataset, VocDataset
from mls.config.experiment import Experiment, Pretrain
from mls.config.identity import identity_params
from mls.config.methods import TRAINED, Mls, Moco
from mls.config.paper import TABLES, Beside
from mls.config.transfers import Detectron2Detector, SemanticTransfer


def described(dataset: Dataset) -> str:
    """A data set in words: its source and every key that is not at its default (of scenes all that matter)."""
    told = identity_params(dataset)
    words = [str(told.pop("source")), *(f"{key} {value}" for key, value in told.items() if key != "seed")]
    return ", ".join(words)


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
TUNING_EPOCHS = 120
"""Of the sets of top-1 in Table 5."""
IMAGES = {
    "3": "cityscapes",
    "4": described(VocDataset(source="voc", train_sets=["2007/trainval", "2012/trainval"], test_sets=["2007/test"])),
}
"""Table -> its task's images, in words; of the other transfers COCO, whole."""
TUNED_ON = {
    "VOC07": "voc",
    "CUB200": "cub200",
    "Flowers": "flowers102",
    "Cars": "cars",
    "Aircraft": "aircraft",
    "Indoor67": "indoor67",
    "Pets": "pets",
    "DTD": "dtd",
}
"""Column of Table 5 -> source of its images."""

METHODS = {
    "Random": "none",
    "Supervised": "imagenet",
    "Baseline": "moco",
    "MoCo-v2": "moco",
    "BYOL": "byol",
    "DenseCL": "densecl",
}
"""Row of the paper -> method here; of the ablations' others and of ``MLS, 800 epochs`` mls."""
STATED = ("optimizer.lr", "optimizer.weight_decay", *(f"moco.{k}" for k in Moco.model_fields if k != "bn_splits"))
"""Keys of ``pretrain`` whose values the paper states for MLS and its own baseline, and all of ``mls``; the schema's
defaults are those values. Of its other rows, copied or trained by others' recipes, it states none."""
ABLATED: dict[str, dict[str, tuple[str, Any]]] = {
    "6": {"+kNN": ("mls.terms", "knn"), "+BCE-pos": ("mls.terms", "bce_pos")},
    "7": {"Q_g only": ("mls.logit_space", "backbone"), "Q_z only": ("mls.label_space", "projection")},
    **{
        table: {row: (key, json.loads(row)) for row in TABLES[table].rows}
        for table, key in (("8", "mls.topk"), ("5a", "moco.queue_size"), ("5b", "mls.weight"))
    },
}
"""Table -> row -> the key that it ablates, and its value there."""

Facts = dict[str, str]


def tested_on(dataset: Dataset) -> str:
    """`described`, less how much of train is val: tasks train on both in the end."""
    fields = type(dataset).model_fields
    whole = {"val_share": fields["val_share"].default} if "val_share" in fields else {}
    return described(dataset.model_copy(update=whole))


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


def remarks(
    experiment: Experiment, runs: Mapping[str, Pretrain], rows: Sequence[str], baseline: str | None = None
) -> dict[str, str]:
    """The rows whose pretraining is not that of most rows, and in what it differs.

    With a baseline also the differences ``<row> - <baseline>`` that are of two unlike pretrainings.
    """
    all_facts = {row: pretraining(runs[row], experiment.datasets) for row in rows}
    keys = dict.fromkeys(key for facts in all_facts.values() for key in facts)
    usual = {key: Counter(f[key] for f in all_facts.values() if key in f).most_common(1)[0][0] for key in keys}
    compared = [(row, row, usual) for row in rows]
    if baseline is not None:
        compared += [(f"{row} - {baseline}", row, all_facts[baseline]) for row in rows if row != baseline]
    return {name: text for name, row, against in compared if (text := differences(all_facts[row], against))}


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
    told = _pretraining_against(experiment, run, beside.table, beside.claims[row])
    config: Any = {**experiment.probe, **experiment.transfer}[column.split(".", 1)[0]]
    told += _task_against(config, beside.table, beside.columns[column], experiment.datasets[config.dataset])
    return "; ".join(told)


def _pretraining_against(experiment: Experiment, run: Pretrain, table: str, name: str) -> list[str]:
    of_mls = table in ABLATED or name.startswith("MLS")
    method = METHODS.get(name, "mls" if of_mls else name)
    if run.method != method:
        return [f"method {run.method} instead of {method}"]
    paper = Pretrain(dataset="coco", epochs=TABLES[table].rows[name].epochs or run.epochs)
    coco = CocoDataset(source="coco")
    facts = pretraining(run, experiment.datasets)
    told = [text] if (text := differences(facts, pretraining(paper, {"coco": coco}))) else []
    if run.method == "imagenet" and run.imagenet != paper.imagenet:
        told.append(f"{run.imagenet.weights} instead of {paper.imagenet.weights}")
    if facts.get("data") == described(coco):
        told.append(f"pretrained on COCO's train images less {100 * coco.val_share:g} %")
    if method in ("mls", "moco") and (of_mls or name == "Baseline"):
        keys = [*STATED, *(f"mls.{key}" for key in Mls.model_fields if method == "mls")]
        theirs = {key: attrgetter(key)(paper) for key in keys}
        if name in (ablated := ABLATED.get(table, {})):
            theirs |= dict([ablated[name]])
        ours = {key: attrgetter(key)(run) for key in keys}
        told += [f"{key} {ours[key]} instead of {theirs[key]}" for key in keys if ours[key] != theirs[key]]
    return told


def _task_against(config: Any, table: str, column: str, dataset: Dataset) -> list[str]:
    images, theirs = tested_on(dataset), TUNED_ON[column] if table == "5" else IMAGES.get(table, "coco")
    told = [f"task on {images} instead of {theirs}"] if images != theirs else []
    if table == "5":
        if config.kind != "finetune":
            return [*told, f"{config.kind} instead of finetune"]
        other = column != "VOC07" and config.epochs != TUNING_EPOCHS
        return told + [f"{config.epochs} epochs of fine-tuning instead of {TUNING_EPOCHS}"] * other
    asked, given = (identity_params(one, defaults=True) for one in (PAPER_TASKS[table], config))
    for key in ("kind", "backend", "architecture"):
        if given.get(key) != asked.get(key):
            return [*told, f"{key} {given.get(key, 'none')} instead of {asked.get(key, 'none')}"]
    return told + [f"{key} {given[key]} instead of {asked[key]}" for key in asked if given[key] != asked[key]]
