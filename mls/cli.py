"""The command line: ``mls <command>``, the same as ``python -m mls <command>``; ``mls --help`` lists the commands.

One thin function a command. Each imports what it needs when it runs, so that ``mls --help`` and planning do not wait
for torch.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from mls.cli_parser import parser
from mls.config.identity import STAGES
from mls.pipeline.artifact import open_artifact, state
from mls.pipeline.artifact_store import add_all, plan_here
from mls.pipeline.plan import DATA_LOCK, Job, Plan, experiment_files, plan_file
from mls.pipeline.status import forget_failure, print_status, verify_plan
from mls.runtime.errors import EXIT_FAILED, EXIT_INTERRUPTED, Interrupted, MlsError
from mls.runtime.ranks import ranks
from mls.runtime.surroundings import CALLED_FROM, enter_root, open_streams, require_root


def init(args: argparse.Namespace) -> None:
    """Write an experiment file for your own pictures, with a reason beside each value, and pin them."""
    from mls.starter.write import start

    kind = next(kind for kind in ("folder", "coco", "voc") if getattr(args, kind))
    path = start(args.name, kind, getattr(args, kind), args.like, args.hours)
    print(f"{path}\n\nmake reproduce EXPERIMENT={path}")


def validate(args: argparse.Namespace) -> None:
    """Check experiment files (default: all of them), and report every problem at once."""
    problems = []
    for path in args.files or experiment_files():
        try:
            plan = plan_file(path)
        except MlsError as error:
            problems.append(str(error))
            continue
        counts = ", ".join(f"{len(plan.stage(stage))} {stage}" for stage in STAGES)
        print(f"{path}: valid; {len(plan.jobs)} jobs ({counts})")
    if problems:
        raise MlsError("\n".join(problems))


def stage(args: argparse.Namespace) -> None:
    """Make the artifacts that the targets name; ``mls data pin`` and ``mls data check`` do something else."""
    if args.command == "data" and args.target[0] in ("pin", "check"):
        if len(args.target) == 1 or args.pin:
            raise MlsError(f"usage: mls data {args.target[0]} NAME, or mls data NAME --pin")
        return COMMANDS[f"data {args.target[0]}"](args)
    from mls.pipeline.make import make

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _stop)
    if args.command == "data" and args.pin:
        from mls.data.build_store import pin_and_make

        return pin_and_make(args.target, args.experiment)
    plan = plan_here(args.experiment)
    jobs = [job for target in args.target for job in plan.find(args.command, target)]
    make(args.command, plan, jobs, args.experiment, args.attempt)
    return None


def _stop(number: int, frame: types.FrameType | None) -> None:
    """End a stage that has no state worth saving (imports, fits, figures); training sets a handler of its own."""
    raise Interrupted(f"stopped by {signal.Signals(number).name}; run the same command to go on")


def pin(args: argparse.Namespace) -> None:
    """Write the digest of a source's files into data.lock."""
    from mls.config.load import load
    from mls.data.sources import pin as pin_source

    datasets = load(args.experiment).experiment.datasets
    for name in args.target[1:]:
        if name not in datasets:
            raise MlsError(f"{args.experiment} has no dataset {name!r}; it has: {', '.join(datasets)}")
        entry = pin_source(name, datasets[name], DATA_LOCK)
        print(f"{name}: {entry['files']} files, {entry['bytes']:,} bytes, sha256 {entry['sha256']} -> {DATA_LOCK}")


def check(args: argparse.Namespace) -> None:
    """Report what a finished dataset holds, and what in it contradicts itself."""
    from mls.data.check import check_artifact, print_report

    plan, wrong = plan_here(args.experiment), []
    for name in args.target[1:]:
        for job in plan.find("data", name):
            if state(job.path) == "missing":
                raise MlsError(f"{plan.name(job)} is not made yet; run: mls data {name} -e {args.experiment}")
            report = check_artifact(open_artifact(job.path).path, name)
            print_report(report)
            wrong += [name] if report.contradictions else []
    if wrong:
        raise MlsError(f"{', '.join(wrong)}: contradicts itself, see the report")


def status(args: argparse.Namespace) -> None:
    """Print every artifact of an experiment with its state: done, running, resumable, failed, damaged, missing."""
    print_status(plan_here(args.experiment))


