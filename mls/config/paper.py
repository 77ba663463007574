"""The paper's numbers (MLS, ICCV 2023, arXiv 2308.03286), to print beside measured ones.

    TABLES["5"].rows["MLS"].cells["VOC07"].percent      # 85.8
    TABLES["5a"].rows["1024"].cells["APb"].decoded      # True: read from the vectors of Figure 5a

``paper.csv`` beside this file holds every number of Tables 1 to 8 and Figures 5a and 5b; ``anchors.csv`` holds what
others report for other methods on the same benchmarks. Planning imports this module, so it imports nothing heavy. The
id of a tables artifact covers which table is chosen, not its numbers: if you correct a number, raise the version of the
tables stage.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
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
"""What each table shows.

Table 5 is fine-tuned, for 120 epochs on the seven top-1 sets. For VOC07 the paper states neither the resolution nor
whether the whole network or only the classifier is trained (docs/classification.md). That Tables 6 to 8 and Figure 5
have 400 epochs is inferred: their MLS has the numbers of Table 1's MLS with 400 epochs.
"""


@dataclass(frozen=True)
class Number:
    """One cell of the paper's tables."""

    percent: float
    decoded: bool = False
    """Whether it is read from the vectors of a figure; otherwise it is printed."""
    doubt: str = ""
    """Why the printed number is implausible; empty for most."""


@dataclass(frozen=True)
class PaperRow:
    """One row of a table."""

    data: str
    """The pretraining data: COCO, ImageNet, or empty for random weights."""
    epochs: int | None
    """Epochs of that pretraining; None if the paper does not say."""
    cells: dict[str, Number]
    """Column -> number; columns without a number are absent."""


@dataclass(frozen=True)
class Reported:
    """One table of the paper, or the points of a figure."""

    title: str
    columns: dict[str, str]
    """Column -> its metric by the name that tasks here use: ``APb`` -> ``box_AP``."""
    rows: dict[str, PaperRow]

    @property
    def pretraining(self) -> str:
        """Which rows were pretrained on what, for a note."""
        groups: dict[str, list[str]] = {}
        for name, row in self.rows.items():
            epochs = f", {row.epochs} epochs" if row.epochs else ""
            groups.setdefault((row.data or "no data") + epochs, []).append(name)
        return "ResNet-50; " + "; ".join(f"{what}: {', '.join(names)}" for what, names in groups.items())

    @property
    def metrics(self) -> str:
        """Which columns hold which metric, for a note: ``mAP of VOC07; top1 of CUB200, Flowers``."""
        groups: dict[str, list[str]] = {}
        for column, metric in self.columns.items():
            groups.setdefault(metric, []).append(column)
        return "; ".join(f"{metric} of {', '.join(columns)}" for metric, columns in groups.items())


def load_tables(file: Path = FOLDER / "paper.csv") -> dict[str, Reported]:
    """Every table by its number in the paper, ``5a`` and ``5b`` for figures; rows and columns in the paper's order.

    Args:
        file: columns ``table``, ``row``, ``data``, ``epochs``, ``column``, ``metric``, ``value`` (percent), ``origin``
            (``printed`` or ``decoded``) and ``doubt``.

    Raises:
        ValueError: a number, an origin or a table's name is invalid, a cell is listed twice, or lines of one row (or
            column) contradict each other.
    """
    tables: dict[str, Reported] = {}
    with file.open(encoding="utf-8", newline="") as lines:
        for line in csv.DictReader(lines):
            where = f"{file.name}: table {line['table']}, row {line['row']}, column {line['column']}"
            if line["table"] not in TITLES or line["origin"] not in ("printed", "decoded"):
                raise ValueError(f"{where}: unknown table or origin")
            table = tables.setdefault(line["table"], Reported(TITLES[line["table"]], {}, {}))
            epochs = int(line["epochs"]) if line["epochs"] else None
            row = table.rows.setdefault(line["row"], PaperRow(line["data"], epochs, {}))
            metric = table.columns.setdefault(line["column"], line["metric"])
            if line["column"] in row.cells:
                raise ValueError(f"{where}: listed twice")
            if (metric, row.data, row.epochs) != (line["metric"], line["data"], epochs):
                raise ValueError(f"{where}: metric, data or epochs differ from an earlier line")
            row.cells[line["column"]] = Number(float(line["value"]), line["origin"] == "decoded", line["doubt"])
    return tables


TABLES = load_tables()
"""Number of a table -> the table. Each value was checked against the PDF's text or, for Figure 5, its vectors."""


@dataclass(frozen=True)
class Anchor:
    """A number that others report for a method on one of the paper's benchmarks, or a similar one."""

    method: str
    data: str
    """Pretraining data; empty for random weights."""
    epochs: str
    benchmark: str
    metric: str
    percent: float
    source: str
    verified: bool
    """Whether it was looked up; otherwise it is from memory."""


def load_anchors(file: Path = FOLDER / "anchors.csv") -> list[Anchor]:
    """Every anchor, in the file's order.

    Raises:
        ValueError: a number is invalid, or ``verified`` is neither yes nor no.
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
    """A table of the paper that is printed beside a measured one."""

    table: str
    """Key of `TABLES`."""
    claims: Mapping[str, str]
    """Measured row -> the paper's row that it reproduces."""
    columns: Mapping[str, str]
    """Measured column -> the paper's column of the same metric, which is subtracted; if empty, the paper's columns are
    printed to the right as they are."""

    @property
    def reported(self) -> Reported:
        """The paper's table."""
        return TABLES[self.table]

    def of(self, row: str) -> Mapping[str, Number]:
        """Column -> number of the paper for a measured row; empty if it claims no row."""
        return self.reported.rows[self.claims[row]].cells if row in self.claims else {}

    @property
    def further(self) -> dict[str, Mapping[str, Number]]:
        """The rows that no measured row claims, by a label that no run can have: ``Supervised [paper]``."""
        claimed = set(self.claims.values())
        return {f"{name} [paper]": row.cells for name, row in self.reported.rows.items() if name not in claimed}

    def points(self, column: str | None = None) -> dict[float, float]:
        """Value of a parameter -> percent in one column (by default the first), for a table whose rows are its values.

        Empty for any other table.
        """
        column = column or next(iter(self.reported.columns))
        try:
            return {float(name): row.cells[column].percent for name, row in self.reported.rows.items()}
        except ValueError:
            return {}

    @property
    def shown(self) -> Iterator[Number]:
        """Every number of the table."""
        for row in self.reported.rows.values():
            yield from row.cells.values()
