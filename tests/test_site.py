"""`make docs`: the site is whole, holds what the repository does, and loads nothing from elsewhere."""

from __future__ import annotations

import csv
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import pytest

from mls.config.section import Section

pytest.importorskip("mkdocs", reason="MkDocs is not installed (extra: docs)")
pytest.importorskip("material", reason="Material for MkDocs is not installed (extra: docs)")
pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed (extra: docs)")
ROOT = Path(__file__).parents[1]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}
"""Elements that make a browser load something -> the attribute that says what."""
API = {page: re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE) for page in (ROOT / "docs/api").glob("*.md")}


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build as `make docs` does, where every proxy refuses."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=folder,
        env={**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )


class Page(HTMLParser):
    """A built page: its ids, links, what it loads, and the text of its paragraphs and of all."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.tables = 0
        self.paragraphs: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        self.links += [found["href"]] if tag == "a" and "href" in found else []
        self.loads += [found[LOADED[tag]]] if tag in LOADED and LOADED[tag] in found else []
        self.tables += tag == "table" and "class" not in found
        if tag == "p":
            self.paragraphs.append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.paragraphs and self.lasttag == "p":
            self.paragraphs[-1] += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}


def test_every_page_of_the_docs_is_built(pages: dict[str, Page]) -> None:
    docs = [page.relative_to(ROOT).with_suffix(".html").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert {"index.html", "CONTRIBUTING.html", "benchmarks/index.html", "results/scenes/index.html", *docs} <= set(
        pages
    )
    assert "mls/methods/mls.py.html" in pages and "def multi_label_loss" in pages["mls/methods/mls.py.html"].text


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[str, Page]) -> None:
    loads = [url for page in pages.values() for url in page.loads]
    for sheet in site.rglob("*.css"):
        loads += re.findall(r"(?:url\(|@import\s*)[\"']?([^\"')]+)", sheet.read_text())
    assert len(loads) > 100
    assert not {url for url in loads if re.match(r"(?!data:)(\w+:|//)", url)}


def test_every_link_leads_to_a_page_and_to_an_anchor_on_it(site: Path, pages: dict[str, Page]) -> None:
    wrong = []
    for name, page in pages.items():
        for url in page.links + page.loads:
            to = urlsplit(urljoin(f"http://site/{name}", url))
            if to.netloc != "site" or to.scheme != "http":
                continue
            path = unquote(to.path).lstrip("/")
            path += "index.html" if path in ("", ".") or path.endswith("/") else ""
            anchor = unquote(to.fragment)
            if not (site / path).is_file() or (anchor and anchor not in pages[path].ids):
                wrong.append(f"{name}: {url}")
    assert not wrong
    assert sum(len(page.links) for page in pages.values()) > 1000


@pytest.mark.parametrize("page", ["README.md", *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/*.md"))])
def test_anchors_tables_and_lists_are_those_of_github(page: str, pages: dict[str, Page]) -> None:
    """Python-Markdown names anchors in another way, and wants blank lines and indents where GitHub does not."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    built = pages["index.html" if page == "README.md" else page.replace(".md", ".html")]
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    assert {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings} <= built.ids
    assert built.tables == len(re.findall(r"^\|[ :|-]+\|$", text, re.MULTILINE))
    assert not [shown for shown in built.paragraphs if re.search(r"^\s*([-*|]|\d+\.) ", shown, re.MULTILINE)]


def test_there_is_a_light_and_a_dark_palette(site: Path) -> None:
    schemes = re.findall(
        r'data-md-color-media="([^"]+)" data-md-color-scheme="(\w+)"', (site / "index.html").read_text()
    )
    assert {("(prefers-color-scheme: light)", "default"), ("(prefers-color-scheme: dark)", "slate")} <= set(schemes)


def test_the_search_knows_the_docs_and_the_api_but_no_sources(site: Path, pages: dict[str, Page]) -> None:
    entries = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    found = {entry["location"]: entry["text"] for entry in entries}
    assert {"docs/method.html#switches", "docs/api/methods.html#mls.methods.mls.multi_label_loss"} <= set(found)
    assert not [place for place in found if place.split("#")[0].endswith((".yaml.html", ".py.html"))]
    assert not [place for place, text in found.items() if "def multi_label_loss" in text]
    for place in found:
        path, _, anchor = place.partition("#")
        assert not anchor or anchor in pages[path or "index.html"].ids, place


