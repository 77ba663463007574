"""The graph of an experiment's artifacts as a page with an inline SVG: what each one is made from.

write_graph(Path("graph.html"), plan, made)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mls.pipeline.artifact import Artifact
from mls.pipeline.plan import Job, Plan
from mls.report.page import ENVIRONMENT, spent

COLUMNS = {"data": 0, "pretrain": 1, "features": 2, "probe": 3, "transfer": 3, "tables": 4}
BOX_WIDTH, BOX_HEIGHT = 178, 34
STEP_X, STEP_Y, MARGIN = 236, 44, 30
LONGEST = 24
"""Characters that fit into a box."""


@dataclass(frozen=True)
class Node:
    """One artifact as a box."""

    stage: str
    label: str
    about: str
    """Second line: its id and how long it took."""
    title: str
    x: int
    y: int


def write_graph(path: Path, plan: Plan, made: dict[str, Artifact]) -> None:
    """Write the page; ``made`` holds the artifacts that are here, by id."""
    columns: dict[int, list[Job]] = {}
    for job in plan.jobs.values():
        columns.setdefault(COLUMNS[job.stage], []).append(job)
    height = max(map(len, columns.values())) * STEP_Y
    nodes = {
        job.id: node(plan, job, made.get(job.id), column, height * (2 * i + 1) // (2 * len(jobs)))
        for column, jobs in columns.items()
        for i, job in enumerate(jobs)
    }
    edges = [(nodes[up.id], nodes[job.id]) for job in plan.jobs.values() for up in direct(plan, job)]
    text = ENVIRONMENT.get_template("graph.html").render(
        title="Graph of artifacts",
        lead=f"What each artifact of experiment {plan.loaded.experiment.experiment} is made from, left to right.",
        sheets=[],
        nodes=list(nodes.values()),
        edges=edges,
        box=(BOX_WIDTH, BOX_HEIGHT),
        size=(max(COLUMNS.values()) * STEP_X + BOX_WIDTH + 2, height + 2 * MARGIN),
        headings=[(column * STEP_X + 1, ", ".join({job.stage: 0 for job in jobs})) for column, jobs in columns.items()],
    )
    path.write_text(text, encoding="utf-8")


def node(plan: Plan, job: Job, artifact: Artifact | None, column: int, y: int) -> Node:
    """The box of a job; ``y`` is the middle of its place."""
    labels = plan.labels[job.id]
    label = labels[0] if len(labels[0]) <= LONGEST else labels[0][: LONGEST - 1] + "…"
    took = spent(artifact.manifest["made"]["wall_s"]) if artifact else "not here"
    more = f" (+{len(labels) - 1})" if labels[1:] else ""
    title = f"{job.stage}: {', '.join(labels)}"
    return Node(job.stage, label, f"{job.id}, {took}{more}", title, column * STEP_X + 1, MARGIN + y - BOX_HEIGHT // 2)


def direct(plan: Plan, job: Job) -> list[Job]:
    """The inputs of a job that no other input of it is made from: the graph without its shortcuts."""
    inputs = plan.inputs(job)
    further = {up.id for one in inputs for up in ancestors(plan, one)}
    return [one for one in inputs if one.id not in further]


def ancestors(plan: Plan, job: Job) -> list[Job]:
    """Everything that a job stands on."""
    return [found for up in plan.inputs(job) for found in (up, *ancestors(plan, up))]
