"""Read an experiment file; report everything that is wrong with it at once, in words.

experiment = load(Path("params.yaml"))        # an Experiment, or ExperimentError
"""

from __future__ import annotations

import difflib
import itertools
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mls.errors import MlsError
from mls.experiment.datasets import ClassificationDataset
from mls.experiment.params import Experiment, Pretrain
from mls.experiment.tasks import metrics_of
from mls.report.paper import problems as problems_of_paper

TRAINED = ("mls", "moco", "densecl", "byol", "slotcon")
"""Methods that train, and therefore read a dataset."""


IMAGENET = {
    "resnet18": ("IMAGENET1K_V1",),
    "resnet34": ("IMAGENET1K_V1",),
    "resnet50": ("IMAGENET1K_V1", "IMAGENET1K_V2"),
    "resnet101": ("IMAGENET1K_V1", "IMAGENET1K_V2"),
}
"""Weights that torchvision publishes (written out, since planning imports no torchvision; a test compares)."""


SINGLE_LABEL = typing.get_args(ClassificationDataset.model_fields["source"].annotation)
WITHOUT_MASKS = {
    **dict.fromkeys(("folder", *SINGLE_LABEL), "labels, but no boxes and masks"),
    "voc": "boxes, but no masks",
    "cityscapes": "index masks, but no boxes",
}
"""Sources that can't be trained on by kind ``instance``, and why."""


class ExperimentError(MlsError):
    """An experiment file that can't be used; the message lists every problem."""


@dataclass(frozen=True)
class Loaded:
    """An experiment and its rows, each fully resolved."""

    path: Path
    experiment: Experiment
    runs: dict[str, Pretrain]
    """Run or sweep-point name -> its parameters, in file order."""


def load(path: Path) -> Loaded:
    """Read and check an experiment file.

    Raises:
        ExperimentError: the file can't be read, isn't YAML, or has wrong content; the message
            lists every problem with its dotted path, the value and what is allowed.
    """
    return check(read_yaml(path), path)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the file's mapping (YAML 1.2: ``1e-4`` is a number; duplicate keys are errors)."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path}: can't be read ({error})") from error


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """Parse YAML text that must hold a mapping; ``name`` is used in errors."""
    try:
        raw = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise ExperimentError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ExperimentError(f"{name}: must hold a mapping of keys to values")
    return raw


def check(raw: dict[str, Any], path: Path) -> Loaded:
    """Validate a raw mapping; see `load`."""
    problems: list[str] = []
    experiment = None
    try:
        experiment = Experiment.model_validate(raw)
    except ValidationError as error:
        problems += _messages(error, Experiment)
    runs, run_problems = _resolve_runs(raw)
    problems += run_problems + list(_broken_references(raw, runs))
    if problems or experiment is None:
        lines = "\n".join(f"  - {problem}" for problem in dict.fromkeys(problems))
        raise ExperimentError(f"{path}: {len(set(problems))} problem(s)\n{lines}")
    return Loaded(path, experiment, {name: run for name, run in runs.items() if run is not None})


# -------------------------------------------------------------------------------------------- runs


def _resolve_runs(raw: dict[str, Any]) -> tuple[dict[str, Pretrain | None], list[str]]:
    """Merge each run over ``pretrain`` and expand the sweeps; None marks a run that is wrong."""
    base, runs, sweeps = (_mapping(raw.get(key)) for key in ("pretrain", "runs", "sweep"))
    problems: list[str] = []
    resolved: dict[str, Pretrain | None] = {}
    base_problems = _validate_run(base, ("pretrain",))[1]
    for name, override in runs.items():
        named = [(str(name), _mapping(override), ("runs", str(name)))]
        if name in sweeps:
            named += _grid(str(name), _mapping(override), _mapping(sweeps[name]))
        for label, values, where in named:
            run, found = _validate_run(_merged(base, values), where)
            problems += [p for p in found if p.replace(".".join(where), "pretrain", 1) not in base_problems]
            resolved[label] = run
    problems += [f"sweep.{name}: no run has this name{_nearest(name, runs)}" for name in sweeps if name not in runs]
    return resolved, problems


def _grid(name: str, override: dict[str, Any], sweep: dict[str, Any]) -> list[tuple[str, dict[str, Any], Any]]:
    """Every combination of the swept values, named ``run[key=value,...]`` by the keys' last parts."""
    short = [str(key).rsplit(".", 1)[-1] for key in sweep]
    keys = short if len(set(short)) == len(short) else [str(key) for key in sweep]
    points = []
    for values in itertools.product(*(v if isinstance(v, list) else [v] for v in sweep.values())):
        point = override
        for dotted, value in zip(sweep, values, strict=True):
            for part in reversed(str(dotted).split(".")):
                value = {part: value}
            point = _merged(point, value)
        label = f"{name}[{','.join(f'{k}={v}' for k, v in zip(keys, values, strict=True))}]"
        points.append((label, point, ("sweep", name)))
    return points


