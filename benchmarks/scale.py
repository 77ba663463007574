"""The whole path on a set of COCO's size: 118,287 images to train on and 5,000 to test on.

python benchmarks/scale.py /disk/scale                        # makes the set from generated scenes; 40 GB of disk
python benchmarks/scale.py /disk/scale --photos data/coco     # from copies of these photos, a few or all of them
python benchmarks/scale.py /disk/scale --against HEAD~5       # another revision too; both up to the store and plan
python benchmarks/scale.py /disk/scale --train 2000 --val 200 # a small one

Every file of the set differs (a JPEG comment), every annotation is copied. The network is small (ResNet-18 of an eighth
of the width, 32 px), so that what grows with the images shows. Of each command: CPU time, wall time and peak memory,
added to benchmarks/results/scale.csv; "start" and "resume" end with their first step. FOLDER/coco is kept, and used
again; FOLDER/this can be removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measured import ROOT, Taken, check_out, copy_tree, run
from record import append

from mls.pipeline.plan import plan_file
from mls.pipeline.provenance import code

RESULTS = ROOT / "benchmarks/results/scale.csv"
EXPERIMENT = """
experiment: scale
seeds: [0]
datasets:
  coco: {source: coco, root: coco}
pretrain:
  dataset: coco
  backbone: {name: resnet18, width: 0.125, stem: small}
  epochs: 1
  batch_size: 256
  precision: fp32
  augment: {crop: 32}
  optimizer: {lr: 0.03}
  moco: {queue_size: 4096, projection_dim: 32, bn_splits: 4}
runs: {mls: {}}
probe:
  linear: {kind: linear, dataset: coco, image_size: 32, strengths: [0.01, 1.0]}
transfer:
  detect: {kind: detection, dataset: coco, image_size: 64, epochs: EPOCHS, batch_size: 4, warmup_steps: 2,
    fpn_channels: 16, head_channels: 16, rois: 16, proposals: 100}
tables:
  main: {columns: [linear.mAP, detect.box_AP]}
draw: [mls]
execution: {workers: 2}
"""
TRUTH = """
import sys
from pathlib import Path
from mls.data.image_store import ImageStore
ImageStore(Path(sys.argv[1])).ground_truth("test")
"""
Photo = tuple[bytes, dict[str, Any], list[dict[str, Any]]]
"""A JPEG, its entry of ``images``, and its annotations."""


def main() -> None:
    """Make the set if it is not there; measure each step and write a line for it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=Path, help="a folder in COCO's layout; default: generated scenes")
    parser.add_argument("--train", type=int, default=118_287)
    parser.add_argument("--val", type=int, default=5_000)
    parser.add_argument("--against", metavar="REVISION", help="of this repository; stops after planning")
    args = parser.parse_args()
    folder = args.folder.resolve()
    if not (folder / "coco").exists():
        make(
            folder,
            list(photos(args.photos) if args.photos else drawn()),
            {"train2017": args.train, "val2017": args.val},
        )
    images = args.train + args.val
    if args.against:
        shutil.rmtree(folder / "other", ignore_errors=True)
        measure("other", check_out(args.against, folder / "other"), folder, images, train=False)
        shutil.rmtree(folder / "other")  # its store takes as much disk as the set
    shutil.rmtree(folder / "this", ignore_errors=True)
    measure("this", copy_tree(folder / "this"), folder, images, train=not args.against)


