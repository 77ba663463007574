"""What planning takes where an experiment is large: 500 runs of a sweep, 3 seeds, 4 tasks.

python benchmarks/planning.py                     # the commands below, with nothing made and with everything made
python benchmarks/planning.py --against HEAD~5    # another revision's code too, in turns on the same files
python benchmarks/planning.py --runs 50 --rounds 3
python benchmarks/planning.py --paper             # the paper's files: all, or the largest where one is read
python benchmarks/planning.py --costs             # print the tables of docs/scaling.md about a full reproduction

In temporary folders; what is made is made up: seals and metrics, of which planning needs no more than that they
exist. Of each command the least CPU time of all rounds counts, and that round's wall time and peak memory. Lines are
added to benchmarks/results/planning.csv; ``ratio`` is the other revision's CPU time over this code's.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

from measured import Taken, check_out, copy_tree, run
from record import append

from mls.cost.devices import DEFAULT, read_devices
from mls.cost.estimate import estimate, totals
from mls.pipeline.plan import Plan, plan_file
from mls.pipeline.provenance import code, digest

ROOT = Path(__file__).parents[1].resolve()
RESULTS = ROOT / "benchmarks/results/planning.csv"
MLS = [sys.executable, "-m", "mls"]
SNAKEMAKE = [str(Path(sys.executable).with_name("snakemake")), "-n"]
COMMANDS = {
    "mls validate": [*MLS, "validate", "large.yaml"],
    "mls status": [*MLS, "status", "-e", "large.yaml"],
    "snakemake -n": [*SNAKEMAKE, "--config", "experiment=large.yaml"],
}
TEMPLATE = """
experiment: large
seeds: [0, 1, 2]
datasets:
  scenes: {source: scenes, train: 64, val: 24, test: 24, size: 32}
pretrain:
  dataset: scenes
  backbone: {name: resnet18, width: 0.125, stem: small}
  moco: {queue_size: 4096}
runs: {mls: {}}
sweep:
  mls: {mls.topk: [KS], mls.weight: [0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9]}
probe:
  linear: {kind: linear, dataset: scenes}
  svm: {kind: svm, dataset: scenes}
  tuned: {kind: finetune, dataset: scenes}
transfer:
  segment: {kind: semantic, dataset: scenes}
tables:
  main: {columns: [linear.mAP, svm.mAP, tuned.mAP, segment.mIoU]}