def _merged(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``override`` laid over it, mapping by mapping; neither is changed."""
    out = dict(base)
    for key, value in override.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _merged(out[key], value) if both else value
    return out


def _validate_run(values: dict[str, Any], where: tuple[str, ...]) -> tuple[Pretrain | None, list[str]]:
    try:
        return Pretrain.model_validate(values), []
    except ValidationError as error:
        return None, _messages(error, Pretrain, where)


# -------------------------------------------------------------------------------------- references


def _broken_references(raw: dict[str, Any], runs: Mapping[str, Pretrain | None]) -> Iterator[str]:
    """Names that refer to nothing, and choices that can't go together."""
    datasets, probes, transfers = (_mapping(raw.get(key)) for key in ("datasets", "probe", "transfer"))
    for name, run in runs.items():
        if run is None:
            continue
        where = f"runs.{name}"
        if run.method in TRAINED and run.dataset not in datasets:
            yield f"{where}.dataset: {run.dataset!r} is not in datasets{_nearest(run.dataset, datasets)}"
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
    for section, tasks in (("probe", probes), ("transfer", transfers)):
        for name, task in tasks.items():
            dataset = _mapping(task).get("dataset")
            source = str(_mapping(datasets.get(str(dataset))).get("source"))
            if _mapping(task).get("kind") == "instance" and source in WITHOUT_MASKS:
                yield f"{section}.{name}.dataset: {dataset!r} has {WITHOUT_MASKS[source]} for kind 'instance'"
            if _mapping(task).get("low_shot") and source in SINGLE_LABEL:
                yield f"{section}.{name}.low_shot: {dataset!r} has one label an image; low-shot SVMs need several"
            if dataset is not None and str(dataset) not in datasets:
                yield f"{section}.{name}.dataset: {dataset!r} is not in datasets{_nearest(dataset, datasets)}"
    yield from (f"transfer.{name}: probe has a task of this name too" for name in probes if name in transfers)
    tasks = {**probes, **transfers}
    for table, body in _mapping(raw.get("tables")).items():
        for row in _list(_mapping(body).get("rows")):
            if str(row) not in runs:
                yield f"tables.{table}.rows: {row!r} is not in runs{_nearest(row, runs)}"
        rows, baseline = _mapping(body).get("rows"), _mapping(body).get("baseline")
        rows = list(runs) if rows is None else _list(rows)
        if isinstance(baseline, str) and baseline not in rows:
            yield f"tables.{table}.baseline: {baseline!r} is not a row of this table{_nearest(baseline, rows)}"
        paper = _mapping(_mapping(body).get("paper"))
        yield from problems_of_paper(f"tables.{table}.paper", paper, map(str, rows), _nearest)
        for column in _list(_mapping(body).get("columns")):
            task, _, metric = str(column).partition(".")
            source = str(_mapping(datasets.get(str(_mapping(tasks.get(task)).get("dataset")))).get("source"))
            several = None if source == "folder" else source not in SINGLE_LABEL
            known = metrics_of(_mapping(tasks.get(task)), several)
            if task not in tasks:
                yield f"tables.{table}.columns: {column!r}: no probe or transfer task {task!r}{_nearest(task, tasks)}"
            elif known and metric not in known:
                yield f"tables.{table}.columns: {column!r}: task {task!r} gives {', '.join(known)}"


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


# ---------------------------------------------------------------------------------------- messages


def _messages(error: ValidationError, model: type[BaseModel], where: tuple[str, ...] = ()) -> list[str]:
    """One line per problem: dotted path, what is allowed, the value."""
    lines = []
    for item in error.errors():
        keys, section = _walk(model, item["loc"])
        path = ".".join((*where, *keys))
        if item["type"] == "extra_forbidden":
            lines.append(f"{path}: unknown key{_nearest(keys[-1], section)}")
        elif item["type"] == "missing":
            lines.append(f"{path}: is required")
        elif item["type"] == "union_tag_not_found":
            lines.append(f"{path}.{item['ctx']['discriminator'].strip(chr(39))}: is required")
        elif item["type"] == "value_error" and item["input"] and isinstance(item["input"], dict):  # the section's
            lines.append(f"{path}: {item['msg'].removeprefix('Value error, ')}")
        else:
            lines.append(f"{path}: {item['msg'].removeprefix('Value error, ')} (is {item['input']!r})")
    return lines


def _walk(model: Any, loc: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """Translate pydantic's location into the file's own path, and list the keys known there.

    pydantic puts the tag of a tagged union (``source``) into the location; the file has no
    such level.
    """
    keys: list[str] = []
    known: list[str] = []
    for part in loc:
        models = [m for m in _members(model) if isinstance(m, type) and issubclass(m, BaseModel)]
        tagged = [m for m in models if len(models) > 1 and part in _tags(m)]
        if tagged:
            model = tagged[0]
            continue
        if part == "[key]":
            continue
        keys.append(str(part))
        if models:
            known = list(models[0].model_fields)
            field = models[0].model_fields.get(str(part))
            model = field.annotation if field else None
        else:
            args = [typing.get_args(m) for m in _members(model) if typing.get_args(m)]
            model = args[0][-1] if args else None
    return keys, known


def _members(annotation: Any) -> list[Any]:
    """The members of a union (through Annotated), or the type itself."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return [m for m in typing.get_args(annotation) if m is not type(None)]
    return [annotation]


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    field = model.model_fields.get("source") or model.model_fields.get("kind")
    return typing.get_args(field.annotation) if field else ()


def _nearest(name: Any, known: Any) -> str:
    names = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else (f"; known: {', '.join(names)}" if names else "")
