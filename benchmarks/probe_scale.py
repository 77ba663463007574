"""Probes of frozen features at COCO's size: time, peak memory and steps of each, on generated features.

    python benchmarks/probe_scale.py                               # 113,556 images x 2,048 features x 80 classes
    python benchmarks/probe_scale.py --sides linear knn --images 20000
    python benchmarks/probe_scale.py --sides sklearn liblinear     # one fit of one class

Features are rectified mixtures of as many factors as there are features, whose spread falls off as a power law, and
noise: all directions vary, some 1,700 times as much as others. A class is what scores high along a direction of its
own, with noise, so it can't be told without error. Class frequencies fall from a half to a thousandth, as in COCO from
person to hair drier. val and test have 5,000 images each.

Each side is a process of its own, which maps ``features.npy`` as the probe stage does; ``peak_MB`` is its greatest
resident memory, pages of that file included (1,011 MB at full size). ``cpu_s`` is the time of all its threads: where
other programs share the cores, it says more than ``wall_s``. ``steps`` is per strength. ``sklearn`` is one class (the
middle one) at C = 1 as the linear probe fitted it before, ``liblinear`` one SVM of that class; the probe needs
``fits`` of these. ``bootstrap`` is the intervals of 5,000 x 80 scores. Lines go to benchmarks/results/probe_scale.csv.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from record import append

RESULTS = Path(__file__).resolve().parent / "results" / "probe_scale.csv"
SEED = 0
HELD_OUT = 5000
"""Images of val, and of test."""
ROWS = 4096
"""Generated at a time."""
STRENGTHS = [0.01, 0.1, 1.0, 10.0, 100.0]


def main() -> None:
    """Generate, and measure each side in a process of its own; with ``--side``, be that process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=113_556, help="to train on")
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--type", choices=["float32", "float16"], default="float32", help="of the stored features")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=["linear", "knn", "retrieval", "bootstrap"])
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder), args)
        for side in args.sides:
            command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--side", side]
            done = subprocess.run(command, cwd=folder, check=True, text=True, stdout=subprocess.PIPE)
            row = json.loads(done.stdout.splitlines()[-1])
            print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
            append(RESULTS, [row])


def generate(folder: Path, args: argparse.Namespace) -> None:
    """Write ``features.npy`` and ``truth.npy``: train, val and test, one after the other."""
    rng, dims, classes = np.random.default_rng(SEED), args.features, args.classes
    images = args.images + 2 * HELD_OUT
    spread_F = np.arange(1.0, dims + 1) ** -0.5
    mixing_FD = rng.standard_normal((dims, dims)) * spread_F[:, None]
    mixing_FD = (mixing_FD / np.linalg.norm(mixing_FD, axis=0)).astype(np.float32)
    direction_FC = rng.standard_normal((dims, classes)) * spread_F[:, None]
    direction_FC /= np.linalg.norm(direction_FC, axis=0)
    shape = (images, dims)
    features_ND = np.lib.format.open_memmap(folder / "features.npy", mode="w+", dtype=args.type, shape=shape)
    evidence_NC = np.empty((images, classes))
    for start in range(0, images, ROWS):
        factor_BF = rng.standard_normal((min(ROWS, images - start), dims), dtype=np.float32)
        noise_BD = 0.1 * rng.standard_normal(factor_BF.shape, dtype=np.float32)
        features_ND[start : start + ROWS] = np.maximum(factor_BF @ mixing_FD + noise_BD + 0.3, 0)
        noise_BC = 0.7 * rng.standard_normal((len(factor_BF), classes))
        evidence_NC[start : start + ROWS] = factor_BF @ direction_FC + noise_BC
    shares_C = np.geomspace(0.5, 0.001, classes)
    least_C = [np.quantile(evidence_NC[:, c], 1 - share) for c, share in enumerate(shares_C)]
    np.save(folder / "truth.npy", evidence_NC > least_C)


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Run one side on the files of this folder; return a line of the results."""
    import torch

    from mls.pipeline.provenance import code
    from mls.probe.feature_set import Images
    from mls.runtime.device import set_up

    set_up(args.device, args.threads, SEED)
    features_ND, truth_NC = np.load("features.npy", mmap_mode="c"), np.load("truth.npy")
    ends = [0, args.images, args.images + HELD_OUT, len(truth_NC)]
    parts = []
    for start, end in itertools.pairwise(ends):
        truth, names = truth_NC[start:end], [str(row) for row in range(start, end)]
        labels = truth, np.zeros_like(truth), [str(c) for c in range(args.classes)]
        parts.append(Images(np.arange(start, end), names, features_ND[start:end], *labels, multi_label=True))
    load, begun = os.getloadavg()[0], time.perf_counter()
    before = cpu_seconds()
    found = SIDES[args.side](args, *parts)
    if args.device == "cuda":
        torch.cuda.synchronize()
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "side": args.side,
        "images": args.images,
        "features": args.features,
        "classes": args.classes,
        "type": args.type,
        "device": args.device,
        "threads": args.threads,
        "cpu_s": round(cpu_seconds() - before, 1),
        "wall_s": round(time.perf_counter() - begun, 1),
        "peak_MB": round(max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, children) * 1024 / 1e6),
        "fits": found.get("fits", ""),
        "steps": found.get("steps", ""),
        "chosen": found.get("chosen", ""),
        "test_mAP": found.get("test_mAP", ""),
        "load": round(load, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "code": (code()["revision"] or "")[:10] + ("+" if code()["dirty"] else ""),
    }


def cpu_seconds() -> float:
    """Processor time of this process and its children."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


