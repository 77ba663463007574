"""Numbers that the paper reports (MLS, ICCV 2023, arXiv 2308.03286), as data, to stand beside measured ones.

    TABLES["5"].rows["MLS"]["VOC07"].percent      # 85.8

Planning imports this module, so it imports nothing heavy. The id of a tables artifact covers which table is chosen,
not its numbers: raise the tables stage's version when one is corrected here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SOURCE = "arXiv 2308.03286"


@dataclass(frozen=True)
class Number:
    """One cell of the paper."""

    percent: float
    doubtful: bool = False
    """It is printed so, but can hardly be meant; its table's ``doubt`` says why."""


@dataclass(frozen=True)
class Reported:
    """One table of the paper."""

    setting: str
    """Pretraining in two words, for a header."""
    pretraining: str
    """All that the paper says of it, rows that differ included."""
    columns: Mapping[str, str]
    """Column -> what is measured."""
    rows: Mapping[str, Mapping[str, Number]]
    """Row -> column -> number; a column for which the paper has none is absent."""
    doubt: str = ""
    """Why doubtful cells are."""


def numbers(columns: Iterable[str], text: str) -> dict[str, Number]:
    """A row as it is printed: ``58.1?`` is doubtful, ``-`` is not reported.

    Raises:
        ValueError: as many numbers as columns are needed.
    """
    cells = zip(columns, text.split(), strict=True)
    return {column: Number(float(one.rstrip("?")), one.endswith("?")) for column, one in cells if one != "-"}


# ---------------------------------------------------------------------------------------- the tables

_CLASSIFICATION = {"VOC07": "mAP"} | dict.fromkeys(
    ("CUB200", "Flowers", "Cars", "Aircraft", "Indoor67", "Pets", "DTD"), "top-1"
)

TABLES: dict[str, Reported] = {
    "5": Reported(
        setting="COCO, 400 epochs",
        pretraining="ResNet-50, COCO train2017, 400 epochs; Supervised: ImageNet",
        columns=_CLASSIFICATION,
        rows={
            row: numbers(_CLASSIFICATION, text)
            for row, text in {
                "Supervised": "89.0 81.3 96.7 90.6 86.7 58.1? 64.4? 74.7?",
                "MoCo-v2": "80.5 68.8 89.6 87.5 80.4 64.1 79.4 60.9",
                "DenseCL": "83.7 69.3 88.6 88.3 79.9 65.4 80.0 61.8",
                "MLS": "85.8 71.7 91.2 88.5 81.2 67.1 81.9 63.0",
            }.items()
        },
        doubt="the paper's text has supervised pretraining ahead of all others; these three look permuted",
    ),
}
"""Number of the table -> the table, each number checked against the text of the PDF.

Table 5: classification after training on each set. Fine-tuned, 120 epochs for the seven sets of top-1; of VOC07 the
paper says neither whether all or the classifier alone is trained, nor at what resolution (docs/classification.md).
"""


# -------------------------------------------------------------------------------- beside measured rows


@dataclass(frozen=True)
class Beside:
    """A table of the paper beside a measured one."""

    table: str
    """One of `TABLES`."""
    claims: Mapping[str, str]
    """Measured row -> the row of the paper that belongs to it."""

    @property
    def reported(self) -> Reported:
        """The paper's table."""
        return TABLES[self.table]

    def of(self, row: str) -> Mapping[str, Number]:
        """Column -> number of the paper for a measured row; none where it claims no row."""
        return self.reported.rows[self.claims[row]] if row in self.claims else {}

    @property
    def further(self) -> dict[str, Mapping[str, Number]]:
        """Rows that no measured one claims, by label (``Supervised [paper]``, which no run can be called)."""
        claimed = set(self.claims.values())
        return {f"{row} [paper]": cells for row, cells in self.reported.rows.items() if row not in claimed}


def problems(
    where: str, section: Mapping[str, Any], rows: Iterable[str], nearest: Callable[[Any, Any], str]
) -> Iterator[str]:
    """What a ``paper`` section of an experiment file names that is not there; wrong types are the schema's to say.

    Args:
        where: its dotted path, ``tables.<table>.paper``.
        section: as it was read.
        rows: of the measured table.
        nearest: (name, known names) -> the end of a message.
    """
    table, claims, rows = section.get("table"), section.get("rows"), list(rows)
    reported = TABLES.get(table) if isinstance(table, str) else None
    if isinstance(table, str) and reported is None:
        yield f"{where}.table: no numbers of table {table!r} of the paper are kept{nearest(table, TABLES)}"
    for row, claimed in claims.items() if isinstance(claims, Mapping) else ():
        if row not in rows:
            yield f"{where}.rows.{row}: {row!r} is not a row of this table{nearest(row, rows)}"
        if reported is not None and isinstance(claimed, str) and claimed not in reported.rows:
            yield (
                f"{where}.rows.{row}: table {table} of the paper has no row {claimed!r}"
                f"{nearest(claimed, reported.rows)}"
            )
