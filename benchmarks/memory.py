"""What memory preparing and reading a data set take, and how it grows with the number of images.

python benchmarks/memory.py                    # 5,000 and 50,000 small JPEGs of a folder source
python benchmarks/memory.py --images 1000 4000 --batches 20

Pictures take no part in it: preparing holds a few a thread, reading maps the file. What grows is the index. Each
measurement is a process of its own; its anonymous memory (RssAnon: no files, no page cache) is sampled all the time,
and the greatest value counts. Lines are added to benchmarks/results/memory.csv; ``growth_B`` is bytes an image more,
against the line of the least images.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from record import append

from mls.pipeline.provenance import code

RESULTS = Path(__file__).parent.resolve() / "results/memory.csv"
SIDE = 48
BATCH = 64
EVERY_S = 0.002
"""Pause between two samples."""


def main() -> None:
    """Measure and write one line a process; with ``--stage``, be that process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=[5_000, 50_000])
    parser.add_argument("--batches", type=int, default=60, help=f"of {BATCH} images, to read")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="that prepare")
    parser.add_argument("--stage", choices=["prepare", "read"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        print(json.dumps(prepare(args.threads) if args.stage == "prepare" else read(args.batches)))
        return
    rows: list[dict[str, object]] = []
    first: dict[str, dict[str, float]] = {}
    for images in sorted(args.images):
        with tempfile.TemporaryDirectory() as folder:
            draw(Path(folder) / "photos", images)
            (Path(folder) / "store").mkdir()
            for stage in ("prepare", "read"):
                command = [sys.executable, str(Path(__file__).resolve()), "--stage", stage]
                command += ["--batches", str(args.batches), "--threads", str(args.threads)]
                done = subprocess.run(command, cwd=folder, check=True, text=True, stdout=subprocess.PIPE)
                found: dict[str, float] = json.loads(done.stdout)
                least = first.setdefault(stage, {"images": images, **found})
                added = images - least["images"]
                more = round((found["peak_B"] - least["peak_B"]) / added) if added else ""
                rows.append(line(stage, images, found, more))
                print("\n".join(f"{name:16} {value}" for name, value in rows[-1].items()), end="\n\n")
    append(RESULTS, rows)


def line(stage: str, images: int, found: dict[str, float], more: int | str) -> dict[str, object]:
    """One line of the results."""
    return {
        "stage": stage,
        "images": images,
        "before_MiB": round(found["before_B"] / 2**20, 1),
        "peak_MiB": round(found["peak_B"] / 2**20, 1),
        "growth_B": more,
        "index_B": round(found["index_B"] / images),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("numpy", "pyarrow", "torch")},
        "code": (code()["revision"] or "")[:10],
    }


def draw(root: Path, images: int) -> None:
    """A folder source: JPEGs of noise on a colour, a tenth of them val and test each, one of ten classes."""
    root.mkdir()
    rng = np.random.default_rng(0)
    noise_HWC = rng.integers(0, 64, (SIDE, SIDE, 3), dtype=np.uint8)
    rows = ["file,split,label"]
    for i in range(images):
        buffer = io.BytesIO()
        Image.fromarray(noise_HWC + rng.integers(0, 192, 3, dtype=np.uint8)).save(buffer, "JPEG")
        name = f"{i:012d}.jpg"  # as long as COCO's
        (root / name).write_bytes(buffer.getvalue())
        rows.append(f"{name},{('val', 'test', *['train'] * 8)[i % 10]},class {i % 7}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def prepare(threads: int) -> dict[str, float]:
    """What the data stage does: ``photos`` becomes ``store``."""
    import mls.data.decode
    import mls.data.shrink  # noqa: F401 - code is no part of what grows
    from mls.config.datasets import FolderDataset
    from mls.data import folder
    from mls.data.ingest import load_records
    from mls.data.writer import write_store
    from mls.download.reader import Reader

    config = FolderDataset(source="folder")
    with sampled() as found:
        reader = Reader(Path("photos"))
        listing = folder.read_listing(config, reader)
        excluded: list[dict[str, str]] = []
        records = load_records(listing, reader, excluded, config, threads)
        write_store(Path("store"), records, listing.classes, listing.multi_label, excluded, config.format)
        reader.digest()
    return {**found, "index_B": index_bytes()}


def read(batches: int) -> dict[str, float]:
    """What pretraining does: ``batches`` batches of two views from ``store``."""
    from mls.config.experiment import Pretrain
    from mls.data.image_store import ImageStore
    from mls.data.loader import TwoViews
    from mls.data.loader import batches as load

    config = Pretrain.model_validate({"dataset": "photos", "batch_size": BATCH, "epochs": 100, "augment": {"crop": 32}})
    with sampled() as found:
        views = TwoViews(ImageStore(Path("store")), config, seed=0)
        for _ in islice(load(views, 0, workers=0), batches):
            pass
    return {**found, "index_B": index_bytes()}


def index_bytes() -> int:
    """Size of ``index.parquet`` as columns in memory."""
    import pyarrow.parquet as pq

    return int(pq.read_table("store/index.parquet").nbytes)


@contextmanager
def sampled() -> Iterator[dict[str, float]]:
    """Fill a dictionary with this process's anonymous memory, bytes: before the block, and its peak within."""
    found = {"before_B": anonymous()}
    found["peak_B"] = found["before_B"]
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(EVERY_S):
            found["peak_B"] = max(found["peak_B"], anonymous())

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    yield found
    stop.set()
    sampler.join()


def anonymous() -> float:
    """RssAnon of this process, bytes."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, "this kernel does not say RssAnon"
    return float(found[1]) * 1024


if __name__ == "__main__":
    main()
