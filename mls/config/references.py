"""What an experiment file says that refers to nothing, and choices in it that can't go together.

problems = list(broken_references(raw, runs))        # one line each: dotted path, what is wrong
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from mls.config.datasets import SOURCES
from mls.config.experiment import Pretrain
from mls.config.identity import reads
from mls.config.methods import TRAINED
from mls.config.paper import TABLES
from mls.config.probes import metrics_of
from mls.config.transfers import KINDS

IMAGENET = {
    "resnet18": ("IMAGENET1K_V1",),
    "resnet34": ("IMAGENET1K_V1",),
    "resnet50": ("IMAGENET1K_V1", "IMAGENET1K_V2"),
    "resnet101": ("IMAGENET1K_V1", "IMAGENET1K_V2"),
}
"""Weights that torchvision publishes (written out, since planning imports no torchvision; a test compares)."""


def broken_references(raw: dict[str, Any], runs: Mapping[str, Pretrain | None]) -> Iterator[str]:
    """Yield a line for each: ``raw`` is the file as it was read, ``runs`` its resolved runs, None for a wrong one."""
    datasets, probes, transfers = (mapping(raw.get(key)) for key in ("datasets", "probe", "transfer"))
    yield from _of_runs(runs, datasets)
    for section, tasks in (("probe", probes), ("transfer", transfers)):
        yield from _of_tasks(section, tasks, datasets)
    yield from _of_detectron2(transfers, runs)
    yield from (f"transfer.{name}: probe has a task of this name too" for name in probes if name in transfers)
    yield from _of_tables(mapping(raw.get("tables")), {**probes, **transfers}, datasets, runs)
    yield from _of_plots(mapping(raw.get("tables")), runs)
    yield from _of_draw(as_list(raw.get("draw")), runs)


def _of_runs(runs: Mapping[str, Pretrain | None], datasets: dict[str, Any]) -> Iterator[str]:
    for name, run in runs.items():
        if run is None:
            continue
        where = f"runs.{name}"
        if run.method in TRAINED and run.dataset not in datasets:
            yield f"{where}.dataset: {run.dataset!r} is not in datasets{nearest(run.dataset, datasets)}"
        if run.method == "weights" and run.weights is None:
            yield f"{where}.weights: method 'weights' needs weights.file and weights.sha256"
        if run.method == "imagenet" and run.imagenet.weights not in IMAGENET[run.backbone.name]:
            yield f"{where}.imagenet.weights: {run.backbone.name} has {' and '.join(IMAGENET[run.backbone.name])} alone"
        if run.method == "imagenet" and (run.backbone.width != 1.0 or run.backbone.stem != "imagenet"):
            yield f"{where}.backbone: torchvision's weights need width 1.0 and stem imagenet"
        if run.method in TRAINED and run.batch_size % run.moco.bn_splits:
            yield f"{where}.moco.bn_splits: {run.moco.bn_splits} groups do not divide batch_size {run.batch_size}"
        elif run.method in TRAINED and run.batch_size == run.moco.bn_splits:
            yield f"{where}.moco.bn_splits: batch norm needs groups of 2 images at least, not of 1"
        if run.method == "mls" and run.mls.topk > run.moco.queue_size:
            yield f"{where}.mls.topk: {run.mls.topk} is more than moco.queue_size ({run.moco.queue_size})"
        if run.method == "mls" and run.mls.bias == "prior" and run.mls.topk == run.moco.queue_size:
            yield f"{where}.mls.bias: topk = moco.queue_size makes every entry positive; log(k / (D - k)) is infinite"
        if run.method == "mls" and run.mls.label_space == "truth" and run.mls.enqueue != "after":
            yield f"{where}.mls.enqueue: label_space 'truth' needs 'after'"
        if run.method == "mls" and run.mls.warmup_epochs + run.mls.ramp_epochs > run.epochs:
            yield f"{where}.mls.warmup_epochs: warm-up and ramp take more than all {run.epochs} epochs"
        if run.method in TRAINED and run.optimizer.warmup_epochs >= run.epochs:
            yield f"{where}.optimizer.warmup_epochs: takes all {run.epochs} epochs; none are left for the cosine"


def _of_tasks(section: str, tasks: dict[str, Any], datasets: dict[str, Any]) -> Iterator[str]:
    for name, task in tasks.items():
        dataset, kind = mapping(task).get("dataset"), str(mapping(task).get("kind"))
        source = str(mapping(datasets.get(str(dataset))).get("source"))
        known, transfer = SOURCES.get(source), KINDS.get(kind)
        if known and transfer and known.annotations not in transfer.trained_on:
            wanted = ", or on ".join(transfer.trained_on)
            yield f"{section}.{name}.dataset: {dataset!r} has {known.annotations}; kind {kind!r} is trained on {wanted}"
        if mapping(task).get("low_shot") and known and known.multi_label is False:
            yield f"{section}.{name}.low_shot: {dataset!r} has one label an image; low-shot SVMs need several"
        if dataset is not None and str(dataset) not in datasets:
            yield f"{section}.{name}.dataset: {dataset!r} is not in datasets{nearest(dataset, datasets)}"


def _of_detectron2(transfers: dict[str, Any], runs: Mapping[str, Pretrain | None]) -> Iterator[str]:
    """Its ResNets are torchvision's own; those with heads on C4 have bottlenecks."""
    for name, task in transfers.items():
        if mapping(task).get("backend") != "detectron2":
            continue
        plain = {run: r.backbone for run, r in runs.items() if r is not None}
        other = [run for run, net in plain.items() if net.width != 1.0 or net.stem != "imagenet"]
        if other:
            yield (
                f"transfer.{name}.backend: Detectron2's ResNets have width 1.0 and stem imagenet, "
                f"but not those of {', '.join(other)}; 'torchvision' takes any"
            )
        shallow = [run for run, net in plain.items() if net.name in ("resnet18", "resnet34")]
        if mapping(task).get("architecture") == "c4" and shallow:
            yield f"transfer.{name}.architecture: 'c4' needs resnet50 or resnet101, which {', '.join(shallow)} are not"


