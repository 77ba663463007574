"""Read an experiment file; report everything that is wrong with it at once, in words.

experiment = load(Path("params.yaml"))        # an Experiment, or ExperimentError
"""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mls.config.experiment import Experiment, Pretrain
from mls.config.references import broken_references, mapping, nearest
from mls.config.sweep import broken_sweep, merged, sweep_points
from mls.runtime.errors import MlsError


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
    problems += run_problems + list(broken_references(raw, runs))
    if problems or experiment is None:
        lines = "\n".join(f"  - {problem}" for problem in dict.fromkeys(problems))
        raise ExperimentError(f"{path}: {len(set(problems))} problem(s)\n{lines}")
    return Loaded(path, experiment, {name: run for name, run in runs.items() if run is not None})


# -------------------------------------------------------------------------------------------- runs


def _resolve_runs(raw: dict[str, Any]) -> tuple[dict[str, Pretrain | None], list[str]]:
    """Merge each run over ``pretrain`` and expand the sweeps; None marks a run that is wrong."""
    base, runs, sweeps = (mapping(raw.get(key)) for key in ("pretrain", "runs", "sweep"))
    problems: list[str] = []
    resolved: dict[str, Pretrain | None] = {}
    base_problems = _validate_run(base, ("pretrain",))[1]
    for name, override in runs.items():
        named: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [(str(name), mapping(override), ("runs", str(name)))]
        if name in sweeps:
            points = sweep_points(str(name), sweeps[name])
            named += [(p.label, merged(mapping(override), p.override()), p.where) for p in points]
        for label, values, where in named:
            run, found = _validate_run(merged(base, values), where)
            problems += [p for p in found if p.replace(".".join(where), "pretrain", 1) not in base_problems]
            resolved[label] = run
    problems += [line for name, sweep in sweeps.items() for line in broken_sweep(str(name), sweep)]
    problems += [f"sweep.{name}: no run has this name{nearest(name, runs)}" for name in sweeps if name not in runs]
    return resolved, problems


def _validate_run(values: dict[str, Any], where: tuple[str, ...]) -> tuple[Pretrain | None, list[str]]:
    try:
        return Pretrain.model_validate(values), []
    except ValidationError as error:
        return None, _messages(error, Pretrain, where)


# ---------------------------------------------------------------------------------------- messages


def _messages(error: ValidationError, model: type[BaseModel], where: tuple[str, ...] = ()) -> list[str]:
    """One line per problem: dotted path, what is allowed, the value."""
    lines = []
    for item in error.errors():
        keys, section = _walk(model, item["loc"])
        path = ".".join((*where, *keys))
        if item["type"] == "extra_forbidden":
            lines.append(f"{path}: unknown key{nearest(keys[-1], section)}")
        elif item["type"] == "missing":
            lines.append(f"{path}: is required")
        elif item["type"] == "transfer_kind":
            kind = item["input"].get("kind") if isinstance(item["input"], dict) else item["input"]
            lines.append(f"{path}: {item['msg']}" + (f" (is {kind!r})" if kind is not None else ""))
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
    annotation = _bare(annotation)
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return [_bare(m) for m in typing.get_args(annotation) if m is not type(None)]
    return [annotation]


def _bare(annotation: Any) -> Any:
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    """What tells the members of a union apart: a class's name, or the values of a field."""
    fields = [model.model_fields.get(name) for name in ("source", "kind")]
    return (model.__name__, *(value for field in fields if field for value in typing.get_args(field.annotation)))
