"""Probes: features a second of photos, and the probes of frozen features at COCO's size on the device."""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter

import numpy as np
import probe_scale

from gpu_parts.common import Bench, attempt, emit, main, peak, photos, wait
from mls.config.probes import Features
from mls.models.backbone import build_backbone
from mls.probe.features import BATCH, extract
from mls.runtime.device import workers_of

TINY = {"images": 200, "features": 16, "classes": 4}
COCO = {"images": 113_556, "features": 2048, "classes": 80}
SIDES = ("linear", "knn")


def run(bench: Bench) -> None:
    """Measure, in order of value."""
    with attempt("features"):
        features(bench)
    with attempt("features to probe"):
        args = argparse.Namespace(
            **(TINY if bench.smoke else COCO),
            type="float32",
            threads=bench.execution.threads,
            device=bench.device.type,
        )
        if bench.smoke:
            probe_scale.HELD_OUT = 400  # the k nearest neighbours include k = 200
            args.images = 400
        probe_scale.generate(Path(), args)
        for side in SIDES:
            with attempt(f"{side} probe"):
                args.side = side
                with peak(bench) as peak_GiB:
                    found = probe_scale.measure(args)
                size = f"{args.images:,} x {args.features:,}, {args.classes} classes"
                note = ", ".join(f"{key} {found[key]}" for key in ("steps", "chosen", "test_mAP") if found[key] != "")
                emit(f"{side} probe, {size}", float(str(found["wall_s"])), "s", peak_GiB=peak_GiB(), note=note)


def features(bench: Bench) -> None:
    """Emit images a second of extraction, from JPEGs to an array."""
    store, config = photos(), Features(image_size=32 if bench.smoke else 224)
    backbone = build_backbone(bench.layout())
    rows = store.split("train")
    rows = rows[:8] if bench.smoke else np.concatenate([rows, rows])
    workers = workers_of(bench.execution.workers, bench.execution.threads, bench.device)
    extract(backbone, store, rows[:BATCH], config, bench.device, workers=workers)  # warm-up
    with peak(bench) as peak_GiB:
        wait()
        start = perf_counter()
        extract(backbone, store, rows, config, bench.device, workers=workers)
        rate = len(rows) / (perf_counter() - start)
    name = f"features, {bench.label}, {config.image_size} px, {config.precision}"
    emit(name, rate, "images/s", batch=BATCH, peak_GiB=peak_GiB())


if __name__ == "__main__":
    main(run)
