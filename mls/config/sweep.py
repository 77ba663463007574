"""Sweeps: the runs that a ``sweep:`` section makes of one run, as a grid or as a list of points.

sweep_points("mls", {"mls.topk": [1, 5]})                          # mls[topk=1], mls[topk=5]
sweep_points("mls", [{"mls.topk": 5, "mls.weight": 0.5}, {...}])   # mls[topk=5,weight=0.5], ...
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    label: str
    """``run[key=value,...]``; of each key the last part, where those differ."""
    values: dict[str, Any]
    """Dotted key of ``pretrain`` -> its value."""
    where: tuple[str, ...]
    """Where the file says so, for messages."""

    def override(self) -> dict[str, Any]:
        """The values as a run writes them: mappings in mappings."""
        out: dict[str, Any] = {}
        for dotted, value in self.values.items():
            for part in reversed(dotted.split(".")):
                value = {part: value}
            out = merged(out, value)
        return out


def sweep_points(run: str, sweep: Any) -> list[Point]:
    """The points of one run's sweep, in file order; what `broken_sweep` finds wrong with it is left out."""
    found: list[tuple[dict[str, Any], tuple[str, ...]]]
    if isinstance(sweep, dict):
        lists = [values if isinstance(values, list) else [] for values in sweep.values()]
        found = [(dict(zip(map(str, sweep), values, strict=True)), ()) for values in itertools.product(*lists)]
    else:
        listed = enumerate(sweep) if isinstance(sweep, list) else ()
        found = [({str(k): v for k, v in p.items()}, (str(n),)) for n, p in listed if isinstance(p, dict) and p]
    keys = list(dict.fromkeys(key for values, _ in found for key in values))
    short = dict(zip(keys, (key.rsplit(".", 1)[-1] for key in keys), strict=True))
    if len(set(short.values())) < len(keys):
        short = {key: key for key in keys}
    return [
        Point(f"{run}[{','.join(f'{short[k]}={v}' for k, v in values.items())}]", values, ("sweep", run, *number))
        for values, number in found
    ]


def merged(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``override`` laid over it, mapping by mapping; neither is changed."""
    out = dict(base)
    for key, value in override.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merged(out[key], value) if both else value
    return out


def broken_sweep(run: str, sweep: Any) -> Iterator[str]:
    """Yield a line for everything wrong with the shape of one run's sweep; what it sets is checked with its runs."""
    where = f"sweep.{run}"
    if isinstance(sweep, dict) and sweep:
        for key, values in sweep.items():
            if not isinstance(values, list) or not values:
                yield f"{where}.{key}: should be a list of one value at least (is {values!r})"
    elif isinstance(sweep, list) and sweep:
        yield from _broken_points(where, sweep)
    else:
        yield (
            f"{where}: should be a grid, such as {{mls.topk: [1, 5]}}, or a list of points, such as "
            f"[{{mls.topk: 5, mls.weight: 0.5}}] (is {sweep!r})"
        )


def _broken_points(where: str, points: list[Any]) -> Iterator[str]:
    for number, point in enumerate(points):
        if not isinstance(point, dict) or not point:
            yield f"{where}.{number}: should map dotted keys of pretrain to values (is {point!r})"
            continue
        for key, value in point.items():
            if isinstance(value, Mapping):
                yield f"{where}.{number}.{key}: should be one value; write dotted keys, such as mls.topk (is {value!r})"
        if point in points[:number]:
            yield f"{where}.{number}: is the same point as {where}.{points.index(point)}"
