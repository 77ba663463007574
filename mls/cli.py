"""The command line: ``mls <command>`` = ``python -m mls <command>``, thin, one function a command.

    mls validate                     check params.yaml and every experiments/*.yaml
    mls doctor                       what this machine lacks to run an experiment, and what to do about it
    mls status                       what of an experiment is done, running, failed or missing
    mls plan FILE ...                jobs, device hours and disk of experiments, from measured or published speeds
    mls sweep show                   the points of sweeps: their states, and a metric as far as it was measured
    mls data scenes                  make one artifact by hand, by label or id; likewise:
    mls pretrain mls                 mls probe linear/mls   mls transfer detect/mls   mls tables scenes
    mls score linear/mls             metrics recomputed from predictions, of a probe or transfer; or: mls score FILE
    mls data pin coco-tiny           write the digest of a source's files into data.lock
    mls data check coco-tiny         what a finished data set holds, and what in it contradicts itself
    mls export mls --format timm     a backbone as a file of torchvision's, timm's or Detectron2's names
    mls draw mls                     the paper's Figures 3 and 4 of a finished pretraining, into drawn/<id>/
    mls draw detect/mls              what a finished detector finds in test images, likewise
    mls verify | mls gc | mls store add | mls retry ID | mls publish | mls show | mls report

Every other command that reads an experiment takes ``-e FILE`` (default: params.yaml). What of it the store has and
artifacts/ lacks is linked first.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mls.config.identity import STAGES
from mls.pipeline.artifact_store import add_all, plan_here
from mls.pipeline.plan import DATA_LOCK, experiment_files, plan_file
from mls.runtime.errors import EXIT_FAILED, EXIT_INTERRUPTED, Interrupted, MlsError


def validate(args: argparse.Namespace) -> None:
    """Check experiment files (default: all of them); report every problem at once."""
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
    """Make the artifacts that the target names (a label, with or without seed, or an id)."""
    if args.command == "data" and args.target[0] in ("pin", "check"):
        if len(args.target) == 1:
            raise MlsError(f"usage: mls data {args.target[0]} NAME")
        return pin(args) if args.target[0] == "pin" else check(args)
    from mls.pipeline.make import make

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _stop)
    plan = plan_here(args.experiment)
    jobs = [job for target in args.target for job in plan.find(args.command, target)]
    make(args.command, plan, jobs, args.experiment, args.attempt)
    return None


def _stop(number: int, frame: types.FrameType | None) -> None:
    """Where a stage has no state worth saving (imports, fits, figures) a signal simply ends it."""
    raise Interrupted(f"stopped by {signal.Signals(number).name}; run the same command to go on")


def pin(args: argparse.Namespace) -> None:
    """Write the digests of local sources into data.lock."""
    from mls.config.load import load
    from mls.data.sources import pin as pin_source

    datasets = load(args.experiment).experiment.datasets
    for name in args.target[1:]:
        if name not in datasets:
            raise MlsError(f"{args.experiment} has no dataset {name!r}; it has: {', '.join(datasets)}")
        entry = pin_source(name, datasets[name], DATA_LOCK)
        print(f"{name}: {entry['files']} files, {entry['bytes']:,} bytes, sha256 {entry['sha256']} -> {DATA_LOCK}")


def check(args: argparse.Namespace) -> None:
    """Report what finished data sets hold; exit with 1 where something contradicts."""
    from mls.data.check import check as check_data
    from mls.data.check_text import print_report
    from mls.pipeline.artifact import open_artifact, state

    plan, wrong = plan_here(args.experiment), []
    for name in args.target[1:]:
        for job in plan.find("data", name):
            if state(job.path) == "missing":
                raise MlsError(f"{plan.name(job)} is not made yet; run: mls data {name} -e {args.experiment}")
            report = check_data(open_artifact(job.path).path, name)
            print_report(report)
            wrong += [name] if report.contradictions else []
    if wrong:
        raise MlsError(f"{', '.join(wrong)}: contradicts itself, see the report")


def status(args: argparse.Namespace) -> None:
    """Print each artifact of an experiment with its state."""
    from mls.pipeline.status import print_status

    print_status(plan_here(args.experiment))


def sweep(args: argparse.Namespace) -> None:
    """Print each point of the experiment's sweeps with its state and a metric."""
    from mls.report.sweep_state import print_sweeps

    print_sweeps(plan_here(args.experiment), args.metric)


