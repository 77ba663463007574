"""Other people's files, mutated: every outcome is a data set that the readers can use, or one line that names the file.

The budget is fixed and the examples are the same in each run; a failure prints the mutation that caused it.
"""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from mls.config.datasets import CocoDataset, FolderDataset, LocalDataset, VocDataset
from mls.data import ingest, sources
from mls.data.check import check_artifact, print_report
from mls.data.image_store import ImageStore
from mls.data.writer import write_store
from mls.download.reader import Reader
from mls.runtime.errors import MlsError
from mls.transfer.coco_score import coco_metrics
from mls.transfer.index_masks import IndexMasks
from mls.transfer.instances import TrainingInstances
from tests.data.support import add_set, make_coco

COMPRESSED = rle.encode(np.asfortranarray(np.eye(10, 20, dtype=np.uint8)))["counts"].decode()
NUMBERS = [0, -1, 1, 2, 0.5, -0.0, 1e-9, 4e7, 1e10, 1e308, 2**31, 2**63, 10**17, 10**18, 10**399, True, 19, 200]
TEXTS = [
    "",
    " ",
    "cat",
    "cat ",
    "a\nb",
    "\0",
    "\ud83d",
    "e\u0301",
    "\u200b",
    "..",
    "/",
    "x" * 300,
    "o",
    "0" * 40,
    "PPPP",
]
VALUES: list[Any] = [
    *NUMBERS,
    *TEXTS,
    None,
    [],
    {},
    [[]],
    [[1, 2]],
    [1, 2, 3, 4],
    [[1, 2, 3, 4, 5, 6]],
    {"counts": "o"},
]
"""What replaces a value: the edges of its own kind, and other kinds."""
Place = tuple[Any, ...]


def use(store: ImageStore) -> None:
    """Read a store as the stages after it do."""
    assert store.labels(range(len(store))).shape == (len(store), len(store.classes))
    print_report(check_artifact(store.path, "fuzzed"))
    truth = store.ground_truth("test")
    coco_metrics(truth, [], ("box",))
    if store.ground_truth("train", "test")["annotations"]:
        for masks in (False, True):
            try:
                TrainingInstances(store, "train", masks)
                IndexMasks(store, "train").of(int(store.split("train")[0]))
                coco_metrics(truth, [], ("box", "mask"))
            except MlsError as error:  # nothing is left to learn from: one line, before a training
                assert "holds no" in str(error)


def outcome(config: LocalDataset, reader: Reader) -> str:
    """Make a data set and use it; return the error's line, if there is one."""
    try:
        listing = sources.read_listing(config, reader)
        excluded: list[dict[str, str]] = []
        with tempfile.TemporaryDirectory() as out:
            records = ingest.load_records(listing, reader, excluded, config, threads=1)
            write_store(Path(out), records, listing.classes, listing.multi_label, excluded)
            use(ImageStore(Path(out)))
    except MlsError as error:
        line = str(error)
        assert str(reader.root) in line and "\n" not in line and line.isprintable(), line
        assert len(line) < 1000, line
        return line
    return ""


