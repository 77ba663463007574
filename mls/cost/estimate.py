"""The cost of experiments: their jobs, device hours, memory and disk, without running anything.

    costs = estimate([plan_file(Path("experiments/micro.yaml"))], device="3090")    # a `Cost` for each job
    print_costs(costs)                                                              # prints what ``mls plan`` prints

A job's hours come from the first of these that knows them: the job is done here, and its ``artifact.json`` has its
time; equal work was measured here; they are published for this device (``throughput.csv``); they follow from seconds of
a core that were measured elsewhere; they are computed from counted operations. They are unknown only where the number
of images is, and totals are then lower bounds. Hours of different devices are never added.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from mls.config.experiment import Pretrain
from mls.config.identity import STAGES
from mls.config.methods import TRAINED
from mls.config.probes import Trained
from mls.config.transfers import Detectron2Detector, SemanticTransfer, TransferSection
from mls.cost.computed import computed, memory_of, parts_of, too_large
from mls.cost.devices import CPU, DEFAULT, read_devices
from mls.cost.disk import artifact_bytes, download_bytes, peak_bytes
from mls.cost.rates import Finished, Measured, measure, measured_here, read_finished, recorded, traits
from mls.cost.seconds import MEASURED, seconds_of
from mls.cost.workload import Jobs, data_of, work_of
from mls.pipeline.plan import Job, Plan
from mls.runtime.progress import Bar

UNKNOWN = "?"
WIDTH = 240
"""Width of the text in characters; narrower terminals fold its lines instead of cutting them."""
LEFT = ("stage", "what", "unit", "from")
"""Columns that are aligned to the left; the others hold numbers."""


@dataclass(frozen=True)
class Cost:
    """The cost of one job. None means unknown."""

    id: str
    stage: str
    what: str
    """A description; jobs with equal descriptions are printed in one line."""
    files: int
    """Number of experiment files that need it."""
    done: bool
    images: int | None
    """Images that it processes, see `mls.cost.workload.work_of`."""
    hours: float | None
    """Device hours that it takes or, if it is done, took."""
    unit: str
    """Unit of the hours: ``CPU-h`` for one core, or ``V100-h``; empty if they are unknown or 0."""
    basis: str
    """How the hours are known: ``measured``, ``published``, ``computed`` or ``guess (x 3)``; empty if unknown, or 0."""
    source: str
    """Source of the hours."""
    memory: int | None
    """Bytes on each GPU that it uses, at the peak; 0 if it uses none."""
    disk: int | None
    """Bytes of the artifact."""
    peak: int | None
    """Bytes of ``work/<id>/`` while it runs."""
    download: int | None
    """Bytes to download first."""
    notes: tuple[str, ...] = ()


def estimate(plans: Sequence[Plan], device: str | None = None) -> list[Cost]:
    """Estimate each job of some experiments; a job that several of them need is listed once.

    Reads the ``artifact.json`` of finished artifacts and, for data sets without a published size, their index.

    Args:
        plans: of the experiments.
        device: name of a device of ``devices.csv``; by default `mls.cost.devices.DEFAULT`, and ``cpu`` for experiments
            with ``execution.device: cpu``. Work that was measured here counts on any device, unless one is named.
    """
    finished = read_finished()
    jobs = {job_id: one.job for job_id, one in finished.items()}
    planned: dict[str, list[Plan]] = defaultdict(list)
    for plan in plans:
        jobs |= plan.jobs
        for job_id in plan.jobs:
            planned[job_id].append(plan)
    measured = measure(finished, jobs)
    costs = []
    with Bar("plan", total=len(planned), unit="jobs") as bar:
        for job_id, needed_by in planned.items():
            costs.append(_cost(jobs[job_id], needed_by, jobs, finished, measured, device))
            bar.advance(count=1)
    return sorted(costs, key=lambda cost: STAGES.index(cost.stage))


def _cost(
    job: Job, plans: list[Plan], jobs: Jobs, finished: Mapping[str, Finished], measured: Measured, name: str | None
) -> Cost:
    execution, images, made = plans[0].loaded.experiment.execution, work_of(job, jobs), finished.get(job.id)
    device = read_devices()[name or (CPU if execution.device == CPU else DEFAULT)]
    work, parts = None if made else computed(job, jobs), parts_of(job, execution)
    memory = 0 if made else memory_of(job, jobs, work, parts)
    hours: float | None = None
    unit, basis, source = "", "", UNKNOWN
    notes: tuple[str, ...] = ()
    on = name or execution.device
    if made:
        hours, unit, basis, source = made.hours, made.unit, MEASURED, "done here"
    elif images == 0:
        hours, source = 0.0, "nothing is trained"
    elif images and (rate := measured_here(job, jobs, measured, on) or recorded(job, jobs, device)):
        hours, unit, basis, source, notes = rate.hours(images), rate.unit, rate.basis, rate.source, rate.notes
    elif seconds := seconds_of(job, jobs):
        hours, unit, basis, source = seconds.value / 3600, read_devices()[CPU].unit, seconds.basis, seconds.why
    elif work:
        hours, unit, basis = work.hours(device), device.unit, "computed"
        source, notes = f"{work.each / 1e9:,.4g} GFLOP an image", (device.note(),)
    what = _describe(plans[0], job, jobs)
    if problem := too_large(job, work, memory, parts, device):
        notes += (f"{job.stage} {what}: {problem}",)
    return Cost(
        id=job.id,
        stage=job.stage,
        what=what,
        files=len(plans),
        done=made is not None,
        images=images,
        hours=hours,
        unit=unit,
        basis=basis,
        source=source,
        memory=memory,
        disk=made.size if made else artifact_bytes(job, jobs),
        peak=0 if made else peak_bytes(job, jobs, execution.keep_checkpoints),
        download=0 if made else download_bytes(job),
        notes=notes,
    )


def _describe(plan: Plan, job: Job, jobs: Jobs) -> str:
    """Describe jobs of this kind for people: ``mls, resnet50, 400 epochs``."""
    config: Any = job.config
    if job.stage in ("data", "tables"):
        return plan.labels[job.id][0]
    backbone, data = traits(job, jobs)["backbone"], data_of(job, jobs)
    if isinstance(config, Pretrain):
        return f"{config.method}, {backbone}" + (f", {config.epochs} epochs" if config.method in TRAINED else "")
    on = f"{backbone}, {plan.labels[data.id][0] if data else UNKNOWN}"
    if job.stage == "features":
        return f"{on}, {config.image_size} px"
    kind, length = config.kind, ""
    if isinstance(config, Detectron2Detector):
        kind += f" {config.architecture} (detectron2)"
    elif isinstance(config, SemanticTransfer):
        kind += f" {config.head}" * (config.head != "psp")
    if isinstance(config, Trained | TransferSection):
        length = f", {config.epochs:g} epochs" if hasattr(config, "epochs") else f", {config.steps_on(None):,} steps"
    return f"{kind}, {on}{length}"


def as_json(costs: Sequence[Cost]) -> str:
    """The costs for programs: ``jobs``, and ``totals`` of the jobs that are not done."""
    return json.dumps({"jobs": [vars(cost) for cost in costs], "totals": totals(costs)}, indent=1)


def totals(costs: Iterable[Cost]) -> dict[str, Any]:
    """Count jobs, and sum the cost of those that are not done: hours by unit, bytes, and unknown values of each."""
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
        "disk": sum(cost.disk or 0 for cost in left),
        "peak": max((cost.peak or 0 for cost in left), default=0),
        "memory": max((cost.memory or 0 for cost in left), default=0),
        "download": sum(cost.download or 0 for cost in left),
        **{
            f"unknown_{name}": sum(getattr(cost, name) is None for cost in left)
            for name in ("hours", "memory", "disk", "peak", "download")
        },
    }


def print_costs(costs: Sequence[Cost]) -> None:
    """Print a line for each kind of job, the stages' totals, the overall totals, and remarks about the sources."""
    console = Console(width=WIDTH, soft_wrap=True, highlight=False, markup=False)
    columns = ("hours each", "hours left", "unit", "memory", "artifacts", "work", "from")
    table = _table("stage", "what", "jobs", "done", *columns)
    groups: dict[tuple[str, ...], list[Cost]] = defaultdict(list)
    for cost in costs:
        source = f"{cost.basis}: {cost.source}" if cost.basis else cost.source
        groups[cost.stage, cost.what, cost.unit, source].append(cost)
    for (stage, what, unit, source), group in groups.items():
        total, known = totals(group), [cost.hours for cost in group if cost.hours is not None]
        each = hours(sum(known) / len(known)) if known else UNKNOWN
        left = UNKNOWN if total["unknown_hours"] else hours(sum(total["hours"].values()))
        disk = UNKNOWN if any(cost.disk is None for cost in group) else size(sum(cost.disk or 0 for cost in group))
        peak = UNKNOWN if total["unknown_peak"] else size(total["peak"])
        memory = UNKNOWN if total["unknown_memory"] else size(total["memory"])
        table.add_row(stage, what, *_counts(total), each, left, unit, memory, disk, peak, source)
    stages = _table("stage", "jobs", "done", "hours left", "of unknown hours", "artifacts left")
    for stage in STAGES:
        if of_stage := [cost for cost in costs if cost.stage == stage]:
            total = totals(of_stage)
            left = " + ".join(f"{hours(value)} {unit}" for unit, value in sorted(total["hours"].items()))
            disk = _at_least(size(total["disk"]), total["unknown_disk"])
            stages.add_row(stage, *_counts(total), left, str(total["unknown_hours"] or ""), disk)
    notes = dict.fromkeys(f"- {note}" for cost in costs for note in cost.notes)
    console.print(table, "", stages, "", *_summary(totals(costs)), *notes, sep="\n")


