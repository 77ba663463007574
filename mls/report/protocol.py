"""The protocol of a row or a task, and how it differs from the other rows' or from the paper's.

    pretraining_remarks(experiment, runs, ["moco-v2", "mls", "mls-800"])     # {"mls-800": "800 epochs instead of ..."}
    against_paper(experiment, runs["mls"], beside, "mls", "detect.box_AP")   # "" if it is the paper's protocol

A table never mixes protocols silently: every remark is printed as a mark and a note.
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
    """A data set in words: its source and every key that is not at its default, except the seed of scenes."""
    params = identity_params(dataset)
    return ", ".join([str(params.pop("source")), *(f"{key} {value}" for key, value in params.items() if key != "seed")])


_FPN = Detectron2Detector(kind="instance", backend="detectron2", dataset="coco")
_HEADS = (_FPN, _FPN.model_copy(update={"box_head": "2fc", "head_norm": "none"}))
PAPER_TASKS: dict[str, tuple[BaseModel, ...]] = {
    **dict.fromkeys(("1", "6", "7", "8", "5a", "5b"), _HEADS),
    "2": (Detectron2Detector(kind="instance", backend="detectron2", dataset="coco", architecture="c4"),),
    "3": tuple(SemanticTransfer(kind="semantic", dataset="cityscapes", head=head) for head in ("psp", "psa")),
    "4": (
        Detectron2Detector(
            kind="detection",
            backend="detectron2",
            dataset="voc0712",
            architecture="c4",
            iterations=24_000,
            warmup_steps=100,
            steps=[0.75, 0.9167],
            train_sizes=[480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800],
        ),
    ),
}
"""Table of the paper -> how it trains and tests, as in experiments/paper-*.yaml; several where the paper does not state
its box head, or where columns differ (`HEAD_OF_COLUMN`). For Table 5 the paper states little more than 120 epochs of
fine-tuning."""
HEAD_OF_COLUMN = {"PSPNet": "psp", "PSANet": "psa"}
"""First word of a column of Table 3 -> head."""
TUNING_EPOCHS = 120
"""For the top-1 data sets of Table 5."""
TASK_IMAGES = {
    "3": "cityscapes",
    "4": described(VocDataset(source="voc", train_sets=["2007/trainval", "2012/trainval"], test_sets=["2007/test"])),
}
"""Table -> its task's images, in words; all of COCO for the other transfers."""
TUNED_ON = {"VOC07": "voc", "Flowers": "flowers102"} | {
    column: column.lower() for column in ("CUB200", "Cars", "Aircraft", "Indoor67", "Pets", "DTD")
}
"""Column of Table 5 -> source of its images."""
METHOD_OF_ROW = {"Random": "none", "Supervised": "imagenet", "BYOL": "byol", "DenseCL": "densecl"}
METHOD_OF_ROW |= dict.fromkeys(("Baseline", "MoCo-v2"), "moco")
"""Row of the paper -> method here; ``MLS, 800 epochs`` and the other rows of the ablations are mls."""
STATED = ("optimizer.lr", "optimizer.weight_decay", *(f"moco.{k}" for k in Moco.model_fields if k != "bn_splits"))
"""Keys of ``pretrain`` whose values the paper states for MLS and its own baseline, in addition to all of ``mls``; they
are the schema's defaults. It states none for its other rows, which are copied or trained by others' recipes."""
ABLATED: dict[str, dict[str, tuple[str, Any]]] = {
    "6": {"+kNN": ("mls.terms", "knn"), "+BCE-pos": ("mls.terms", "bce_pos")},
    "7": {"Q_g only": ("mls.logit_space", "backbone"), "Q_z only": ("mls.label_space", "projection")},
    **{
        table: {row: (key, json.loads(row)) for row in TABLES[table].rows}
        for table, key in (("8", "mls.topk"), ("5a", "moco.queue_size"), ("5b", "mls.weight"))
    },
}
"""Table -> row -> the key that it ablates, and its value in that row."""


def pretraining_facts(run: Pretrain, datasets: Mapping[str, Dataset]) -> dict[str, str]:
    """What decides whether two pretrainings can be compared: network, data, schedule, resolution."""
    net = run.backbone
    facts = {"backbone": net.name + f" x {net.width:g}" * (net.width != 1) + f", {net.stem} stem"}
    if run.method in TRAINED:
        data = described(datasets[run.dataset or ""])
        facts |= {"data": data, "epochs": f"{run.epochs} epochs", "views": f"{run.augment.crop}-px views"}
    return facts


def changes(ours: Mapping[str, Any], theirs: Mapping[str, Any], named: bool = False) -> list[str]:
    """``800 epochs instead of 400 epochs`` for each key that both have with different values.

    Args:
        ours: key -> value.
        theirs: key -> value of what is compared with.
        named: begin with the key: ``mls.topk 5 instead of 20``.
    """
    return [
        f"{key} " * named + f"{ours[key]} instead of {theirs[key]}"
        for key in ours
        if key in theirs and ours[key] != theirs[key]
    ]