def watch(args: argparse.Namespace) -> None:
    """Show the jobs of an experiment live: progress, loss, speed and time left of what runs; leave with q."""
    from mls.pipeline.watch import watch as watch_plan

    watch_plan(plan_here(args.experiment))


def sweep(args: argparse.Namespace) -> None:
    """Print every point of an experiment's sweeps with its state and a metric."""
    from mls.report.sweep_state import print_sweeps

    print_sweeps(plan_here(args.experiment), args.metric)


def plan(args: argparse.Namespace) -> None:
    """Estimate the jobs, device hours, GPU memory and disk that experiments need, without running anything."""
    from mls.cost.estimate import as_json, estimate, print_costs

    costs = estimate([plan_here(path) for path in args.files], args.device)
    print(as_json(costs)) if args.json else print_costs(costs)


def doctor(args: argparse.Namespace) -> None:
    """Check whether this machine has what an experiment needs, and say what to do about the rest."""
    from mls.doctor import diagnose

    diagnose(args.experiment)


def verify(args: argparse.Namespace) -> None:
    """Compare every file of every finished artifact with the sha256 in its manifest."""
    verify_plan(plan_here(args.experiment))


def gc(args: argparse.Namespace) -> None:
    """List, or with --delete remove, artifacts that no experiment file, branch or published result needs."""
    from mls.pipeline.gc import collect

    collect(delete=args.delete, shared=args.shared)


def store(args: argparse.Namespace) -> None:
    """Verify the finished artifacts in artifacts/ that the store lacks, and add them."""
    add_all()


def retry(args: argparse.Namespace) -> None:
    """Forget recorded failures, so that the next run tries again."""
    for job_id in args.ids:
        forget_failure(job_id)


def publish(args: argparse.Namespace) -> None:
    """Make results/<experiment>/ show the finished tables; snakemake does this at its end."""
    from mls.report.publish import publish_tables

    print(publish_tables(plan_here(args.experiment)))


def show(args: argparse.Namespace) -> None:
    """Print an experiment's tables, and where their files are."""
    from mls.report.publish import show_tables

    print(show_tables(plan_here(args.experiment)))


def report(args: argparse.Namespace) -> None:
    """Write the pages of an experiment's report into report/ (`make report` joins them in one file)."""
    from mls.report.pages import build_pages

    print(build_pages(plan_here(args.experiment)))


def score(args: argparse.Namespace) -> None:
    """Recompute the metrics of a probe or transfer from its predictions (or from a .parquet file)."""
    from mls.probe.score import print_probe_score

    if args.target.endswith(".parquet"):
        return print_probe_score(Path(args.target))

    plan = plan_here(args.experiment)
    for job in _transfers_or(plan, "probe", args.target):
        print(f"{plan.name(job)}\n", flush=True)
        artifact = open_artifact(job.path)
        if job.stage == "probe":
            print_probe_score(artifact.file("predictions.parquet"))
            continue
        from mls.data.image_store import ImageStore
        from mls.transfer.run_transfer import print_transfer_score

        print_transfer_score(job.config, ImageStore(open_artifact(plan.jobs[job.inputs["data"]].path).path), artifact)
    return None


def export(args: argparse.Namespace) -> None:
    """Write a finished backbone for torchvision, timm or Detectron2, and check that it loads there."""
    from mls.config.experiment import Backbone
    from mls.transfer.export import FORMATS, export_backbone
    from mls.transfer.model_folder import export_folder

    plan = plan_here(args.experiment)
    jobs = plan.find("pretrain", args.target)
    _check_out(args, plan, jobs)
    for job in jobs:
        artifact = open_artifact(job.path)
        if args.format == "timm" and args.out and args.out.suffix not in FORMATS["timm"]:
            export_folder(plan, job, artifact, args.out, print)
            continue
        config = Backbone.model_validate(artifact.read_json("params.json")["resolved"]["backbone"])
        out = args.out or Path(f"{plan.labels[job.id][0].replace(':', '-')}-{args.format}{FORMATS[args.format][0]}")
        export_backbone(config, artifact.file("backbone.safetensors"), args.format, out, print)


