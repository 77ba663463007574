"""What classifiers on frozen features cost; and how near extraction comes to the backbone alone.

    python benchmarks/probes.py                                      # 2,000 images x 2,048 features x 20 classes
    python benchmarks/probes.py --images 8192 --features 256 --classes 8 --rounds 3
    python benchmarks/probes.py --extract                            # ResNet-50 on coco-tiny, the small one on scenes

Fitting: ``linear`` is mls.probe.linear (all classes at once), ``svm`` is mls.probe.svm with VISSL's costs and folds (in
processes), on the same generated features; ``probe_scale.py`` measures them at COCO's size. They take turns,
``--rounds`` times. test_mAP is of images that neither saw.

Extraction: images a second of mls.probe.features, and of the backbone on batches that are ready in memory, measured in
turn; ``of_forward`` is the median of the ratios, ``of_forward_cpu`` the same of processor time: what is left of the
backbone's speed where both keep all cores busy, whatever else the machine does.

Lines go to benchmarks/results/probes.csv. ``load`` is the machine's when a line began: where it is more than the number
of cores, seconds say little and cpu_seconds more. OMP_NUM_THREADS is recorded.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import sklearn
import torch
from record import append

from mls.config.probes import SvmProbe
from mls.metrics import Scores, Truth, mean_average_precision
from mls.pipeline.provenance import code
from mls.probe import linear
from mls.probe.feature_set import Images

RESULTS = Path(__file__).resolve().parent / "results" / "probes.csv"
COLUMNS = """date measured round images features classes decay strengths threads seconds cpu_seconds chosen test_mAP
backbone data image_size extract_images_per_s forward_images_per_s of_forward of_forward_cpu load machine
OMP_NUM_THREADS torch
scikit-learn code"""
HELD_OUT = 500
"""Images of val, and of test."""
SEED = 0
Split = tuple[np.ndarray, np.ndarray]
"""Features and classes of some images."""


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=2000, help="to train on")
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument(
        "--decay", type=float, default=0.5, help="of the factors: the steeper, the more alike features are"
    )
    parser.add_argument("--strengths", type=float, nargs="+", default=[1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0])
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--extract", action="store_true", help="measure extraction instead")
    args = parser.parse_args()
    if args.extract:
        measure_extraction(args)
    else:
        measure_fits(args)


def write(row: dict[str, object], load: float) -> None:
    """Append a line, blank where a column is of the other kind of measurement; print it."""
    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    line = row | {
        "date": datetime.now(UTC).date().isoformat(),
        "load": round(load, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "unset"),
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "code": (code()["revision"] or "")[:10] + ("+" if code()["dirty"] else ""),
    }
    append(RESULTS, [line], COLUMNS.split())


# ------------------------------------------------------------------------------------------- fitting


def measure_fits(args: argparse.Namespace) -> None:
    """Take the sides in turn."""
    features_ND, truth_NC = generate(args.images + 2 * HELD_OUT, args)
    ends = (0, args.images, args.images + HELD_OUT, len(features_ND))
    train, val, test = ((features_ND[start:end], truth_NC[start:end]) for start, end in itertools.pairwise(ends))
    for number in range(args.rounds):
        for side in args.sides:
            load, start, worked = os.getloadavg()[0], time.perf_counter(), time.process_time()
            predict, chosen, candidates = SIDES[side](args, train, val)
            seconds, worked = time.perf_counter() - start, time.process_time() - worked
            row = {
                "measured": side,
                "round": number,
                "images": args.images,
                "features": args.features,
                "classes": args.classes,
                "decay": args.decay,
                "strengths": candidates,
                "threads": args.threads,
                "seconds": round(seconds, 2),
                "cpu_seconds": round(worked, 2) if side != "svm" else "",  # it works in processes of its own
                "chosen": chosen,
                "test_mAP": round(100 * mean_average_precision(predict(test[0]), test[1]), 2),
            }
            write(row, load)


def generate(images: int, args: argparse.Namespace) -> Split:
    """Rectified mixtures of factors whose spread falls off as a power law; classes are high values of directions.

    Between 30% and 3% of the images have a class, as in natural sets; noise keeps classes from being certain.
    """
    rng, features, classes = np.random.default_rng(SEED), args.features, args.classes
    spread_F = np.arange(1.0, min(512, features) + 1) ** -args.decay
    factors_NF = rng.standard_normal((images, len(spread_F)), dtype=np.float32)
    mixing_FD = (rng.standard_normal((len(spread_F), features)) * spread_F[:, None]).astype(np.float32)
    direction_FC = rng.standard_normal((len(spread_F), classes)) * spread_F[:, None]
    evidence_NC = factors_NF @ (direction_FC / np.linalg.norm(direction_FC, axis=0))
    evidence_NC += 0.3 * rng.standard_normal((images, classes))
    rank_NC = evidence_NC.argsort(axis=0).argsort(axis=0)
    truth_NC = rank_NC >= images * (1 - np.geomspace(0.3, 0.03, classes))
    places_ND = factors_NF @ mixing_FD + 0.1 * rng.standard_normal((images, features), dtype=np.float32) - 1
    return np.maximum(places_ND, 0), truth_NC


Side = tuple[Callable[[np.ndarray], Scores], object, int]
"""Gives the scores of features, what was chosen, and the number of candidates."""


def images_of(features_ND: np.ndarray, truth_NC: Truth) -> Images:
    """Images without names of which no class is ignored."""
    images, classes = len(truth_NC), [str(c) for c in range(truth_NC.shape[1])]
    return Images(np.arange(images), [""] * images, features_ND, truth_NC, np.zeros_like(truth_NC), classes, True)


def logistic(args: argparse.Namespace, train: Split, val: Split) -> Side:
    """mls.probe.linear."""
    torch.set_num_threads(args.threads)
    fitted = linear.fit_strengths(images_of(*train), images_of(*val), strengths=args.strengths)
    return fitted.scores, fitted.strength, len(args.strengths)


def svm(args: argparse.Namespace, train: Split, val: Split) -> Side:
    """mls.probe.svm, VISSL's protocol, on train alone: as many images as the others."""
    from mls.probe.svm import fit_costs

    task = SvmProbe(kind="svm", dataset="none")
    fitted = fit_costs(images_of(*train), costs=task.costs, folds=task.folds, threads=args.threads)
    return fitted.scores, "per class", len(task.costs)


