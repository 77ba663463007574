"""Which figures an experiment has: the one list of what is drawn.

    draw_figures(job.params, context.inputs, tables, plan.jobs, Path("figures"))

Each is written as PNG and as PDF, the same bytes for the same inputs. Pictures are drawn of generated
scenes only: other data sets hold photos, whose licences do not allow to publish them.
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

from mls.data.image_store import ImageStore
from mls.pipeline.artifact import Artifact
from mls.pipeline.plan import Job
from mls.report.agreement_figures import draw_agreement
from mls.report.class_figures import (
    MOST_CLASSES,
    MOST_RUNS,
    class_differences,
    draw_differences,
    draw_per_class,
    per_class_ap,
)
from mls.report.curves import draw_losses, draw_mechanism, run_name
from mls.report.detection_figures import detectors, draw_detections
from mls.report.scene_figures import draw_scenes
from mls.report.style import plain_style, save
from mls.report.sweep_figures import draw_sweep
from mls.report.tables import FilledTable

FIRST = "; first seed, first trial"


def draw_figures(
    params: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    tables: Sequence[FilledTable],
    jobs: Mapping[str, Job],
    out: Path,
) -> list[str]:
    """Draw whatever the inputs allow; return the figures' names.

    Args:
        params: of the tables job: ``tables``, ``runs`` (pretrain id -> labels such as ``mls:0``) and, where it is
            set, ``draw`` (run -> pretrain id).
        inputs: opened artifacts by ``<stage>/<id>``.
        tables: the tables with their numbers.
        jobs: of the plan, by id.
        out: folder for the files; made if there is anything to draw.

    Raises:
        MlsError: a run of ``draw`` has no dictionary to draw; says what to do.
    """
    runs = run_order(params)
    figures: dict[str, Figure | None] = {}
    with plain_style():
        if curves := read_curves(inputs):
            figures["curves"] = draw_losses(curves, params["runs"], runs)
            figures["mechanism"] = draw_mechanism(curves, params["runs"], runs)
            figures["agreement"] = draw_agreement(curves, params["runs"], runs)
        for table in tables:
            spec = params["tables"][table.name]
            if "plot" in spec:
                figures[f"sweep-{table.name}"] = draw_sweep(table, spec["plot"], spec.get("baseline"), table.paper)
        probes, transfers = of_stage(inputs, "probe"), of_stage(inputs, "transfer")
        for (task, split), by_run in per_class_ap(params, probes).items():
            if len(next(iter(by_run.values()))) <= MOST_CLASSES and len(by_run) <= MOST_RUNS:
                figures[f"per_class-{task}"] = draw_per_class(f"{task}, {split}", by_run, runs)
        for (name, task), apart in class_differences(params, probes | transfers).items():
            figures[f"per_class_difference-{name}-{task}"] = draw_differences(f"{name}, {task}", apart, runs)
        for one, artifact in of_stage(inputs, "data").items():
            if is_generated(artifact):
                figures[f"scenes-{one}"] = draw_scenes(ImageStore(artifact.path))
        for task, by_row in detectors(params, transfers).items():
            data = inputs[f"data/{next(iter(by_row.values())).manifest['inputs']['data']}"]
            if is_generated(data):
                found = {row: one.read_json("predictions.json") for row, one in by_row.items()}
                figures[f"detections-{task}"] = draw_detections(ImageStore(data.path), found, note=FIRST)
        if drawn := params.get("draw"):
            figures.update(neighbour_figures(drawn, inputs, jobs))
        shown = {name: figure for name, figure in figures.items() if figure}
        for name, figure in shown.items():
            save(figure, out / name)
    return list(shown)


def neighbour_figures(
    drawn: Mapping[str, str], inputs: Mapping[str, Artifact], jobs: Mapping[str, Job]
) -> Iterator[tuple[str, Figure]]:
    """The paper's Fig. 3 of each run of ``draw`` (run -> pretrain id) and, of generated scenes, its Fig. 4."""
    from mls.report.neighbour_figures import finished, queries_figure, scores_figure  # torch takes seconds to import

    files = file_names(drawn)
    for run, one in sorted(drawn.items()):
        job, data = jobs[one], inputs[f"data/{jobs[one].inputs['data']}"]
        store, after = ImageStore(data.path), finished(job, inputs[f"pretrain/{one}"], run)
        yield f"fig3-{files[run]}", scores_figure(job, after, store)[0]
        if is_generated(data):
            yield f"fig4-{files[run]}", queries_figure(job, after, store)


def is_generated(data: Artifact) -> bool:
    """Whether a data set holds no photos."""
    return data.manifest["params"].get("source") == "scenes"


def file_names(runs: Iterable[str]) -> dict[str, str]:
    """Run -> its name as a part of a file's: letters, digits and ``._+-`` alone; equal ones get a digest each."""
    plain = {run: re.sub(r"[^A-Za-z0-9._+-]+", "_", run).strip("_") for run in runs}
    often = Counter(plain.values())
    return {
        run: name if often[name] == 1 else f"{name}-{hashlib.sha256(run.encode()).hexdigest()[:6]}"
        for run, name in plain.items()
    }


def read_curves(inputs: Mapping[str, Artifact]) -> dict[str, pd.DataFrame]:
    """``curves.csv`` of every training by pretrain id."""
    trained = of_stage(inputs, "pretrain").items()
    return {one: pd.read_csv(a.file("curves.csv")) for one, a in trained if "curves.csv" in a.manifest["files"]}


def of_stage(inputs: Mapping[str, Artifact], stage: str) -> dict[str, Artifact]:
    """The inputs of one stage by id."""
    start = f"{stage}/"
    return {role.removeprefix(start): artifact for role, artifact in inputs.items() if role.startswith(start)}


def run_order(params: Mapping[str, Any]) -> list[str]:
    """Names of all runs: as the tables' rows have them, then the others by name.

    Colours follow this order. It uses lists and sorted keys alone, because that is what the
    artifact's id covers: equal mappings in another order have the same id.
    """
    rows = [row["label"] for _, table in sorted(params["tables"].items()) for row in table["rows"]]
    others = sorted(run_name(label) for labels in params["runs"].values() for label in labels)
    return list(dict.fromkeys([*rows, *others]))
