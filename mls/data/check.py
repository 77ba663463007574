"""What a finished data artifact holds, and what in it contradicts itself: ``mls data check NAME``.

    report = check_artifact(Path("artifacts/photos/3f2a91c4d0"), "coco")
    report.contradictions      # [Finding(what="boxes reaching over the image's edge ...", count=2, ...)]

Only the artifact is read, and nothing is changed. Images are not decoded again: the data stage has decoded each,
and ``mls verify`` proves that the bytes have not changed. Annotations are read line by line, as the store writes them,
so memory grows with the index (and 8 bytes per annotation), not with the masks.

A finding **contradicts** if no correct data set can have it:

- a test image whose content is also in another split; equal content with different classes;
- an annotation of an image or class that is not there, or made for an image of a different size;
- a box that reaches over the edge by more than ``BOX_SLACK`` pixels;
- a mask that can't be decoded, or is empty although its box is larger than ``SLACK`` both ways, or that does not meet
  its box at all;
- an image whose classes are not those of its annotations (without difficult ones), in a set that has annotations;
- a mask of a whole image that can't be decoded, is of a different size, or shows a class that the image's labels lack
  (these masks are decoded, one at a time).

Everything else is a note: classes without a positive, duplicates within train and val, images left out, boxes of no
width or height, boxes a little over the edge, objects without a mask, masks that differ from their box by more than
``SLACK`` pixels (official COCO has all of these), labelled images without a mask if others have one.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mls.data.image_store import INDEX, LABELLED, LABELS, SPLITS, ImageStore
from mls.data.validator import EXAMPLES, Counts, Finding, MaskValidator, Validator
from mls.runtime.errors import DamagedArtifact, MlsError
from mls.runtime.progress import Bar


@dataclass
class Report:
    """What a data artifact holds. Per-split arrays are in the order of `SPLITS`."""

    name: str
    path: Path
    classes: list[str]
    images_S: Counts
    """Images of each split."""
    positives_SC: Counts
    """Images of each split with each class."""
    instances_SC: Counts
    """Annotations of each split and class, crowds and difficult ones included."""
    sizes_23: NDArray[np.float64]
    """Smallest, median and largest width, then height, pixels."""
    bytes_3: Counts
    """Bytes of the smallest and the largest image, and of all."""
    excluded: list[dict[str, str]]
    """``{"name", "reason"}`` of each image left out when the artifact was made."""
    crowds: int
    difficult: int | None
    """None if annotations have no such field."""
    masks: int
    """Masks of whole images."""
    ignored: float
    """Share of these masks' pixels that belong to no class; 0 without masks."""
    findings: list[Finding]
    """Those that were found at least once, contradictions first."""

    @property
    def contradictions(self) -> list[Finding]:
        """What no correct data set can have."""
        return [finding for finding in self.findings if finding.contradicts]

    @property
    def notes(self) -> list[Finding]:
        """What is worth knowing."""
        return [finding for finding in self.findings if not finding.contradicts]


