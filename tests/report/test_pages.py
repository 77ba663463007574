"""The report's pages, without a browser: complete, true to the manifests, safe for any label."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jinja2 import Environment

from mls.pipeline.plan import Plan
from mls.report.page import Column, Sheet, SheetRow, Value, spent, write_page
from mls.report.pages import build_pages, code_version, direct_inputs, report_folder, table_page
from mls.report.tables import fill_table
from mls.runtime.errors import DamagedArtifact
from tests.report.support import make_tables, small_plan, write_inputs

CAPTIONS = Path(__file__).parents[2] / "workflow" / "report" / "figure.rst"


@dataclass
class Shown:
    """One cell of a page as a browser would read it."""

    lines: list[str] = field(default_factory=list)
    key: float | None = None
    link: str = ""


class Pages(HTMLParser):
    """The rows of all tables of a page; its elements' tags, its rows' names, the cells in each of its header rows."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: list[list[list[Shown]]] = []
        self.tags: list[str] = []
        self.names: list[str] = []
        self.heads: list[int] = []
        self.body = self.inside = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "tbody":
            self.body = True
            self.tables.append([])
        elif tag == "tr" and self.body:
            self.tables[-1].append([])
            self.names.append(dict(attrs)["data-name"] or "")
        elif tag == "tr":
            self.heads.append(0)
        elif tag == "th":
            self.heads[-1] += 1
        elif tag == "td":
            key = dict(attrs).get("data-key")
            self.tables[-1][-1].append(Shown(key=float(key) if key else None))
        elif tag == "a":
            self.tables[-1][-1][-1].link = (dict(attrs)["href"] or "").removeprefix("#")
        self.inside = tag in ("td", "a", "small")

    def handle_endtag(self, tag: str) -> None:
        self.inside = False
        self.body = self.body and tag != "tbody"

    def handle_data(self, data: str) -> None:
        if self.inside and data.strip():
            self.tables[-1][-1][-1].lines.append(data.strip())


def metrics(label: str) -> dict[str, Any]:
    """Distinct numbers; the detector of one run has no box AP."""
    seed, mls = int(label[-1]), "mls" in label
    if label.startswith("linear"):
        return {"mAP": 40.0 + 10 * mls + seed}
    return {"box_AP": None if mls and seed else 20.0 + 5 * mls + seed}


@pytest.fixture
def plan(in_tmp: Path) -> Plan:
    """A finished experiment of two seeds with differences."""
    table = {"columns": ["linear.mAP", "detect.box_AP"], "baseline": "random"}
    plan = small_plan(seeds=[0, 1], tables={"main": table, "second": {"columns": ["linear.mAP"]}})
    write_inputs(plan, metrics)
    make_tables(plan)
    return plan


def manifests(plan: Plan) -> dict[str, dict[str, Any]]:
    found = {job.id: json.loads((job.path / "artifact.json").read_text()) for job in plan.jobs.values()}
    assert len(found) == len(plan.jobs)
    return found


def test_every_cell_has_a_line_for_each_pair_of_artifacts_behind_it(plan: Plan) -> None:
    rows = Pages(build_pages(plan) / "provenance.html").tables[0]
    found = [(*(row[i].lines[0] for i in (0, 1, 2)), row[4].lines[1], row[6].lines[1]) for row in rows]
    cells = json.loads((plan.tables.path / "provenance.json").read_text())["cells"]
    wanted = {
        (table, row, column, pretrain, task)
        for table, by_row in cells.items()
        for row, by_column in by_row.items()
        for column, by_pretrain in by_column.items()
        for pretrain, tasks in by_pretrain.items()
        for task in tasks
    }
    assert len(found) == len(wanted) and set(found) == wanted
    assert {row for _, row, *_ in found} == {"random", "mls", "mls - random"}


def test_a_tables_numbers_sort_by_their_means_and_lead_to_their_lines(plan: Plan) -> None:
    page = Pages(build_pages(plan) / "tables" / "main.html")
    numbers, sources = page.tables
    assert {len(row) for row in numbers} == {page.heads[1]} and {len(row) for row in sources} == {page.heads[2]}
    means = json.loads((plan.tables.path / "metrics.json").read_text())["main"]
    for row, *cells in numbers:
        for column, cell in zip(("linear.mAP", "detect.box_AP"), cells, strict=False):
            assert cell.key == means[row.lines[0]][column]["mean"]
            lines = [line for line, name in zip(sources, page.names[len(numbers) :], strict=True) if name == cell.link]
            assert lines and {(line[0].lines[0], line[1].lines[0]) for line in lines} == {(row.lines[0], column)}


def test_lines_show_the_pairs_own_value_and_the_manifests_times(plan: Plan) -> None:
    recorded = manifests(plan)
    for _, _, column, value, pretrain, first, task, second, *_ in Pages(build_pages(plan) / "provenance.html").tables[
        0
    ]:
        for artifact, took in ((pretrain, first), (task, second)):
            made = recorded[artifact.lines[1]]["made"]
            assert took.key == made["wall_s"]
            assert took.lines == [spent(made["wall_s"]), made["started"][:16].replace("T", " ")]
        own = metrics(plan.labels[task.lines[1]][0])[column.lines[0].split(".")[1]]
        assert value.key == own and value.lines == ["–" if own is None else f"{own:.2f}"]  # noqa: RUF001


