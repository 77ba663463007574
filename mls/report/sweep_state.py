"""Where sweeps stand: the state of each point over its seeds, and one metric of it as far as it was measured.

print_sweeps(plan_file(Path("experiments/scenes-ablations.yaml")), "linear.mAP")
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache

from mls.config.section import did_you_mean
from mls.config.sweep import sweep_points
from mls.pipeline.artifact import open_artifact
from mls.pipeline.plan import Job, Plan
from mls.pipeline.status import job_state, print_states
from mls.report.tables import Filled, fill_cell
from mls.runtime.errors import MlsError


def print_sweeps(plan: Plan, metric: str | None = None) -> None:
    """A table for each swept run: a row for each point, in file order.

    Args:
        plan: of the experiment.
        metric: ``<task>.<metric>``; by default the first column of the first table.

    Raises:
        MlsError: nothing is swept; there is no such task; the task gives no such metric.
    """
    experiment = plan.loaded.experiment
    if not experiment.sweep:
        raise MlsError(f"{plan.loaded.path} has no sweep; docs/experiments.md tells how to write one")
    metric = metric or next(iter(experiment.tables.values())).columns[0]
    task, tasks = metric.partition(".")[0], {**experiment.probe, **experiment.transfer}
    if task not in tasks or "." not in metric:
        raise MlsError(f"--metric {metric}: is not <task>.<metric>{did_you_mean(task, tasks)}")
    state = cache(lambda job_id: job_state(plan.jobs[job_id]))
    by_label = {
        (job.stage, label): job
        for job in plan.jobs.values()
        if job.stage != "features"
        for label in plan.labels[job.id]
    }
    stage = "probe" if task in experiment.probe else "transfer"
    trials = getattr(tasks[task], "trials", 1)

    def doing(job: Job) -> str:
        """A task's state; where it is missing because of its features, theirs."""
        of_features = state(job.inputs["features"]) if "features" in job.inputs else "done"
        return of_features if state(job.id) == "missing" and of_features != "done" else state(job.id)

    for run, sweep in experiment.sweep.items():
        points = sweep_points(run, sweep)
        keys = list(dict.fromkeys(key for point in points for key in point.values))
        rows = []
        for point in points:
            upstream = [by_label["pretrain", f"{point.label}:{seed}"] for seed in experiment.seeds]
            names = [
                [f"{task}/{point.label}:{s}" + (f".{t}" if t else "") for t in range(trials)] for s in experiment.seeds
            ]
            judged = [[by_label[stage, name] for name in of_seed] for of_seed in names]
            pairs = [(up, job) for up, jobs in zip(upstream, judged, strict=True) for job in jobs]
            cell = measured(pairs, {job.id for _, job in pairs if state(job.id) == "done"}, metric)
            values = [str(point.values.get(key, "")) for key in keys]
            states = [counted(state(job.id) for job in upstream), counted(doing(job) for _, job in pairs)]
            mean = f"{cell.summary.mean:.1f}" if cell.summary else ""
            rows.append((*values, *states, mean, f"{cell.summary.n if cell.summary else 0} of {cell.of}"))
        print(f"{run}: {len(points)} points; seeds {', '.join(map(str, experiment.seeds))}")
        print_states((*keys, "pretrain", task, metric, "n"), rows)
        print()


def measured(pairs: list[tuple[Job, Job]], done: set[str], metric: str) -> Filled:
    """The cell of a point: what its finished jobs measured, as a table would average it.

    Raises:
        MlsError: a finished job does not give this metric; names those that it gives.
    """
    task, _, name = metric.partition(".")
    found: dict[str, float | None] = {}
    for _, job in pairs:
        found[job.id] = None
        if job.id in done:
            metrics = open_artifact(job.path).read_json("metrics.json")
            if name not in metrics:
                raise MlsError(f"--metric {metric}: {task} gives no {name!r}{did_you_mean(name, metrics)}")
            found[job.id] = metrics[name]
    return fill_cell(tuple(dict.fromkeys((up.id, job.id) for up, job in pairs)), found)


def counted(states: Iterable[str]) -> str:
    """``done`` where all are; ``2 done, 1 running`` where not."""
    counts = Counter(states)
    return ", ".join(f"{n} {state}" for state, n in counts.items()) if len(counts) > 1 else next(iter(counts))
