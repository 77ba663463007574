"""Where and when the numbers of an experiment were made, as sheets: from the seals of its artifacts.

rows = provenance_rows(plan, table, made, metrics)       # made: id -> opened artifact
write_page(Path("artifacts.html"), *artifacts_page(plan, made))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mls.pipeline.artifact import Artifact
from mls.pipeline.plan import Job, Plan
from mls.report.layout import DASH
from mls.report.page import Column, Row, Sheet, Value, spent
from mls.report.tables import FilledTable

NOTHING = Value(DASH)

PAIR = [
    Column("row"),
    Column("column"),
    Column("value", number=True),
    Column("pretraining"),
    Column("took", number=True),
    Column("task"),
    Column("took", number=True),
    Column("device"),
    Column("code"),
]
"""Columns of one pair of artifacts behind a cell."""
ARTIFACT = [
    Column("stage"),
    Column("artifact"),
    Column("took", number=True),
    Column("bytes", number=True),
    Column("device"),
    Column("machine"),
    Column("code"),
    Column("environment", number=True),
]
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


def cell_name(table: FilledTable, row: str, column: str) -> str:
    """What links a number to the lines that tell where it comes from."""
    return f"cell-{list(table.all_cells).index(row)}-{table.columns.index(column)}"


# --------------------------------------------------------------------------------------- provenance


def provenance_rows(
    plan: Plan, table: FilledTable, made: dict[str, Artifact], metrics: dict[str, dict[str, Any]]
) -> list[Row]:
    """A line for every cell and pair of artifacts, in the table's order."""
    rows = []
    for row, cells in table.all_cells.items():
        for column, cell in cells.items():
            for pretrain, task in cell.sources:
                value = metrics[task].get(column.split(".", 1)[1])
                values = [Value(row), Value(column), NOTHING if value is None else Value(f"{value:.2f}", value)]
                for one in (pretrain, task):
                    values += [identity(plan, one), took(made.get(one))]
                both = [made[one].manifest["made"] for one in (pretrain, task) if one in made]
                values += [
                    Value(differing(both, device), below=differing(both, threads)),
                    Value(differing(both, code), below=f"torch {differing(both, torch)}"),
                ]
                rows.append(Row(values, name=cell_name(table, row, column)))
    return rows


def identity(plan: Plan, one: str) -> Value:
    """What a person calls an artifact, above its id."""
    labels = plan.labels[one]
    return Value(labels[0] + (f" (+{len(labels) - 1})" if labels[1:] else ""), below=one, title=", ".join(labels))


def took(artifact: Artifact | None) -> Value:
    """How long an artifact's making took, above when it started."""
    if artifact is None:
        return NOTHING
    made = artifact.manifest["made"]
    return Value(spent(made["wall_s"]), made["wall_s"], below=made["started"][:16].replace("T", " "))


def differing(both: list[dict[str, Any]], fact: Callable[[dict[str, Any]], str]) -> str:
    """What two artifacts have in common or, where they differ, of each."""
    return " / ".join(filter(None, dict.fromkeys(map(fact, both))))


def device(made: dict[str, Any]) -> str:
    """What it ran on; stages that don't use torch have no device."""
    return made.get("device", DASH)


def threads(made: dict[str, Any]) -> str:
    """Threads of torch, and ranks if there were several."""
    if "threads" not in made:
        return ""
    count, ranks = made["threads"], made["ranks"]
    return f"{count} thread{'' if count == 1 else 's'}" + (f", {ranks} ranks" if ranks > 1 else "")


def code(made: dict[str, Any]) -> str:
    """Revision of the code or, outside a git repository, the digest of it."""
    revision, dirty, digest = (made["code"][key] for key in ("revision", "dirty", "digest"))
    return (revision[:10] if revision else f"digest {digest}") + ("+" if dirty else "")


def torch(made: dict[str, Any]) -> str:
    """Its version."""
    return made["packages"].get("torch", DASH)


# ---------------------------------------------------------------------------------------- artifacts


def artifacts_page(plan: Plan, made: dict[str, Artifact]) -> tuple[str, str, list[Sheet]]:
    """Title, lead and sheets: totals by stage, every artifact of the plan, and the environments they were made in."""
    stages = {job.stage: plan.stage(job.stage) for job in plan.jobs.values()}
    totals = [total_row(stage, jobs, made) for stage, jobs in stages.items()]
    everything = total_row("all", list(plan.jobs.values()), made, kind="total")
    environments = list(dict.fromkeys(environment(artifact) for artifact in made.values()))
    rows = [artifact_row(plan, job, made.get(job.id), environments) for job in plan.jobs.values()]
    counts = [Column(name, number=True) for name in ("artifacts", "here", "took", "bytes")]
    sheets = [
        Sheet("By stage", [Column("stage"), *counts], [*totals, everything]),
        Sheet(
            "Every artifact",
            ARTIFACT,
            rows,
            [STARTED, CODE, f"{DASH}: not here. Features may be removed; local photos stay where they are."],
            dense=True,
        ),
        Sheet(
            "Environments",
            [Column("environment"), Column("python"), Column("packages")],
            [Row([Value(str(i)), *map(Value, one)], name=f"environment-{i}") for i, one in enumerate(environments, 1)],
        ),
    ]
    lead = f"What experiment {plan.loaded.experiment.experiment} is made of. Times are of the machines that made it."
    return "Artifacts", lead, sheets


def total_row(stage: str, jobs: list[Job], made: dict[str, Artifact], kind: str = "") -> Row:
    """How many artifacts, how many of them are here, and what those took."""
    here = [made[job.id] for job in jobs if job.id in made]
    seconds, size = sum(one.manifest["made"]["wall_s"] for one in here), sum(map(bytes_of, here))
    counts = [Value(str(count), count) for count in (len(jobs), len(here))]
    return Row([Value(stage), *counts, Value(spent(seconds), seconds), Value(f"{size:,}", size)], kind=kind)


def artifact_row(plan: Plan, job: Job, artifact: Artifact | None, environments: list[tuple[str, str]]) -> Row:
    """When, where, by which code and how fast an artifact was made."""
    if artifact is None:
        return Row([Value(job.stage), identity(plan, job.id), *[NOTHING] * 6])
    made, size, at = artifact.manifest["made"], bytes_of(artifact), 1 + environments.index(environment(artifact))
    return Row(
        [
            Value(job.stage),
            identity(plan, job.id),
            took(artifact),
            Value(f"{size:,}", size),
            Value(device(made), below=threads(made)),
            Value(made["machine"], below=made["host"]),
            Value(code(made)),
            Value(str(at), at, link=f"environment-{at}"),
        ]
    )


def environment(artifact: Artifact) -> tuple[str, str]:
    """The versions of Python and of the packages that can move a number."""
    made = artifact.manifest["made"]
    return made["python"], ", ".join(f"{name} {version}" for name, version in made["packages"].items())


def bytes_of(artifact: Artifact) -> int:
    """The size of all its files."""
    return sum(entry["size"] for entry in artifact.manifest["files"].values())
