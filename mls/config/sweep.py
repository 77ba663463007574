"""Sweeps: the runs that a ``sweep:`` section adds to a run, from a grid or from a list of points.

sweep_points("mls", {"mls.topk": [1, 5]})                          # mls[topk=1], mls[topk=5]
sweep_points("mls", [{"mls.topk": 5, "mls.weight": 0.5}, {...}])   # mls[topk=5,weight=0.5], ...
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mls.config.section import as_list

MOST_POINTS = 10_000
"""Points of one run's sweep: each is at least one training."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    label: str
    """``run[key=value,...]`` with the last part of each dotted key, or with whole keys if last parts are equal."""
    values: dict[str, Any]
    """Dotted key of ``pretrain`` -> its value."""
    where: tuple[str, ...]
    """Its place in the file, for messages."""

    def override(self) -> dict[str, Any]:
        """The values as a run writes them: mappings in mappings."""
        out: dict[str, Any] = {}
        for dotted, value in self.values.items():
            for part in reversed(dotted.split(".")):
                value = {part: value}
            out = merged(out, value)
        return out


def sweep_points(run: str, sweep: Any) -> list[Point]:
    """List the points of one run's sweep, in file order; malformed parts, reported by `broken_sweep`, are left out."""
    where: tuple[str, ...] = ("sweep", run)
    if count_points(sweep) > MOST_POINTS:
        return []
    if isinstance(sweep, dict):
        grid = itertools.product(*map(as_list, sweep.values()))
        found = [(where, dict(zip(map(str, sweep), values, strict=True))) for values in grid]
    else:
        points = [(n, point) for n, point in enumerate(as_list(sweep)) if isinstance(point, dict) and point]
        found = [((*where, str(n)), {str(key): value for key, value in point.items()}) for n, point in points]
    names = {key: key.rsplit(".", 1)[-1] for _, values in found for key in values}
    if len(set(names.values())) < len(names):
        names = {key: key for key in names}
    labels = [",".join(f"{names[key]}={value}" for key, value in values.items()) for _, values in found]
    return [Point(f"{run}[{label}]", values, place) for label, (place, values) in zip(labels, found, strict=True)]


def count_points(sweep: Any) -> int:
    """Number of points of one run's sweep."""
    return (
        math.prod(len(as_list(values)) for values in sweep.values()) if isinstance(sweep, dict) else len(as_list(sweep))
    )


def merged(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``override`` merged over it, recursively; neither is changed."""
    out = dict(base)
    for key, value in override.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merged(out[key], value) if both else value
    return out


def broken_sweep(run: str, sweep: Any) -> Iterator[str]:
    """Yield one line per malformed part of one run's sweep; the values are checked with the runs that they make."""
    where = f"sweep.{run}"
    if (points := count_points(sweep)) > MOST_POINTS:
        yield f"{where}: has {points:,} points; a sweep has at most {MOST_POINTS:,}"
    if isinstance(sweep, dict) and sweep:
        for key, values in sweep.items():
            if not as_list(values):
                yield f"{where}.{key}: should be a list of at least one value (is {values!r})"
    elif isinstance(sweep, list) and sweep:
        for number, point in enumerate(sweep):
            if not isinstance(point, dict) or not point:
                yield f"{where}.{number}: should map dotted keys of pretrain to values (is {point!r})"
            elif point in sweep[:number]:
                yield f"{where}.{number}: is the same point as {where}.{sweep.index(point)}"
            else:
                for key in (key for key, value in point.items() if isinstance(value, Mapping)):
                    hint = f"should be one value; write dotted keys, such as mls.topk (is {point[key]!r})"
                    yield f"{where}.{number}.{key}: {hint}"
    else:
        yield (
            f"{where}: should be a grid, such as {{mls.topk: [1, 5]}}, or a list of points, such as "
            f"[{{mls.topk: 5, mls.weight: 0.5}}] (is {sweep!r})"
        )