@pytest.mark.parametrize("page", API, ids=lambda page: page.stem)
def test_the_api_has_signatures_and_docstrings(page: Path, pages: dict[str, Page]) -> None:
    built = pages[f"docs/api/{page.stem}.html"]
    assert API[page]
    for name in API[page]:
        module = importlib.import_module(name)
        first = (module.__doc__ or "").partition("\n")[0]
        assert name in built.ids and re.sub(r"`", "", first) in built.text, name
        things = [thing for thing in vars(module).values() if inspect.isclass(thing) or inspect.isfunction(thing)]
        for thing in things:
            if thing.__module__ != name or thing.__name__.startswith("_"):
                continue
            assert f"{name}.{thing.__name__}" in built.ids
            if isinstance(thing, type) and issubclass(thing, Section):
                own = [field for field in thing.model_fields if field in thing.__annotations__]
                assert {f"{name}.{thing.__name__}.{field}" for field in own} <= built.ids


def test_a_signature_and_a_docstring_word_by_word(pages: dict[str, Page]) -> None:
    text = re.sub(r"\s+", "", pages["docs/api/methods.html"].text)
    assert 'terms:Terms="bce",reduction:Reduction="mean",bias:float=0.0,)->Tensor' in text
    assert "bool(B,D)frompseudo_labels,ktrueperrow." in text


def test_names_of_code_lead_to_the_api(pages: dict[str, Page]) -> None:
    assert "api/config.html#mls.config.load.load" not in pages["docs/api/config.html"].links
    assert "#mls.config.load.load" in pages["docs/api/config.html"].links
    assert "api/artifacts.html#mls.pipeline.artifact.open_artifact" in pages["docs/architecture.html"].links


def test_the_results_of_the_default_experiment_are_shown(pages: dict[str, Page]) -> None:
    folder, page = ROOT / "results" / "scenes", pages["results/scenes/index.html"]
    for table in (folder / "tables").glob("*.csv"):
        with table.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) > 10
        assert all({row["row"], row["column"], f"{float(row['mean']):.1f}"} <= set(page.text.split()) for row in rows)
    figures = {f"figures/{path.name}" for path in (folder / "figures").glob("*.png")}
    assert len(figures) > 5 and figures <= set(page.loads)
    assert "Losses of every pretraining." in page.text


def test_what_leads_nowhere_fails(tmp_path: Path) -> None:
    """On a site of two pages: a file, an anchor or a folder that is not there, and a page outside the navigation."""
    for path in ("docs/hooks.py", "docs/site.css", "workflow/report/figure.rst", "params.yaml"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    (tmp_path / "mkdocs.yml").write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\nwatch: []\nnav: [README.md, results/scenes/README.md]\n"
    )
    (tmp_path / "docs" / "a.md").write_text("# A & b\n\n[home](../README.md) [no](../README.md#nowhere)\n")
    (tmp_path / "README.md").write_text("# H\n\n[a](docs/a.md#a--b) [p](params.yaml) [no](docs/b.md) [folder](docs/)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1 and done.stderr.count("WARNING") == 4, done.stderr
    for problem in ("link 'docs/b.md'", "anchor '#nowhere'", "link 'docs/'", "- docs/a.md"):
        assert problem in done.stderr, problem


@pytest.fixture
def served(site: Path) -> Iterator[str]:
    """The site's address on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here (Debian: apt-get install chromium)")
def test_in_a_browser(served: str) -> None:
    """No page is wider than a phone, fails at anything or asks elsewhere; the search finds; the palette changes."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: dev)")
    wrong: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER)
        page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="light")
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
        page.on("requestfailed", lambda request: wrong.append(request.url))
        page.on(
            "request",
            lambda request: None if request.url.startswith((served, "data:", "blob:")) else wrong.append(request.url),
        )
        for path in ("", "docs/method.html", "results/scenes/index.html", "docs/api/methods.html", "params.yaml.html"):
            page.goto(served + path, wait_until="networkidle")
            assert page.evaluate("document.documentElement.scrollWidth") == 390, path
        page.goto(f"{served}?q=pseudo_labels", wait_until="networkidle")
        page.locator(".md-search-result__item a[href*='mls.methods.pseudo_labels']").first.wait_for()
        body = page.locator("body")
        page.goto(served, wait_until="networkidle")
        assert body.get_attribute("data-md-color-scheme") == "default"
        page.emulate_media(color_scheme="dark")
        sync_api.expect(body).to_have_attribute("data-md-color-scheme", "slate")
        page.locator("label[for='__palette_1']:visible").click()
        sync_api.expect(body).to_have_attribute("data-md-color-scheme", "default")
        browser.close()
    assert not wrong
