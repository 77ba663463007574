"""`make report` in a browser without a network: where the experiment ran, and where it was only pulled."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from mls.config.paper import load_anchors
from tests.workflow.clone import Clone

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FrameLocator, Locator

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: dev)")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here (Debian: apt-get install chromium)"),
]


class Report:
    """A report in a browser that has no network; `wrong` collects errors and requests that failed."""

    def __init__(self, browser: Browser, file: Path) -> None:
        self.wrong: list[str] = []
        context = browser.new_context(viewport={"width": 1440, "height": 900}, offline=True)
        self.page = context.new_page()
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)
        self.page.on("requestfailed", lambda request: self.wrong.append(request.url[:200]))
        self.page.on(
            "request", lambda request: self.wrong.append(request.url) if request.url.startswith("http") else None
        )
        self.page.goto(file.resolve().as_uri())

    def category(self, name: str) -> list[str]:
        """Open a category from the start page; what it lists."""
        self.page.locator("nav nav a").first.click()  # home
        self.page.get_by_role("link", name=name, exact=True).first.click()
        heading = self.page.locator("#app thead")
        heading.wait_for()
        return [text.strip() for text in self.page.locator("#app tbody tr td:first-child").all_inner_texts()]

    def icon(self, name: str, which: int) -> None:
        """Click one of a result's two icons: 0 shows it, 1 tells about it."""
        row = self.page.locator("#app tbody tr").filter(has=self.page.get_by_text(name, exact=True))
        row.locator("a").nth(which).click()

    def shown(self, title: str) -> FrameLocator:
        """The page in the report's frame, which has this title."""
        frame = self.page.frame_locator("iframe")
        sync_api.expect(frame.locator("h1")).to_have_text(title)
        return frame


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER)
        yield chromium
        chromium.close()


@pytest.fixture(params=["original", "pulled"])
def clone(request: pytest.FixtureRequest) -> Clone:
    return request.getfixturevalue(request.param)


@pytest.fixture
def report(clone: Clone, browser: Browser) -> Report:
    text = clone.run("make", "--no-print-directory", "report", "-o", "setup", f"VENV={sys.prefix}")
    assert text.splitlines()[-1] == "report/micro.html" and "Missing metadata" not in text
    assert clone.planned() == {} and clone.run("git", "status", "--porcelain") == ""
    return Report(browser, clone.path / "report" / "micro.html")


def test_a_report_shows_everything_without_a_network(report: Report, clone: Clone) -> None:
    """One test, since making a clone and its report takes longest."""
    see_the_start(report)
    see_the_tables(report)
    see_the_figures(report, clone)
    see_where_numbers_come_from(report)
    assert report.wrong == []


def see_the_start(report: Report) -> None:
    page = report.page
    sync_api.expect(page.get_by_role("heading", name="Experiment micro")).to_be_visible()
    graph = page.locator("#rulegraph canvas")
    graph.wait_for()
    drawn = "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some((v) => v)"
    assert graph.evaluate(drawn)
    page.get_by_role("link", name="Statistics", exact=True).click()
    page.locator("#timeline canvas").wait_for()


def see_the_tables(report: Report) -> None:
    assert report.category("Tables") == ["classification", "main"]
    for name, rows in (("main", 2), ("classification", 5)):
        report.icon(name, 0)
        frame = report.shown(name)
        numbers = frame.locator("section").first
        button = numbers.locator(".names button").nth(1)
        given = keys(numbers)
        measured = sorted(key for key in given if key is not None)
        lacking = [None] * (rows - len(measured))
        assert len(measured) == 2 and len(given) == rows
        button.click()
        assert keys(numbers) == [*measured, *lacking]
        button.press("Enter")
        assert keys(numbers) == [*measured[::-1], *lacking]
        button.click()
        assert keys(numbers) == given
        numbers.get_by_role("searchbox").fill("moco")
        sync_api.expect(numbers.locator("tbody tr:visible")).to_have_count(1)
        sync_api.expect(numbers.locator("output")).to_have_text(f"1 of {rows} lines")
        numbers.locator("tbody tr:visible a").first.click()
        lit = frame.locator("tr.lit")
        sync_api.expect(lit).to_have_count(1)
        sync_api.expect(lit).to_be_in_viewport()
        assert "moco-v2:0" in lit.inner_text() and "linear/moco-v2:0" in lit.inner_text()


def keys(numbers: Locator) -> list[float | None]:
    """What the second column is sorted by, from top to bottom."""
    return numbers.locator("tbody td:nth-child(2)").evaluate_all(
        "cells => cells.map((cell) => 'key' in cell.dataset ? parseFloat(cell.dataset.key) : null)"
    )


def see_the_figures(report: Report, clone: Clone) -> None:
    files = {path.stem: path for path in clone.path.glob("artifacts/tables/*/figures/*.png")}
    assert report.category("Figures") == sorted(files) and {"curves", "fig3-mls", "fig4-mls"} <= files.keys()
    for name, file in files.items():
        report.category("Figures")
        report.icon(name, 0)
        report.page.wait_for_function(
            "size => [...document.images].some((i) => i.naturalWidth === size[0] && i.naturalHeight === size[1])",
            arg=list(Image.open(file).size),
        )
        report.icon(name, 1)
        caption = report.page.locator("#app .prose p").last
        assert len(caption.inner_text()) > 20


def see_where_numbers_come_from(report: Report) -> None:
    pages = {"every number", "every artifact", "what others report", "graph of artifacts"}
    assert set(report.category("Provenance")) == pages
    report.icon("every number", 0)
    frame = report.shown("Provenance")
    sync_api.expect(frame.locator("tbody tr")).to_have_count(2 * 5 + 2 * 1)
    report.icon("every artifact", 0)
    frame = report.shown("Artifacts")
    sync_api.expect(frame.locator("section").nth(1).locator("tbody tr")).to_have_count(12)
    report.icon("what others report", 0)
    sync_api.expect(report.shown("Anchors").locator("tbody tr")).to_have_count(len(load_anchors()))
    report.icon("graph of artifacts", 0)
    sync_api.expect(report.shown("Graph of artifacts").locator("svg rect")).to_have_count(12)