def pretraining_remarks(
    experiment: Experiment, runs: Mapping[str, Pretrain], rows: Sequence[str], baseline: str | None = None
) -> dict[str, str]:
    """Row whose pretraining differs from that of most rows -> how it differs.

    With a baseline also the differences ``<row> - <baseline>`` of two pretrainings that differ.
    """
    all_facts = {row: pretraining_facts(runs[row], experiment.datasets) for row in rows}
    keys = dict.fromkeys(key for facts in all_facts.values() for key in facts)
    usual = {key: Counter(f[key] for f in all_facts.values() if key in f).most_common(1)[0][0] for key in keys}
    compared = [(row, row, usual) for row in rows]
    if baseline is not None:
        compared += [(f"{row} - {baseline}", row, all_facts[baseline]) for row in rows if row != baseline]
    return {name: "; ".join(found) for name, row, theirs in compared if (found := changes(all_facts[row], theirs))}


# --------------------------------------------------------------------------------- against the paper


def against_paper(experiment: Experiment, run: Pretrain, beside: Beside, row: str, column: str) -> str:
    """How a cell's protocol differs from that of the paper's cell beside it; empty if nothing the paper states differs.

    Args:
        experiment: of the table.
        run: of the cell's row.
        beside: the paper's table.
        row: that claims one of its rows.
        column: ``<task>.<metric>``, that claims one of its columns.
    """
    config: Any = {**experiment.probe, **experiment.transfer}[column.split(".", 1)[0]]
    pretraining = _pretraining_against(experiment, run, beside.table, beside.claims[row])
    task = _task_against(config, beside.table, beside.columns[column], experiment.datasets[config.dataset])
    return "; ".join(pretraining + task)


def _pretraining_against(experiment: Experiment, run: Pretrain, table: str, name: str) -> list[str]:
    is_mls = table in ABLATED or name.startswith("MLS")
    method = METHOD_OF_ROW.get(name, "mls" if is_mls else name)
    if run.method != method:
        return [f"method {run.method} instead of {method}"]
    # the schema's defaults are the paper's values
    paper = Pretrain(dataset="coco", epochs=TABLES[table].rows[name].epochs or run.epochs)
    coco = CocoDataset(source="coco")
    datasets = {key: _with_usual_val(dataset) for key, dataset in experiment.datasets.items()}
    facts = pretraining_facts(run, datasets)
    found = changes(facts, pretraining_facts(paper, {"coco": coco}))
    if run.method == "imagenet" and run.imagenet != paper.imagenet:
        found.append(f"{run.imagenet.weights} instead of {paper.imagenet.weights}")
    used = experiment.datasets.get(run.dataset or "")
    if isinstance(used, CocoDataset) and facts.get("data") == described(coco):
        found.append(f"pretrained on COCO's train images less {100 * used.val_share:g} %")
    if method in ("mls", "moco") and (is_mls or name == "Baseline"):
        keys = [*STATED, *(f"mls.{key}" for key in Mls.model_fields if method == "mls")]
        ours, theirs = ({key: attrgetter(key)(one) for key in keys} for one in (run, paper))
        if name in (ablated := ABLATED.get(table, {})):
            theirs |= dict([ablated[name]])
        found += changes(ours, theirs, named=True)
    return found


def _task_against(config: Any, table: str, column: str, dataset: Dataset) -> list[str]:
    images = described(_with_usual_val(dataset))  # tasks train on val too in the end, so its share does not matter
    theirs = TUNED_ON[column] if table == "5" else TASK_IMAGES.get(table, "coco")
    found = [f"task on {images} instead of {theirs}"] if images != theirs else []
    if table == "5":
        if config.kind != "finetune":
            return [*found, f"{config.kind} instead of finetune"]
        other = column != "VOC07" and config.epochs != TUNING_EPOCHS
        return found + [f"{config.epochs} epochs of fine-tuning instead of {TUNING_EPOCHS}"] * other
    given, *papers = (identity_params(one, defaults=True) for one in (config, *PAPER_TASKS[table]))
    candidates = [one for one in papers if one.get("head") == HEAD_OF_COLUMN.get(column.split()[0])]
    asked = candidates[0]
    for key in ("kind", "backend", "architecture", "head"):  # if one differs, the other keys mean something else
        if given.get(key) != asked.get(key):
            return [*found, f"{key} {given.get(key, 'none')} instead of {asked.get(key, 'none')}"]
    return found + min((changes({key: given[key] for key in one}, one, named=True) for one in candidates), key=len)


def _with_usual_val(dataset: Dataset) -> Dataset:
    """The data set with its source's own ``val_share``."""
    field = type(dataset).model_fields.get("val_share")
    return dataset.model_copy(update={"val_share": field.default}) if field else dataset