def plan(args: argparse.Namespace) -> None:
    """Print the jobs, device hours and disk that experiments need; run nothing."""
    from mls.cost.estimate import as_json, estimate, print_costs

    costs = estimate([plan_here(path) for path in args.files])
    if args.json:
        print(as_json(costs))
    else:
        print_costs(costs)


def doctor(args: argparse.Namespace) -> None:
    """Check whether this machine has what an experiment needs; exit with 1 where something is missing."""
    from mls.doctor import diagnose

    diagnose(args.experiment)


def verify(args: argparse.Namespace) -> None:
    """Compare every file of every finished artifact with its recorded sha256."""
    from mls.pipeline.status import verify_plan

    verify_plan(plan_here(args.experiment))


def gc(args: argparse.Namespace) -> None:
    """List, or with --delete remove, artifacts that no experiment file, branch or result refers to."""
    from mls.pipeline.gc import collect

    collect(delete=args.delete, shared=args.shared)


def store(args: argparse.Namespace) -> None:
    """Verify the finished artifacts that the store lacks, and take them in."""
    add_all()


def retry(args: argparse.Namespace) -> None:
    """Forget the recorded failures of some artifacts, so that the next run tries again."""
    from mls.pipeline.status import forget_failure

    for job_id in args.ids:
        forget_failure(job_id)


def publish(args: argparse.Namespace) -> None:
    """Make results/<experiment>/ show the experiment's tables."""
    from mls.report.publish import publish as publish_tables

    print(publish_tables(plan_here(args.experiment)))


def show(args: argparse.Namespace) -> None:
    """Print the experiment's tables and where their files are."""
    from mls.report.publish import show as show_tables

    print(show_tables(plan_here(args.experiment)))


def report(args: argparse.Namespace) -> None:
    """Write the pages of the experiment's report, one file each, into report/; print the folder (all: make report)."""
    from mls.report.pages import build

    print(build(plan_here(args.experiment)))


def score(args: argparse.Namespace) -> None:
    """Print a probe's or transfer's metrics, recomputed from its predictions (a label, an id, or a .parquet file)."""
    from mls.probe.score import print_probe_score

    if args.target.endswith(".parquet"):
        return print_probe_score(Path(args.target))
    from mls.pipeline.artifact import open_artifact

    plan = plan_here(args.experiment)
    named = args.target.split("/")[0] in plan.loaded.experiment.transfer
    transfers = named or any(job.id.startswith(args.target) for job in plan.stage("transfer"))
    for job in plan.find("transfer" if transfers else "probe", args.target):
        print(f"{plan.name(job)}\n", flush=True)
        artifact = open_artifact(job.path)
        if not transfers:
            print_probe_score(artifact.file("predictions.parquet"))
            continue
        from mls.data.image_store import ImageStore
        from mls.transfer.rescore import print_transfer_score

        print_transfer_score(job.config, ImageStore(open_artifact(plan.jobs[job.inputs["data"]].path).path), artifact)
    return None


def export(args: argparse.Namespace) -> None:
    """Write a finished backbone for torchvision, timm or Detectron2, checked by loading it there."""
    from mls.config.experiment import Backbone
    from mls.pipeline.artifact import open_artifact
    from mls.transfer.export import FORMATS, export_backbone

    plan = plan_here(args.experiment)
    jobs = plan.find("pretrain", args.target)
    if args.out and len(jobs) > 1:
        raise MlsError(f"-o is one file, but {args.target} is {', '.join(plan.name(job) for job in jobs)}; name one")
    for job in jobs:
        artifact = open_artifact(job.path)
        config = Backbone.model_validate(artifact.read_json("params.json")["resolved"]["backbone"])
        out = args.out or Path(f"{plan.labels[job.id][0].replace(':', '-')}-{args.format}{FORMATS[args.format][0]}")
        export_backbone(config, artifact.file("backbone.safetensors"), args.format, out, print)


