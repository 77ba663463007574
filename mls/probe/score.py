"""Compute the metrics of a predictions file again: ``mls score FILE``.

    print_probe_score(Path("artifacts/probe/3f2a91c4d0/predictions.parquet"))

Prints Markdown, and compares with the ``metrics.json`` beside the file if there is one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from mls.probe import retrieval
from mls.probe.columns import AGAIN, read_file
from mls.probe.evaluation import summarise, to_evaluation
from mls.runtime.errors import MlsError
from mls.runtime.markdown import pipe_table

TOLERANCE = 1e-9
"""Largest allowed difference of a recorded number, in percentage points."""


def print_probe_score(path: Path) -> None:
    """Print the metrics of a ``predictions.parquet``, of a classifier or a retrieval, with their intervals.

    Raises:
        MlsError: the file is refused, see `mls.probe.evaluation` and `mls.probe.retrieval`; or the ``metrics.json``
            beside it differs: names the first metric that differs, and both values.
    """
    metrics, split, lacking = read_file(path, recompute)
    print(as_markdown(metrics, split, lacking))
    beside = path.parent / "metrics.json"
    if not beside.exists():
        print(f"\nNothing to compare with: there is no {beside.name} beside it.")
        return
    compare(metrics, beside)
    print(f"\nAgrees with {beside}.")


def recompute(table: pa.Table) -> tuple[dict[str, Any], str, str]:
    """Return the metrics, the split, and what a class without average precision lacks."""
    if any(name.startswith("ap:") for name in table.schema.names):
        found, split = retrieval.to_ranking(table)
        metrics = retrieval.retrieval_metrics(found, split) | {f"n_{split}": len(found.ap_MC)}
        return metrics, split, "a query, or gallery images with and without the class"
    evaluation = to_evaluation(table)
    return summarise(evaluation), evaluation.split, "positive or without negative images"


def as_markdown(metrics: dict[str, Any], split: str, lacking: str) -> str:
    """Lay out metrics: a table over all classes, one per class, and what the intervals mean."""
    interval = metrics["interval"]
    whole = [(name, value, interval.get(name)) for name, value in metrics.items() if isinstance(value, float)]
    classes = [(name, value, interval["per_class"][name]) for name, value in metrics["per_class"].items()]
    lines = [f"{metrics[f'n_{split}']:,} images of {split}, {len(classes)} classes, percent.", ""]
    for first, second, values in (("metric", "value", whole), ("class", "AP", classes)):
        cells = [(first, second, f"{100 * interval['level']:g} % interval")]
        for name, value, ends in values:
            shown = "" if ends is None else f"{ends[0]:.2f} .. {ends[1]:.2f}"
            cells.append((name.replace("|", "\\|"), "-" if value is None else f"{value:.2f}", shown))
        lines += [*pipe_table(cells), ""]
    if undefined := ", ".join(metrics["undefined_classes"]):
        lines.append(f"- Without {lacking}, so without AP and left out of means: {undefined}.")
    if untrained := ", ".join(metrics.get("untrained_classes", [])):
        lines.append(f"- Without positive or without negative images in training, so left out too: {untrained}.")
    covers, resamples = interval["covers"], interval["resamples"]
    return "\n".join([*lines, f"- Intervals: {covers}, {resamples:,} bootstrap resamples of the images."])


def compare(metrics: dict[str, Any], path: Path) -> None:
    """Check that a ``metrics.json`` agrees with computed metrics; it may hold more.

    Raises:
        MlsError: it is not a JSON object, or a value is missing or differs by more than `TOLERANCE`.
    """
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MlsError(f"{path} can't be read: {error}") from error
    if not isinstance(recorded, dict):
        raise MlsError(f"{path} is not a JSON object")
    if first := next(_differences("", metrics, recorded), None):
        name, computed, found = first
        raise MlsError(
            f"{path} says {name} = {found}, its predictions say {computed}; one of the two files was changed: {AGAIN}"
        )


def _differences(name: str, computed: Any, found: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield path, computed and recorded value of each leaf that differs."""
    if isinstance(computed, dict) and isinstance(found, dict):
        for key, value in computed.items():
            yield from _differences(f"{name}.{key}" if name else key, value, found.get(key, "nothing"))
    elif isinstance(computed, list) and isinstance(found, list) and len(computed) == len(found):
        for index, (value, other) in enumerate(zip(computed, found, strict=True)):
            yield from _differences(f"{name}[{index}]", value, other)
    elif isinstance(computed, float) and isinstance(found, float | int):
        if not abs(computed - found) <= TOLERANCE:  # so that NaN differs
            yield name, computed, found
    elif computed != found:
        yield name, computed, found