def check_artifact(path: Path, name: str) -> Report:
    """Read a data artifact and compare its parts with one another; shows progress over annotations.

    Args:
        path: the artifact's folder (checked by ``mls.pipeline.artifact.open_artifact``).
        name: what a person calls the data set.

    Raises:
        DamagedArtifact: ``annotations.json`` is not as the store writes it.
        MlsError: the artifact holds no image.
    """
    index = pq.read_table(path / "index.parquet", schema=INDEX)
    names: list[str] = index["name"].to_pylist()
    if not names:
        raise MlsError(f"{path} holds no image; were all left out? See excluded.json there")
    split_N = np.array([SPLITS.index(split) for split in index["split"].to_pylist()], dtype=np.int64)
    sizes_N2 = np.stack([index["width"].to_numpy(), index["height"].to_numpy()], axis=1)
    lengths_N = index["length"].to_numpy()
    store = ImageStore(path)
    labels = pq.read_table(path / "labels.parquet", schema=LABELS)["classes"].combine_chunks()
    row_M = np.repeat(np.arange(len(names)), labels.value_lengths().to_numpy())
    key_M = row_M * len(store.classes) + labels.flatten().to_numpy()  # one number for an image and a class

    found = Validator(store.classes, names, sizes_N2)
    with Bar(f"check {name}", len(names)) as bar:
        for item in _items(path / "annotations.json"):
            row = item.get("image_id", len(names))  # images follow after all annotations
            if bar.done < row <= len(names):
                bar.advance(row - bar.done, row - bar.done)
            (found.add if "image_id" in item else found.add_image)(item)
    positives_SC = _per_split(key_M, split_N, len(store.classes))
    findings = [*found.findings(), found.against_labels(key_M)]
    findings += _duplicates(index["sha256"].to_pylist(), names, split_N, labels)
    findings += _without_positives(positives_SC, store.classes)
    masks = MaskValidator(store)
    if store.has_masks:
        with Bar(f"check {name}: masks", len(store.mask_rows)) as bar:
            for row in store.mask_rows.tolist():
                masks.add(row)
                bar.advance(1, 1)
        without = Finding("labelled images without a mask", False)
        for row in np.setdiff1d(np.flatnonzero(split_N < len(LABELLED)), store.mask_rows):
            without.add(names[row])
        findings += [*masks.findings(), without]
    excluded: list[dict[str, str]] = json.loads((path / "excluded.json").read_text(encoding="utf-8"))
    return Report(
        name=name,
        path=path,
        classes=store.classes,
        images_S=np.bincount(split_N, minlength=len(SPLITS)),
        positives_SC=positives_SC,
        instances_SC=_per_split(np.array(found.keys, dtype=np.int64), split_N, len(store.classes)),
        sizes_23=np.stack([sizes_N2.min(0), np.median(sizes_N2, 0), sizes_N2.max(0)], axis=1),
        bytes_3=np.array([lengths_N.min(), lengths_N.max(), lengths_N.sum()]),
        excluded=excluded,
        crowds=found.crowds,
        difficult=found.difficult,
        masks=masks.count,
        ignored=masks.ignored,
        findings=sorted((f for f in findings if f.count), key=lambda finding: not finding.contradicts),
    )


def _per_split(key_M: Counts, split_N: Counts, classes: int) -> Counts:
    """Count keys (image * classes + class) by split and class."""
    places = split_N[key_M // classes] * classes + key_M % classes
    return np.bincount(places, minlength=len(SPLITS) * classes).reshape(len(SPLITS), classes)


def _items(file: Path) -> Iterator[dict[str, Any]]:
    """Yield annotations, then images, one at a time: the store writes each on its own line."""
    brackets = ('{"annotations": [\n', "],\n", '"images": [\n', "]}\n")
    number, line = 0, ""
    with file.open(encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, 1):  # noqa: B007 - the errors name the line
                if line not in brackets and not line.startswith('"categories": '):
                    yield json.loads(line.rstrip(",\n"))
        except ValueError as error:
            raise DamagedArtifact(f"{file}, line {number}: {error}; remove the artifact and make it again") from error
    if line != brackets[-1]:
        raise DamagedArtifact(f"{file} is cut short after line {number}; remove the artifact and make it again")


def _duplicates(digests: list[str], names: list[str], split_N: Counts, labels: pa.ListArray) -> list[Finding]:
    """Compare contents by sha256: within a split, between splits, and the classes of equal ones."""
    rows_of = defaultdict(list)
    for row, digest in enumerate(digests):
        rows_of[digest].append(row)
    within = [Finding(f"images of {split} that repeat another of {split}, byte for byte", False) for split in SPLITS]
    across = {
        (a, b): Finding(
            f"images of {SPLITS[b]} that are also in {SPLITS[a]}, byte for byte", "test" in (SPLITS[a], SPLITS[b])
        )
        for a, b in combinations(range(len(SPLITS)), 2)
    }
    labelled = Finding("sets of equal images that have different classes", True)
    for rows in rows_of.values():
        if len(rows) == 1:
            continue
        of_split = [[row for row in rows if split_N[row] == split] for split in range(len(SPLITS))]
        for finding, same in zip(within, of_split, strict=True):
            for row in same[1:]:
                finding.add(f"{names[row]} = {names[same[0]]}")
        for (a, b), finding in across.items():
            for row in of_split[b] if of_split[a] else []:
                finding.add(f"{names[row]} = {names[of_split[a][0]]}")
        if len({tuple(labels[row].as_py()) for row in rows if split_N[row] < len(LABELLED)}) > 1:
            labelled.add(" = ".join(names[row] for row in rows[:EXAMPLES]))
    return [*across.values(), labelled, *within]


def _without_positives(positives_SC: Counts, classes: list[str]) -> list[Finding]:
    """Find the classes of which a split has no image; unlabeled images have no classes."""
    findings = [Finding(f"classes without an image in {split}", False) for split in LABELLED]
    for finding, positives_C in zip(findings, positives_SC, strict=False):
        for number in np.flatnonzero(positives_C == 0):
            finding.add(classes[number])
    return findings
