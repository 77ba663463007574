"""Checks across sections of an experiment file: names that refer to nothing, and choices that can't be combined.

problems = list(broken_references(raw, runs))        # one line each: dotted path, what is wrong

They read the raw file, since a section that is wrong elsewhere must not hide a broken reference. They skip values of a
wrong type, which the schema reports.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from mls.config.datasets import DATASETS
from mls.config.experiment import Pretrain
from mls.config.feasible import unfeasible_run, unfeasible_task, unshared_batches
from mls.config.identity import reads
from mls.config.methods import LOGGED, PRETRAIN, TRAINED
from mls.config.paper import TABLES
from mls.config.probes import metrics_of
from mls.config.section import as_list, as_mapping, did_you_mean
from mls.config.transfers import KINDS

Raw = dict[str, Any]
Runs = Mapping[str, Pretrain | None]
"""Run or sweep point -> its params; None if the schema rejects them."""

SHALLOW = ("resnet18", "resnet34")
"""ResNets of basic blocks: torchvision has no second version of their weights, and they can't have heads on C4."""


def broken_references(raw: Raw, runs: Runs) -> Iterator[str]:
    """Yield one line per problem.

    Args:
        raw: the file as it was read.
        runs: its resolved runs and sweep points.
    """
    datasets, probes, transfers, tables = (
        {str(name): as_mapping(body) for name, body in as_mapping(raw.get(key)).items()}
        for key in ("datasets", "probe", "transfer", "tables")
    )
    for name, run in runs.items():
        if run is not None:
            problems = (*_of_run(run, datasets), *unfeasible_run(name, run, datasets))
            yield from (f"runs.{name}.{problem}" for problem in problems)
    for section, tasks in (("probe", probes), ("transfer", transfers)):
        for name, task in tasks.items():
            problems = (*_of_task(task, datasets, runs), *unfeasible_task(task, datasets, runs))
            yield from (f"{section}.{name}.{problem}" for problem in problems)
    yield from unshared_batches(as_mapping(raw.get("execution")), runs, transfers)
    yield from (f"transfer.{name}: probe has a task of this name too" for name in probes if name in transfers)
    for name, table in tables.items():
        yield from _of_table(f"tables.{name}", table, {**probes, **transfers}, datasets, runs)
    yield from _of_draw(as_list(raw.get("draw")), runs)


def _of_run(run: Pretrain, datasets: Mapping[str, Raw]) -> Iterator[str]:
    moco, mls, backbone = run.moco, run.mls, run.backbone
    if run.method in TRAINED:
        if run.dataset not in datasets:
            yield f"dataset: {run.dataset!r} is not in datasets{did_you_mean(run.dataset, datasets)}"
        if run.batch_size % moco.bn_splits:
            yield f"moco.bn_splits: {moco.bn_splits} groups do not divide batch_size {run.batch_size}"
        elif run.batch_size == moco.bn_splits:
            yield "moco.bn_splits: batch norm needs groups of at least 2 images, these have 1"
        if run.optimizer.warmup_epochs >= run.epochs:
            yield f"optimizer.warmup_epochs: must be less than epochs ({run.epochs}), or none are left for the cosine"
    if run.method == "weights" and run.weights is None:
        yield "weights: method 'weights' needs weights.file and weights.sha256"
    if run.method == "imagenet":
        if run.imagenet.weights == "IMAGENET1K_V2" and backbone.name in SHALLOW:
            yield f"imagenet.weights: torchvision only has IMAGENET1K_V1 for {backbone.name}"
        if not _is_torchvisions(run):
            yield "backbone: torchvision's weights need width 1.0 and stem imagenet"
    if run.method == "mls":
        if mls.topk > moco.queue_size:
            yield f"mls.topk: {mls.topk} is more than moco.queue_size ({moco.queue_size})"
        if mls.bias == "prior" and mls.topk == moco.queue_size:
            yield "mls.bias: topk = moco.queue_size makes every entry positive; log(k / (D - k)) is infinite"
        if mls.label_space == "truth" and mls.enqueue != "after":
            yield "mls.enqueue: label_space 'truth' needs 'after'"
        if mls.warmup_epochs + mls.ramp_epochs > run.epochs:
            yield f"mls.warmup_epochs: warm-up and ramp together take more than epochs ({run.epochs})"


