"""Columns of the paper that nothing here runs are printed as such, in every format, and counted nowhere."""

from __future__ import annotations

import csv
import io

from mls.report.formats import to_csv, to_latex, to_markdown
from mls.report.tables import FilledTable, fill_table, to_metrics

SPEC = {
    "columns": ["psp.mIoU"],
    "not_implemented": ["upernet.mIoU", "upernet.mAcc"],
    "rows": [{"label": one, "tasks": {"psp": [[one, f"{one}-{t}"] for t in range(2)]}} for one in ("moco-v2", "mls")],
    "baseline": "moco-v2",
}
METRICS = {f"{one}-{t}": {"mIoU": 60.0 + 5 * (one == "mls") + t} for one in ("moco-v2", "mls") for t in range(2)}


def table() -> FilledTable:
    return fill_table("table3", SPEC, METRICS)


def test_markdown_explains_what_is_not_implemented() -> None:
    lines = to_markdown(table(), "cityscapes").splitlines()
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines if "|" in line
    }
    assert rows["run"] == ["psp.mIoU", "upernet.mIoU", "upernet.mAcc", "n"]
    assert rows["mls"][1:] == ["not implemented", "not implemented", "2 trials"]
    assert rows["mls - moco-v2"][1:3] == ["not implemented", "not implemented"]
    assert "- not implemented: the paper's table has it, and nothing here computes it." in lines
    assert not any("not defined" in line or "n 0" in line for line in lines)


def test_csv_and_latex_mark_what_is_not_implemented() -> None:
    found = list(csv.DictReader(io.StringIO(to_csv(table()))))
    lacking = [line for line in found if line["column"].startswith("upernet")]
    assert len(lacking) == 2 * 3
    assert {(line["source"], line["mean"], line["n"]) for line in lacking} == {("not implemented", "", "0")}
    assert {line["source"] for line in found if line["column"] == "psp.mIoU"} == {"measured"}
    tex = to_latex(table(), "cityscapes")
    assert tex.count(r"& not implemented & not implemented &") == 3
    assert r"\multicolumn{2}{c}{upernet}" in tex


def test_metrics_hold_what_was_measured() -> None:
    assert set(to_metrics(table())["mls"]) == {"psp.mIoU"}
