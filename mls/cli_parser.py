"""The arguments and the help of the command line; `mls.cli` has the commands themselves."""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Mapping
from pathlib import Path

from mls.config.identity import STAGES
from mls.cost.devices import DEFAULT, read_devices
from mls.runtime.surroundings import given

DESCRIPTION = """\
Multi-Label Self-Supervised Learning with Scene Images (MLS, ICCV 2023), reproduced end to end: pretrain an image
encoder without labels on pictures of many things, then measure what it has learned, beside other methods.

An experiment is one YAML file: params.yaml, or another with -e FILE. `snakemake` runs all of it: it plans the artifacts
that the experiment needs, and makes the missing ones. The commands here do one step, or look at the results."""

FEATURES, SIMILAR = Path("drawn/features.parquet"), Path("drawn/similar.html")
"""In a folder that git ignores: they show, or name, photos."""
GROUPS = {
    "Begin": ("init",),
    "Make artifacts by hand, by label or id (snakemake runs these commands)": STAGES,
    "Look": ("validate", "plan", "doctor", "status", "watch", "sweep", "show", "score", "draw"),
    "Use a backbone": ("export", "embed", "similar"),
    "Data": ("data pin", "data check"),
    "Keep house": ("verify", "retry", "gc", "store"),
    "Publish": ("publish", "report"),
}

STAGE_HELP = {
    "data": (
        "Turn a source (generated scenes, COCO, VOC, a folder) into a verified store of images and labels.",
        "mls data scenes          the dataset `scenes`\n"
        "mls data photos --pin    the same of your own files, after writing their digest into data.lock\n"
        "mls data pin photos      write the digest of the files of `photos` into data.lock\n"
        "mls data check scenes    report what the finished dataset holds, and what in it contradicts itself",
    ),
    "pretrain": (
        "Train a backbone without labels, or import one (random or published weights).",
        "mls pretrain mls         the run `mls`, every seed\nmls pretrain mls:1       only its seed 1",
    ),
    "features": (
        "Extract a backbone's frozen features of a dataset, once for all probes that read them.",
        "mls features linear/mls  what the probe `linear` reads of the run `mls`, every seed",
    ),
    "probe": (
        "Evaluate a backbone by classification: train a classifier on its frozen features, or fine-tune it.",
        "mls probe linear/mls     the probe `linear` of the run `mls`, every seed",
    ),
    "transfer": (
        "Evaluate a backbone by detection or segmentation: fine-tune it, and score it on the test images.",
        "mls transfer detect/mls  the transfer `detect` of the run `mls`, every seed",
    ),
    "tables": (
        "Collect all metrics of an experiment into its tables and figures.",
        "mls tables scenes        the tables of the experiment `scenes`",
    ),
}
"""What each stage does, and examples."""


def label_or_file(target: str) -> str:
    """A label as it is, or a path that a person gave."""
    return str(given(target)) if target.endswith(".parquet") else target


