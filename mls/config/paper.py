"""Numbers that the paper reports (MLS, ICCV 2023, arXiv 2308.03286), as data, to stand beside measured ones.

    TABLES["5"].rows["MLS"].cells["VOC07"].percent      # 85.8
    TABLES["5a"].rows["1024"].cells["APb"].decoded      # True: read from the vectors of Figure 5a

``paper.csv`` beside this file holds every number of Tables 1 to 8 and Figures 5a and 5b; ``anchors.csv`` what others
report of other methods on the same benchmarks. Planning imports this module, so it imports nothing heavy. The id of a
tables artifact covers which table is chosen, not its numbers: raise the tables stage's version when one is corrected.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SOURCE = "arXiv 2308.03286"
FOLDER = Path(__file__).parent

TITLES = {
    "1": "Table 1: COCO val2017, Mask R-CNN R50-FPN, 90k iterations",
    "2": "Table 2: COCO val2017, Mask R-CNN R50-C4, 90k iterations",
    "3": "Table 3: Cityscapes val, PSANet and PSPNet, 40k iterations, mean of 2",
    "4": "Table 4: VOC2007 test, Faster R-CNN R50-C4, 24k iterations, mean of 3",
    "5": "Table 5: classification after training on each set",
    "6": "Table 6: the loss; transfer as in Table 1",
    "7": "Table 7: the dictionaries; transfer as in Table 1",
    "8": "Table 8: k; transfer as in Table 1",
    "5a": "Figure 5a: D; transfer as in Table 1",
    "5b": "Figure 5b: lambda; transfer as in Table 1",
}
"""What each table is of.

Table 5: fine-tuned, 120 epochs for the seven sets of top-1; of VOC07 the paper says neither whether all or the
classifier alone is trained, nor at what resolution (docs/classification.md). That Tables 6 to 8 and Figure 5 are of
400 epochs is inferred: their MLS is Table 1's of 400.
"""


@dataclass(frozen=True)
class Number:
    """One cell of the paper."""

    percent: float
    decoded: bool = False
    """Read from the vectors of a figure; the others are printed."""
    doubt: str = ""
    """Why it can hardly be meant although it is printed so; empty for most."""


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    data: str
    """What the backbone was pretrained on: COCO, ImageNet, or empty for random weights."""
    epochs: int | None
    """Of that pretraining; None where the paper does not say."""
    cells: Mapping[str, Number]
    """Column -> number; a column for which the paper has none is absent."""


@dataclass(frozen=True)
class Reported:
    """One table of the paper, or a figure's points."""

    title: str
    columns: Mapping[str, str]
    """Column -> metric, as tasks here call it: ``APb`` -> ``box_AP``."""
    rows: Mapping[str, Row]

    @property
    def pretraining(self) -> str:
        """Who was pretrained on what, for a note."""
        groups: dict[str, list[str]] = {}
        for name, row in self.rows.items():
            epochs = f", {row.epochs} epochs" if row.epochs else ""
            groups.setdefault((row.data or "no data") + epochs, []).append(name)
        return "ResNet-50; " + "; ".join(f"{what}: {', '.join(names)}" for what, names in groups.items())


