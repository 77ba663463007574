"""Which figures an experiment has: the one list of what is drawn.

    draw_figures(job.params, context.inputs, tables, plan.jobs, Path("figures"))

Each is written as PNG and as PDF, the same bytes for the same inputs. Images are drawn only from generated scenes:
other data sets hold photos, whose licences do not permit publication.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mls.config.methods import DEFAULT_POSITIVES, Moco
from mls.data.image_store import ImageStore
from mls.pipeline.artifact import Artifact
from mls.pipeline.plan import Job
from mls.report.class_figures import class_differences, draw_differences, draw_per_class, per_class_ap
from mls.report.curves import draw_agreement, draw_losses, draw_mechanism, run_name
from mls.report.object_figures import detectors, draw_detections, draw_scenes
from mls.report.paired_figures import draw_pairs
from mls.report.style import plain_style, save
from mls.report.sweep_figures import draw_sweep
from mls.report.tables import FilledTable


def draw_figures(
    params: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    tables: Sequence[FilledTable],
    jobs: Mapping[str, Job],
    out: Path,
) -> list[str]:
    """Draw whatever the inputs allow; return the figures' names.

    Args:
        params: of the tables job: ``tables``, ``runs`` (pretrain id -> labels such as ``mls:0``) and, if it is
            set, ``draw`` (run -> pretrain id).
        inputs: opened artifacts by ``<stage>/<id>``.
        tables: the tables with their numbers.
        jobs: of the plan, by id.
        out: folder for the files; made if there is anything to draw.

    Raises:
        MlsError: a run of ``draw`` has no dictionary to draw; says what to do.
    """
    names = []
    with plain_style():
        for name, figure in all_figures(params, inputs, tables, jobs):
            if figure:
                save(figure, out / name)
                names.append(name)
    return names


def all_figures(
    params: Mapping[str, Any], inputs: Mapping[str, Artifact], tables: Sequence[FilledTable], jobs: Mapping[str, Job]
) -> Iterator[tuple[str, Figure | None]]:
    """(name, figure or None if it would be empty); arguments as for `draw_figures`."""
    runs = run_order(params)
    if curves := read_curves(inputs):
        yield "curves", draw_losses(curves, params["runs"], runs)
        yield "mechanism", draw_mechanism(curves, params["runs"], runs)
        yield "agreement", draw_agreement(curves, params["runs"], runs, positives_of(inputs))
    for table in tables:
        spec = params["tables"][table.name]
        if "plot" in spec:
            yield f"sweep-{table.name}", draw_sweep(table, spec["plot"], spec.get("baseline"))
        yield f"pairs-{table.name}", draw_pairs(table)
    probes, transfers = of_stage(inputs, "probe"), of_stage(inputs, "transfer")
    for (task, split), by_run in per_class_ap(params, probes).items():
        yield f"per_class-{task}", draw_per_class(f"{task}, {split}", by_run, runs)
    differences = class_differences(params, probes | transfers)
    files = apart({f"{name}/{task}": f"{name}-{task}" for name, task in differences})
    for (name, task), against in differences.items():
        yield f"per_class_difference-{files[f'{name}/{task}']}", draw_differences(f"{name}, {task}", against, runs)
    for one, artifact in of_stage(inputs, "data").items():
        if is_generated(artifact):
            yield f"scenes-{one}", draw_scenes(ImageStore(artifact.path))
    for task, by_row in detectors(params, transfers).items():
        data = inputs[f"data/{next(iter(by_row.values())).manifest['inputs']['data']}"]
        if is_generated(data):
            found = {row: one.read_json("predictions.json") for row, one in by_row.items()}
            note = "; first seed, first trial"
            yield f"detections-{task}", draw_detections(ImageStore(data.path), found, note=note)
    if drawn := params.get("draw"):
        yield from neighbour_figures(drawn, inputs, jobs)


def neighbour_figures(
    drawn: Mapping[str, str], inputs: Mapping[str, Artifact], jobs: Mapping[str, Job]
) -> Iterator[tuple[str, Figure]]:
    """The paper's Fig. 3 of each run of ``draw`` (run -> pretrain id) and, for generated scenes, its Fig. 4."""
    from mls.report.neighbour_figures import finished, queries_figure, scores_figure  # torch takes seconds to import

    files = file_names(drawn)
    for run, one in sorted(drawn.items()):
        job, data = jobs[one], inputs[f"data/{jobs[one].inputs['data']}"]
        store, after = ImageStore(data.path), finished(job, inputs[f"pretrain/{one}"], run)
        yield f"fig3-{files[run]}", scores_figure(job, after, store)[0]
        if is_generated(data):
            yield f"fig4-{files[run]}", queries_figure(job, after, store)


def is_generated(data: Artifact) -> bool:
    """Whether a data set has no photos; photos have licences, which may not allow publication."""
    return bool(data.manifest["params"].get("source") == "scenes")


def file_names(runs: Iterable[str]) -> dict[str, str]:
    """Run -> its name in a file name: only letters, digits and ``._+-``."""
    return apart({run: re.sub(r"[^A-Za-z0-9._+-]+", "_", run).strip("_") for run in runs})


def apart(names: Mapping[str, str]) -> dict[str, str]:
    """What is named -> its name; names that would be equal get a digest of what they name."""
    counts = Counter(names.values())
    return {
        what: name if counts[name] == 1 else f"{name}-{hashlib.sha256(what.encode()).hexdigest()[:6]}"
        for what, name in names.items()
    }


def read_curves(inputs: Mapping[str, Artifact]) -> dict[str, pd.DataFrame]:
    """``curves.csv`` of every training by pretrain id."""
    pretrained = of_stage(inputs, "pretrain").items()
    return {one: pd.read_csv(a.file("curves.csv")) for one, a in pretrained if "curves.csv" in a.manifest["files"]}


def positives_of(inputs: Mapping[str, Artifact]) -> dict[str, int]:
    """Positives that each training's ``agreement`` counts per image, by pretrain id."""
    found = {}
    for one, artifact in of_stage(inputs, "pretrain").items():
        params = artifact.manifest["params"]  # without defaults
        k = params.get("mls", {}).get("topk", DEFAULT_POSITIVES)
        found[one] = min(k, params.get("moco", {}).get("queue_size", Moco().queue_size))
    return found


def of_stage(inputs: Mapping[str, Artifact], *stages: str) -> dict[str, Artifact]:
    """The opened inputs of some stages by id."""
    split = {role.partition("/"): artifact for role, artifact in inputs.items()}
    return {one: artifact for (stage, _, one), artifact in split.items() if stage in stages}


def run_order(params: Mapping[str, Any]) -> list[str]:
    """Names of all runs: in the order of the tables' rows, then the others by name.

    Colours follow this order. It depends only on lists and sorted keys, because the artifact's id covers only those:
    equal mappings in a different order have the same id.
    """
    rows = [row["label"] for _, table in sorted(params["tables"].items()) for row in table["rows"]]
    others = sorted(run_name(label) for labels in params["runs"].values() for label in labels)
    return list(dict.fromkeys([*rows, *others]))
