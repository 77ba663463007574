"""The tables stage: from every metrics.json of an experiment to tables, figures and their provenance.

mls tables scenes        # the experiment's name, or the artifact's id
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from mls.pipeline.artifact import Artifact
from mls.pipeline.plan import Job, Plan
from mls.pipeline.runner import Context
from mls.report.curves import merge
from mls.report.figures import draw_figures, read_curves, run_order
from mls.report.formats import to_csv, to_latex, to_markdown
from mls.report.protocol import against_paper, remarks
from mls.report.tables import FilledTable, fill, to_metrics
from mls.runtime.errors import MlsError

TASK_STAGES = ("probe", "transfer")


def run(context: Context) -> None:
    """Write ``tables/``, ``figures/``, ``metrics.json``, ``provenance.json`` and ``curves.csv`` into the artifact.

    Raises:
        MlsError: a cell's number can't be traced to the artifacts it is said to come from.
    """
    tasks = by_id(context.inputs, *TASK_STAGES)
    metrics = {one: artifact.read_json("metrics.json") for one, artifact in tasks.items()}
    experiment = context.plan.loaded.experiment.experiment
    for name, spec in context.job.params["tables"].items():
        trace(name, spec, tasks, by_id(context.inputs, "pretrain"))
    tables = filled(context.plan, metrics)
    folder = context.out / "tables"
    folder.mkdir()
    for table in tables:
        (folder / f"{table.name}.csv").write_text(to_csv(table), encoding="utf-8")
        (folder / f"{table.name}.md").write_text(to_markdown(table, experiment), encoding="utf-8")
        (folder / f"{table.name}.tex").write_text(to_latex(table, experiment), encoding="ascii")
    numbers = {table.name: to_metrics(table) for table in tables}
    sources = provenance(context.job, experiment, tables, tasks)
    for file, content in (("metrics.json", numbers), ("provenance.json", sources)):
        text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"
        (context.out / file).write_text(text, encoding="utf-8")
    if curves := read_curves(context.inputs):
        text = merge(curves, context.job.params["runs"], run_order(context.job.params))
        (context.out / "curves.csv").write_text(text, encoding="utf-8")
    if context.job.params.get("draw"):  # these figures alone compute with torch
        from mls.runtime.device import set_up

        set_up("cpu", context.execution.threads, seed=0)
    drawn = draw_figures(context.job.params, context.inputs, tables, context.plan.jobs, context.out / "figures")
    context.log(f"{len(tables)} tables, {len(drawn)} figures")


def filled(plan: Plan, metrics: Mapping[str, Mapping[str, Any]]) -> list[FilledTable]:
    """Every table of an experiment with its numbers, and with what in it follows another protocol.

    Args:
        plan: of the experiment.
        metrics: probe or transfer id -> content of its ``metrics.json``.
    """
    experiment, runs = plan.loaded.experiment, plan.loaded.runs
    tables = []
    for name in experiment.tables:
        spec = plan.tables.params["tables"][name]
        table = fill(name, spec, metrics)
        against = {}
        if beside := table.paper:
            for row, column in product(beside.claims, beside.columns):
                compared = beside.columns[column] in beside.of(row) and table.cells[row][column].summary
                if compared and (text := against_paper(experiment, runs[row], beside, row, column)):
                    against[row, column] = text
        said = remarks(experiment, runs, list(table.cells), spec.get("baseline"))
        tables.append(replace(table, remarks=said, against=against))
    return tables


def by_id(inputs: dict[str, Artifact], *stages: str) -> dict[str, Artifact]:
    """The opened inputs of some stages, keyed by id alone."""
    split = ((role.partition("/"), artifact) for role, artifact in inputs.items())
    return {one: artifact for (stage, _, one), artifact in split if stage in stages}


def trace(table: str, spec: dict[str, Any], tasks: dict[str, Artifact], pretrained: dict[str, Artifact]) -> None:
    """Check that every cell's artifacts are there and that each task did read the backbone it is printed for.

    Raises:
        MlsError: names the table, row, task and artifacts; a number without provenance is not printed.
    """
    for row in spec["rows"]:
        for task, pairs in row["tasks"].items():
            for pretrain, one in pairs:
                where = f"table {table!r}, row {row['label']!r}, task {task!r}"
                if pretrain not in pretrained or one not in tasks:
                    raise MlsError(
                        f"{where}: pretrain {pretrain} or task {one} is not among the inputs; run mls tables again"
                    )
                read = tasks[one].manifest["inputs"].get("pretrain")
                if read != pretrain:
                    path = tasks[one].path
                    raise MlsError(
                        f"{where}: {path} was made from pretrain {read}, not {pretrain}; remove and remake it"
                    )


def provenance(job: Job, experiment: str, tables: list[FilledTable], tasks: Mapping[str, Artifact]) -> dict[str, Any]:
    """Which artifacts each cell comes from, and every artifact this one stands on.

    ``cells``: table -> row -> column -> pretrain id -> ids of its probe or transfer artifacts.
    ``artifacts``: stage -> ids; ``mls gc`` keeps what committed results name here. Features are named by the probes
    that read them: tables need no features, so a clone can make them without.
    """
    cells: dict[str, Any] = {}
    for table in tables:
        for row, columns in table.all_cells.items():
            for column, cell in columns.items():
                place = cells.setdefault(table.name, {}).setdefault(row, {}).setdefault(column, {})
                for pretrain, task in cell.sources:
                    place.setdefault(pretrain, []).append(task)
    artifacts = {**{stage: sorted(ids) for stage, ids in job.inputs.items()}, "tables": [job.id]}
    if features := {inputs["features"] for task in tasks.values() if "features" in (inputs := task.manifest["inputs"])}:
        artifacts["features"] = sorted(features)
    return {"experiment": experiment, "artifacts": artifacts, "cells": cells}
