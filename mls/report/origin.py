"""Where and when the numbers of an experiment were made, as sheets, from the manifests of its artifacts.

rows = provenance_rows(plan, table, made, metrics)       # made: id -> opened artifact
write_page(Path("artifacts.html"), *artifacts_page(plan, made))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mls.pipeline.artifact import Artifact
from mls.pipeline.plan import Job, Plan
from mls.report.layout import DASH
from mls.report.page import Column, Sheet, SheetRow, Value, spent
from mls.report.tables import FilledTable

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
                both = [made[one].manifest["made"] for one in pair if one in made]
                values = [
                    *(Value(row), Value(column), Value(DASH) if value is None else Value(f"{value:.2f}", value)),
                    *(shown for one in pair for shown in (job_value(plan, one), took(made.get(one)))),
                    Value(combined(both, device), below=combined(both, threads)),
                    Value(combined(both, code_version), below=f"torch {combined(both, torch_version)}"),
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


def combined(both: list[dict[str, Any]], fact: Callable[[dict[str, Any]], str]) -> str:
    """What two artifacts have in common or, if they differ, ``a / b``."""
    return " / ".join(filter(None, dict.fromkeys(map(fact, both))))


def device(made: dict[str, Any]) -> str:
    """The device; stages that do not use torch have none."""
    return made.get("device", DASH)


def threads(made: dict[str, Any]) -> str:
    """Threads of torch, and ranks if there were several."""
    if "threads" not in made:
        return ""
    count, ranks = made["threads"], made["ranks"]
    return f"{count} thread{'' if count == 1 else 's'}" + (f", {ranks} ranks" if ranks > 1 else "")


def code_version(made: dict[str, Any]) -> str:
    """Git revision of the code or, outside a git repository, its digest."""
    revision, dirty, digest = (made["code"][key] for key in ("revision", "dirty", "digest"))
    return (revision[:10] if revision else f"digest {digest}") + ("+" if dirty else "")


def torch_version(made: dict[str, Any]) -> str:
    """Version of torch, if the stage used it."""
    return made["packages"].get("torch", DASH)


# ---------------------------------------------------------------------------------------- artifacts


def artifacts_page(plan: Plan, made: dict[str, Artifact]) -> tuple[str, str, list[Sheet]]:
    """Title, lead and sheets: totals by stage, every artifact of the plan, and the environments they were made in."""
    jobs = list(plan.jobs.values())
    totals = [total_row(stage, plan.stage(stage), made) for stage in dict.fromkeys(job.stage for job in jobs)]
    totals.append(total_row("all", jobs, made, kind="total"))
    environments = list(dict.fromkeys(map(environment, made.values())))
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
    made, size, at = artifact.manifest["made"], bytes_of(artifact), 1 + environments.index(environment(artifact))
    machine = [Value(device(made), below=threads(made)), Value(made["machine"], below=made["host"])]
    last = [Value(code_version(made)), Value(str(at), at, link=f"environment-{at}")]
    return SheetRow([*first, Value(f"{size:,}", size), *machine, *last])


def environment(artifact: Artifact) -> tuple[str, str]:
    """The versions of Python and of the packages that can change a number."""
    made = artifact.manifest["made"]
    return made["python"], ", ".join(f"{name} {version}" for name, version in made["packages"].items())


def bytes_of(artifact: Artifact) -> int:
    """Total size of its files."""
    return sum(entry["size"] for entry in artifact.manifest["files"].values())