def places(value: Any, path: Place = ()) -> list[Place]:
    """The path of every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


def mutate_json(raw: Any, choices: random.Random) -> None:
    """Replace, remove or repeat one value."""
    *path, last = choices.choice(places(raw)[1:])
    for key in path:
        raw = raw[key]
    action = choices.choice(["replace"] * 4 + ["remove", "repeat"])
    if action == "replace":
        raw[last] = choices.choice(VALUES)
    elif action == "remove":
        del raw[last]
    elif isinstance(raw, list):
        raw.append(raw[last])
    else:
        raw[choices.choice(["extra", *raw])] = raw[last]


def mutate_bytes(content: bytes, choices: random.Random) -> bytes:
    """Cut, insert, remove or change some bytes."""
    start = choices.randrange(len(content))
    stop = min(len(content), start + choices.choice([1, 2, 8, 64]))
    inserted = choices.choice([b"", b"\0", b'"', b"'", b",", b"\n", b"\r", b"&", b"<", b"]", b"\xff", b"\xef\xbb\xbf"])
    inserted = choices.choice([inserted, choices.randbytes(3), content[start:stop] * 2, "e\u0301".encode(), b"9" * 400])
    return content[:start] if choices.random() < 0.05 else content[:start] + inserted + content[stop:]


def mutated_coco(content: bytes, choices: random.Random) -> bytes:
    raw = json.loads(content)
    for _ in range(choices.choice([1, 1, 2])):
        mutate_json(raw, choices)
    return json.dumps(raw).encode()


def mutated_csv(content: bytes, choices: random.Random) -> bytes:
    rows = [line.split(",") for line in content.decode().splitlines()]
    row = choices.choice(rows)
    action = choices.choice(["replace"] * 4 + ["remove", "repeat"])
    if action == "replace":
        row[choices.randrange(len(row))] = str(choices.choice(VALUES))
    elif action == "remove":
        del row[-1]
    else:
        rows.append(row)
    return "\n".join(map(",".join, rows)).encode(errors="surrogatepass")


def mutated_xml(content: bytes, choices: random.Random) -> bytes:
    pieces = re.split(rb"(<[^>]*>)", content)
    k = choices.randrange(len(pieces))
    text = str(choices.choice(VALUES)).encode(errors="surrogatepass")
    pieces[k] = choices.choice([b"", pieces[k] * 2, text, b"<a>" * 5000, b'<?xml version="1.0" encoding="idna"?>'])
    return b"".join(pieces)


def make_folder(root: Path, header: str, labels: tuple[str, str]) -> Reader:
    lines = [header]
    for i in range(8):
        Image.new("RGB", (4, 3), (i, 0, 0)).save(root / f"{i}.png")
        lines.append(f"{i}.png,{'train' if i < 5 else 'test'},{labels[i % 2]}")
    (root / "labels.csv").write_text("\n".join(lines))
    return Reader(root)


def make_sources(root: Path) -> dict[str, tuple[LocalDataset, Reader, list[str], Callable[..., bytes]]]:
    """Source -> its entry, its files, those to mutate, and how their structure is mutated."""
    for name in ("coco", "columns", "labels", "voc"):
        (root / name).mkdir()

    def kinds_of_masks(raw: dict[str, Any]) -> None:
        raw["annotations"][1]["segmentation"] = {"size": [10, 20], "counts": [10, 20, 170]}
        raw["annotations"][2]["segmentation"] = {"size": [10, 20], "counts": COMPRESSED}

    columns = make_folder(root / "columns", "file,split,sea,trees", ("1,0", "1,1"))
    labels = make_folder(root / "labels", "file,split,label", ("sea", "trees"))
    add_set(root / "voc", "2007/trainval", ["000001", "000002", "000003"])
    add_set(root / "voc", "2007/test", ["000004"])
    share: dict[str, Any] = {"max_excluded": 0.2, "val_share": 0.3}
    coco, voc = make_coco(root / "coco", kinds_of_masks), Reader(root / "voc")
    annotations = [f"annotations/instances_{split}.json" for split in ("train2017", "val2017")]
    xml = ["VOC2007/Annotations/000001.xml", "VOC2007/Annotations/000004.xml"]
    return {
        "coco": (CocoDataset(source="coco", **share), coco, annotations, mutated_coco),
        "columns": (FolderDataset(source="folder", **share), columns, ["labels.csv"], mutated_csv),
        "labels": (FolderDataset(source="folder", **share), labels, ["labels.csv"], mutated_csv),
        "voc": (VocDataset(source="voc", **share), voc, xml, mutated_xml),
    }


@pytest.mark.parametrize("source", ["coco", "columns", "labels", "voc"])
def test_mutated_files_are_used_or_named(source: str, tmp_path: Path) -> None:
    config, reader, files, mutated = make_sources(tmp_path)[source]
    assert outcome(config, reader) == ""
    originals = {name: (reader.root / name).read_bytes() for name in files}
    lines: list[str] = []

    @settings(derandomize=True, deadline=None, database=None, max_examples=100, phases=[Phase.generate])
    @given(seed=st.integers(0, 2**32), name=st.sampled_from(files), how=st.sampled_from(["values", "bytes"]))
    def run(seed: int, name: str, how: str) -> None:
        content = (mutated if how == "values" else mutate_bytes)(originals[name], random.Random(seed))
        (reader.root / name).write_bytes(content)
        lines.append(outcome(config, Reader(reader.root)))
        (reader.root / name).write_bytes(originals[name])

    run()
    assert 10 < sum(map(bool, lines)) < len(lines), "some mutations are refused, and some do no harm"
