"""The identity of an artifact: what it is made from decides its path, so nothing goes stale.

``id = sha256(canonical JSON of [stage, version, params, ids of inputs])[:10]``, where the version is the stage's and,
once it has been raised, that of the kind of job

An id covers only what can change the result. Everything else is left out: the whole ``execution`` section, the labels
of rows (except in tables, which print them), and `NOT_IDENTITY` below. Fields at their default are left out too, so
that a field added later changes no id. If you change a default, or what a job computes, raise a version: of the kind
(`KIND_VERSIONS`) or, if all kinds of a stage change, of the stage (`STAGE_VERSIONS`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel

from mls.config.datasets import LocalDataset
from mls.config.methods import METHODS
from mls.config.probes import TASKS

STAGES = ("data", "pretrain", "features", "probe", "transfer", "tables")

STAGE_VERSIONS = {"data": 1, "pretrain": 2, "features": 1, "probe": 3, "transfer": 1, "tables": 5}
"""Raise a stage's version when the same params would give different results. Adding a log column does not count.
Snakemake does not see edits to ``mls/*.py``; it sees this version."""

KIND_VERSIONS = {("transfer", "instance"): 2, ("transfer", "detection"): 2, ("transfer", "detectron2"): 2}
"""(Stage, `kind_of` its section) -> version, for kinds whose version has been raised: from 1, which is left out here
and in ids, to 2 and so on. Raise it when the same params of that kind would give different results, and other kinds of
the stage still give the same: ``("probe", "svm"): 2`` makes SVMs again, and the tables that read them."""

NOT_IDENTITY = {
    ("Weights", "file"),  # a path on one machine; sha256 identifies the weights
    ("Pretrain", "dataset"),  # the ids of the inputs identify the data
    *((section.__name__, "dataset") for section in TASKS),
    *((section.__name__, "trials") for section in TASKS),  # each trial is a job of its own
    *((section.__name__, "root") for section in get_args(LocalDataset)),  # a path on one machine
    *((section.__name__, "max_excluded") for section in get_args(LocalDataset)),  # stops the stage, or changes nothing
    *((section, "engine") for section in ("TorchvisionDetector", "Detectron2Detector")),  # equal numbers
    ("CocoSubset", "ids"),  # a path on one machine; the plan adds the ids themselves
}
"""Section and field that never belong to an identity."""
NOT_IDENTITY_VALUES = {("Pretrain", "resident"): ("no", "cpu")}  # equal bytes; "cuda" crops with other roundings
"""Values of a field that do not belong to an identity, although the field's other values do."""


def reads(method: str, key: str) -> bool:
    """Whether a method reads a dotted key of ``pretrain``."""
    return any(key == one or key.startswith(f"{one}.") for one in METHODS[method].reads)


def identity_params(
    section: BaseModel, only: tuple[str, ...] | None = None, *, defaults: bool = False
) -> dict[str, Any]:
    """Return the part of a section that belongs to an identity: fields that matter and are not at their default.

    Args:
        section: a section of the experiment file.
        only: the fields that are read, if not all are; ``moco.queue_size`` is the field ``queue_size`` of ``moco``.
        defaults: keep fields at their default too (for people to read, never for ids).
    """
    out: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        whole = only is None or name in only
        parts = None if whole else tuple(key.partition(".")[2] for key in only or () if key.startswith(f"{name}."))
        place = (type(section).__name__, name)
        skipped = place in NOT_IDENTITY or value in NOT_IDENTITY_VALUES.get(place, ()) or parts == ()
        if skipped or (not defaults and not field.is_required() and value == field.default):
            continue
        kept = identity_params(value, parts, defaults=defaults) if isinstance(value, BaseModel) else value
        if kept != {} or whole:
            out[name] = kept
    return out


def kind_of(section: BaseModel) -> str:
    """The kind of job that a section describes: the ``source`` of a data set, the ``method`` of a pretraining, the
    ``kind`` of a probe or transfer or, for all kinds that it trains, ``detectron2``; empty if the stage has no kinds.
    """
    if getattr(section, "backend", None) == "detectron2":
        return "detectron2"
    return next((getattr(section, key) for key in ("source", "method", "kind") if hasattr(section, key)), "")


def canonical(value: Any) -> str:
    """Serialise to JSON with sorted keys, no spaces and no NaN, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def identify(stage: str, kind: str, params: Mapping[str, Any], inputs: Mapping[str, Any]) -> str:
    """Return the ten hex digits that name an artifact.

    Args:
        stage: one of `STAGES`.
        kind: `kind_of` the section that the stage reads.
        params: the identity params of what the stage reads.
        inputs: role -> id (or list of ids) of the artifacts that it reads.
    """
    raised = [KIND_VERSIONS[stage, kind]] if (stage, kind) in KIND_VERSIONS else []
    payload = canonical([stage, STAGE_VERSIONS[stage], params, inputs, *raised])
    return hashlib.sha256(payload.encode()).hexdigest()[:10]