def load_tables(file: Path = FOLDER / "paper.csv") -> dict[str, Reported]:
    """Every table of the paper by its number, ``5a`` and ``5b`` being figures; rows and columns in the paper's order.

    Args:
        file: columns ``table``, ``row``, ``data``, ``epochs``, ``column``, ``metric``, ``value`` (percent), ``origin``
            (``printed`` or ``decoded``) and ``doubt``.

    Raises:
        ValueError: a number, an origin or a table's name can't be read, a cell is there twice, or lines of one row (or
            column) say different things of it.
    """
    found: dict[str, tuple[dict[str, str], dict[str, tuple[str, str, dict[str, Number]]]]] = {}
    with file.open(encoding="utf-8", newline="") as lines:
        for line in csv.DictReader(lines):
            columns, rows = found.setdefault(line["table"], ({}, {}))
            data, epochs, cells = rows.setdefault(line["row"], (line["data"], line["epochs"], {}))
            where = f"{file.name}: table {line['table']}, row {line['row']}, column {line['column']}"
            if line["table"] not in TITLES or line["origin"] not in ("printed", "decoded") or line["column"] in cells:
                raise ValueError(f"{where}: unknown table or origin, or there twice")
            same = (columns.setdefault(line["column"], line["metric"]), data, epochs)
            if same != (line["metric"], line["data"], line["epochs"]):
                raise ValueError(f"{where}: another metric, data or epochs than in a line before")
            cells[line["column"]] = Number(float(line["value"]), line["origin"] == "decoded", line["doubt"])
    return {
        table: Reported(
            TITLES[table],
            columns,
            {name: Row(data, int(epochs) if epochs else None, cells) for name, (data, epochs, cells) in rows.items()},
        )
        for table, (columns, rows) in found.items()
    }


TABLES = load_tables()
"""Number of the table -> the table, each number checked against the PDF's text or, of Figure 5, its vectors."""


@dataclass(frozen=True)
class Anchor:
    """What others report of a method on one of the paper's benchmarks, or near it."""

    method: str
    data: str
    """Of pretraining; empty for random weights."""
    epochs: str
    benchmark: str
    metric: str
    percent: float
    source: str
    verified: bool
    """False: from memory, not looked up."""


def load_anchors(file: Path = FOLDER / "anchors.csv") -> list[Anchor]:
    """Every anchor, in the file's order.

    Raises:
        ValueError: a number, or the answer to whether it was verified, can't be read.
    """
    with file.open(encoding="utf-8", newline="") as lines:
        return [
            Anchor(
                **{key: line[key] for key in ("method", "data", "epochs", "benchmark", "metric", "source")},
                percent=float(line["value"]),
                verified=("no", "yes").index(line["verified"]) == 1,
            )
            for line in csv.DictReader(lines)
        ]


# -------------------------------------------------------------------------------- beside measured rows


@dataclass(frozen=True)
class Beside:
    """A table of the paper beside a measured one."""

    table: str
    """One of `TABLES`."""
    claims: Mapping[str, str]
    """Measured row -> the row of the paper that belongs to it."""
    columns: Mapping[str, str]
    """Measured column -> the paper's column of the same metric, to be subtracted; where empty, the paper's columns
    stand to the right as they are."""

    @property
    def reported(self) -> Reported:
        """The paper's table."""
        return TABLES[self.table]

    def of(self, row: str) -> Mapping[str, Number]:
        """Column -> number of the paper for a measured row; none where it claims no row."""
        return self.reported.rows[self.claims[row]].cells if row in self.claims else {}

    @property
    def further(self) -> dict[str, Mapping[str, Number]]:
        """Rows that no measured one claims, by label (``Supervised [paper]``, which no run can be called)."""
        claimed = set(self.claims.values())
        return {f"{name} [paper]": row.cells for name, row in self.reported.rows.items() if name not in claimed}

    def points(self, column: str | None = None) -> dict[float, float]:
        """Value -> percent of a column (default: the first), of a table whose rows are values of one parameter.

        Empty of any other table.
        """
        column = column or next(iter(self.reported.columns))
        try:
            return {float(name): row.cells[column].percent for name, row in self.reported.rows.items()}
        except ValueError:
            return {}

    @property
    def shown(self) -> Iterator[Number]:
        """Every number that is printed."""
        for row in self.reported.rows.values():
            yield from row.cells.values()


def metrics_of(columns: Iterable[str], reported: Reported) -> str:
    """``mAP of VOC07; top1 of CUB200, Flowers``."""
    by_metric: dict[str, list[str]] = {}
    for column in columns:
        by_metric.setdefault(reported.columns[column], []).append(column)
    return "; ".join(f"{metric} of {', '.join(names)}" for metric, names in by_metric.items())