SIDES: dict[str, Callable[[argparse.Namespace, Split, Split], Side]] = {
    "linear": logistic,
    "svm": svm,
}


# ---------------------------------------------------------------------------------------- extraction


def measure_extraction(args: argparse.Namespace) -> None:
    """Both cases: a large backbone on photos, a small one on pictures that are cheap to decode."""
    photos = Path(os.environ.get("MLS_DATA", "downloads")) / "coco-tiny"
    small = {"name": "resnet18", "width": 0.5, "stem": "small"}
    cases: list[tuple[dict[str, object], dict[str, object], int, int]] = [
        ({"source": "folder", "val_share": 1e-9}, {"name": "resnet50"}, 224, 2),
        ({"source": "scenes", "train": 512, "val": 8, "test": 8, "size": 64}, small, 64, 8),
    ]
    for entry, config, side, batches in cases:
        if entry["source"] == "folder" and not photos.is_dir():
            print(f"no photos at {photos}: set MLS_DATA; this case is left out")
            continue
        with tempfile.TemporaryDirectory() as folder:
            if entry["source"] == "folder":
                entry["root"] = str(copy(photos, Path(folder) / "photos"))
            load = os.getloadavg()[0]
            write(extraction(args, entry, config, side, batches, Path(folder) / "store"), load)


def copy(photos: Path, folder: Path) -> Path:
    """Make JPEGs a labelled folder."""
    folder.mkdir()
    lines = ["file,split,label"]
    for i, file in enumerate(sorted(photos.rglob("*.jpg"))):
        shutil.copy(file, folder / f"{i:05d}.jpg")
        lines.append(f"{i:05d}.jpg,{'train' if i else 'test'},a")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def extraction(
    args: argparse.Namespace, entry: dict[str, Any], config: dict[str, Any], side: int, batches: int, folder: Path
) -> dict[str, object]:
    """One line: rates of extraction and of the backbone alone, and their ratio."""
    from mls.config.experiment import Backbone
    from mls.config.probes import Features
    from mls.data.eval_view import normalise
    from mls.data.image_store import ImageStore
    from mls.models.backbone import build_backbone
    from mls.probe.features import BATCH, extract, pool, prepared
    from mls.runtime.device import set_up

    folder.mkdir()
    make_store(entry, folder)
    store, features = ImageStore(folder), Features(image_size=side)
    device = set_up("auto", args.threads, SEED)
    backbone = build_backbone(Backbone(**config))
    rows = np.resize(np.arange(len(store)), BATCH * batches)
    ready = list(prepared(store, rows, side, features.resize, features.fit, args.threads))
    through = {"workers": args.threads, "name": "extract"}

    def whole() -> None:
        extract(backbone, store, rows, features, device, **through)

    def forward() -> None:
        backbone.eval()
        with torch.inference_mode():
            for images_BCHW in ready:
                pool(backbone, normalise(images_BCHW, device), features.layer).cpu()

    extract(backbone, store, rows[:BATCH], features, device, **through)  # warm-up; it also lays the backbone out
    pairs = [(taken(whole), taken(forward)) for _ in range(args.rounds)]
    return {
        "measured": "extract",
        "round": f"of {args.rounds}",
        "backbone": f"{config['name']} x{config.get('width', 1):g}",
        "data": entry["source"],
        "image_size": side,
        "images": len(rows),
        "threads": args.threads,
        "extract_images_per_s": round(median(len(rows) / both[0] for both, _ in pairs), 1),
        "forward_images_per_s": round(median(len(rows) / alone[0] for _, alone in pairs), 1),
        "of_forward": round(median(alone[0] / both[0] for both, alone in pairs), 3),
        "of_forward_cpu": round(median(alone[1] / both[1] for both, alone in pairs), 3),
    }


def make_store(entry: dict[str, Any], folder: Path) -> None:
    """Run the data stage."""
    import mls.data.build_store
    from mls.config.load import check
    from mls.pipeline.plan import make_plan
    from mls.pipeline.runner import Context

    raw = {
        "experiment": "benchmark",
        "datasets": {"pictures": entry},
        "pretrain": {"dataset": "pictures", "method": "moco", "backbone": {"name": "resnet18"}, "epochs": 1},
        "runs": {"run": {}},
        "probe": {"linear": {"kind": "linear", "dataset": "pictures"}},
        "tables": {"main": {"columns": ["linear.mAP"]}},
    }
    plan = make_plan(check(raw, Path("benchmark.yaml")), {"pictures": {"sha256": "of files here"}})
    (job,) = plan.stage("data")
    with patch("mls.data.sources.check_content"):  # a folder has no digest anywhere
        mls.data.build_store.run(Context(job, "pictures", folder, folder, plan.loaded.experiment.execution, {}, plan))


def taken(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds of the clock, and of the processors."""
    start, worked = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - worked


if __name__ == "__main__":
    main()
