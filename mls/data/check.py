"""What a finished data artifact holds, and what in it contradicts itself: ``mls data check NAME``.

    report = check_artifact(Path("artifacts/photos/3f2a91c4d0"), "coco")
    report.contradictions      # [Finding(what="boxes reaching over the image's edge ...", count=2, ...)]
    print_report(report)       # aligned columns, coloured on a terminal, plain elsewhere

Only the artifact is read, and nothing is changed. Images are not decoded again: the data stage has decoded each,
and ``mls verify`` proves that the bytes have not changed. Annotations are read line by line, as the store writes them,
so memory grows with the index (and 8 bytes per annotation), not with the masks.

A finding **contradicts** if no correct data set can have it:

- a test image whose content is also in another split; equal content with different classes;
- an annotation of an image or class that is not there, or made for an image of a different size;
- a box that reaches over the edge by more than ``BOX_SLACK`` pixels;
- a mask that can't be decoded, or that does not meet its box at all;
- an image whose classes are not those of its annotations (without difficult ones), in a set that has annotations;
- a mask of a whole image that can't be decoded, is of a different size, or shows a class that the image's labels lack
  (these masks are decoded, one at a time).

Everything else is a note: classes without a positive, duplicates within train and val, images left out, boxes of no
width or height, polygons of fewer than three points and masks that cover no pixel (the data stage leaves such objects
out of what needs them), boxes a little over the edge, objects without a mask, masks that differ from their box by more
than ``SLACK`` pixels (official COCO has all of these), labelled images without a mask if others have one.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mls.data.image_store import LABELLED, SPLITS, ImageStore
from mls.data.validator import EXAMPLES, Counts, Finding, Findings, Validator, validate_masks
from mls.runtime.errors import DamagedArtifact, MlsError
from mls.runtime.progress import Bar

SHOWN_CLASSES = 100
SHOWN_EXCLUDED = 20


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
    degenerate: int
    """Objects that `mls.data.listing.Listing` calls so."""
    crowds: int
    difficult: int | None
    """None if annotations have no such field."""
    masks: int
    """Masks of whole images."""
    ignored: float
    """Share of these masks' pixels that belong to no class; 0 without masks."""
    findings: list[Finding]
    """Contradictions first."""

    @property
    def contradictions(self) -> list[Finding]:
        """What no correct data set can have."""
        return [finding for finding in self.findings if finding.contradicts]


def check_artifact(path: Path, name: str) -> Report:
    """Read a data artifact and compare its parts with one another; shows progress over annotations and masks.

    Args:
        path: the artifact's folder (checked by ``mls.pipeline.artifact.open_artifact``).
        name: what a person calls the data set.

    Raises:
        DamagedArtifact: ``annotations.json`` is not as the store writes it.
        MlsError: the artifact holds no image.
    """
    store, found = ImageStore(path), Findings()
    count, classes = len(store), len(store.classes)
    if not count:
        raise MlsError(f"{path} holds no image; were all left out? See excluded.json there")
    labels_NC = store.labels(range(count))
    validator = Validator(store, found)
    with Bar(f"check {name}", count) as bar:
        for item in _items(path / "annotations.json"):
            row = item.get("image_id", count)  # images follow after all annotations
            if bar.done < row <= count:
                bar.advance(row - bar.done, row - bar.done)
            (validator.add if "image_id" in item else validator.add_image)(item)
    validator.compare_labels(labels_NC)
    masks, ignored = 0, 0.0
    if store.has_masks:
        masks, ignored = validate_masks(store, found, f"check {name}: masks")
        labelled = np.flatnonzero(store.splits_N < len(LABELLED))
        for row in np.setdiff1d(labelled, store.mask_rows).tolist():
            found.note("labelled images without a mask", store.name(row))
    index = pq.read_table(path / "index.parquet", columns=["length", "sha256"])
    _compare_contents(index["sha256"].to_pylist(), store, labels_NC, found)
    positives_SC = _per_split(np.flatnonzero(labels_NC), store.splits_N, classes)
    for split, positives_C in zip(LABELLED, positives_SC, strict=False):
        for number in np.flatnonzero(positives_C == 0):
            found.note(f"classes without an image in {split}", store.classes[number])
    sizes_N2, lengths_N = store.sizes_N2, index["length"].to_numpy()
    listed = json.loads((path / "excluded.json").read_text(encoding="utf-8"))
    excluded = [item for item in listed if "object" not in item]
    return Report(
        name=name,
        path=path,
        classes=store.classes,
        images_S=np.bincount(store.splits_N, minlength=len(SPLITS)),
        positives_SC=positives_SC,
        instances_SC=_per_split(np.array(validator.keys, dtype=np.int64), store.splits_N, classes),
        sizes_23=np.stack([sizes_N2.min(0), np.median(sizes_N2, 0), sizes_N2.max(0)], axis=1),
        bytes_3=np.array([lengths_N.min(), lengths_N.max(), lengths_N.sum()]),
        excluded=excluded,
        degenerate=len(listed) - len(excluded),
        crowds=validator.crowds,
        difficult=validator.difficult,
        masks=masks,
        ignored=ignored,
        findings=found.listed(),
    )