def embed(args: argparse.Namespace) -> None:
    """Write the features of any pictures by a finished backbone."""
    from mls.probe.embed import embed as embed_pictures

    plan = plan_here(args.experiment)
    jobs = plan.find("pretrain", args.target)
    if len(jobs) > 1:
        raise MlsError(f"{args.target} is {', '.join(plan.name(job) for job in jobs)}; name one")
    execution = plan.loaded.experiment.execution
    count = embed_pictures(open_artifact(jobs[0].path), args.pictures, args.out, args.size, execution)
    print(f"{args.out}: features of {count:,} pictures")


def similar(args: argparse.Namespace) -> None:
    """Show the pictures most similar to one, among those that `mls embed` has read, as a page."""
    from mls.probe.embed import read
    from mls.report.similar import similar as write_similar

    execution = plan_here(args.experiment).loaded.experiment.execution
    for name, cosine in write_similar(args.picture, read(args.features), args.count, args.out, execution):
        print(f"{cosine:.3f}  {name}")
    print(args.out)


def draw(args: argparse.Namespace) -> None:
    """Draw the paper's Figures 3 and 4 of a finished pretraining, or what a finished detector finds."""
    plan = plan_here(args.experiment)
    jobs = _transfers_or(plan, "pretrain", args.target)
    _check_out(args, plan, jobs)
    from mls.report.drawing import draw_job
    from mls.runtime.device import set_up

    set_up("cpu", plan.loaded.experiment.execution.threads, seed=0)
    for job in jobs:
        for file in draw_job(plan, job, args.out or Path("drawn") / job.id, args.images, args.seed):
            print(file)


def _transfers_or(plan: Plan, stage: str, target: str) -> list[Job]:
    """Find jobs of the transfer stage if the target names some, else of another stage."""
    named = target.split("/")[0] in plan.loaded.experiment.transfer
    by_id = len(target) >= 4 and any(job.id.startswith(target) for job in plan.stage("transfer"))
    return plan.find("transfer" if named or by_id else stage, target)


def _check_out(args: argparse.Namespace, plan: Plan, jobs: list[Job]) -> None:
    if args.out and len(jobs) > 1:
        raise MlsError(f"-o is one path, but {args.target} is {', '.join(plan.name(job) for job in jobs)}; name one")


_NAMED = (
    init,
    validate,
    plan,
    doctor,
    status,
    watch,
    sweep,
    show,
    score,
    draw,
    export,
    embed,
    similar,
    publish,
    report,
    verify,
    retry,
    gc,
    store,
)
COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    **dict.fromkeys(STAGES, stage),
    **{function.__name__: function for function in _NAMED},
    **{f"data {function.__name__}": function for function in (pin, check)},
}
"""The function of each command; ``mls --help`` shows the first line of its docstring."""
ANYWHERE = ("validate", "plan", "doctor")
"""Commands that read experiment files, but no artifacts."""


def main() -> None:
    """Run one command; an error for people becomes one line and an exit code."""
    open_streams()
    try:
        enter_root()
        ranks()
    except MlsError as error:
        sys.exit(f"mls: {error}")
    run_the_clones_own_code()
    args = parser({name: function.__doc__ or "" for name, function in COMMANDS.items()}).parse_args()
    os.environ.pop(CALLED_FROM, None)  # the processes that this one starts are called from the root
    try:
        if args.command not in ANYWHERE and not (args.command == "score" and args.target.endswith(".parquet")):
            require_root()
        COMMANDS[args.command](args)
    except BrokenPipeError:  # `mls show | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Interrupted, KeyboardInterrupt) as error:
        _exit(args, str(error) or "stopped; run the same command to go on", EXIT_INTERRUPTED)
    except (MlsError, OSError) as error:
        _exit(args, error, EXIT_FAILED)


def _exit(args: argparse.Namespace, message: object, code: int) -> NoReturn:
    print(f"mls {args.command}: {message}", file=sys.stderr)
    sys.exit(code)


def run_the_clones_own_code() -> None:
    """Run the code of the clone in the current folder, if `mls` was installed from another clone."""
    here = Path.cwd() / "mls" / "__main__.py"
    if here.is_file() and not here.samefile(Path(__file__).parent / "__main__.py"):
        os.execv(sys.executable, [sys.executable, "-m", "mls", *sys.argv[1:]])