def positive(text: str) -> float:
    """A finite number above 0."""
    if not 0 < (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


def count(text: str) -> int:
    """A whole number above 0."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def parser(docs: Mapping[str, str]) -> argparse.ArgumentParser:
    """The whole command line.

    Args:
        docs: command -> docstring of its function, whose first line is the command's help; stages have `STAGE_HELP`.
    """
    summaries = {name: doc.split("\n")[0] for name, doc in docs.items()}
    summaries |= {name: summary for name, (summary, _) in STAGE_HELP.items()}
    epilog = "`mls COMMAND --help` shows the options of a command."
    for title, names in reversed(GROUPS.items()):
        epilog = f"{title}:\n" + "".join(f"  {name:12}{summaries[name]}\n" for name in names) + f"\n{epilog}"
    raw = argparse.RawDescriptionHelpFormatter
    usage = "mls COMMAND ..."
    top = argparse.ArgumentParser("mls", usage, DESCRIPTION, epilog, formatter_class=raw)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", prog="mls", help=argparse.SUPPRESS)

    def add(name: str, *, experiment: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, description=summaries[name], formatter_class=raw)
        if experiment:
            file = Path("params.yaml")
            command.add_argument(
                "-e", "--experiment", type=given, default=file, metavar="FILE", help=f"default: {file}"
            )
        return command

    for name, (_, examples) in STAGE_HELP.items():
        command = add(name)
        command.epilog = "examples:\n" + textwrap.indent(examples, "  ")
        command.add_argument("target", nargs="+", help="label or id; `mls status` lists them")
        if name == "data":
            text = "write the digest of a source's files into data.lock first, in the same pass"
            command.add_argument("--pin", action="store_true", help=text)
        text = "number of this try, from a scheduler: from 2 on, a recorded failure is final"
        command.add_argument("--attempt", type=int, default=1, metavar="N", help=text)
    for name in ("doctor", "status", "watch", "show", "verify", "publish", "report"):
        add(name)
    command = add("init", experiment=False)
    command.epilog = (
        "examples:\n  mls init birds --folder ~/birds      every image below it, with or without a labels.csv\n"
        "  mls init street --coco ~/street --hours 8"
    )
    command.add_argument("name", help="of the experiment and of its data set")
    where = command.add_mutually_exclusive_group(required=True)
    where.add_argument("--folder", type=given, metavar="ROOT", help="images, and a labels.csv if they have labels")
    where.add_argument("--coco", type=given, metavar="ROOT", help="in COCO's layout: annotations/instances_*.json")
    where.add_argument("--voc", type=given, metavar="ROOT", help="in PASCAL VOC's layout: VOC2007 or VOC2012")
    text = "the paper's recipe, or a small one (default: the paper's where there is a GPU and 2,048 images)"
    command.add_argument("--like", choices=("paper", "small"), help=text)
    text = "budget of both trainings on this machine, from a short measurement (default: 2)"
    command.add_argument("--hours", type=positive, default=2.0, metavar="H", help=text)
    add("validate", experiment=False).add_argument("files", nargs="*", type=given, help="experiment files")
    command = add("plan", experiment=False)
    command.add_argument("files", nargs="*", type=given, default=[Path("params.yaml")], help="default: params.yaml")
    devices = tuple(read_devices())
    text = f"card that hours and memory are for: {', '.join(devices)} (default: {DEFAULT}; cpu for device: cpu)"
    command.add_argument("--device", choices=devices, metavar="NAME", help=text)
    command.add_argument("--json", action="store_true", help="print every job, and totals, as JSON")
    command = add("sweep")
    command.add_argument("action", choices=("show",))
    command.add_argument("--metric", metavar="TASK.METRIC", help="default: first column of the first table")
    add("score").add_argument(
        "target", type=label_or_file, help="probe or transfer: label or id; or a predictions.parquet"
    )
    command = add("draw")
    command.add_argument("target", help="pretraining or transfer: label or id")
    command.add_argument("-o", "--out", type=given, metavar="FOLDER", help="default: drawn/<id>/")
    text = "queries in Figure 4, or test images (default: 6)"
    command.add_argument("--images", type=int, default=6, metavar="N", help=text)
    command.add_argument("--seed", type=int, default=0, help="chooses the queries and their crops (default: 0)")
    command = add("export")
    command.add_argument("target", help="pretraining: label or id")
    formats = ("torchvision", "detectron2", "timm")
    command.add_argument("--format", required=True, choices=formats, help="the library that will load the file")
    text = "default: <run>-<seed>-<format>.<ending>; for timm also a folder: weights, config, model card"
    command.add_argument("-o", "--out", type=given, metavar="FILE", help=text)
    command = add("embed")
    command.add_argument("target", help="pretraining: label or id")
    command.add_argument("pictures", type=given, help="a folder: every image below it")
    command.add_argument("-o", "--out", type=given, default=FEATURES, help=f"default: {FEATURES}")
    text = "side of the centre square that the backbone sees, pixels (default: 224)"
    command.add_argument("--size", type=count, default=224, metavar="PIXELS", help=text)
    command = add("similar")
    command.add_argument("picture", type=given, help="any picture")
    command.add_argument(
        "features", type=given, nargs="?", default=FEATURES, help=f"of `mls embed` (default: {FEATURES})"
    )
    command.add_argument("-n", "--count", type=count, default=24, metavar="N", help="pictures to show (default: 24)")
    command.add_argument("-o", "--out", type=given, default=SIMILAR, help=f"default: {SIMILAR}")
    command = add("gc", experiment=False)
    command.add_argument("--delete", action="store_true", help="remove them")
    text = "remove them also outside this clone, where others may use them"
    command.add_argument("--shared", action="store_true", help=text)
    add("store", experiment=False).add_argument("action", choices=("add",))
    add("retry", experiment=False).add_argument("ids", nargs="+", help="artifact ids")
    return top
