"""Pages of Snakemake's report: the tables as sortable views, and where and when everything in them was made.

    mls report -e params.yaml            # report/<experiment>-<id of the tables>/

Times and provenance come from the manifests (``artifact.json``), so a clone that made nothing itself shows the same.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mls.config.paper import SOURCE, load_anchors
from mls.pipeline.artifact import Artifact, open_artifact, state
from mls.pipeline.plan import Job, Plan
from mls.report.build_tables import TASK_STAGES, fill_tables
from mls.report.layout import DASH, lay_out, units
from mls.report.page import Column, Sheet, SheetRow, Value, render, spent, write_page
from mls.report.tables import FilledTable, logged

REPORT = Path("report")
NUMBERS = ("value", "took", "artifacts", "here", "bytes")
"""Names of columns of numbers."""
STARTED = "Under how long it took: when it started, in UTC."
CODE = "Code: git revision; + behind it: with uncommitted changes."
PAIR_NOTES = [
    "One line for each pretraining and task behind a number: a number is the mean of their values, and a difference "
    "has the lines of both of its rows.",
    STARTED,
    "a / b: of the pretraining / of the task, where they differ.",
    "Features that a probe reads were extracted apart, in a time of their own: see the artifacts.",
    CODE,
]
STAGE_COLUMNS = {"data": 0, "pretrain": 1, "features": 2, "probe": 3, "transfer": 3, "tables": 4}
BOX_WIDTH, BOX_HEIGHT = 178, 34
STEP_X, STEP_Y, MARGIN = 236, 44, 30


def report_folder(plan: Plan) -> Path:
    """Where the pages of a plan are; other tables get another folder."""
    return REPORT / f"{plan.loaded.experiment.experiment}-{plan.tables.id}"


def build_pages(plan: Plan) -> Path:
    """Write ``tables/``, ``figures/`` and the other pages; return the folder.

    Raises:
        DamagedArtifact: an artifact is damaged, or the tables or what they read are not made yet.
    """
    tasks = [job for stage in TASK_STAGES for job in plan.stage(stage)]
    if any(logged(column) for table in plan.loaded.experiment.tables.values() for column in table.columns):
        tasks += plan.stage("pretrain")
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
    layout = lay_out(table)
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
    lead = f"Experiment {experiment}, {units(table)}. A click on a number shows where it comes from."
    sources = Sheet("Where they come from", PAIR, pairs, PAIR_NOTES, dense=True)
    return table.name, lead, [Sheet("", columns, rows, layout.notes), sources]


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


def columns_of(names: str) -> list[Column]:
    """Columns from their names, separated by spaces."""
    return [Column(name, number=name in NUMBERS) for name in names.split()]


PAIR = columns_of("row column value pretraining took task took device code")
"""Columns of one pair of artifacts behind a cell."""


def cell_name(table: FilledTable, row: str, column: str) -> str:
    """Name that links a number to the lines with its provenance."""
    return f"cell-{list(table.all_cells).index(row)}-{table.columns.index(column)}"


# --------------------------------------------------------------------------------------- provenance


def provenance_rows(
    plan: Plan, table: FilledTable, made: dict[str, Artifact], metrics: dict[str, dict[str, Any]]
) -> list[SheetRow]:
    """A line for every cell and pair of artifacts, in the table's order."""
    rows = []
    for row, cells in table.all_cells.items():
        for column, cell in cells.items():
            for pair in cell.sources:
                value = metrics[pair[1]].get(column.split(".", 1)[1])
                both = [made[one] for one in pair if one in made]
                values = [
                    *(Value(row), Value(column), Value(DASH) if value is None else Value(f"{value:.2f}", value)),
                    *(shown for one in pair for shown in (job_value(plan, one), took(made.get(one)))),
                    *(made_with(both, what) for what in ("device", "code")),
                ]
                rows.append(SheetRow(values, name=cell_name(table, row, column)))
    return rows


def job_value(plan: Plan, one: str) -> Value:
    """An artifact's first label, above its id."""
    labels = plan.labels[one]
    return Value(labels[0] + (f" (+{len(labels) - 1})" if labels[1:] else ""), below=one, title=", ".join(labels))


def took(artifact: Artifact | None) -> Value:
    """How long it took to make an artifact, above when that started."""
    if artifact is None:
        return Value(DASH)
    made = artifact.manifest["made"]
    return Value(spent(made["wall_s"]), made["wall_s"], below=made["started"][:16].replace("T", " "))


def made_with(artifacts: Sequence[Artifact], what: str) -> Value:
    """The ``device``, ``machine`` or ``code`` that made some artifacts; ``a / b`` where they differ."""
    pairs = [maker(one.manifest["made"])[what] for one in artifacts]
    text, below = (" / ".join(filter(None, dict.fromkeys(lines))) for lines in zip(*pairs, strict=True))
    return Value(text, below=below)