def _of_tables(
    tables: dict[str, Any], tasks: dict[str, Any], datasets: dict[str, Any], runs: Mapping[str, Pretrain | None]
) -> Iterator[str]:
    for table, body in tables.items():
        for row in as_list(mapping(body).get("rows")):
            if str(row) not in runs:
                yield f"tables.{table}.rows: {row!r} is not in runs{nearest(row, runs)}"
        rows, baseline = mapping(body).get("rows"), mapping(body).get("baseline")
        rows = list(runs) if rows is None else as_list(rows)
        if isinstance(baseline, str) and baseline not in rows:
            yield f"tables.{table}.baseline: {baseline!r} is not a row of this table{nearest(baseline, rows)}"
        yield from _of_paper(f"tables.{table}.paper", mapping(body), [str(row) for row in rows])
        for column in as_list(mapping(body).get("not_implemented")):
            if str(column).partition(".")[0] in tasks or "." not in str(column):
                yield f"tables.{table}.not_implemented: {column!r} is not <what is not a task here>.<metric>"
        for column in as_list(mapping(body).get("columns")):
            task, _, metric = str(column).partition(".")
            source = str(mapping(datasets.get(str(mapping(tasks.get(task)).get("dataset")))).get("source"))
            several = SOURCES[source].multi_label if source in SOURCES else None
            known = metrics_of(mapping(tasks.get(task)), several, source)
            if task not in tasks:
                yield f"tables.{table}.columns: {column!r}: no probe or transfer task {task!r}{nearest(task, tasks)}"
            elif known and metric not in known:
                yield f"tables.{table}.columns: {column!r}: task {task!r} gives {', '.join(known)}"


