"""What experiments would cost: their jobs, device hours and disk, without running anything.

    costs = estimate([plan_file(Path("experiments/micro.yaml"))])   # a `Cost` for each job
    print_costs(costs)                                              # what `mls plan` prints

Each job's hours come from the first of these that knows: it is done here, and its ``artifact.json`` says what it took;
equal work was measured here; somebody published it (``throughput.csv``). Otherwise they are not known, and a total is
called a least one. Hours of different devices are never added.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from mls.config.experiment import Pretrain
from mls.config.identity import STAGES
from mls.config.methods import TRAINED
from mls.config.probes import Features
from mls.config.transfers import Detectron2Detector
from mls.cost.disk import artifact_bytes, download_bytes, peak_bytes
from mls.cost.rates import Finished, Measured, measure, measured_here, read_finished, recorded, traits
from mls.cost.workload import Jobs, data_of, work_of
from mls.pipeline.plan import Job, Plan

UNKNOWN = "?"
WIDTH = 240
"""Columns of text: a line that is wider than the terminal is folded there, never cut."""


@dataclass(frozen=True)
class Cost:
    """Of one job. None: not known."""

    id: str
    stage: str
    what: str
    """What it has in common with the jobs that are printed in one line."""
    files: int
    """Experiment files that need it."""
    done: bool
    images: int | None
    """See `mls.cost.workload.work_of`."""
    hours: float | None
    """That it takes or, where it is done, took."""
    unit: str
    """Of the hours: ``CPU-h`` of one core, or ``V100-h``; empty where they are unknown or none."""
    source: str
    """Where the hours come from."""
    disk: int | None
    """Bytes of the artifact."""
    peak: int | None
    """Bytes of ``work/<id>/`` while it runs."""
    download: int | None
    """Bytes to fetch first."""
    notes: tuple[str, ...] = ()


def estimate(plans: Sequence[Plan]) -> list[Cost]:
    """What each job of some experiments costs; one that several of them need comes once.

    Reads ``artifact.json`` of what is finished here and, of data sets whose size nobody published, their index.
    """
    finished = read_finished()
    jobs: dict[str, Job] = {job_id: one.job for job_id, one in finished.items()}
    files: Counter[str] = Counter()
    first: dict[str, Plan] = {}
    for plan in plans:
        files.update(plan.jobs.keys())
        jobs |= plan.jobs
        first |= {job_id: plan for job_id in plan.jobs if job_id not in first}
    measured = measure(finished, jobs)
    costs = [_cost(plan, jobs[job_id], files[job_id], jobs, finished, measured) for job_id, plan in first.items()]
    return sorted(costs, key=lambda cost: STAGES.index(cost.stage))


def _cost(plan: Plan, job: Job, files: int, jobs: Jobs, finished: Mapping[str, Finished], measured: Measured) -> Cost:
    execution, images, made = plan.loaded.experiment.execution, work_of(job, jobs), finished.get(job.id)
    hours, unit, source = None, "", UNKNOWN
    notes: tuple[str, ...] = ()
    if made:
        hours, unit, source = made.hours, made.unit, "done here"
    elif images == 0:
        hours, source = 0.0, "nothing is trained"
    elif images and (rate := measured_here(job, jobs, measured, execution.device) or recorded(job, jobs)):
        hours, unit, source, notes = rate.hours(images), rate.unit, rate.source, rate.notes
    return Cost(
        id=job.id,
        stage=job.stage,
        what=describe(plan, job, jobs),
        files=files,
        done=made is not None,
        images=images,
        hours=hours,
        unit=unit,
        source=source,
        disk=made.size if made else artifact_bytes(job, jobs),
        peak=0 if made else peak_bytes(job, jobs, execution.keep_checkpoints),
        download=0 if made else download_bytes(job),
        notes=notes,
    )


def describe(plan: Plan, job: Job, jobs: Jobs) -> str:
    """What a person calls jobs of this kind: ``mls, resnet50, 400 epochs``."""
    config: Any = job.config
    if job.stage in ("data", "tables"):
        return plan.labels[job.id][0]
    backbone = traits(job, jobs)["backbone"]
    if isinstance(config, Pretrain):
        return f"{config.method}, {backbone}" + (f", {config.epochs} epochs" if config.method in TRAINED else "")
    data = data_of(job, jobs)
    on = f"{backbone}, {plan.labels[data.id][0] if data else UNKNOWN}"
    if job.stage == "features":
        return f"{on}, {config.image_size} px"
    kind = config.kind
    if isinstance(config, Features):
        return f"{kind}, {on}"
    if isinstance(config, Detectron2Detector):
        kind += f" {config.architecture} (detectron2)"
    epochs = getattr(config, "epochs", None)
    return f"{kind}, {on}, " + (f"{epochs:g} epochs" if epochs else f"{config.steps_on(None):,} steps")


def as_json(costs: Sequence[Cost]) -> str:
    """All of it, for machines: ``jobs``, and ``totals`` of what is left."""
    return json.dumps({"jobs": [vars(cost) for cost in costs], "totals": totals(costs)}, indent=1)


def totals(costs: Iterable[Cost]) -> dict[str, Any]:
    """Jobs, and what those cost that are left: hours by unit, bytes, and how many of each are not known."""
    costs = list(costs)
    left = [cost for cost in costs if not cost.done]
    hours: dict[str, float] = defaultdict(float)
    for cost in left:
        if cost.unit:
            hours[cost.unit] += cost.hours or 0
    return {
        "jobs": len(costs),
        "left": len(left),
        "shared": sum(cost.files > 1 for cost in costs),
        "hours": dict(hours),
        "unknown_hours": sum(cost.hours is None for cost in left),
        "disk": sum(cost.disk or 0 for cost in left),
        "unknown_disk": sum(cost.disk is None for cost in left),
        "peak": max((cost.peak or 0 for cost in left), default=0),
        "unknown_peak": sum(cost.peak is None for cost in left),
        "download": sum(cost.download or 0 for cost in left),
        "unknown_download": sum(cost.download is None for cost in left),
    }


def print_costs(costs: Sequence[Cost]) -> None:
    """A line for each kind of job, the stages' totals, all of it, and what there is to know about the sources."""
    console = Console(width=WIDTH, soft_wrap=True, highlight=False, markup=False)
    columns = ("stage", "what", "jobs", "done", "hours each", "hours left", "unit", "artifacts", "work", "from")
    table = _table(*columns, right=("jobs", "done", "hours each", "hours left", "artifacts", "work"))
    groups: dict[tuple[str, str, str, str], list[Cost]] = defaultdict(list)
    for cost in costs:
        groups[cost.stage, cost.what, cost.unit, cost.source].append(cost)
    for (stage, what, unit, source), group in groups.items():
        total, known = totals(group), [cost.hours for cost in group if cost.hours is not None]
        each = hours(sum(known) / len(known)) if known else UNKNOWN
        left = UNKNOWN if total["unknown_hours"] else hours(sum(total["hours"].values()))
        disk = UNKNOWN if any(cost.disk is None for cost in group) else size(sum(cost.disk or 0 for cost in group))
        peak = UNKNOWN if total["unknown_peak"] else size(total["peak"])
        done = str(total["jobs"] - total["left"])
        table.add_row(stage, what, str(total["jobs"]), done, each, left, unit, disk, peak, source)
    console.print(table, "", _stages(costs), "", *_summary(totals(costs)), sep="\n")
    for note in dict.fromkeys(note for cost in costs for note in cost.notes):
        console.print(f"- {note}")


