"""The graph of an experiment's artifacts as a page with an inline SVG: the inputs of each artifact.

write_graph(Path("graph.html"), plan, made)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mls.pipeline.artifact import Artifact
from mls.pipeline.plan import Job, Plan
from mls.report.page import render, spent

COLUMNS = {"data": 0, "pretrain": 1, "features": 2, "probe": 3, "transfer": 3, "tables": 4}
BOX_WIDTH, BOX_HEIGHT = 178, 34
STEP_X, STEP_Y, MARGIN = 236, 44, 30
BOX_LETTERS = 24
"""Characters that fit into a box."""


def write_graph(path: Path, plan: Plan, made: dict[str, Artifact]) -> None:
    """Write the page; ``made`` holds the artifacts that are on this machine, by id."""
    columns: dict[int, list[Job]] = {}
    for job in plan.jobs.values():
        columns.setdefault(COLUMNS[job.stage], []).append(job)
    height = max(map(len, columns.values())) * STEP_Y
    nodes = {
        job.id: {
            **box(plan, job, made.get(job.id)),
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
        size=(max(COLUMNS.values()) * STEP_X + BOX_WIDTH + 2, height + 2 * MARGIN),
        headings=[(column * STEP_X + 1, ", ".join({job.stage: 0 for job in jobs})) for column, jobs in columns.items()],
    )


def box(plan: Plan, job: Job, artifact: Artifact | None) -> dict[str, Any]:
    """Stage and texts of a job's box: its first label, its id with the time it took, and all labels."""
    labels = plan.labels[job.id]
    took = spent(artifact.manifest["made"]["wall_s"]) if artifact else "not here"
    return {
        "stage": job.stage,
        "label": labels[0] if len(labels[0]) <= BOX_LETTERS else labels[0][: BOX_LETTERS - 1] + "…",
        "about": f"{job.id}, {took}" + (f" (+{len(labels) - 1})" if labels[1:] else ""),
        "title": f"{job.stage}: {', '.join(labels)}",
    }


def direct_inputs(plan: Plan, job: Job) -> list[Job]:
    """The inputs of a job that none of its other inputs is made from: the graph without its shortcuts."""
    inputs = plan.inputs(job)
    indirect = {up.id for one in inputs for up in ancestors(plan, one)}
    return [one for one in inputs if one.id not in indirect]


def ancestors(plan: Plan, job: Job) -> list[Job]:
    """Everything that a job depends on."""
    return [found for up in plan.inputs(job) for found in (up, *ancestors(plan, up))]