def _per_split(key_M: Counts, splits_N: NDArray[np.int8], classes: int) -> Counts:
    """Count keys (image * classes + class) by split and class."""
    places = splits_N[key_M // classes].astype(np.int64) * classes + key_M % classes
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


def _compare_contents(digests: list[str], store: ImageStore, labels_NC: NDArray[np.bool_], found: Findings) -> None:
    """Compare contents by sha256: within a split, between splits, and the classes of equal ones."""
    first: dict[tuple[str, int], int] = {}
    rows_of = defaultdict(list)
    for row, (digest, split) in enumerate(zip(digests, store.splits_N.tolist(), strict=True)):
        for earlier in range(split + 1):  # rows are sorted by split
            if (digest, earlier) in first:
                a, b, where = (
                    SPLITS[earlier],
                    SPLITS[split],
                    f"{store.name(row)} = {store.name(first[digest, earlier])}",
                )
                if a == b:
                    found.note(f"images of {b} that repeat another of {b}, byte for byte", where)
                else:
                    count = found.contradiction if "test" in (a, b) else found.note
                    count(f"images of {b} that are also in {a}, byte for byte", where)
        first.setdefault((digest, split), row)
        if SPLITS[split] in LABELLED:
            rows_of[digest].append(row)
    for rows in rows_of.values():
        if len(rows) > 1 and (labels_NC[rows] != labels_NC[rows[0]]).any():
            where = " = ".join(store.name(row) for row in rows[:EXAMPLES])
            found.contradiction("sets of equal images that have different classes", where)


def print_report(report: Report, console: Console | None = None) -> None:
    """Print a report, to stdout unless a console is given."""
    console = console or Console(soft_wrap=True, highlight=False)

    def line(text: str, style: str = "") -> None:
        console.print(Text(text, style=style))

    line(f"{report.name}: {report.path}\n", "bold")
    console.print(_facts(report))
    line("")
    console.print(_classes(report))
    if len(report.classes) > SHOWN_CLASSES:
        line(f"... and {len(report.classes) - SHOWN_CLASSES:,} rarer classes")
    if report.excluded:
        line(f"\nleft out: {len(report.excluded):,} images", "bold")
        for item in report.excluded[:SHOWN_EXCLUDED]:
            line(f"  {item['name']}: {item['reason']}")
        if len(report.excluded) > SHOWN_EXCLUDED:
            line(f"  ... and {len(report.excluded) - SHOWN_EXCLUDED:,} more, in {report.path / 'excluded.json'}")
    if report.degenerate:
        line(f"\n{report.degenerate:,} objects have no area; {report.path / 'excluded.json'} says which and why")
    notes = [finding for finding in report.findings if not finding.contradicts]
    for title, findings, style in (("notes", notes, "yellow"), ("contradictions", report.contradictions, "bold red")):
        if findings:
            line(f"\n{title}:", style)
        for finding in findings:
            worst = "" if finding.worst is None else f" (at most {finding.worst:,.1f} px)"
            more = "; ..." if finding.count > len(finding.examples) else ""
            line(f"  {finding.count:,} {finding.what}{worst}: {'; '.join(finding.examples)}{more}")
    if report.contradictions:
        line(f"\n{len(report.contradictions)} kinds of contradiction", "bold red")
    else:
        line("\nnothing contradicts", "green")


def _facts(report: Report) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    total, instances = int(report.images_S.sum()), int(report.instances_SC.sum())
    counts = dict(zip(SPLITS, report.images_S, strict=True))
    splits = ", ".join(f"{split} {count:,}" for split, count in counts.items() if split in LABELLED or count)
    table.add_row("images", f"{total:,}: {splits}; {len(report.excluded):,} left out")
    for side, (least, median, most) in zip(("width", "height"), report.sizes_23, strict=True):
        table.add_row(side, f"{least:,.0f} to {most:,.0f} px, median {median:,.0f}")
    least, most, all_bytes = (int(value) for value in report.bytes_3)
    table.add_row("bytes", f"{all_bytes:,}: {least:,} to {most:,} an image, mean {all_bytes / total:,.0f}")
    flags = f"{report.crowds:,} crowds" + ("" if report.difficult is None else f", {report.difficult:,} difficult")
    only = "images and pixels" if report.masks else "images"
    table.add_row("annotations", f"{instances:,}; {flags}" if instances else f"none: classes of {only} only")
    if report.masks:
        table.add_row("masks", f"{report.masks:,}; {report.ignored:.1%} of their pixels belong to no class")
    return table


def _classes(report: Report) -> Table:
    """Show the classes, most frequent first: images with them and, if there are annotations, instances."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("class", no_wrap=True)
    with_instances = bool(report.instances_SC.sum())
    for split in LABELLED:
        table.add_column(f"{split} images", justify="right")
        if with_instances:
            table.add_column("instances", justify="right")
    order = sorted(range(len(report.classes)), key=lambda c: (-int(report.positives_SC[:, c].sum()), c))
    for c in order[:SHOWN_CLASSES]:
        cells: list[Text] = []
        for s in range(len(LABELLED)):
            positives = report.positives_SC[s, c]
            cells.append(Text(f"{positives:,}") if positives else Text("none", style="yellow"))
            cells += [Text(f"{report.instances_SC[s, c]:,}")] if with_instances else []
        table.add_row(Text(report.classes[c]), *cells)
    return table