def _stages(costs: Sequence[Cost]) -> Table:
    columns = ("stage", "jobs", "done", "hours left", "of unknown hours", "artifacts left")
    table = _table(*columns, right=("jobs", "done", "of unknown hours", "artifacts left"))
    for stage in STAGES:
        if of_stage := [cost for cost in costs if cost.stage == stage]:
            total = totals(of_stage)
            left = " + ".join(f"{hours(value)} {unit}" for unit, value in sorted(total["hours"].items()))
            unknown, disk = str(total["unknown_hours"] or ""), _least(size(total["disk"]), total["unknown_disk"])
            table.add_row(stage, str(total["jobs"]), str(total["jobs"] - total["left"]), left, unknown, disk)
    return table


def _summary(total: dict[str, Any]) -> list[str]:
    """Sentences about all that is left."""
    lines = [f"{total['jobs']} jobs, {total['jobs'] - total['left']} done, {total['left']} left"]
    if total["shared"]:
        lines[0] += f"; {total['shared']} are needed by several of the files, and counted once"
    for unit, value in sorted(total["hours"].items()):
        lines.append(f"{unit}: {_least(hours(value), total['unknown_hours'])}")
    if total["unknown_hours"]:
        lines.append(f"jobs of which nobody knows the hours: {total['unknown_hours']}")
    lines.append(
        f"disk: {_least(size(total['disk']), total['unknown_disk'])} for artifacts; while the largest job runs, "
        f"{_least(size(total['peak']), total['unknown_peak'])} in work/"
    )
    if total["download"] or total["unknown_download"]:
        downloads = _least(size(total["download"]), total["unknown_download"])
        lines.append(f"downloads: {downloads}, which take about as much below $MLS_DATA")
    return lines


def _table(*columns: str, right: Iterable[str]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True, justify="right" if column in right else "left")
    return table


def _least(text: str, unknown: int) -> str:
    """Of a sum in which so many terms are missing."""
    return text if not unknown else UNKNOWN if text == "0" else f"at least {text}"


def hours(value: float) -> str:
    """Two significant digits at least, down to 0.001, a few seconds."""
    if 0 < value < 0.001:
        return "<0.001"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def size(value: int) -> str:
    """Bytes as people read them: ``64 kB``, ``377 MB``, ``20.4 GB``."""
    if value >= 1e9:
        return f"{value / 1e9:,.1f} GB"
    return f"{value / 1e6:.0f} MB" if value >= 1e6 else f"{value / 1e3:.0f} kB" if value else "0"