def _of_paper(where: str, table: dict[str, Any], rows: list[str]) -> Iterator[str]:
    """What a table's ``paper`` names that is not there; wrong types are the schema's to say."""
    section = mapping(table.get("paper"))
    number, columns = section.get("table"), [str(column) for column in as_list(table.get("columns"))]
    reported = TABLES.get(number) if isinstance(number, str) else None
    if isinstance(number, str) and reported is None:
        yield f"{where}.table: the paper has no table {number!r}{nearest(number, TABLES)}"
    for ours, claimed in mapping(section.get("rows")).items():
        if ours not in rows:
            yield f"{where}.rows.{ours}: {ours!r} is not a row of this table{nearest(ours, rows)}"
        if reported and isinstance(claimed, str) and claimed not in reported.rows:
            told = f"table {number} of the paper has no row {claimed!r}{nearest(claimed, reported.rows)}"
            yield f"{where}.rows.{ours}: {told}"
    claims = [str(claimed) for claimed in mapping(section.get("columns")).values()]
    for twice in sorted({claimed for claimed in claims if claims.count(claimed) > 1}):
        yield f"{where}.columns: two columns claim the paper's {twice!r}; make a table for each"
    for ours, claimed in mapping(section.get("columns")).items():
        if ours not in columns:
            yield f"{where}.columns.{ours}: {ours!r} is not a column of this table{nearest(ours, columns)}"
        if reported and isinstance(claimed, str) and claimed not in reported.columns:
            told = f"table {number} of the paper has no column {claimed!r}{nearest(claimed, reported.columns)}"
            yield f"{where}.columns.{ours}: {told}"
        elif reported and isinstance(claimed, str) and reported.columns[claimed] != str(ours).partition(".")[2]:
            metric = reported.columns[claimed]
            yield f"{where}.columns.{ours}: the paper's {claimed!r} is {metric}, and only equal metrics can be compared"


def _of_plots(tables: dict[str, Any], runs: Mapping[str, Pretrain | None]) -> Iterator[str]:
    """What ``plot`` asks of a table; its rows are judged by `_of_tables`."""
    for table, body in tables.items():
        where, key = f"tables.{table}.plot", mapping(body).get("plot")
        if not isinstance(key, str):
            continue
        if key not in (known := keys_of(Pretrain)):
            yield f"{where}: {key!r} is no key of pretrain{nearest(key, known)}"
            continue
        rows = mapping(body).get("rows")
        wanted = {str(row): runs.get(str(row)) for row in (runs if rows is None else as_list(rows))}
        if None in wanted.values():
            continue
        points = plotted_points(key, {row: run for row, run in wanted.items() if run}, mapping(body).get("baseline"))
        if len(points) < 2:
            yield f"{where}: needs at least two rows whose method reads {key}; they are: {', '.join(points) or 'none'}"
        seen: dict[Any, str] = {}
        for row, value in points.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                yield f"{where}: row {row!r} has {key} = {value!r}, which is no number; plot a key that is one"
            elif value in seen:
                yield (
                    f"{where}: rows {seen[value]!r} and {row!r} both have {key} = {value!r}; leave one out of "
                    f"tables.{table}.rows, or make a table of its own for it"
                )
            else:
                seen[value] = row


def plotted_points(key: str, rows: Mapping[str, Pretrain], baseline: str | None) -> dict[str, Any]:
    """Row -> its value of a dotted key, for the rows of a table that are points of its ``plot``.

    Rows whose method does not read the key have no value of their own; neither has a baseline of another method than
    all other rows, though it may read the key: it is what the sweep is compared with.
    """
    reading = {row: run for row, run in rows.items() if reads(run.method, key)}
    others = {run.method for row, run in reading.items() if row != baseline}
    return {
        row: functools.reduce(getattr, key.split("."), run)
        for row, run in reading.items()
        if row != baseline or run.method in others
    }


def keys_of(section: type[BaseModel]) -> list[str]:
    """Dotted keys of all values of a section and the sections in it."""
    keys = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += [f"{name}.{key}" for key in keys_of(inner)]
        else:
            keys.append(name)
    return keys


def _of_draw(drawn: list[Any], runs: Mapping[str, Pretrain | None]) -> Iterator[str]:
    can = [name for name, run in runs.items() if run is not None and run.method in TRAINED]
    for number, name in enumerate(drawn):
        run = runs.get(str(name))
        if str(name) not in runs:
            yield f"draw: {name!r} is not in runs{nearest(name, runs)}"
        elif name in drawn[:number]:
            yield f"draw: {name!r} is named twice"
        elif run is not None and run.method not in TRAINED:
            yield (
                f"draw: {name!r} has method {run.method!r}, which trains nothing and keeps no dictionary to draw"
                f"{nearest(name, can)}"
            )


def mapping(value: Any) -> dict[str, Any]:
    """The value, or an empty mapping where it is none (the schema says so)."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """The value, or an empty list where it is none."""
    return value if isinstance(value, list) else []


def nearest(name: Any, known: Any) -> str:
    """The end of a message: the known name that a wrong one is most like, or all of them."""
    names = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else (f"; known: {', '.join(names)}" if names else "")