"""


def main() -> None:
    """Measure and write a line for each command and state."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=500, help="a multiple of ten")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--against", metavar="REVISION", help="of this repository")
    parser.add_argument("--paper", action="store_true", help="the paper's files instead of the sweep")
    parser.add_argument(
        "--costs", action="store_true", help="only print what the paper's experiments cost, as Markdown"
    )
    args = parser.parse_args()
    if args.costs:
        print_costs()
        return
    if args.runs % 10:
        parser.error("--runs must be a multiple of ten")
    with tempfile.TemporaryDirectory() as folder:
        sides = {"this": copy_tree(Path(folder) / "this")}
        if args.against:
            sides["other"] = check_out(args.against, Path(folder) / "other")
        if args.paper:
            measure_paper(sides, args.rounds)
            return
        for side in sides.values():
            text = TEMPLATE.replace("KS", ", ".join(str(k + 1) for k in range(args.runs // 10)))
            (side / "large.yaml").write_text(text.lstrip(), encoding="utf-8")
        plan = plan_file(sides["this"] / "large.yaml")
        for state in ("nothing", "everything"):
            if state == "everything":
                make_up(plan, list(sides.values()))
            for name, command in COMMANDS.items():
                taken = {side: min(run(command, path) for _ in range(args.rounds)) for side, path in sides.items()}
                write(line(name, state, len(plan.jobs), taken))


def measure_paper(sides: dict[str, Path], rounds: int) -> None:
    """Write a line for each command on the paper's files that all sides have."""
    files = sorted(f"experiments/{file.name}" for file in (sides["this"] / "experiments").glob("paper-*.yaml"))
    files = [file for file in files if all((side / file).exists() for side in sides.values())]
    jobs = {file: len(plan_file(sides["this"] / file).jobs) for file in files}
    largest = max(files, key=jobs.__getitem__)
    commands = {
        "mls status": ([*MLS, "status", "-e", largest], jobs[largest]),
        "mls doctor": ([*MLS, "doctor", "-e", largest], jobs[largest]),
        "mls plan": ([*MLS, "plan", *files], sum(jobs.values())),
        "snakemake -n": ([*SNAKEMAKE, "--config", f"experiment={largest}"], jobs[largest]),
    }
    for name, (command, planned) in commands.items():
        may = int(name == "mls doctor")  # it misses the data
        taken = {side: min(run(command, path, may=may) for _ in range(rounds)) for side, path in sides.items()}
        write(line(name, "nothing, paper-*.yaml", planned, taken))


def print_costs() -> None:
    """Print the rows of both tables of docs/scaling.md: of each of the paper's experiments, and of each device."""
    files = sorted((ROOT / "experiments").glob("paper-*.yaml"))
    os.chdir(ROOT)
    for name in [*(file.name for file in files), "paper-*.yaml"]:
        total = totals(estimate([plan_file(file) for file in files if file.match(name)], DEFAULT))
        hours = [total["hours"][unit] for unit in (f"{DEFAULT}-h", "CPU-h")]
        sizes = [f"{total[key] / 1e9:,.1f}" for key in ("memory", "disk", "peak")]
        cells = [f"`experiments/{name}`", f"{hours[0]:,.0f}", f"{hours[1]:,.1f}", total["jobs"], *sizes]
        print(f"| {' | '.join(map(str, cells))} |")
    plans = [plan_file(file) for file in files]
    for device in read_devices().values():
        if device.memory:
            costs = estimate(plans, device.name)
            shares = [f"{device.rate(name) / peak:.2f} of {peak / 1e12:g}" for name, peak in device.peak.items()]
            large = sum("does not fit" in note for cost in costs for note in cost.notes)
            cells = [device.name, f"{device.memory / 1e9:.0f}", *shares, device.basis]
            cells += [f"{totals(costs)['hours'][device.unit]:,.0f}", str(large)]
            print(f"| {' | '.join(cells)} |")


def write(row: dict[str, object]) -> None:
    """Print a line, and add it to the results at once: a whole run takes long."""
    print("\n".join(f"{key:11} {value}" for key, value in row.items()), end="\n\n", flush=True)
    append(RESULTS, [row])


def line(command: str, state: str, jobs: int, taken: dict[str, Taken]) -> dict[str, object]:
    """One line of the results."""
    this, other = taken["this"], taken.get("other")
    return {
        "command": command,
        "made": state,
        "jobs": jobs,
        "cpu_s": round(this.cpu_s, 1),
        "wall_s": round(this.wall_s, 1),
        "peak_MiB": round(this.peak_MiB),
        "other_cpu_s": round(other.cpu_s, 1) if other else "",
        "ratio": round(other.cpu_s / this.cpu_s, 2) if other else "",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "snakemake": importlib.metadata.version("snakemake"),
        "code": (code()["revision"] or "")[:10],
    }


def make_up(plan: Plan, folders: list[Path]) -> None:
    """A seal and a file of metrics for every job, and the marker of published tables."""
    metrics = json.dumps({"mAP": 50.0, "mIoU": 40.0})
    entry = {"size": len(metrics), "sha256": hashlib.sha256(metrics.encode()).hexdigest()}
    seal = json.dumps({"files": {"metrics.json": entry}, "made": {"code": {"digest": digest()}}})
    for folder in folders:
        for job in plan.jobs.values():
            (folder / job.path).mkdir(parents=True)
            (folder / job.path / "metrics.json").write_text(metrics, encoding="utf-8")
            (folder / job.path / "artifact.json").write_text(seal, encoding="utf-8")
        published = folder / "results" / plan.loaded.experiment.experiment
        published.mkdir(parents=True)
        (published / f".published-{plan.tables.id}").touch()


if __name__ == "__main__":
    main()
