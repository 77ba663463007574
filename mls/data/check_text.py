"""The report of ``mls data check`` as text: aligned columns, coloured on a terminal, plain elsewhere.

print_report(check_artifact(path, "coco"))
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mls.data.check import Report
from mls.data.image_store import LABELLED, SPLITS

SHOWN_CLASSES = 100
SHOWN_EXCLUDED = 20


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
    groups = (("notes", report.notes, "yellow"), ("contradictions", report.contradictions, "bold red"))
    for title, findings, style in groups:
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