def measure(side: str, tree: Path, folder: Path, images: int, train: bool) -> None:
    """Run the steps in a copy of the project; without ``train``, up to the store and planning."""
    text = EXPERIMENT.lstrip().replace("EPOCHS", f"{16.5 / images:.7f}")  # about four steps of four images
    (tree / "scale.yaml").write_text(text, encoding="utf-8")
    os.environ |= {"MLS_DATA": str(folder), "MLS_STORE": str(tree / "artifacts"), "MLS_WORK": str(tree / "work")}

    def step(name: str, *command: str, stop: str = "") -> None:
        write(line(side, name, images, run([sys.executable, *command], tree, stop)))

    def mls(*command: str, note: str = "", stop: str = "") -> None:
        step(f"mls {' '.join(command)}{note}", "-m", "mls", *command, "-e", "scale.yaml", stop=stop)

    mls("data", "pin", "coco")
    mls("data", "coco")
    os.chdir(tree)
    (store,) = (job.path for job in plan_file(tree / "scale.yaml").find("data", "coco"))
    step("ground truth of test", "-c", TRUTH, str(store))
    for command in (("validate", "scale.yaml"), ("status", "-e", "scale.yaml"), ("plan", "scale.yaml"), ("doctor",)):
        step(f"mls {command[0]}", "-m", "mls", *command)
    step("snakemake -n", "-m", "snakemake", "-n", "--config", "experiment=scale.yaml")
    if not train:
        return
    mls("pretrain", "mls", note=", start", stop="dictionary begins")
    mls("pretrain", "mls", note=", resume", stop="resumes at step")
    for command in (
        ("pretrain", "mls"),
        ("draw", "mls"),
        ("features", "linear/mls"),
        ("probe", "linear/mls"),
        ("transfer", "detect/mls"),
    ):
        mls(*command)
    mls("tables", "scale")


def photos(root: Path) -> Iterator[Photo]:
    """Read a folder in COCO's layout."""
    for split in ("train2017", "val2017"):
        raw = json.loads((root / "annotations" / f"instances_{split}.json").read_text(encoding="utf-8"))
        objects: dict[int, list[dict[str, Any]]] = {}
        for item in raw["annotations"]:
            objects.setdefault(item["image_id"], []).append(item)
        for image in raw["images"]:
            yield (root / split / image["file_name"]).read_bytes(), image, objects.get(image["id"], [])


def drawn() -> Iterator[Photo]:
    """Draw scenes of about a photo's size."""
    # Imported here: Linux counts what this process takes into the peak of every command that it starts.
    from mls.config.datasets import ScenesDataset
    from mls.data.scenes import records

    for record in records(ScenesDataset(source="scenes", train=100, val=1, test=1, size=480)):
        yield record.data, {"width": record.width, "height": record.height}, list(record.annotations)


def make(folder: Path, found: list[Photo], sizes: dict[str, int]) -> None:
    """Write the set below ``folder / "coco"``, from copies of the photos."""
    numbers = sorted({item["category_id"] for _, _, objects in found for item in objects})
    categories = [{"id": n, "name": f"class {n}"} for n in numbers]
    root, count = folder / "coco.partial", 0
    (root / "annotations").mkdir(parents=True)
    for split, size in sizes.items():
        (root / split).mkdir()
        images, annotations = [], []
        for n in range(size):
            data, image, objects = found[n % len(found)]
            key = 2 * n + (split == "val2017")
            note = f"{split} {key}".encode()
            mark = b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big") + note
            (root / split / f"{key:012}.jpg").write_bytes(data[:2] + mark + data[2:])
            images.append({**image, "id": key, "file_name": f"{key:012}.jpg"})
            annotations += [{**item, "id": count + i, "image_id": key} for i, item in enumerate(objects)]
            count += len(objects)
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    root.rename(folder / "coco")


def line(side: str, step: str, images: int, taken: Taken) -> dict[str, object]:
    """One line of the results."""
    return {
        "step": step,
        "side": side,
        "images": images,
        "cpu_s": round(taken.cpu_s, 1),
        "wall_s": round(taken.wall_s, 1),
        "peak_MiB": round(taken.peak_MiB),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "code": (code()["revision"] or "")[:10],
    }


def write(row: dict[str, object]) -> None:
    """Print a line, and add it to the results at once: a whole run takes long."""
    print(
        f"{row['side']:6}{row['step']:24}{row['cpu_s']:>8} CPU-s{row['wall_s']:>8} s{row['peak_MiB']:>7} MiB",
        flush=True,
    )
    append(RESULTS, [row])


if __name__ == "__main__":
    main()