def test_the_artifacts_page_has_them_all_and_totals_that_add_up(plan: Plan) -> None:
    recorded = manifests(plan)
    totals, artifacts, environments = Pages(build_pages(plan) / "artifacts.html").tables
    assert {row[1].lines[1]: row[2].key for row in artifacts} == {i: s["made"]["wall_s"] for i, s in recorded.items()}
    sizes = {i: sum(file["size"] for file in manifest["files"].values()) for i, manifest in recorded.items()}
    assert {row[1].lines[1]: row[3].key for row in artifacts} == sizes
    *stages, everything = totals
    assert [row[0].lines[0] for row in totals] == ["data", "pretrain", "features", "probe", "transfer", "tables", "all"]
    for i in (1, 2, 3, 4):
        assert sum(row[i].key or 0 for row in stages) == pytest.approx(everything[i].key)
    assert everything[1].key == len(plan.jobs)
    made = recorded[plan.tables.id]["made"]
    assert environments[0][1].lines == [made["python"]] and f"torch {made['packages']['torch']}" in str(environments[0])


def test_only_artifacts_that_tables_do_not_read_may_be_missing(plan: Plan) -> None:
    for job in (*plan.stage("features"), *plan.stage("data")):
        shutil.rmtree(job.path)
    totals, artifacts, _ = Pages(build_pages(plan) / "artifacts.html").tables
    missing = [row for row in artifacts if row[2].key is None]
    assert {row[0].lines[0] for row in missing} == {"data", "features"}
    assert [row[2].key for row in totals[:3]] == [0, len(plan.stage("pretrain")), 0]
    assert "not here" in (report_folder(plan) / "graph.html").read_text()
    shutil.rmtree(plan.stage("probe")[0].path)
    with pytest.raises(DamagedArtifact, match="is missing; make it with snakemake, or fetch it: dvc pull"):
        build_pages(plan)


def test_pages_are_complete_in_themselves_and_building_again_leaves_no_old_ones(plan: Plan) -> None:
    (report_folder(plan) / "tables").mkdir(parents=True)
    (report_folder(plan) / "tables" / "old.html").touch()
    out = build_pages(plan)
    figures = {path.name for path in (plan.tables.path / "figures").glob("*.png")}
    assert figures and {path.name for path in (out / "figures").iterdir()} == figures
    pages = sorted(str(path.relative_to(out)) for path in out.rglob("*.html"))
    assert pages == [
        "anchors.html",
        "artifacts.html",
        "graph.html",
        "provenance.html",
        "tables/main.html",
        "tables/second.html",
    ]
    for page in pages:
        text = (out / page).read_text(encoding="utf-8")
        assert not re.search(r"https?://|<link|<img|src=|@import|url\(", text), page


def test_any_label_is_shown_as_it_is(in_tmp: Path) -> None:
    label = """<script>alert("1")</script> & 'x' {{ 1 }} </td>"""
    pairs: dict[str, Any] = {"linear": [["p", "t"]]}
    spec = {"columns": ["linear.mAP"], "rows": [{"label": label, "tasks": pairs}]}
    table = fill_table("main", spec, {"t": {"mAP": 50.0}})
    title, lead, sheets = table_page(table, label, [])
    plain = Path("plain.html")
    write_page(plain, "title", "lead", [Sheet("", [Column("run")], [SheetRow([Value("x")])])])
    write_page(
        Path("page.html"),
        title,
        lead,
        [*sheets, Sheet(label, [Column(label)], [SheetRow([Value(label, title=label)])])],
    )
    page = Pages(Path("page.html"))
    assert page.tables[0][0][0].lines == [label] and page.tables[2][0][0].lines == [label]
    assert page.tags.count("script") == Pages(plain).tags.count("script") == 1


def test_the_graph_has_every_artifact_and_no_shortcuts(plan: Plan) -> None:
    text = (build_pages(plan) / "graph.html").read_text(encoding="utf-8")
    assert text.count("<rect") == len(plan.jobs) and all(one in text for one in plan.jobs)
    (probe,) = plan.find("probe", "linear/mls:0")
    assert [job.stage for job in direct_inputs(plan, probe)] == ["features"]
    assert {job.stage for job in direct_inputs(plan, plan.tables)} == {"probe", "transfer"}
    assert text.count("<path") == sum(len(direct_inputs(plan, job)) for job in plan.jobs.values())


def test_code_versions_mark_uncommitted_changes_and_need_no_git() -> None:
    made: dict[str, Any] = {"revision": "a" * 40, "dirty": False, "digest": "d"}
    assert code_version({"code": made}) == "a" * 10
    assert code_version({"code": {**made, "dirty": True}}) == "a" * 10 + "+"
    assert code_version({"code": {**made, "revision": None}}) == "digest d"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 s"), (0.148, "0.15 s"), (9.96, "10 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s"), (8075, "2 h 14 min")],
)
def test_times_are_readable(seconds: float, text: str) -> None:
    assert spent(seconds) == text


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("curves", "Losses of every pretraining"),
        ("pairs-main", "adds to the table's baseline"),
        ("per_class-linear", "Average precision of every class, one bar a run"),
        ("per_class_difference-linear", "as a difference"),
        ("fig4-mls", "The paper's Figure 4"),
        ("of-tomorrow", "Figure ``of-tomorrow`` of the experiment's tables."),
    ],
)
def test_figures_have_captions(name: str, caption: str) -> None:
    template = Environment(trim_blocks=True, lstrip_blocks=True).from_string(CAPTIONS.read_text())
    assert caption in template.render(snakemake=SimpleNamespace(wildcards=SimpleNamespace(name=name)))
