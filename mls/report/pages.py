"""Pages of Snakemake's report: the tables as sortable views, and where and when everything in them was made.

    mls report -e params.yaml            # report/<experiment>-<id of the tables>/

Times and provenance come from the manifests (``artifact.json``), so a clone that made nothing itself shows the same.
"""

from __future__ import annotations

import re
import shutil
from itertools import zip_longest
from pathlib import Path

from mls.config.paper import SOURCE, load_anchors
from mls.pipeline.artifact import open_artifact, state
from mls.pipeline.plan import Plan
from mls.report.build_tables import TASK_STAGES, fill_tables
from mls.report.graph import write_graph
from mls.report.layout import lay_out
from mls.report.origin import PAIR, PAIR_NOTES, artifacts_page, cell_name, provenance_rows
from mls.report.page import Column, Sheet, SheetRow, Value, write_page
from mls.report.tables import FilledTable

REPORT = Path("report")


def report_folder(plan: Plan) -> Path:
    """Where the pages of a plan are; other tables get another folder."""
    return REPORT / f"{plan.loaded.experiment.experiment}-{plan.tables.id}"


def build_pages(plan: Plan) -> Path:
    """Write ``tables/``, ``figures/`` and the other pages; return the folder.

    Raises:
        DamagedArtifact: an artifact is damaged, or the tables or what they read are not made yet.
    """
    tasks = [job for stage in TASK_STAGES for job in plan.stage(stage)]
    needed = {job.id for job in (plan.tables, *tasks)}
    made = {
        job.id: open_artifact(job.path)
        for job in plan.jobs.values()
        if job.id in needed or state(job.path) != "missing"
    }
    metrics = {job.id: made[job.id].read_json("metrics.json") for job in tasks}
    target, experiment = report_folder(plan), plan.loaded.experiment.experiment
    out = target.with_name(f".{target.name}")  # staging: the pages appear all at once
    shutil.rmtree(out, ignore_errors=True)
    for name in ("tables", "figures"):
        (out / name).mkdir(parents=True)
    rows: list[SheetRow] = []
    for table in fill_tables(plan, metrics):
        pairs = provenance_rows(plan, table, made, metrics)
        write_page(out / "tables" / f"{table.name}.html", *table_page(table, experiment, pairs))
        rows += [SheetRow([Value(table.name), *row.values]) for row in pairs]
    tables = made[plan.tables.id]
    for file in tables.manifest["files"]:
        if Path(file).match("figures/*.png"):
            shutil.copy(tables.file(file), out / file)
    lead = f"Every number of experiment {experiment}, and the artifacts that it comes from."
    sheet = Sheet("", [Column("table"), *PAIR], rows, PAIR_NOTES, dense=True)
    write_page(out / "provenance.html", "Provenance", lead, [sheet])
    write_page(out / "artifacts.html", *artifacts_page(plan, made))
    write_page(out / "anchors.html", *anchors_page())
    write_graph(out / "graph.html", plan, made)
    shutil.rmtree(target, ignore_errors=True)
    return out.rename(target)


def table_page(table: FilledTable, experiment: str, pairs: list[SheetRow]) -> tuple[str, str, list[Sheet]]:
    """Title, lead and sheets of a table: its numbers, then the artifacts behind each."""
    layout = lay_out(table, experiment)
    columns = [Column(name, group, number=i > 0) for i, (group, name) in enumerate(layout.header)]
    rows = []
    for line in layout.lines:
        own = {} if line.kind == "paper" else table.all_cells[line.row]
        values = [Value(line.label)]
        for column, shown in zip_longest(own, line.cells):  # the other cells are the paper's, and n
            cell = own.get(column)
            key = cell.summary.mean if cell and cell.summary else leading_number(shown.text)
            link = cell_name(table, line.row, column) if cell and cell.sources else ""
            values.append(Value(shown.text, key, link=link, best=shown.best))
        rows.append(SheetRow(values, kind=line.kind))
    lead = f"Experiment {experiment}, percent. A click on a number shows where it comes from."
    sources = Sheet("Where they come from", PAIR, pairs, PAIR_NOTES, dense=True)
    return layout.title, lead, [Sheet("", columns, rows, layout.notes), sources]


def anchors_page() -> tuple[str, str, list[Sheet]]:
    """Title, lead and sheet of numbers that others report for the paper's benchmarks."""
    names = ("method", "pretrained on", "epochs", "benchmark", "metric", "percent", "source", "looked up")
    rows = []
    for one in load_anchors():
        values = [one.method, one.data or "nothing", one.epochs, one.benchmark, one.metric, f"{one.percent:g}"]
        values += [one.source, "yes" if one.verified else "no, from memory"]
        rows.append(
            SheetRow([Value(v, one.percent if n == "percent" else None) for n, v in zip(names, values, strict=True)])
        )
    lead = f"Numbers that others report on the paper's benchmarks ({SOURCE}); none was measured here."
    return "Anchors", lead, [Sheet("", [Column(n, number=n == "percent") for n in names], rows, dense=True)]


def leading_number(text: str) -> float | None:
    """Sort key of a cell that is not one of our means: 3 for ``3 seeds``, 85.2 for ``85.2?``."""
    found = re.match(r"[-+]?\d+(\.\d+)?", text)
    return float(found[0]) if found else None
