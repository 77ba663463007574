"""What the site is made of: the README, docs/, the default experiment's results, and everything that they link to.

Every file keeps its path in the repository, so one relative link is right on GitHub and on the site. Text that is not
Markdown (experiments, code) becomes a page; pictures are copied.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath
from types import SimpleNamespace

from jinja2 import Template
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]
RESULTS = "results/scenes"
"""Folder of the default experiment's tables and figures."""
LINK = re.compile(r"\]\(([^()#\s]+)")
FENCE = "`" * 8
"""Longer than any in a file that is shown."""


class TextPage(File):
    """A file that is not Markdown, as a page of its own."""

    def is_documentation_page(self) -> bool:
        """Whatever its suffix."""
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ by those of the whole site."""
    for file in list(files.src_uris.values()):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    for path in (ROOT / "README.md", ROOT / "docs" / "site.css", *sorted((ROOT / "docs").rglob("*.md"))):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    files.append(File.generated(config, f"{RESULTS}/README.md", content=results()))
    waiting = list(files.documentation_pages())
    while waiting:
        page = waiting.pop()
        for target in LINK.findall(page.content_string):
            uri = normpath(PurePosixPath(page.src_uri).parent / target)
            if not files.get_file_from_path(uri) and not uri.startswith("../") and (ROOT / uri).is_file():
                files.append(linked := linked_file(config, uri))
                if uri.endswith(".md"):
                    waiting.append(linked)
    return files


def linked_file(config: MkDocsConfig, uri: str) -> File:
    """A file that a page links to; the navigation need not name it."""
    path, inclusion = ROOT / uri, InclusionLevel.NOT_IN_NAV
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return File.generated(config, uri, abs_src_path=str(path), inclusion=inclusion)
    if path.suffix == ".md":
        titled = text if text.startswith("# ") else f"---\ntitle: {uri}\n---\n\n{text}"
        return File.generated(config, uri, content=titled, inclusion=inclusion)
    shown = f"---\ntitle: {uri}\nsearch: {{exclude: true}}\n---\n\n{FENCE}{path.suffix[1:]}\n{text}\n{FENCE}\n"
    page = TextPage.generated(config, uri, content=shown, inclusion=inclusion)
    page.dest_uri = f"{uri}.html"
    return page


def results() -> str:
    """The page of the default experiment: its tables and figures as published, with the captions of `make report`."""
    caption = Template((ROOT / "workflow/report/figure.rst").read_text(encoding="utf-8"))
    parts = [
        "# Results of the default experiment",
        "`make reproduce` makes these from [params.yaml](../../params.yaml).",
    ]
    parts += [path.read_text(encoding="utf-8") for path in sorted((ROOT / RESULTS / "tables").glob("*.md"))]
    parts.append("## Figures")
    for figure in sorted((ROOT / RESULTS / "figures").glob("*.png")):
        text = caption.render(snakemake=SimpleNamespace(wildcards=SimpleNamespace(name=figure.stem)))
        parts.append(f"### {figure.stem}\n\n{text.strip()}\n\n![{figure.stem}](figures/{figure.name})")
    return "\n\n".join(parts)


def on_page_content(html: str, **_: object) -> str:
    """Link names of code to the API pages that have them; keep sources out of the search."""
    html = html.replace(
        '<details class="mkdocstrings-source">', '<details class="mkdocstrings-source" data-search-exclude>'
    )
    return re.sub(r"<code>(mls(?:\.\w+)+)</code>", r'<autoref identifier="\1" optional>\g<0></autoref>', html)
