"""Check whether this machine has what an experiment needs, and say what to do about the rest.

    diagnose(Path("params.yaml"))               # `mls doctor`: print every finding; MlsError if something is missing
    findings = examine(Path("params.yaml"))     # the same as a list

A finding is ``ok``, ``missing`` (the experiment needs it) or a ``note`` (worth knowing). Each check imports the
packages that it looks at, so that a broken package is a finding and not a traceback.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mls.config import catalog
from mls.config.datasets import CocoDataset, LocalDataset, ScenesDataset, VocDataset
from mls.config.load import Loaded, load
from mls.config.methods import TRAINED
from mls.config.transfers import Detectron2Detector
from mls.pipeline.artifact import how_to_mend, state
from mls.pipeline.artifact_store import link_back
from mls.pipeline.plan import ARTIFACTS, DATA_LOCK, Plan, make_plan, read_lock
from mls.runtime.errors import MlsError
from mls.runtime.paths import store, work
from mls.transfer.detectron2_install import detectron2_finding

LEAST_GB = 1
"""Free disk space below which space is ``missing``, in GB."""


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    status: str
    """``ok``, ``missing`` or ``note``."""
    name: str
    text: str
    remedy: str = ""


def diagnose(file: Path) -> None:
    """Print the findings for an experiment file.

    Raises:
        MlsError: something is missing; the message says how many things.
    """
    findings = examine(file)
    width = max(len(finding.name) for finding in findings) + 2
    for finding in findings:
        lines = [*finding.text.splitlines(), *([f"-> {finding.remedy}"] if finding.remedy else [])]
        print(f"{finding.status:9}{finding.name:{width}}" + f"\n{'':{9 + width}}".join(lines))
    missing = sum(finding.status == "missing" for finding in findings)
    if missing:
        raise MlsError("1 thing is missing" if missing == 1 else f"{missing} things are missing")
    print(f"everything that {file} needs is here")


def examine(file: Path) -> list[Finding]:
    """Run every check. A check that fails is a finding too, and the others still run."""
    findings: list[Finding] = []
    loaded, plan = None, None
    try:
        loaded = load(file)
        plan = make_plan(loaded, read_lock(DATA_LOCK))
        link_back(plan)
        findings.append(Finding("ok", "experiment", f"{file} plans {len(plan.jobs)} jobs"))
    except MlsError as error:
        findings.append(Finding("missing", "experiment", str(error)))
    checks = {
        "programs": check_programs(),
        "torch": check_torch(loaded),
        "detectron2": check_detectron2(loaded),
        "trackers": check_trackers(loaded),
        "disk": check_disk(),
        "data": check_data(plan) if plan else (),
        "weights": check_weights(plan) if plan else (),
    }
    for name, check in checks.items():
        try:
            findings.extend(check)
        except Exception as error:
            findings.append(Finding("missing", name, f"can't be checked ({reason(error)})"))
    return findings


def reason(error: Exception) -> str:
    """An error in one line."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def check_programs() -> Iterator[Finding]:
    """Python, and the programs that are run as commands."""
    yield Finding("ok", "python", platform.python_version())  # an older one than 3.11 can't import this module
    # Look beside this Python too: its environment may not be activated.
    places = os.pathsep.join((os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)))
    for name, status, absent in (
        ("snakemake", "missing", "not found, and it runs the stages; make setup installs it"),
        ("dvc", "note", "not found; stages run without it, but finished artifacts can't be fetched (dvc pull)"),
        ("git", "note", "not found; stages run without it, but artifacts don't record the revision of the code"),
    ):
        found = shutil.which(name, path=places)
        yield Finding("ok", name, found) if found else Finding(status, name, absent)


def check_torch(loaded: Loaded | None) -> Iterator[Finding]:
    """torch and torchvision; an operator of torchvision shows whether it was built for this torch."""
    try:
        import torch
        import torchvision

        torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except Exception as error:  # a shared library that can't be loaded is an OSError
        remedy = "make setup installs versions of torch and torchvision that belong together (requirements.lock)"
        yield Finding("missing", "torch", f"torch or torchvision fails: {reason(error)}", remedy)
    else:
        yield Finding("ok", "torch", f"{torch.__version__}, with torchvision {torchvision.__version__}")
        yield from check_device(loaded)


def check_device(loaded: Loaded | None) -> Iterator[Finding]:
    """GPUs, whether the experiment demands one, and whether bf16 is slow without one."""
    from torch import cuda

    with warnings.catch_warnings(record=True) as warned:  # torch warns if the driver is too old
        warnings.simplefilter("always")
        found = [cuda.get_device_properties(i) for i in range(cuda.device_count())] if cuda.is_available() else []
    gpus = ", ".join(f"{one.name} ({one.total_memory / 2**30:.0f} GiB)" for one in found)
    why = "".join(f" ({str(one.message).splitlines()[0]})" for one in warned[:1])
    text = gpus or f"no GPU that torch can use{why}; {len(os.sched_getaffinity(0))} CPU cores"
    device = loaded.experiment.execution.device if loaded else "auto"
    if gpus and device != "cpu":
        yield Finding("ok", "device", text)
        return
    runs = [run for run in loaded.runs.values() if run.method in TRAINED] if loaded else []
    tasks = [*loaded.experiment.probe.values(), *loaded.experiment.transfer.values()] if loaded else []
    demands = ["execution.device"] if device == "cuda" else []
    demands += ["pretrain.resident"] if any(run.resident == "cuda" for run in runs) else []
    said = f"{' and '.join(demands)}: cuda" if demands else f"execution.device: {device}"
    remedy = "set it to cpu, or use a machine with a GPU" if demands else ""
    yield Finding("missing" if demands else "ok", "device", f"{text}; {said}", remedy)
    if any(getattr(one, "precision", None) == "bf16" for one in [*runs, *tasks]) and not cpu_has_bf16():
        text = "this CPU has no bf16 instructions (AVX-512, AMX): precision bf16 is slower on it than fp32 (README)"
        yield Finding("note", "bf16", text)


