"""Numbers of the paper beside measured ones: right, distinguishable everywhere, and never counted as measured."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mls.config.load import ExperimentError
from mls.config.paper import FOLDER, TABLES, Beside, load_anchors, load_tables
from mls.report.formats import to_csv, to_latex, to_markdown
from mls.report.tables import FilledTable, fill_table, to_metrics
from tests.report.support import make_tables, small_plan, write_inputs

COLUMNS = ("VOC07", "CUB200", "Flowers", "Cars", "Aircraft", "Indoor67", "Pets", "DTD")


def filled(paper: dict[str, Any] | None, **more: Any) -> FilledTable:
    """Three rows of one seed: ``random`` 30, ``moco-v2`` 95, ``mls`` 40 percent of mAP."""
    found = {"random": 30.0, "moco-v2": 95.0, "mls": 40.0}
    rows = [{"label": row, "tasks": {"svm": [[f"p-{row}", f"t-{row}"]]}} for row in found]
    spec = {"columns": ["svm.mAP"], "rows": rows} | ({"paper": paper} if paper is not None else {}) | more
    return fill_table("t5", spec, {f"t-{row}": {"mAP": value} for row, value in found.items()})


def shown(text: str) -> list[str]:
    """The lines of a Markdown table, without their padding."""
    return [" ".join(line.split()) for line in text.splitlines() if line.startswith("| ")]


PAPER = {"table": "5", "rows": {"moco-v2": "MoCo-v2", "mls": "MLS"}}


# ------------------------------------------------------------------------------------------ the numbers


COUNTS = {"1": 69, "2": 42, "3": 36, "4": 27, "5": 32, "6": 24, "7": 6, "8": 8, "5a": 6, "5b": 5}
"""Numbers in each table, counted in the paper: rows x columns, less the three that Self-EMD lacks in Table 1."""


def test_every_number_of_the_paper_is_there() -> None:
    assert {name: sum(len(row.cells) for row in table.rows.values()) for name, table in TABLES.items()} == COUNTS


@pytest.mark.parametrize("name", TABLES)
def test_numbers_are_percents_and_figures_are_decoded(name: str) -> None:
    for row in TABLES[name].rows.values():
        assert all(0 < number.percent < 100 for number in row.cells.values())
        assert {number.decoded for number in row.cells.values()} == {name.startswith("5") and name != "5"}
        assert row.data in ("COCO", "ImageNet", "")


@pytest.mark.parametrize(
    ("table", "row", "column", "percent"),
    [
        ("1", "MLS, 400 epochs", "APb", 40.1),
        ("1", "MLS, 800 epochs", "APm75", 39.1),
        ("1", "Self-EMD", "APb75", 42.8),
        ("2", "MLS", "APb", 38.6),
        ("2", "DenseCL", "APm50", 54.4),
        ("3", "MLS", "PSANet mIoU", 79.0),
        ("3", "BYOL", "PSPNet mIoU", 76.9),
        ("4", "MLS", "AP75", 61.2),
        ("4", "Supervised", "AP50", 81.0),
        ("6", "+BCE-pos", "APb", 39.6),
        ("7", "Q_g only", "APm", 35.7),
        ("8", "40", "APb", 39.2),
        ("5a", "32768", "APb", 39.6),
        ("5b", "2.0", "APb", 39.8),
    ],
)
def test_some_numbers_by_hand(table: str, row: str, column: str, percent: float) -> None:
    assert TABLES[table].rows[row].cells[column].percent == percent


def test_the_tables_agree_with_one_another() -> None:
    """The same model stands in Tables 1, 6, 7, 8 and both figures."""
    places = [("1", "MLS, 400 epochs"), ("6", "+BCE"), ("7", "both"), ("8", "20"), ("5a", "4096"), ("5b", "0.5")]
    assert {TABLES[table].rows[row].cells["APb"].percent for table, row in places} == {40.1}


def test_implausible_numbers_of_the_paper_are_marked() -> None:
    doubtful = {
        (name, row, column)
        for name, table in TABLES.items()
        for row, cells in table.rows.items()
        for column, number in cells.cells.items()
        if number.doubt
    }
    masks = {("2", "Random", column) for column in ("APm", "APm50", "APm75")}
    assert doubtful == masks | {("5", "Supervised", column) for column in ("Indoor67", "Pets", "DTD")}


def test_table_5_agrees_with_what_the_paper_says_of_it() -> None:
    table = TABLES["5"]
    assert tuple(table.columns) == COLUMNS
    assert [column for column, metric in table.columns.items() if metric == "mAP"] == ["VOC07"]
    percents = {row: {column: cells.cells[column].percent for column in COLUMNS} for row, cells in table.rows.items()}
    assert list(percents) == ["Supervised", "MoCo-v2", "DenseCL", "MLS"]
    for column, gain in (("VOC07", 5.3), ("Indoor67", 3.0)):
        assert percents["MLS"][column] - percents["MoCo-v2"][column] == pytest.approx(gain), "claimed in its text"
    others = [row for row in percents if row != "Supervised"]
    assert all(percents["MLS"][c] == max(percents[row][c] for row in others) for c in COLUMNS), "bold in the paper"
    behind = {c for c in COLUMNS if percents["Supervised"][c] < percents["MLS"][c]}
    assert behind == {"Indoor67", "Pets"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("5,MLS,COCO,400,Pets,top1,81.9,printed,", "5,MLS,COCO,400,VOC07,mAP,81.9,printed,"),
        ("5,MLS,COCO,400,Pets,top1,", "5,MLS,COCO,400,Pets,mAP,"),
        ("5,MLS,COCO,400,Pets", "5,MLS,COCO,800,Pets"),
        ("81.9,printed", "81.9,guessed"),
        ("5,MLS,COCO,400,Pets", "9,MLS,COCO,400,Pets"),
        ("81.9", "eighty"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, old: str, new: str) -> None:
    text = (FOLDER / "paper.csv").read_text()
    assert text.count(old) == 1
    (tmp_path / "paper.csv").write_text(text.replace(old, new))
    with pytest.raises(ValueError):
        load_tables(tmp_path / "paper.csv")


def test_anchors_say_where_they_are_from() -> None:
    anchors = load_anchors()
    assert len(anchors) == 119 and sum(anchor.verified for anchor in anchors) == 88
    assert all(anchor.source and 0 < anchor.percent < 100 for anchor in anchors)
    assert all(anchor.verified != anchor.source.endswith("from memory") for anchor in anchors)
    (dense,) = [
        a for a in anchors if (a.method, a.data, a.epochs, a.metric) == ("DenseCL", "COCO", "800", "AP") and a.verified
    ]
    assert dense.percent == 56.7


def test_the_module_is_light() -> None:
    script = (
        "import sys; before = set(sys.modules); import mls.config.paper\n"
        "print({m.partition('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "{'mls'}", "planning imports it"


# --------------------------------------------------------------------------------------------- printing


def test_markdown_beside_the_paper() -> None:
    text = to_markdown(filled(PAPER), "scenes")
    head = "| run | svm.mAP | n | " + " | ".join(f"paper: {column}" for column in COLUMNS) + " |"
    assert shown(text) == [
        head,
        "| random | 30.0 | 1 | – | – | – | – | – | – | – | – |",  # noqa: RUF001
        "| moco-v2 | **95.0** | 1 | 80.5 | 68.8 | 89.6 | 87.5 | 80.4 | 64.1 | 79.4 | 60.9 |",
        "| mls | 40.0 | 1 | 85.8 | 71.7 | 91.2 | 88.5 | 81.2 | 67.1 | 81.9 | 63.0 |",
        "| Supervised [paper] | – | – | 89.0 | 81.3 | 96.7 | 90.6 | 86.7 | 58.1? | 64.4? | 74.7? |",  # noqa: RUF001
        "| DenseCL [paper] | – | – | 83.7 | 69.3 | 88.6 | 88.3 | 79.9 | 65.4 | 80.0 | 61.8 |",  # noqa: RUF001
    ]
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1, "aligned"
    notes = text.split("\n- ", 1)[1]
    for said in (
        "Table 5",
        "2308.03286",
        "not measured here",
        "other data, model and scale",
        "COCO, 400 epochs: MoCo-v2, DenseCL, MLS",
    ):
        assert said in notes
    assert "mAP of VOC07; top1 of CUB200, Flowers" in notes and "?: printed so in the paper, but implausible" in notes


def test_the_paper_is_never_bold_even_where_it_is_best() -> None:
    table = filled({"table": "5", "rows": {"random": "MLS"}})
    assert table.best() == {("moco-v2", "svm.mAP")}
    assert to_markdown(table, "e").count("**") == 2 and to_latex(table, "e").count(r"\textbf") == 1


def test_differences_stay_among_measured_rows() -> None:
    text = to_markdown(filled(PAPER, baseline="moco-v2"), "e")
    lines = shown(text)
    assert lines[-1] == "| mls - moco-v2 | -55.0 | 1 |" + " – |" * 8  # noqa: RUF001
    assert sum("[paper]" in line for line in lines) == 2 and not any("[paper] -" in line for line in lines)


def test_two_rows_may_claim_one_and_none_must() -> None:
    lines = shown(to_markdown(filled({"table": "5", "rows": {"mls": "MLS", "random": "MLS"}}), "e"))
    assert sum(" 85.8 " in line for line in lines) == 2 and not any(line.startswith("| MLS") for line in lines)
    lines = shown(to_markdown(filled({"table": "5", "rows": {}}), "e"))
    assert [line.split(" |")[0] for line in lines[4:]] == [f"| {row} [paper]" for row in TABLES["5"].rows]


def test_a_cell_that_the_paper_lacks_is_a_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    table = TABLES["5"]
    less = {
        name: replace(row, cells={c: n for c, n in row.cells.items() if c != "Pets"})
        for name, row in table.rows.items()
    }
    monkeypatch.setitem(TABLES, "5", replace(table, rows=less))
    text = to_markdown(filled(PAPER), "e")
    assert "| mls | 40.0 | 1 | 85.8 | 71.7 | 91.2 | 88.5 | 81.2 | 67.1 | – | 63.0 |" in shown(text)  # noqa: RUF001
    assert "implausible" in text, "Indoor67 and DTD are still there"
    assert "paper: Pets" not in to_csv(filled(PAPER))


def test_latex_has_one_group_of_the_paper() -> None:
    tex = to_latex(filled(PAPER, baseline="moco-v2"), "scenes")
    assert tex.isascii() and r"\begin{tabular}{lrlrrrrrrrr}" in tex
    lines = tex.splitlines()
    at = lines.index(r"\toprule")
    assert lines[at + 1] == r" & \multicolumn{1}{c}{svm} &  & \multicolumn{8}{c}{paper (Table 5)} \\"
    assert lines[at + 2] == r"\cmidrule(lr){2-2} \cmidrule(lr){4-11}"
    assert lines[at + 3] == "run & mAP & $n$ & " + " & ".join(COLUMNS) + r" \\"
    assert r"mls & 40.0 & 1 & 85.8 & 71.7 & 91.2 & 88.5 & 81.2 & 67.1 & 81.9 & 63.0 \\" in lines
    assert r"Supervised [paper] & -- & -- & 89.0 & 81.3 & 96.7 & 90.6 & 86.7 & 58.1? & 64.4? & 74.7? \\" in lines
    body = [line for line in lines if line.endswith(r"\\")]
    assert {line.count("&") for line in body} == {10, 3}, "all columns; the row of groups spans eight"
    assert lines.count(r"\midrule") == 3, "header, rows of the paper, differences"


def test_csv_says_where_a_number_is_from() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(filled(PAPER)))))
    assert [r["row"] for r in rows if r["source"] == "measured"] == ["random", "moco-v2", "mls"]
    assert len({(r["row"], r["column"]) for r in rows}) == len(rows) == 3 + 4 * 8
    by_place = {(r["row"], r["column"]): r for r in rows}
    said = {name: text for name, text in by_place["mls", "paper: VOC07"].items() if text}
    assert said == {"row": "mls", "column": "paper: VOC07", "mean": "85.8", "source": "paper"}, "and no n, no interval"
    doubtful = {place: r["mean"] for place, r in by_place.items() if r["source"] == "paper?"}
    assert doubtful == {
        ("Supervised [paper]", "paper: Indoor67"): "58.1",
        ("Supervised [paper]", "paper: Pets"): "64.4",
        ("Supervised [paper]", "paper: DTD"): "74.7",
    }


def test_without_the_paper_nothing_of_it_is_printed() -> None:
    table = filled(None)
    for text in (to_markdown(table, "e"), to_latex(table, "e"), to_csv(table)):
        assert "paper" not in text and "2308" not in text
    assert to_latex(table, "e").count("multicolumn") == 1


def test_metrics_hold_only_what_was_measured() -> None:
    assert to_metrics(filled(PAPER, baseline="mls")) == to_metrics(filled(None, baseline="mls"))


# --------------------------------------------------------------------------------- the experiment file


def test_an_experiment_file_names_the_table_and_the_rows(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mls.report.build_tables.draw_figures", lambda *_: [])
    tables = {"main": {"columns": ["linear.mAP"], "paper": {"table": "5", "rows": {"mls": "MLS"}}}}
    plan = small_plan(transfer={}, tables=tables)
    assert plan.tables.id != small_plan(transfer={}, tables={"main": {"columns": ["linear.mAP"]}}).tables.id
    write_inputs(plan, lambda label: {"mAP": 50.0})
    path = make_tables(plan)
    assert "85.8" in (path / "tables" / "main.md").read_text()
    numbers = json.loads((path / "metrics.json").read_text())["main"]
    assert set(numbers) == {"random", "mls"} and set(numbers["mls"]) == {"linear.mAP"}
    assert "paper" not in (path / "provenance.json").read_text()


def test_an_experiment_file_with_wrong_names_is_refused() -> None:
    paper = {"table": "5", "rows": {"msl": "MLS", "random": "Supervized"}}
    with pytest.raises(ExperimentError) as error:
        small_plan(tables={"main": {"columns": ["linear.mAP"], "paper": paper}})
    message = str(error.value)
    assert "tables.main.paper.rows.msl:" in message and "did you mean 'mls'?" in message
    assert "tables.main.paper.rows.random:" in message and "did you mean 'Supervised'?" in message
    with pytest.raises(ExperimentError, match=r"tables\.main\.paper\.table: .*'9'"):
        small_plan(tables={"main": {"columns": ["linear.mAP"], "paper": {"table": "9"}}})


def test_beside_gives_no_number_to_a_row_without_a_claim() -> None:
    beside = Beside("5", {"mls": "MLS"}, {})
    assert beside.of("random") == {} and beside.of("mls") == TABLES["5"].rows["MLS"].cells
    assert list(beside.further) == ["Supervised [paper]", "MoCo-v2 [paper]", "DenseCL [paper]"]


# ------------------------------------------------------------------------------- ours, paper, difference


def compared(**more: Any) -> FilledTable:
    """As `filled`, with ours' mAP as the paper's of VOC07."""
    return filled(PAPER | {"columns": {"svm.mAP": "VOC07"}}, **more)


def test_a_compared_column_has_the_difference() -> None:
    text = to_markdown(compared(), "e")
    assert [line.split(" | ")[:6] for line in shown(text)] == [
        ["| run", "svm.mAP", "n", "paper: VOC07", "ours - paper: VOC07", "paper: CUB200"],
        ["| random", "30.0", "1", "–", "–", "–"],  # noqa: RUF001
        ["| moco-v2", "**95.0**", "1", "80.5", "+14.5", "68.8"],
        ["| mls", "40.0", "1", "85.8", "-45.8", "71.7"],
        ["| Supervised [paper]", "–", "–", "89.0", "–", "81.3"],  # noqa: RUF001
        ["| DenseCL [paper]", "–", "–", "83.7", "–", "69.3"],  # noqa: RUF001
    ]
    tex = to_latex(compared(), "e")
    assert (
        r" & \multicolumn{1}{c}{svm} &  & \multicolumn{1}{c}{paper (Table 5)} & \multicolumn{1}{c}{ours - paper}"
        r" & \multicolumn{7}{c}{paper (Table 5)} \\" in tex
    )
    rows = {(r["row"], r["column"]): r for r in csv.DictReader(io.StringIO(to_csv(compared())))}
    line = rows["mls", "svm.mAP - paper: VOC07"]
    assert float(line["mean"]) == pytest.approx(-45.8) and line["source"] == "difference"


def test_another_protocol_is_marked_and_explained() -> None:
    other = replace(
        compared(), against={("mls", "svm.mAP"): "4 epochs instead of 400 epochs"}, remarks={"mls": "4 epochs"}
    )
    text = to_markdown(other, "e")
    assert any(line.startswith("| mls (a) | 40.0 | 1 | 85.8 | -45.8 (b) | ") for line in shown(text))
    assert "- (a): pretrained differently from most rows: 4 epochs." in text
    assert "- (b): the protocol differs from the paper's: 4 epochs instead of 400 epochs." in text
    assert "mls (a)" in to_latex(other, "e")
    lines = [r for r in csv.DictReader(io.StringIO(to_csv(other))) if r["protocol"]]
    assert [(r["column"], r["protocol"]) for r in lines] == [
        ("svm.mAP", "4 epochs"),
        ("svm.mAP - paper: VOC07", "4 epochs instead of 400 epochs"),
    ]


def test_only_equal_metrics_are_compared() -> None:
    def refused(columns: dict[str, str]) -> str:
        paper = {"table": "1", "rows": {"mls": "MLS, 400 epochs"}, "columns": columns}
        with pytest.raises(ExperimentError) as error:
            small_plan(tables={"main": {"columns": ["linear.mAP", "detect.box_AP"], "paper": paper}})
        return str(error.value)

    assert "tables.main.paper.columns.linear.mAP: the paper's 'APb' is box_AP" in refused({"linear.mAP": "APb"})
    assert "tables.main.paper.columns.detect.box_AP: table 1 of the paper has no column 'APx'" in refused(
        {"detect.box_AP": "APx"}
    )
    assert "tables.main.paper.columns.svm.mAP: 'svm.mAP' is not a column" in refused({"svm.mAP": "APb"})
    paper = {"table": "1", "columns": {"detect.box_AP": "APb", "again.box_AP": "APb"}}
    task = {"kind": "instance", "dataset": "scenes"}
    with pytest.raises(ExperimentError, match="two columns claim the paper's 'APb'; make a table for each"):
        small_plan(
            transfer={"detect": task, "again": task | {"epochs": 1}},
            tables={"main": {"columns": ["detect.box_AP", "again.box_AP"], "paper": paper}},
        )


def test_the_order_of_mappings_changes_no_byte() -> None:
    """Nor does it change the id."""
    rows, columns = {"moco-v2": "MoCo-v2", "mls": "MLS"}, {"svm.mAP": "VOC07"}
    turned = dict(reversed(rows.items()))
    assert list(turned) != list(rows)
    texts = [to_markdown(filled(PAPER | {"rows": order, "columns": columns}), "e") for order in (rows, turned)]
    assert texts[0] == texts[1]
