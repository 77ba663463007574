"""An image's annotations are found without reading the others."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mls.data.image_store import SPLITS, ImageStore
from mls.data.writer import Record, write_store
from mls.runtime.errors import MlsError


def write(out: Path, counts: list[int]) -> ImageStore:
    """Write a store whose images have so many annotations each; nothing decodes them."""
    rng = np.random.default_rng(0)

    def annotation() -> dict[str, Any]:
        points = rng.integers(0, 99, 2 * rng.integers(3, 40)).tolist()
        crowd = {"size": [9, 9], "counts": '"image_id": 7\\n'}  # a text that looks like what is searched for
        return {"category_id": 1, "bbox": [0, 0, 1, 1], "iscrowd": 0, "segmentation": [points] if points[0] else crowd}

    records = [
        Record(f"{i:03}.png", SPLITS[3 * i // len(counts)], b"", 9, 9, [], [annotation() for _ in range(count)])
        for i, count in enumerate(counts)
    ]
    write_store(out, records, ["thing"], True, [])
    return ImageStore(out)


COUNTS = {
    "many": np.random.default_rng(1).integers(0, 9, 90).tolist(),
    "rare": [0, 0, 3, 0, 0, 0, 1, 0, 0],
    "first": [1, 0, 0, 0, 0, 0],
    "last": [0, 0, 0, 0, 0, 1],
    "none": [0, 0, 0],
}


@pytest.mark.parametrize("kind", COUNTS)
def test_they_are_those_of_the_whole_file(tmp_path: Path, kind: str) -> None:
    store = write(tmp_path, COUNTS[kind])
    whole = json.loads((tmp_path / "annotations.json").read_text())
    for row in range(len(store)):
        assert store.annotations(row) == [a for a in whole["annotations"] if a["image_id"] == row], row
    for splits in (("train",), ("test", "train"), ("val",), ("unlabeled",), ("train", "val", "test")):
        rows = {int(row) for split in splits for row in store.split(split)}
        truth = store.ground_truth(*splits)
        assert truth["annotations"] == [a for a in whole["annotations"] if a["image_id"] in rows]
        assert truth["images"] == [image for image in whole["images"] if image["id"] in rows]
        assert truth["categories"] == whole["categories"]


def test_the_lines_of_other_images_are_not_parsed(tmp_path: Path) -> None:
    store = write(tmp_path, [2] * 30)
    file = tmp_path / "annotations.json"
    expected = ImageStore(tmp_path).annotations(20)
    lines = file.read_text().splitlines(keepends=True)
    broken = [line.replace("}", "", 1) if '"image_id": 3,' in line else line for line in lines]
    file.write_text("".join(broken))
    assert broken != lines and store.annotations(20) == expected
    assert len(store.ground_truth("test")["annotations"]) == 20
    with pytest.raises(MlsError, match="is damaged"):
        store.annotations(3)


@pytest.mark.parametrize("damage", ["head", "line", "end"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    store = write(tmp_path, [2, 2, 2])
    file = tmp_path / "annotations.json"
    text = file.read_text()
    lines = text.splitlines(keepends=True)
    lines[3] = lines[3][: len(lines[3]) // 2] + "\n"
    file.write_text({"head": text[1:], "line": "".join(lines), "end": text[: len(text) // 2]}[damage])
    with pytest.raises(MlsError, match=r"annotations\.json is damaged: byte \d+ .*; remove the artifact"):
        store.ground_truth("train", "val", "test")
