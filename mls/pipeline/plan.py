"""Plan an experiment: which artifacts it needs, and what each is made from.

    plan = plan_file(Path("params.yaml"))
    plan.find("pretrain", "mls")            # jobs of a stage by label or id

A plan is computed from committed files only: the experiment, ``data.lock`` and the files that the experiment names. No
artifact is opened and torch is not imported, so planning is fast and works in any clone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mls.config.catalog import published_digest
from mls.config.datasets import CocoDataset, Dataset, ScenesDataset
from mls.config.experiment import Pretrain
from mls.config.identity import STAGES, identify, identity_params, kind_of
from mls.config.load import Loaded, load, parse_yaml
from mls.config.methods import METHODS, PRETRAIN, TRAINED
from mls.config.probes import Features, FrozenProbe, ProbeConfig
from mls.config.references import plotted_points
from mls.config.transfers import TransferConfig
from mls.runtime.errors import MlsError
from mls.runtime.paths import store, work

DATA_LOCK = Path("data.lock")
ARTIFACTS = Path("artifacts")
MOST_JOBS = 200_000
"""A plan with more, which every command would make for minutes, is a slip of the keyboard."""
FIRST_SEED = 1000
"""Seed of trial 0 of a probe or transfer. Trials, not pretraining seeds, number the repeats of a task."""


ReadText = Callable[[str], str]
"""Gives the text of a file that the experiment names; `mls.pipeline.gc` reads it from another git reference."""


def read_text(file: str) -> str:
    """Read a file of the working tree."""
    return Path(file).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Job:
    """One artifact to make."""

    stage: str
    config: Any
    """The typed section of the experiment that the stage reads."""
    params: dict[str, Any]
    """Its identity params, which the id covers."""
    inputs: dict[str, Any]
    """Role -> id, or list of ids, of the artifacts it reads."""
    seed: int = 0
    """Seed of a pretraining, or trial of a probe or transfer."""
    id: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", identify(self.stage, kind_of(self.config), self.params, self.inputs))

    @property
    def path(self) -> Path:
        """The artifact's folder; that of local photos is in ``photos``, which DVC does not track: they stay private."""
        local = self.stage == "data" and not isinstance(self.config, ScenesDataset)
        return ARTIFACTS / ("photos" if local else self.stage) / self.id

    @property
    def work(self) -> Path:
        """Folder for resumable state and the failure record; not part of the artifact."""
        return work() / self.id

    @property
    def failure(self) -> Path:
        """Record of why the last try failed."""
        return self.work / "failed.json"

    @property
    def log(self) -> Path:
        """What its last try printed on stderr, if the workflow ran it."""
        return Path("logs") / self.path.parent.name / f"{self.id}.log"

    @property
    def stored(self) -> Path:
        """The artifact's folder in the store."""
        return store() / self.path.parent.name / self.id


Cells = dict[str, dict[str, list[list[str]]]]
"""Run -> task -> a pair of ids, of the pretraining and the task, for each value that a table's cell averages over."""


@dataclass
class Plan:
    """All jobs of one experiment, each after those that it reads."""

    loaded: Loaded
    jobs: dict[str, Job] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)
    """Job id -> its names: ``scenes``, ``mls:0``, ``linear/mls:0``; several if equal params make it one job."""
    tables: Job = field(init=False)

    def stage(self, stage: str) -> list[Job]:
        """The jobs of one stage."""
        return [job for job in self.jobs.values() if job.stage == stage]

    def roles(self, job: Job) -> dict[str, Job]:
        """The jobs whose artifacts a job reads, by role; if a role has several, their keys are ``<role>/<id>``."""
        found: dict[str, Job] = {}
        for role, ids in job.inputs.items():
            found |= {role: self.jobs[ids]} if isinstance(ids, str) else {f"{role}/{i}": self.jobs[i] for i in ids}
        return found

    def inputs(self, job: Job) -> list[Job]:
        """The jobs whose artifacts a job reads."""
        return list(self.roles(job).values())

    def name(self, job: Job) -> str:
        """A job's name in messages: the stage, the first label and the id."""
        more = len(self.labels[job.id]) - 1
        return f"{job.stage} {self.labels[job.id][0]}{f' (+{more})' if more else ''} [{job.id}]"

    def find(self, stage: str, target: str) -> list[Job]:
        """Find jobs of a stage by id or its start, by label, or by label without the seed.

        Raises:
            MlsError: there is none; lists the stage's jobs.
        """
        found = [
            job
            for job in self.stage(stage)
            if (len(target) >= 4 and job.id.startswith(target))
            or any(target in (label, label.rsplit(":", 1)[0]) for label in self.labels[job.id])
        ]
        if not found:
            known = ", ".join(f"{self.labels[j.id][0]} [{j.id}]" for j in self.stage(stage)) or "none"
            raise MlsError(f"{self.loaded.path} plans no {stage} {target!r}; it plans: {known}")
        return found

    def add(self, job: Job, label: str) -> Job:
        """Add a job, or only its label if an equal job is planned already; return the planned one."""
        self.jobs.setdefault(job.id, job)
        labels = self.labels.setdefault(job.id, [])
        if label not in labels:
            labels.append(label)
        return self.jobs[job.id]


