"""The identity of an artifact: what it was made from decides its path, so nothing goes stale.

``id = sha256(canonical JSON of [stage, stage version, params, ids of inputs])[:10]``

An id covers only what can change the result. What never can is left out here, in one place:
the whole ``execution`` section, the labels of rows (except in tables, which print them), and
``NOT_IDENTITY`` below. Fields equal to their default are left out too, so a field added later
changes no id; changing a default, or the meaning of a stage's results, raises its version.
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

STAGE_VERSIONS = {"data": 1, "pretrain": 2, "features": 1, "probe": 2, "transfer": 1, "tables": 4}
"""Raise a stage's number when the same params would now give other results (a further column of the log is none).
Snakemake does not see edits to ``mls/*.py``; this is what it sees."""

NOT_IDENTITY = {
    ("Weights", "file"),  # a path of one machine; the sha256 beside it identifies the weights
    ("Pretrain", "dataset"),  # the ids of the inputs say which data
    *((section.__name__, "dataset") for section in TASKS),
    *((section.__name__, "trials") for section in TASKS),  # how often, not what; each trial is a job of its own
    *((section.__name__, "root") for section in get_args(LocalDataset)),  # a path of one machine
    *((section.__name__, "max_excluded") for section in get_args(LocalDataset)),  # stops, or changes nothing
    ("CocoSubset", "ids"),  # a path too; the plan puts the ids themselves in
}


def reads(method: str, key: str) -> bool:
    """Whether a method reads a dotted key of ``pretrain``."""
    return any(key == one or key.startswith(f"{one}.") for one in METHODS[method].reads)


def identity_params(
    section: BaseModel, only: tuple[str, ...] | None = None, *, defaults: bool = False
) -> dict[str, Any]:
    """Return what of a section belongs to an identity: fields that can matter and are not at their default.

    Args:
        section: of the experiment file.
        only: the fields that are read, where not all are; ``moco.queue_size`` is a field of the field ``moco``.
        defaults: keep fields at their default too (for people to read, never for ids).
    """
    out: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        parts = (
            None
            if only is None or name in only
            else tuple(o.partition(".")[2] for o in only if o.startswith(f"{name}."))
        )
        skipped = (type(section).__name__, name) in NOT_IDENTITY or parts == ()
        if skipped or (not defaults and not field.is_required() and value == field.default):
            continue
        kept = identity_params(value, parts, defaults=defaults) if isinstance(value, BaseModel) else value
        if kept != {} or parts is None:
            out[name] = kept
    return out


def canonical(value: Any) -> str:
    """JSON with sorted keys, no spaces, no NaN: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def identify(stage: str, params: Mapping[str, Any], inputs: Mapping[str, Any]) -> str:
    """Return the ten hex digits that name an artifact.

    Args:
        stage: one of `STAGES`.
        params: the essence of what the stage reads.
        inputs: role -> id (or list of ids) of the artifacts it reads.
    """
    payload = canonical([stage, STAGE_VERSIONS[stage], params, inputs])
    return hashlib.sha256(payload.encode()).hexdigest()[:10]
