"""Read an experiment file and report everything that is wrong with it at once, in words.

loaded = load(Path("params.yaml"))        # or ExperimentError
loaded.experiment.seeds                   # `mls.config.experiment.Experiment`
loaded.runs["mls"].moco.queue_size        # each run and sweep point, merged over ``pretrain``
"""

from __future__ import annotations

import itertools
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mls.config.experiment import Experiment, Pretrain
from mls.config.raw import parse
from mls.config.references import broken_references
from mls.config.section import as_mapping, did_you_mean, values_of
from mls.config.sweep import Point, broken_sweep, merged, sweep_points
from mls.runtime.errors import MlsError

MOST_PROBLEMS = 50
"""Problems that a message lists; a wrong value of a sweep's run is wrong at each of its points."""


class ExperimentError(MlsError):
    """An experiment file that can't be used; the message lists every problem."""


@dataclass(frozen=True)
class Loaded:
    """An experiment with its runs."""

    path: Path
    experiment: Experiment
    runs: dict[str, Pretrain]
    """Run or sweep point -> its complete params, in file order."""


def load(path: Path) -> Loaded:
    """Read and check an experiment file.

    Raises:
        ExperimentError: the file can't be read, isn't YAML, or has wrong content; the message lists every problem with
            its dotted path, the value and what is allowed.
    """
    return check(read_yaml(path), path)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the file's mapping, see `mls.config.raw.parse`."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, ValueError) as error:
        raise ExperimentError(f"{path}: can't be read ({error})") from error


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """Parse YAML text that must hold a mapping; ``name`` is the file's name for errors."""
    try:
        return parse(text)
    except ValueError as error:
        raise ExperimentError(f"{name}: {error}") from error


def check(raw: dict[str, Any], path: Path) -> Loaded:
    """Validate a raw mapping; `load` describes the errors."""
    experiment, problems = _validated(Experiment, raw)
    runs, run_problems = _resolve_runs(raw)
    problems = list(dict.fromkeys([*problems, *run_problems, *broken_references(raw, runs)]))
    if problems or experiment is None:
        shown = [*problems[:MOST_PROBLEMS], *(["and so on"] if len(problems) > MOST_PROBLEMS else [])]
        lines = "\n".join(f"  - {problem}" for problem in shown)
        raise ExperimentError(f"{path}: {len(problems)} problem(s)\n{lines}")
    return Loaded(path, experiment, {name: run for name, run in runs.items() if run is not None})


# -------------------------------------------------------------------------------------------- runs


def _resolve_runs(raw: dict[str, Any]) -> tuple[dict[str, Pretrain | None], list[str]]:
    """Merge each run over ``pretrain`` and expand the sweeps; None marks a run that is wrong."""
    base, runs, sweeps = (as_mapping(raw.get(key)) for key in ("pretrain", "runs", "sweep"))
    problems: list[str] = []
    resolved: dict[str, Pretrain | None] = {}
    base_problems = _validated(Pretrain, base, ("pretrain",))[1]
    for name, override in runs.items():
        run, swept = Point(str(name), {}, ("runs", str(name))), sweep_points(str(name), sweeps.get(name))
        for point in (run, *swept):
            values = merged(merged(base, as_mapping(override)), point.override())
            resolved[point.label], found = _validated(Pretrain, values, point.where)
            problems += [p for p in found if p.replace(".".join(point.where), "pretrain", 1) not in base_problems]
    for name, sweep in sweeps.items():
        problems += broken_sweep(str(name), sweep)
        if name not in runs:
            problems.append(f"sweep.{name}: no run has this name{did_you_mean(name, runs)}")
    return resolved, problems


M = TypeVar("M", bound=BaseModel)


def _validated(model: type[M], values: dict[str, Any], where: tuple[str, ...] = ()) -> tuple[M | None, list[str]]:
    """Return a section, or None and a line for each problem; ``where`` is the section's place in the file."""
    try:
        return model.model_validate(values), []
    except ValidationError as error:
        return None, _messages(error, model, where)


# ---------------------------------------------------------------------------------------- messages


def _messages(error: ValidationError, model: type[BaseModel], where: tuple[str, ...]) -> list[str]:
    """One line per problem: dotted path, what is allowed, the value."""
    lines = []
    for item in error.errors():
        keys, known = _locate(model, item["loc"])
        path, value, message = ".".join((*where, *keys)), item["input"], item["msg"].removeprefix("Value error, ")
        match item["type"]:
            case "extra_forbidden":
                text = f"unknown key{did_you_mean(keys[-1], known)}"
            case "missing":
                text = "is required"
            case "union_tag_not_found":
                path += "." + item["ctx"]["discriminator"].strip("'")
                text = "is required"
            case "transfer_kind":
                kind = value.get("kind") if isinstance(value, dict) else value
                text = message if kind is None else f"{message} (is {cut(repr(kind))})"
            case "value_error" if value and isinstance(value, dict):  # from a section's own validator
                text = message
            case _:
                text = f"{message} (is {cut(repr(value))})"
        lines.append(cut(f"{path}: {text}", 900))
    return lines


def cut(text: str, longest: int = 200) -> str:
    """A text for a message, cut where it is long."""
    return text if len(text) <= longest else f"{text[:longest]}..."


def _locate(model: Any, loc: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """Translate pydantic's location into the file's own path, and list the keys known at its end.

    pydantic's location also names the member of a union that it tried; the file has no such level.
    """
    keys: list[str] = []
    known: list[str] = []
    for part in loc:
        members = _members(model)
        sections = [m for m in members if isinstance(m, type) and issubclass(m, BaseModel)]
        containers = [typing.get_args(m) for m in members if typing.get_origin(m) in (dict, list)]
        tagged = [m for m in sections if len(sections) > 1 and part in _tags(m)]
        if tagged:
            model = tagged[0]
        elif sections:
            keys.append(str(part))
            known = list(sections[0].model_fields)
            field = sections[0].model_fields.get(str(part))
            model = field.annotation if field else None
        elif containers and part != "[key]":
            keys.append(str(part))
            model = containers[0][-1]
    return keys, known


def _members(annotation: Any) -> list[Any]:
    """The members of a union, or the type itself, without ``Annotated``."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _members(annotation.__origin__)
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return [member for one in typing.get_args(annotation) for member in _members(one)]
    return [annotation]


def _tags(section: type[BaseModel]) -> tuple[Any, ...]:
    """What tells the members of a tagged union apart: the class's name, or the values of a field."""
    tags = (values_of(section, name) for name in ("source", "kind") if name in section.model_fields)
    return (section.__name__, *itertools.chain.from_iterable(tags))