def _is_torchvisions(run: Pretrain) -> bool:
    return run.backbone.width == 1.0 and run.backbone.stem == "imagenet"


def _of_task(task: Raw, datasets: Mapping[str, Raw], runs: Runs) -> Iterator[str]:
    dataset, kind = task.get("dataset"), str(task.get("kind"))
    known, transfer = DATASETS.get(_source(task, datasets)), KINDS.get(kind)
    if dataset is not None and str(dataset) not in datasets:
        yield f"dataset: {dataset!r} is not in datasets{did_you_mean(dataset, datasets)}"
    if datasets.get(str(dataset), {}).get("labels") is False:
        yield f"dataset: {dataset!r} has no labels, so only pretraining can use it"
    elif known and transfer and known.annotations not in transfer.trained_on:
        wanted = ", or on ".join(transfer.trained_on)
        yield f"dataset: {dataset!r} has {known.annotations}; kind {kind!r} is trained on {wanted}"
    if task.get("low_shot") and known and known.multi_label is False:
        yield f"low_shot: {dataset!r} has one label per image; low-shot SVMs need several"
    if task.get("backend") == "detectron2":
        unlike = [name for name, run in runs.items() if run and not _is_torchvisions(run)]
        shallow = [name for name, run in runs.items() if run and run.backbone.name in SHALLOW]
        if unlike:
            yield (
                "backend: Detectron2's ResNets have width 1.0 and stem imagenet, unlike those of "
                f"{', '.join(unlike)}; 'torchvision' takes any"
            )
        if task.get("architecture") == "c4" and shallow:
            yield f"architecture: 'c4' needs resnet50 or resnet101, unlike the backbone of {', '.join(shallow)}"


def _source(task: Raw, datasets: Mapping[str, Raw]) -> str:
    return str(datasets.get(str(task.get("dataset")), {}).get("source"))


def _of_table(
    where: str, table: Raw, tasks: Mapping[str, Raw], datasets: Mapping[str, Raw], runs: Runs
) -> Iterator[str]:
    rows = list(runs) if table.get("rows") is None else [str(row) for row in as_list(table["rows"])]
    columns, baseline = [str(column) for column in as_list(table.get("columns"))], table.get("baseline")
    for row in rows:
        if row not in runs:
            yield f"{where}.rows: {row!r} is not in runs{did_you_mean(row, runs)}"
    if isinstance(baseline, str) and baseline not in rows:
        yield f"{where}.baseline: {baseline!r} is not a row of this table{did_you_mean(baseline, rows)}"
    for column in columns:
        name, _, metric = column.partition(".")
        if name == PRETRAIN and name not in tasks:
            if metric not in LOGGED:
                yield f"{where}.columns: {column!r}: pretrain gives {', '.join(LOGGED)}"
            continue
        task, source = tasks.get(name, {}), _source(tasks.get(name, {}), datasets)
        known = metrics_of(task, DATASETS[source].multi_label if source in DATASETS else None, source)
        if name not in tasks:
            yield f"{where}.columns: {column!r}: no probe or transfer task {name!r}{did_you_mean(name, tasks)}"
        elif known and metric not in known:
            yield f"{where}.columns: {column!r}: task {name!r} gives {', '.join(known)}"
    for column in map(str, as_list(table.get("not_implemented"))):
        if column.partition(".")[0] in tasks or "." not in column:
            yield f"{where}.not_implemented: {column!r} must be <name>.<metric> with a name that is not a task here"
    yield from _of_paper(f"{where}.paper", as_mapping(table.get("paper")), rows, columns)
    if isinstance(key := table.get("plot"), str):
        yield from _of_plot(where, key, {row: runs.get(row) for row in rows}, baseline)