def plan_file(path: Path) -> Plan:
    """Load an experiment file and plan it."""
    return make_plan(load(path), read_lock(DATA_LOCK))


def make_plan(loaded: Loaded, lock: dict[str, Any], read: ReadText = read_text) -> Plan:
    """Plan every job of an experiment.

    Args:
        loaded: the checked experiment.
        lock: content of ``data.lock``: dataset name -> digest of its source.
        read: reads the files that the experiment names.

    Raises:
        MlsError: the content of a dataset that is used has no known digest.
    """
    plan = Plan(loaded)
    experiment = loaded.experiment
    tasks: list[tuple[str, str, ProbeConfig | TransferConfig]] = [
        *(("probe", name, probe) for name, probe in experiment.probe.items()),
        *(("transfer", name, transfer) for name, transfer in experiment.transfer.items()),
    ]
    each = 1 + sum(getattr(config, "trials", 1) for *_, config in tasks)
    if (count := len(loaded.runs) * len(experiment.seeds) * each) > MOST_JOBS:
        raise MlsError(
            f"{loaded.path}: its runs, sweep points, seeds, tasks and trials make {count:,} jobs; "
            f"a plan has at most {MOST_JOBS:,}"
        )

    def add_data(name: str) -> Job:
        return plan.add(data_job(name, experiment.datasets[name], lock, loaded.path, read), name)

    pretrained: dict[str, list[Job]] = {}
    for run, config in loaded.runs.items():
        source = add_data(config.dataset or "") if config.method in TRAINED else None
        jobs = [plan.add(_pretrain_job(config, seed, source), f"{run}:{seed}") for seed in experiment.seeds]
        pretrained[run] = jobs
    cells: Cells = {run: {PRETRAIN: [[job.id, job.id] for job in jobs]} for run, jobs in pretrained.items()}
    for stage, task, task_config in tasks:
        source = add_data(task_config.dataset)
        for run, jobs in pretrained.items():
            cells[run][task] = []
            for seed, upstream in zip(experiment.seeds, jobs, strict=True):
                for trial in range(getattr(task_config, "trials", 1)):
                    label = f"{task}/{run}:{seed}" + (f".{trial}" if trial else "")
                    images = source
                    if isinstance(task_config, Features):
                        images = plan.add(_features_job(task_config, source, upstream), label)
                    job = plan.add(_task_job(stage, task_config, trial, images, upstream), label)
                    cells[run][task].append([upstream.id, job.id])
    plan.tables = plan.add(_tables_job(plan, cells, pretrained), experiment.experiment)
    plan.jobs = dict(sorted(plan.jobs.items(), key=lambda item: STAGES.index(item[1].stage)))
    return plan


def data_job(name: str, config: Dataset, lock: dict[str, Any], file: Path, read: ReadText = read_text) -> Job:
    """Plan the preparation of one dataset; ``file`` is the experiment's, for messages.

    The id covers the dataset's content through its digest in ``data.lock`` or, without one, through the checksums that
    its publisher gives for the archives.

    Raises:
        MlsError: there is neither; says how to add a digest.
    """
    params = identity_params(config)
    if not isinstance(config, ScenesDataset):
        entry = lock.get(name)
        pinned = entry.get("sha256") if isinstance(entry, dict) else None
        digest = pinned if isinstance(pinned, str) and pinned else published_digest(config)
        if digest is None:
            raise MlsError(
                f"dataset {name!r} has no digest in {DATA_LOCK}, and no checksums are published for all that it reads; "
                f"run: mls data pin {name} -e {file} (or mls data {name} --pin -e {file}, which also makes it)"
            )
        params["digest"] = digest
    if isinstance(config, CocoDataset) and config.subset and config.subset.ids:
        params["subset"] = {"ids": read_ids(config.subset.ids, read)}
    return Job("data", config, params, {})


