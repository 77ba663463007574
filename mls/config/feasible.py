"""Checks for what would only fail once it runs, often after days: choices that the data or the network can't meet.

The sizes of generated scenes are known before they are drawn; other data sets are checked by the stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mls.config.datasets import ScenesDataset
from mls.config.experiment import Execution, Pretrain
from mls.config.methods import TRAINED
from mls.config.probes import PROBES
from mls.config.section import as_list, values_of
from mls.config.transfers import TransferConfig

Raw = dict[str, Any]

LONGEST_LABEL = 200
"""Letters of a run's label: figures and exports are named after it, and a file's name has at most 255 bytes."""


def unfeasible_run(name: str, run: Pretrain, datasets: Mapping[str, Raw]) -> Iterator[str]:
    """Yield a line for each choice of a run that can't work."""
    if len(name) > LONGEST_LABEL:
        yield f"label: has {len(name)} letters, and files named after it take {LONGEST_LABEL}; sweep fewer keys at once"
    images = _scenes(run.dataset, datasets).get("train")
    if run.method in TRAINED and images and run.batch_size > images:
        yield f"batch_size: {run.batch_size} is more than the {images} train images of {run.dataset!r}"


def unfeasible_task(task: Raw, datasets: Mapping[str, Raw], runs: Mapping[str, Pretrain | None]) -> Iterator[str]:
    """Yield a line for each choice of a probe or transfer that can't work."""
    kind, dataset = str(task.get("kind")), task.get("dataset")
    if scenes := _scenes(dataset, datasets):
        train, both = (scenes["train"], "train images"), (scenes["train"] + scenes["val"], "train and val images")
        for key, (images, what) in {"ks": train, "precision_at": train, "low_shot": both, "folds": both}.items():
            values = task.get(key, _default(kind, key))
            most = max([k for k in (*as_list(values), values) if isinstance(k, int)], default=0)
            if most > images:
                yield f"{key}: {most} is more than the {images} {what} of {dataset!r}"
    small = [name for name, run in runs.items() if run and run.backbone.stem == "small"]
    if kind == "semantic" and task.get("output_stride") == 32 and small:
        yield f"output_stride: with stem 'small' it is at most 16; 32 does not fit {', '.join(small)}"


def unshared_batches(
    execution: Raw, runs: Mapping[str, Pretrain | None], transfers: Mapping[str, Raw]
) -> Iterator[str]:
    """Yield a line for each batch that the ranks of ``execution`` can't share evenly."""
    sizes = {f"runs.{name}": run.batch_size for name, run in runs.items() if run and run.method in TRAINED}
    for name, task in transfers.items():
        with suppress(ValidationError):
            section = TypeAdapter(TransferConfig).validate_python(task)
            sizes[f"transfer.{name}"] = section.batch_size // section.accumulate
    try:
        asked = Execution.model_validate(execution)
    except ValidationError:
        return
    ranks = asked.nodes * (1 if asked.device == "cpu" else asked.gpus)
    for where, images in sizes.items():
        if images % ranks:
            yield (
                f"{where}.batch_size: {ranks} ranks (execution.gpus x nodes) do not divide {images} images evenly; "
                "change either"
            )


def _scenes(dataset: Any, datasets: Mapping[str, Raw]) -> dict[str, int]:
    """Images in each split of generated scenes; empty for any other data set."""
    try:
        config = ScenesDataset.model_validate(datasets.get(str(dataset), {}))
    except ValidationError:
        return {}
    return {"train": config.train, "val": config.val}


def _default(kind: str, key: str) -> Any:
    """The default of a key of a kind of probe; None if the kind has no such key."""
    fields = [section.model_fields for section in PROBES if kind in values_of(section, "kind")]
    return fields[0][key].default if fields and key in fields[0] else None