def _of_paper(where: str, paper: Raw, rows: list[str], columns: list[str]) -> Iterator[str]:
    number = paper.get("table")
    reported = TABLES.get(number) if isinstance(number, str) else None
    if isinstance(number, str) and reported is None:
        yield f"{where}.table: the paper has no table {number!r}{did_you_mean(number, TABLES)}"
    claims = as_mapping(paper.get("columns"))
    for kind, pairs, ours, theirs in (
        ("row", as_mapping(paper.get("rows")), rows, reported and reported.rows),
        ("column", claims, columns, reported and reported.columns),
    ):
        for own, claimed in pairs.items():
            if own not in ours:
                yield f"{where}.{kind}s.{own}: {own!r} is not a {kind} of this table{did_you_mean(own, ours)}"
            if theirs and isinstance(claimed, str) and claimed not in theirs:
                message = f"table {number} of the paper has no {kind} {claimed!r}{did_you_mean(claimed, theirs)}"
                yield f"{where}.{kind}s.{own}: {message}"
    for own, claimed in claims.items():
        metric = reported.columns.get(str(claimed)) if reported else None
        if metric and metric != str(own).partition(".")[2]:
            yield f"{where}.columns.{own}: the paper's {claimed!r} is {metric}, and only equal metrics can be compared"
    values = list(map(str, claims.values()))
    for twice in sorted({claimed for claimed in values if values.count(claimed) > 1}):
        yield f"{where}.columns: two columns claim the paper's {twice!r}; make a table for each"


def _of_plot(where: str, key: str, rows: Runs, baseline: Any) -> Iterator[str]:
    if key not in (known := dotted_keys(Pretrain)):
        yield f"{where}.plot: {key!r} is not a key of pretrain{did_you_mean(key, known)}"
        return
    good = {row: run for row, run in rows.items() if run is not None}
    if len(good) < len(rows):  # reported elsewhere
        return
    points = plotted_points(key, good, baseline)
    if len(points) < 2:
        found = ", ".join(points) or "none"
        yield f"{where}.plot: needs at least two rows whose method reads {key}; found: {found}"
    seen: dict[Any, str] = {}
    for row, value in points.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            yield f"{where}.plot: row {row!r} has {key} = {value!r}; plot a key whose value is a number"
        elif (other := seen.setdefault(value, row)) != row:
            yield (
                f"{where}.plot: rows {other!r} and {row!r} both have {key} = {value!r}; leave one of them out of "
                f"{where}.rows, or give it a table of its own"
            )


def plotted_points(key: str, rows: Mapping[str, Pretrain], baseline: str | None) -> dict[str, Any]:
    """Row -> its value of a dotted key, for the rows of a table that are points of its ``plot``.

    Rows whose method does not read the key are left out. So is the baseline if no other row uses its method, even if it
    reads the key: the sweep is compared with it.
    """
    reading = {row: run for row, run in rows.items() if reads(run.method, key)}
    others = {run.method for row, run in reading.items() if row != baseline}
    return {
        row: functools.reduce(getattr, key.split("."), run)
        for row, run in reading.items()
        if row != baseline or run.method in others
    }


def dotted_keys(section: type[BaseModel]) -> list[str]:
    """List the dotted keys of all values in a section and in its sections."""
    keys = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += [f"{name}.{key}" for key in dotted_keys(inner)]
        else:
            keys.append(name)
    return keys


def _of_draw(drawn: list[Any], runs: Runs) -> Iterator[str]:
    trained = [name for name, run in runs.items() if run is not None and run.method in TRAINED]
    for number, name in enumerate(drawn):
        run = runs.get(str(name))
        if str(name) not in runs:
            yield f"draw: {name!r} is not in runs{did_you_mean(name, runs)}"
        elif name in drawn[:number]:
            yield f"draw: {name!r} is named twice"
        elif run is not None and run.method not in TRAINED:
            yield (
                f"draw: {name!r} has method {run.method!r}, which trains nothing and keeps no dictionary to draw"
                f"{did_you_mean(name, trained)}"
            )