def read_ids(file: str, read: ReadText = read_text) -> list[int]:
    """Read a text file of image ids, one a line, with ``#`` comments; return them sorted.

    Raises:
        MlsError: names the file, the line and what is wrong.
    """
    try:
        lines = read(file).removeprefix("\ufeff").splitlines()
    except (OSError, ValueError) as error:
        raise MlsError(f"subset.ids: {file} can't be read ({error})") from error
    ids: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        text = line.split("#", 1)[0].strip()
        if not text:
            continue
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise MlsError(f"{file}, line {number}: {text[:40]!r} is not an image id")
        if int(text) in ids:
            raise MlsError(f"{file}, line {number}: id {text} was listed before, on line {ids[int(text)]}")
        ids[int(text)] = number
    if not ids:
        raise MlsError(f"{file}: lists no image ids")
    return sorted(ids)


def _pretrain_job(config: Pretrain, seed: int, source: Job | None) -> Job:
    params = identity_params(config, METHODS[config.method].reads)
    if config.method in (*TRAINED, "none"):
        params["seed"] = seed
    return Job("pretrain", config, params, {"data": source.id} if source else {}, seed)


def _features_job(task: FrozenProbe, data: Job, pretrain: Job) -> Job:
    """The features that a probe reads; their id covers only the params that all probes of frozen features share."""
    config = Features.model_validate({name: getattr(task, name) for name in Features.model_fields})
    return Job("features", config, identity_params(config), {"data": data.id, "pretrain": pretrain.id})


def _task_job(stage: str, config: ProbeConfig | TransferConfig, trial: int, images: Job, pretrain: Job) -> Job:
    """A probe or transfer; ``images`` is the dataset's job or, for a probe of frozen features, that of the features."""
    params = identity_params(config)
    if not isinstance(config, Features):
        params["trial"] = trial
    return Job(stage, config, params, {images.stage: images.id, "pretrain": pretrain.id}, trial)


def _tables_job(plan: Plan, cells: Cells, pretrained: dict[str, list[Job]]) -> Job:
    """The tables; they print labels, so in this stage, and only here, the id covers labels."""
    tables = {}
    for name, table in plan.loaded.experiment.tables.items():
        rows = table.rows if table.rows is not None else list(cells)
        wanted = list(dict.fromkeys(column.split(".", 1)[0] for column in table.columns))
        tables[name] = {
            "columns": table.columns,
            "rows": [{"label": row, "tasks": {task: cells[row][task] for task in wanted}} for row in rows],
        }
        if table.baseline is not None:
            tables[name]["baseline"] = table.baseline
        if table.not_implemented:
            tables[name]["not_implemented"] = table.not_implemented
        if table.paper is not None:
            tables[name]["paper"] = identity_params(table.paper)
        if table.plot is not None:
            points = plotted_points(table.plot, {row: plan.loaded.runs[row] for row in rows}, table.baseline)
            tables[name]["plot"] = {"key": table.plot, "x": points}
    inputs = {stage: [job.id for job in plan.stage(stage)] for stage in ("data", "pretrain", "probe", "transfer")}
    runs = {job.id: plan.labels[job.id] for job in plan.stage("pretrain")}
    params = {"experiment": plan.loaded.experiment.experiment, "tables": tables, "runs": runs}
    if drawn := plan.loaded.experiment.draw:
        params["draw"] = {run: pretrained[run][0].id for run in drawn}
    return Job("tables", plan.loaded.experiment, params, inputs)


def read_lock(path: Path) -> dict[str, Any]:
    """Read ``data.lock``; an absent or empty file has no digests.

    Raises:
        MlsError: it can't be read, or an entry is not what `mls data pin` writes.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise MlsError(f"{path}: can't be read ({error})") from error
    lock = parse_yaml(text, str(path)) if text.strip() else {}
    for name, entry in lock.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
            raise MlsError(f"{path}: {name} has no sha256, a text; `mls data pin` writes it")
    return lock


def experiment_files(root: Path = Path()) -> list[Path]:
    """Every experiment file of a working tree: ``params.yaml`` and ``experiments/*.yaml``."""
    return [*root.glob("params.yaml"), *sorted(root.glob("experiments/*.yaml"))]


def payload(job: Job) -> dict[str, Any]:
    """The content of ``params.json``: what the id is computed from, and what the stage reads, with defaults."""
    only = METHODS[job.config.method].reads if isinstance(job.config, Pretrain) else None
    resolved = {} if job.stage == "tables" else identity_params(job.config, only, defaults=True)
    return {"stage": job.stage, "params": job.params, "inputs": job.inputs, "resolved": resolved}