def cpu_has_bf16() -> bool:
    """Whether Linux lists bf16 instructions for the CPU (x86 or ARM)."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return bool(re.search(r"^(flags|Features)\s*:.*\b(avx512_bf16|amx_bf16|bf16)\b", text, re.MULTILINE))


def check_detectron2(loaded: Loaded | None) -> Iterator[Finding]:
    """Detectron2, which only transfer tasks with ``backend: detectron2`` need."""
    tasks = loaded.experiment.transfer if loaded else {}
    needing = [name for name, task in tasks.items() if isinstance(task, Detectron2Detector)]
    problem, remedy = detectron2_finding() or ("", "")
    if not problem:
        version = sys.modules["detectron2"].__version__
        yield Finding("ok", "detectron2", f"{version}, model zoo and compiled operators load")
    elif needing:
        yield Finding("missing", "detectron2", f"{problem}; needed by transfer {', '.join(needing)}", remedy)
    else:
        yield Finding("note", "detectron2", f"{problem}; no task of this experiment needs it")


def check_trackers(loaded: Loaded | None) -> Iterator[Finding]:
    """Packages that ``execution.trackers`` needs (the files of dvclive are written without its package)."""
    extras = {"tensorboard": "trackers", "wandb": "wandb"}
    for name in loaded.experiment.execution.trackers if loaded else []:
        if name in extras:
            try:
                yield Finding("ok", name, version(name))
            except PackageNotFoundError:
                remedy = f"pip install -e '.[{extras[name]}]', or remove it from execution.trackers"
                yield Finding("missing", name, "not installed; execution.trackers names it", remedy)


def check_disk() -> Iterator[Finding]:
    """Free space on each disk that artifacts or state are written to."""
    disks: dict[int, tuple[Path, list[str]]] = {}
    for folder in (ARTIFACTS, work(), store()):
        there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
        disks.setdefault(there.stat().st_dev, (there, []))[1].append(f"{folder}/")
    for there, folders in disks.values():
        free = shutil.disk_usage(there).free / 1e9
        status, remedy = ("note", "") if free >= LEAST_GB else ("missing", "free some; mls gc lists what nothing needs")
        yield Finding(status, "disk", f"{free:.1f} GB free for {', '.join(folders)}", remedy)


def check_data(plan: Plan) -> Iterator[Finding]:
    """Each dataset: finished, generated, or where its source is or will come from."""
    for job in plan.stage("data"):
        names, found = plan.labels[job.id], state(job.path)
        if found == "damaged":
            yield Finding("missing", "data", f"{names[0]}: {job.path} is damaged", how_to_mend(job.path))
        elif found == "done" or isinstance(job.config, ScenesDataset):
            yield Finding("ok", "data", f"{names[0]}: {f'{job.path} is made' if found == 'done' else 'is generated'}")
        else:
            yield _source(names, job.config)


def _source(names: list[str], config: LocalDataset) -> Finding:
    from mls.data.sources import find_root
    from mls.data.voc import is_bare
    from mls.download.fetch import to_download

    try:
        root = find_root(names, config)
    except MlsError as error:
        return Finding("missing", "data", str(error))
    if config.root is not None or (isinstance(config, VocDataset) and is_bare(root, config)):
        return Finding("ok", "data", f"{names[0]}: {root}")  # the user's own copy: nothing is downloaded into it
    absent = to_download(config, root)
    if by_hand := [one.file for one in absent if not one.urls]:
        text = f"{names[0]}: not in {root}, and without a public address: {', '.join(by_hand)}"
        return Finding("missing", "data", text, catalog.hint(config) or f"put it into {root}")
    what = [one.file for one in absent]
    what += ["images one by one"] if isinstance(config, CocoDataset) and config.subset else []
    if not what:
        return Finding("ok", "data", f"{names[0]}: {root}")
    size = f" ({sum(one.size or 0 for one in absent) / 1e9:.1f} GB)" if all(one.size for one in absent) else ""
    return Finding("note", "data", f"{names[0]}: to be downloaded into {root}{size}: {', '.join(what)}")


def check_weights(plan: Plan) -> Iterator[Finding]:
    """Published weights of backbones that are not made yet; the stage itself checks their sha256."""
    for job in plan.stage("pretrain"):
        label, config = plan.labels[job.id][0], job.config
        if config.method not in ("weights", "imagenet") or state(job.path) == "done":
            continue
        from mls.models.foreign import weights_root

        if config.method == "imagenet":
            yield Finding("note", "weights", f"{label}: to be downloaded into {weights_root()}/ if it is not there")
            continue
        file = weights_root() / config.weights.file
        status, remedy = ("ok", "") if file.is_file() else ("missing", "put it there, or set MLS_WEIGHTS to its folder")
        yield Finding(status, "weights", f"{label}: {file}", remedy)