def draw(args: argparse.Namespace) -> None:
    """Draw the paper's Figures 3 and 4 of finished pretrainings, or what finished detectors find; print the files."""
    plan = plan_here(args.experiment)
    named = args.target.split("/")[0] in plan.loaded.experiment.transfer
    of_id = len(args.target) >= 4 and any(job.id.startswith(args.target) for job in plan.stage("transfer"))
    jobs = plan.find("transfer" if named or of_id else "pretrain", args.target)
    if args.out and len(jobs) > 1:
        raise MlsError(f"-o is one folder, but {args.target} is {', '.join(plan.name(job) for job in jobs)}; name one")
    if jobs[0].stage == "pretrain":
        from mls.report.neighbour_figures import draw_neighbours
        from mls.runtime.device import set_up

        set_up("cpu", plan.loaded.experiment.execution.threads, seed=0)
        draw_job = partial(draw_neighbours, images=args.images, seed=args.seed)
    else:
        from mls.report.detection_figures import draw_transfer

        draw_job = partial(draw_transfer, images=args.images)
    for job in jobs:
        for file in draw_job(plan, job, args.out or Path("drawn") / job.id):
            print(file)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="mls", description=(__doc__ or "").split("\n\n")[0])
    commands = top.add_subparsers(dest="command", required=True, metavar="command")

    def add(
        name: str, function: Callable[[argparse.Namespace], None], *, experiment: bool = True
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=(function.__doc__ or "").split("\n")[0])
        sub.set_defaults(function=function)
        if experiment:
            sub.add_argument("-e", "--experiment", type=Path, default=Path("params.yaml"), help="experiment file")
        return sub

    for name in STAGES:
        sub = add(name, stage)
        sub.description = f"Make {name} artifacts by hand; snakemake calls the same command."
        sub.add_argument(
            "target", nargs="+", help="label or id" + (", or: pin NAME, check NAME" if name == "data" else "")
        )
        sub.add_argument(
            "--attempt", type=int, default=1, metavar="N", help="of a scheduler: from 2 on, a recorded failure is final"
        )
    add("validate", validate, experiment=False).add_argument("files", nargs="*", type=Path, help="experiment files")
    sub = add("plan", plan, experiment=False)
    sub.add_argument("files", nargs="*", type=Path, default=[Path("params.yaml")], help="default: params.yaml")
    sub.add_argument("--json", action="store_true", help="for machines: every job, and totals")
    for function in (doctor, status, verify, publish, show, report):
        add(function.__name__, function)
    sub = add("sweep", sweep)
    sub.add_argument("action", choices=("show",))
    sub.add_argument("--metric", metavar="TASK.METRIC", help="default: first column of the first table")
    add("score", score).add_argument("target", help="probe or transfer: label or id; or a predictions.parquet")
    sub = add("export", export)
    sub.add_argument("target", help="pretraining: label or id")
    sub.add_argument("--format", required=True, choices=("torchvision", "detectron2", "timm"), help="whose names")
    sub.add_argument("-o", "--out", type=Path, metavar="FILE", help="default: <run>-<seed>-<format>.<ending>")
    sub = add("draw", draw)
    sub.add_argument("target", help="pretraining or transfer: label or id")
    sub.add_argument("-o", "--out", type=Path, metavar="FOLDER", help="default: drawn/<id>/")
    sub.add_argument("--images", type=int, default=6, metavar="N", help="queries in Figure 4, test images (default: 6)")
    sub.add_argument("--seed", type=int, default=0, help="decides the queries and their crops (default: 0)")
    sub = add("gc", gc, experiment=False)
    sub.add_argument("--delete", action="store_true", help="really remove them")
    sub.add_argument("--shared", action="store_true", help="also from places outside this clone, which others may use")
    add("store", store, experiment=False).add_argument("action", choices=("add",), help="take in what artifacts/ has")
    add("retry", retry, experiment=False).add_argument("ids", nargs="+", help="artifact ids")
    return top


def main() -> None:
    """Run one command; errors meant for people become one line and an exit code."""
    run_the_clones_own_code()
    args = parser().parse_args()
    try:
        args.function(args)
    except Interrupted as error:
        print(f"mls {args.command}: {error}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except MlsError as error:
        print(f"mls {args.command}: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # `mls show | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        print(f"mls {args.command}: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        print(f"mls {args.command}: stopped; run the same command to go on", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def run_the_clones_own_code() -> None:
    """In another clone than the installed one, the ``mls`` command runs that clone's code."""
    here = Path.cwd() / "mls" / "__main__.py"
    if here.is_file() and not here.samefile(Path(__file__).parent / "__main__.py"):
        os.execv(sys.executable, [sys.executable, "-m", "mls", *sys.argv[1:]])
