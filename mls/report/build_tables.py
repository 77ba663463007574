"""The tables stage: from every metrics.json of an experiment to tables, figures and their provenance.

mls tables scenes        # the experiment's name, or the artifact's id
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from mls.pipeline.artifact import Artifact
from mls.pipeline.plan import Job, Plan
from mls.pipeline.runner import Context
from mls.report.curves import merge
from mls.report.figures import draw_figures, of_stage, read_curves, run_order
from mls.report.formats import to_csv, to_latex, to_markdown
from mls.report.protocol import against_paper, pretraining_remarks
from mls.report.tables import FilledTable, fill_table, logged, to_metrics
from mls.runtime.errors import MlsError
from mls.runtime.files import write_json

TASK_STAGES = ("probe", "transfer")


def run(context: Context) -> None:
    """Write ``tables/``, ``figures/``, ``metrics.json``, ``provenance.json`` and ``curves.csv`` into the artifact.

    Raises:
        MlsError: a cell's number cannot be traced to the artifacts that it should come from.
    """
    params, tasks = context.job.params, of_stage(context.inputs, *TASK_STAGES)
    pretrained, experiment = of_stage(context.inputs, "pretrain"), context.plan.loaded.experiment.experiment
    for name, spec in params["tables"].items():
        trace(name, spec, tasks, pretrained)
    columns = (column for spec in params["tables"].values() for column in spec["columns"])
    shown = pretrained | tasks if any(map(logged, columns)) else tasks
    tables = fill_tables(context.plan, {one: artifact.read_json("metrics.json") for one, artifact in shown.items()})
    folder = context.out / "tables"
    folder.mkdir()
    for table in tables:
        (folder / f"{table.name}.csv").write_text(to_csv(table), encoding="utf-8")
        (folder / f"{table.name}.md").write_text(to_markdown(table, experiment), encoding="utf-8")
        (folder / f"{table.name}.tex").write_text(to_latex(table, experiment), encoding="ascii")
    write_json({table.name: to_metrics(table) for table in tables}, context.out / "metrics.json", indent=1)
    write_json(cell_sources(context.job, experiment, tables, tasks), context.out / "provenance.json", indent=1)
    if curves := read_curves(context.inputs):
        text = merge(curves, params["runs"], run_order(params))
        (context.out / "curves.csv").write_text(text, encoding="utf-8")
    if params.get("draw"):  # only these figures compute with torch, which takes seconds to import
        from mls.runtime.device import set_up

        set_up("cpu", context.execution.threads, seed=0)
    drawn = draw_figures(params, context.inputs, tables, context.plan.jobs, context.out / "figures")
    context.log(f"{len(tables)} tables, {len(drawn)} figures")


def fill_tables(plan: Plan, metrics: Mapping[str, Mapping[str, Any]]) -> list[FilledTable]:
    """Every table of an experiment with its numbers, and with remarks on cells that follow another protocol.

    Args:
        plan: of the experiment.
        metrics: id of a pretraining, probe or transfer -> content of its ``metrics.json``.
    """
    experiment, runs = plan.loaded.experiment, plan.loaded.runs
    tables = []
    for name in experiment.tables:
        spec = plan.tables.params["tables"][name]
        table = fill_table(name, spec, metrics)
        against = {}
        if beside := table.paper:
            for row, column in product(beside.claims, beside.columns):
                compared = beside.columns[column] in beside.of(row) and table.cells[row][column].summary
                if compared and (text := against_paper(experiment, runs[row], beside, row, column)):
                    against[row, column] = text
        remarks = pretraining_remarks(experiment, runs, list(table.cells), spec.get("baseline"))
        tables.append(replace(table, remarks=remarks, against=against))
    return tables


def trace(table: str, spec: dict[str, Any], tasks: dict[str, Artifact], pretrained: dict[str, Artifact]) -> None:
    """Check that every cell's artifacts are there and that each task read the backbone in whose row it is printed.

    Raises:
        MlsError: names the table, row, task and artifacts; a number without provenance is not printed.
    """
    for row in spec["rows"]:
        for task, pairs in row["tasks"].items():
            where = f"table {table!r}, row {row['label']!r}, task {task!r}"
            for pretrain, one in pairs:
                if pretrain == one in pretrained:  # a column of the pretraining itself
                    continue
                if pretrain not in pretrained or one not in tasks:
                    raise MlsError(f"{where}: pretrain {pretrain} or task {one} is missing; run mls tables again")
                read = tasks[one].manifest["inputs"].get("pretrain")
                if read != pretrain:
                    made = f"{tasks[one].path} was made from pretrain {read}, not {pretrain}"
                    raise MlsError(f"{where}: {made}; remove it and run again")


def cell_sources(job: Job, experiment: str, tables: list[FilledTable], tasks: Mapping[str, Artifact]) -> dict[str, Any]:
    """The content of ``provenance.json``: the artifacts behind each cell, and all artifacts behind the tables.

    ``cells``: table -> row -> column -> pretrain id -> ids of its probe or transfer artifacts.
    ``artifacts``: stage -> ids; ``mls gc`` keeps what committed results name here. Features are named by the probes
    that read them: tables do not read features, so a clone can make them without.
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