def _counts(total: dict[str, Any]) -> tuple[str, str]:
    """The cells of columns ``jobs`` and ``done``."""
    return str(total["jobs"]), str(total["jobs"] - total["left"])


def _summary(total: dict[str, Any]) -> list[str]:
    """Sentences about all jobs that are not done."""
    jobs, done = _counts(total)
    shared = f"; {total['shared']} are needed by several of the files, and counted once" if total["shared"] else ""
    lines = [f"{jobs} jobs, {done} done, {total['left']} left{shared}"]
    lines += [f"{unit}: {_at_least(hours(n), total['unknown_hours'])}" for unit, n in sorted(total["hours"].items())]
    if total["unknown_hours"]:
        lines.append(f"jobs of unknown hours: {total['unknown_hours']}")
    disk, peak, download = (
        _at_least(size(total[name]), total[f"unknown_{name}"]) for name in ("disk", "peak", "download")
    )
    lines.append(f"disk: {disk} for artifacts; while the largest job runs, {peak} in work/")
    lines.append(f"GPU memory: {_at_least(size(total['memory']), total['unknown_memory'])} for the largest job")
    if download != "0":
        lines.append(f"downloads: {download}, which take about as much below $MLS_DATA")
    return lines


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True, justify="left" if column in LEFT else "right")
    return table


def _at_least(text: str, unknown: int) -> str:
    """A sum with some unknown terms as text."""
    return text if not unknown else UNKNOWN if text == "0" else f"at least {text}"


def hours(value: float) -> str:
    """Hours with at least two significant digits, down to 0.001 (a few seconds)."""
    if 0 < value < 0.001:
        return "<0.001"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def size(value: int) -> str:
    """Bytes with a unit: ``64 kB``, ``377 MB``, ``20.4 GB``."""
    if value >= 1e9:
        return f"{value / 1e9:,.1f} GB"
    return f"{value / 1e6:.0f} MB" if value >= 1e6 else f"{value / 1e3:.0f} kB" if value else "0"
