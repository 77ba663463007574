"""The progress of sweeps: the state of each point over its seeds, and the mean of one metric so far.

print_sweeps(plan_file(Path("experiments/scenes-ablations.yaml")), "linear.mAP")
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache

from mls.config.methods import PRETRAIN
from mls.config.section import did_you_mean
from mls.config.sweep import sweep_points
from mls.pipeline.artifact import open_artifact
from mls.pipeline.plan import Job, Plan
from mls.pipeline.status import job_state, print_states
from mls.report.tables import fill_cell
from mls.runtime.errors import MlsError


def print_sweeps(plan: Plan, metric: str | None = None) -> None:
    """Print a table for each swept run, with a row for each point in file order.

    Args:
        plan: of the experiment.
        metric: ``<task>.<metric>``; by default the first column of the first table.

    Raises:
        MlsError: nothing is swept, there is no such task, or the task has no such metric.
    """
    experiment = plan.loaded.experiment
    if not experiment.sweep:
        raise MlsError(f"{plan.loaded.path} has no sweep; docs/experiments.md describes how to write one")
    metric = metric or next(iter(experiment.tables.values())).columns[0]
    task, tasks = metric.partition(".")[0], {**experiment.probe, **experiment.transfer}
    own = task == PRETRAIN and task not in tasks
    if "." not in metric or not (own or task in tasks):
        raise MlsError(f"--metric {metric}: is not <task>.<metric>{did_you_mean(task, tasks)}")
    stage = PRETRAIN if own else "probe" if task in experiment.probe else "transfer"
    trials = getattr(tasks.get(task), "trials", 1)
    by_label = {(job.stage, label): job for job in plan.jobs.values() for label in plan.labels[job.id]}
    state = cache(lambda job_id: job_state(plan.jobs[job_id]))

    def task_state(job: Job) -> str:
        """A task's state; if it is missing because its features are not done, theirs."""
        own, features = state(job.id), state(job.inputs["features"]) if "features" in job.inputs else "done"
        return features if own == "missing" and features != "done" else own

    for run, sweep in experiment.sweep.items():
        points = sweep_points(run, sweep)
        keys = list(dict.fromkeys(key for point in points for key in point.values))
        rows = []
        for point in points:
            labels = [f"{point.label}:{seed}" for seed in experiment.seeds]
            pretrained = [by_label["pretrain", label] for label in labels]
            pairs = [
                (up, up if own else by_label[stage, f"{task}/{label}" + (f".{trial}" if trial else "")])
                for up, label in zip(pretrained, labels, strict=True)
                for trial in range(trials)
            ]
            values = {job.id: read_metric(job, metric) if state(job.id) == "done" else None for _, job in pairs}
            cell = fill_cell(tuple(dict.fromkeys((up.id, job.id) for up, job in pairs)), values)
            mean, n = (f"{cell.summary.mean:.{3 if own else 1}f}", cell.summary.n) if cell.summary else ("", 0)
            progress = [[state(job.id) for job in pretrained], [task_state(job) for _, job in pairs]]
            settings = [str(point.values.get(key, "")) for key in keys]
            rows.append((*settings, *map(count_states, progress), mean, f"{n} of {cell.of}"))
        print(f"{run}: {len(points)} points; seeds {', '.join(map(str, experiment.seeds))}")
        print_states((*keys, "pretrain", task, metric, "n"), rows)
        print()


def read_metric(job: Job, metric: str) -> float | None:
    """A metric of a finished task.

    Raises:
        MlsError: the task has no such metric; names the nearest that it has.
    """
    task, _, name = metric.partition(".")
    metrics = open_artifact(job.path).read_json("metrics.json")
    if name not in metrics:
        raise MlsError(f"--metric {metric}: {task} gives no {name!r}{did_you_mean(name, metrics)}")
    value: float | None = metrics[name]
    return value


def count_states(states: Iterable[str]) -> str:
    """``done`` if all are equal, otherwise ``2 done, 1 running``."""
    counts = Counter(states)
    return ", ".join(f"{n} {state}" for state, n in counts.items()) if len(counts) > 1 else next(iter(counts))