def percent(scores_NC: Any, truth_NC: Any) -> float:
    """mAP."""
    from mls.metrics import mean_average_precision

    return round(100 * mean_average_precision(scores_NC, truth_NC), 3)


def linear(args: argparse.Namespace, train: Any, val: Any, test: Any) -> dict[str, object]:
    """mls.probe.linear with the default strengths."""
    import torch

    from mls.probe.linear import fit_strengths

    found = fit_strengths(train, val, strengths=STRENGTHS, device=torch.device(args.device))
    return {
        "fits": len(STRENGTHS) * args.classes,
        "steps": " ".join(map(str, found.iterations.values())) + f" ({found.unconverged} unconverged)",
        "chosen": found.strength,
        "test_mAP": percent(found.scores(test.features_ND), test.truth_NC),
    }


def knn(args: argparse.Namespace, train: Any, val: Any, test: Any) -> dict[str, object]:
    """mls.probe.knn with the default ks, val and test."""
    import torch

    from mls.probe.knn import fit_ks

    found = fit_ks(train, val, ks=[10, 20, 100, 200], temperature=0.07, device=torch.device(args.device))
    return {"chosen": found.k, "test_mAP": percent(found.scores(test.features_ND), test.truth_NC)}


def retrieval(args: argparse.Namespace, train: Any, val: Any, test: Any) -> dict[str, object]:
    """mls.probe.retrieval: 5,000 rankings of all train images."""
    import torch

    from mls.probe.retrieval import retrieve

    found = retrieve(train, test, precision_at=[1, 5, 10], device=torch.device(args.device))
    return {"test_mAP": round(100 * found.value, 3)}


def bootstrap(args: argparse.Namespace, train: Any, val: Any, test: Any) -> dict[str, object]:
    """mls.probe.bootstrap: 1,000 resamples."""
    from mls.probe.bootstrap import average_precision_intervals

    noise_NC = np.random.default_rng(SEED).standard_normal(test.truth_NC.shape)
    average_precision_intervals((test.truth_NC + noise_NC).astype(np.float32), test.truth_NC)
    return {}


def sklearn(args: argparse.Namespace, train: Any, val: Any, test: Any) -> dict[str, object]:
    """The linear probe's former solver: one class, one strength."""
    from sklearn.linear_model import LogisticRegression

    standard_ND = np.array(train.features_ND, dtype=np.float32)
    standard_ND -= standard_ND.mean(axis=0)
    standard_ND /= standard_ND.std(axis=0)
    model = LogisticRegression(C=1.0, tol=1e-4, max_iter=1000)
    model.fit(standard_ND, train.truth_NC[:, args.classes // 2])
    return {"fits": len(STRENGTHS) * args.classes, "steps": int(model.n_iter_[0])}


def liblinear(args: argparse.Namespace, train: Any, val: Any, test: Any) -> dict[str, object]:
    """mls.probe.svm: one class, one cost, without cross-validation."""
    from mls.probe.svm import divide_by_norm, fit_one

    model = fit_one(divide_by_norm(train.features_ND), train.truth_NC[:, args.classes // 2], 1.0)
    return {"fits": (11 * 3 + 1) * args.classes, "steps": int(model.n_iter_)}


SIDES: dict[str, Callable[..., dict[str, object]]] = {
    "linear": linear,
    "knn": knn,
    "retrieval": retrieval,
    "bootstrap": bootstrap,
    "sklearn": sklearn,
    "liblinear": liblinear,
}


if __name__ == "__main__":
    main()