def maker(made: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """What made an artifact, as two lines each; stages that do not use torch have no device and no threads."""
    threads = f"{made['threads']} thread{'' if made['threads'] == 1 else 's'}" if "threads" in made else ""
    ranks = f", {made['ranks']} ranks" if made.get("ranks", 1) > 1 else ""
    return {
        "device": (made.get("device", DASH), threads + ranks),
        "machine": (made["machine"], made["host"]),
        "code": (code_version(made), f"torch {made['packages'].get('torch', DASH)}"),
    }


def code_version(made: dict[str, Any]) -> str:
    """Git revision of the code or, outside a git repository, its digest."""
    revision, dirty, digest = (made["code"][key] for key in ("revision", "dirty", "digest"))
    return (revision[:10] if revision else f"digest {digest}") + ("+" if dirty else "")


# ---------------------------------------------------------------------------------------- artifacts


def artifacts_page(plan: Plan, made: dict[str, Artifact]) -> tuple[str, str, list[Sheet]]:
    """Title, lead and sheets: totals by stage, every artifact of the plan, and the environments they were made in."""
    jobs = list(plan.jobs.values())
    totals = [total_row(stage, plan.stage(stage), made) for stage in dict.fromkeys(job.stage for job in jobs)]
    totals.append(total_row("all", jobs, made, kind="total"))
    environments = list(dict.fromkeys(map(packages, made.values())))
    rows = [artifact_row(plan, job, made.get(job.id), environments) for job in jobs]
    columns = columns_of("stage artifact took bytes device machine code")
    notes = [STARTED, CODE, f"{DASH}: not here. Features may be removed; local photos stay where they are."]
    numbered = [
        SheetRow([Value(str(i)), *map(Value, one)], name=f"environment-{i}") for i, one in enumerate(environments, 1)
    ]
    sheets = [
        Sheet("By stage", columns_of("stage artifacts here took bytes"), totals),
        Sheet("Every artifact", [*columns, Column("environment", number=True)], rows, notes, dense=True),
        Sheet("Environments", columns_of("environment python packages"), numbered),
    ]
    lead = f"What experiment {plan.loaded.experiment.experiment} is made of. Times are of the machines that made it."
    return "Artifacts", lead, sheets


def total_row(stage: str, jobs: list[Job], made: dict[str, Artifact], kind: str = "") -> SheetRow:
    """Number of artifacts, how many of them are on this machine, and the time and bytes of those."""
    here = [made[job.id] for job in jobs if job.id in made]
    seconds, size = sum(one.manifest["made"]["wall_s"] for one in here), sum(map(bytes_of, here))
    counts = [Value(str(count), count) for count in (len(jobs), len(here))]
    return SheetRow([Value(stage), *counts, Value(spent(seconds), seconds), Value(f"{size:,}", size)], kind=kind)


def artifact_row(plan: Plan, job: Job, artifact: Artifact | None, environments: list[tuple[str, str]]) -> SheetRow:
    """When, where, by which code and how fast an artifact was made."""
    first = [Value(job.stage), job_value(plan, job.id), took(artifact)]
    if artifact is None:
        return SheetRow([*first, *[Value(DASH)] * 5])
    size, at = bytes_of(artifact), 1 + environments.index(packages(artifact))
    how = [made_with([artifact], what) for what in ("device", "machine", "code")]
    return SheetRow([*first, Value(f"{size:,}", size), *how, Value(str(at), at, link=f"environment-{at}")])


def packages(artifact: Artifact) -> tuple[str, str]:
    """The versions of Python and of the packages that can change a number."""
    made = artifact.manifest["made"]
    return made["python"], ", ".join(f"{name} {version}" for name, version in made["packages"].items())


def bytes_of(artifact: Artifact) -> int:
    """Total size of its files."""
    return sum(entry["size"] for entry in artifact.manifest["files"].values())


# -------------------------------------------------------------------------------------------- graph


def write_graph(path: Path, plan: Plan, made: dict[str, Artifact]) -> None:
    """Write the page; ``made`` holds the artifacts that are on this machine, by id."""
    columns: dict[int, list[Job]] = {}
    for job in plan.jobs.values():
        columns.setdefault(STAGE_COLUMNS[job.stage], []).append(job)
    height = max(map(len, columns.values())) * STEP_Y
    nodes = {
        job.id: {
            "job": job,
            "labels": plan.labels[job.id],
            "took": spent(made[job.id].manifest["made"]["wall_s"]) if job.id in made else "not here",
            "x": column * STEP_X + 1,
            "y": MARGIN + height * (2 * i + 1) // (2 * len(jobs)) - BOX_HEIGHT // 2,
        }
        for column, jobs in columns.items()
        for i, job in enumerate(jobs)
    }
    render(
        "graph.html",
        path,
        title="Graph of artifacts",
        lead=f"What each artifact of experiment {plan.loaded.experiment.experiment} is made from, left to right.",
        sheets=[],
        nodes=list(nodes.values()),
        edges=[(nodes[up.id], nodes[job.id]) for job in plan.jobs.values() for up in direct_inputs(plan, job)],
        box=(BOX_WIDTH, BOX_HEIGHT),
        size=(max(STAGE_COLUMNS.values()) * STEP_X + BOX_WIDTH + 2, height + 2 * MARGIN),
        headings=[(column * STEP_X + 1, ", ".join({job.stage: 0 for job in jobs})) for column, jobs in columns.items()],
    )


def direct_inputs(plan: Plan, job: Job) -> list[Job]:
    """The inputs of a job that none of its other inputs is made from: the graph without its shortcuts."""
    inputs = plan.inputs(job)
    indirect = {up.id for one in inputs for up in ancestors(plan, one)}
    return [one for one in inputs if one.id not in indirect]


def ancestors(plan: Plan, job: Job) -> list[Job]:
    """Everything that a job depends on."""
    return [found for up in plan.inputs(job) for found in (up, *ancestors(plan, up))]
