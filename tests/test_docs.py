"""The README's table is the published one, and the repository's own files agree with one another."""

from __future__ import annotations

import ast
import builtins
import csv
import importlib
import io
import json
import re
import tokenize
from pathlib import Path
from typing import Any

import pytest

from mls.config import identity
from mls.config.experiment import Experiment, Paper, Pretrain, Table
from mls.config.load import load, parse_yaml
from mls.config.methods import Mls, Moco
from mls.cost.devices import read_devices
from mls.cost.estimate import as_json, estimate
from mls.pipeline.plan import plan_file
from mls.transfer.detectron2_install import DETECTRON2_COMMIT
from tests.conftest import SMALL, plan_of, small

ROOT = Path(__file__).parents[1]
RUNS = ("random:0", "moco-v2:0", "mls:0")
PEERS = ("scenes-peers", "miml-peers", "peers-lr")
EARLIER = ("study-early", "study-labels", *PEERS)
CLASSIFICATION = ("classification", "tuned-lr")
DOCS = sorted(page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", *DOCS]
MODULES = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "mls").rglob("*.py"))
EXAMPLES = re.findall(r"^`(.+)`:\n\n```python", (ROOT / "docs/extending.md").read_text(), re.MULTILINE)
"""Files that docs/extending.md adds to a copy of the code."""
DEFINED = {
    node.name
    for module in MODULES
    for node in ast.walk(ast.parse((ROOT / module).read_text()))
    if isinstance(node, ast.ClassDef | ast.FunctionDef)
} | {"Path"}
GIVEN = {"method", "transfer", "optimizer", "model"}
"""Objects that examples take as given and call."""


@pytest.mark.parametrize(
    "page",
    ["README.md", "docs/method.md", "docs/coco-3k.md", "docs/peers.md", "docs/classification.md", "docs/ablations.md"],
)
def test_the_tables_of_a_page_are_the_published_ones(page: str) -> None:
    text = (ROOT / page).read_text()
    found = re.findall(r"<!-- table: (\S+) -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert found
    for name, table in found:
        assert table.strip() == (ROOT / name).read_text().strip(), f"{page} differs from {name}"


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_and_paths_in_the_docs_exist() -> None:
    for page in [ROOT / name for name in (*PAGES, "benchmarks/README.md")]:
        for target, anchor in re.findall(r"\]\((?!https://)([^)#]*)#?([^)]*)\)", page.read_text()):
            linked = page.parent / target if target else page
            assert linked.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(linked), f"{page.name}: {target}#{anchor}"
        for path in re.findall(r"`((?:mls|experiments|workflow|tests)/[\w./-]*)`", page.read_text()):
            known = (ROOT / path).exists() or path in ("experiments/mine.yaml", *EXAMPLES)
            assert known, f"{page.name}: {path}"


def prose(code: str) -> str:
    """Docstrings and comments of a module, those below a field too."""
    strings = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Expr)]
    docs = [node.value for node in strings if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return "\n".join([*docs, *(token.string for token in tokens if token.type == tokenize.COMMENT)])


def names_in(text: str) -> set[str]:
    """Dotted names ``mls.x.Y`` or ``mls.x:Y`` and what is imported, without keys of ``pretrain.mls`` (``mls.topk``)."""
    dotted = set(re.findall(r"(?<![\w.\[/-])(mls\.[a-z]\w*(?:[.:]\w+)*)(?!\w*[\[/])", text))
    imported = re.findall(r"^ *from (mls[\w.]*) import ([\w, ]+)$", text, re.MULTILINE)
    members = {f"{module}.{name}" for module, names in imported for name in names.split(", ")}
    files = {name for name in dotted if name.endswith((".py", ".pth"))}
    return {name for name in dotted | members if name.split(".")[1] not in Mls.model_fields} - files


def missing_names(text: str) -> list[str]:
    """Names of a text that do not exist; skips the test if only the absence of Detectron2 hides some."""
    missing, hidden = [], []
    for name in sorted(names_in(text)):
        parts = re.split("[.:]", name)
        module = next(parts[:end] for end in range(len(parts), 0, -1) if is_module(parts[:end]))
        if module == parts:
            continue
        try:
            found: Any = importlib.import_module(".".join(module))
        except ModuleNotFoundError as error:
            if error.name not in ("detectron2", "fvcore"):
                raise
            hidden.append(name)
            continue
        for part in parts[len(module) :]:
            if not hasattr(found, part) and part not in getattr(found, "__annotations__", ()):
                missing.append(name)
                break
            found = getattr(found, part, None)
    if hidden and not missing:
        pytest.skip(f"needs Detectron2: {', '.join(hidden)}")
    return missing


def is_module(parts: list[str]) -> bool:
    """Whether a dotted name is that of a module or package."""
    path = ROOT.joinpath(*parts)
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


@pytest.mark.parametrize("page", PAGES)
def test_names_of_code_in_the_docs_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    if page == "docs/extending.md":  # its examples run in tests/test_extending.py
        text = re.sub(r"```(python|diff)\n.*?```", "", text, flags=re.DOTALL)
    assert not missing_names("\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL)))


@pytest.mark.parametrize("module", MODULES)
def test_names_and_paths_in_docstrings_and_comments_exist(module: str) -> None:
    text = prose((ROOT / module).read_text())
    paths = re.findall(r"\b((?:mls|tests|docs|experiments|workflow)/[\w/.-]+\.(?:py|md|yaml|csv|smk|rst))\b", text)
    assert not [path for path in paths if not (ROOT / path).exists()]
    assert not missing_names(text)


def example_calls(code: str) -> set[str]:
    """Functions that the indented example of a module's docstring calls by a bare name."""
    text = ast.get_docstring(ast.parse(code), clean=False) or ""
    lines = [line.split("#")[0] for line in re.findall(r"^    +\S.*$", text, re.MULTILINE)]
    return set(re.findall(r"(?<![\w.\"'(])([A-Za-z_]\w*)\(", re.sub(r"\"[^\"]*\"|'[^']*'", "", "\n".join(lines))))


@pytest.mark.parametrize("module", MODULES)
def test_calls_in_the_example_of_a_module_exist(module: str) -> None:
    """A call is of a function or class somewhere in mls, of a builtin, or of what the example itself has assigned."""
    code = (ROOT / module).read_text()
    text = ast.get_docstring(ast.parse(code), clean=False) or ""
    assigned = set(re.findall(r"^    +(\w+) = ", text, re.MULTILINE)) | GIVEN
    assert not [name for name in example_calls(code) if name not in DEFINED | assigned and not hasattr(builtins, name)]


@pytest.mark.parametrize("wrong", ["mls.train.loop.trian", "mls.trian", "mls.topkk", "mls.transfer.interface:Transfr"])
def test_a_wrong_name_is_found(wrong: str) -> None:
    assert missing_names(f"see `{wrong}` and `mls.topk`") == [wrong]


@pytest.mark.timeout(1200)
def test_the_costs_of_the_papers_tables_are_those_of_mls_plan(in_tmp: Path) -> None:
    (in_tmp / "experiments").symlink_to(ROOT / "experiments")
    (in_tmp / "data.lock").symlink_to(ROOT / "data.lock")
    rows = re.findall(r"\| `(experiments/paper-\S+)` \|(.*)\|", (ROOT / "docs" / "scaling.md").read_text())
    files = sorted(str(file) for file in Path("experiments").glob("paper-*.yaml"))
    assert sorted(name for name, _ in rows) == sorted(["experiments/paper-*.yaml", *files])
    for name, text in rows:
        hours, cpu, jobs, *sizes = (float(cell.replace(",", "")) for cell in text.split("|"))
        totals = json.loads(as_json(estimate([plan_file(file) for file in sorted(Path().glob(name))])))["totals"]
        assert (jobs, 0) == (totals["jobs"], totals["unknown_hours"]), name
        assert (hours, cpu) == (round(totals["hours"]["A100-h"]), round(totals["hours"]["CPU-h"], 1)), name
        assert sizes == [round(totals[key] / 1e9, 1) for key in ("memory", "disk", "peak")], name
    cards = re.findall(r"^\| (\S+) \| \d+ \|.*\| ([\d,]+) \| (\d+) \|$", (ROOT / "docs/scaling.md").read_text(), re.M)
    assert len(cards) == sum(device.memory is not None for device in read_devices().values())
    plans = [plan_file(Path(file)) for file in files]
    for name, hours, unfit in cards:
        costs = estimate(plans, name)
        assert hours == f"{json.loads(as_json(costs))['totals']['hours'][f'{name}-h']:,.0f}", name
        assert int(unfit) == sum("does not fit" in note for cost in costs for note in cost.notes), name


def test_three_seeds_share_the_default_experiments_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two files repeat the same recipe; equal ids say that they still agree."""
    monkeypatch.chdir(ROOT)
    default, seeds = plan_file(Path("params.yaml")), plan_file(Path("experiments/scenes-3seeds.yaml"))
    for stage, targets in (("pretrain", RUNS), ("probe", [f"linear/{run}" for run in RUNS])):
        for target in targets:
            assert default.find(stage, target) == seeds.find(stage, target), target


def published(file: str) -> tuple[str, list[str]]:
    """Id of an experiment's tables, and the markers of what is published of it."""
    plan = plan_file(Path(file))
    folder = ROOT / "results" / plan.loaded.experiment.experiment
    return f".published-{plan.tables.id}", [path.name for path in folder.glob(".published-*")]


def versions(monkeypatch: pytest.MonkeyPatch, **stages: int) -> None:
    """Plan as the code did that made what is published, see "Published results" in docs/experiments.md."""
    monkeypatch.setattr(identity, "KIND_VERSIONS", {})
    for stage, version in stages.items():
        monkeypatch.setitem(identity.STAGE_VERSIONS, stage, version)


STUDY = sorted(folder.name for folder in (ROOT / "results").glob("coco-3k*"))


@pytest.mark.parametrize("file", ["params.yaml", *(f"experiments/{name}.yaml" for name in STUDY)])
def test_the_published_results_are_those_of_the_committed_experiments(
    monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    monkeypatch.chdir(ROOT)
    marker, found = published(file)
    assert found == [marker]


def test_results_of_the_probes_before_are_those_of_the_files_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Running them again renews them, here and below."""
    monkeypatch.chdir(ROOT)
    versions(monkeypatch, probe=2, tables=4)
    marker, found = published("experiments/scenes-ablations.yaml")
    assert found == [marker]


@pytest.mark.parametrize("name", ["scenes-3seeds", "coco-tiny", "miml-scenes", "study-miml", *CLASSIFICATION])
def test_results_of_the_tables_stage_before_are_those_of_the_files_too(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Published with fewer figures."""
    monkeypatch.chdir(ROOT)
    versions(monkeypatch, probe=2, tables=3)
    marker, found = published(f"experiments/{name}.yaml")
    assert found == [marker]


def test_results_that_older_stages_made_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Published before features were a stage; the linear probe is the same, and running them again renews them."""
    monkeypatch.chdir(ROOT)
    for name in EARLIER:
        folder = ROOT / "results" / name
        (marker,) = folder.glob(".published-*")
        sources = json.loads((folder / "provenance.json").read_text())
        assert marker.name == f".published-{sources['artifacts']['tables'][0]}", name
        made = {job.id for job in plan_file(Path(f"experiments/{name}.yaml")).stage("pretrain")}
        assert set(sources["artifacts"]["pretrain"]) == made, f"{name}: its backbones are those of the file"


def test_the_papers_experiments_use_its_literal_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the study changed for small data stays out of them."""
    monkeypatch.chdir(ROOT)
    term = {"topk": 20, "weight": 0.5, "terms": "bce", "reduction": "mean", "bias": "none", "centre": False}
    assert Pretrain().mls.enqueue == "after"
    phases = {"warmup_epochs": 0.0, "ramp_epochs": 0.0, "label_space": "backbone", "logit_space": "projection"}
    for name in ("paper-table1", "paper-table2", "paper-ablations"):
        runs = load(Path(f"experiments/{name}.yaml")).runs
        assert runs["mls"] == runs["moco-v2"].model_copy(update={"method": "mls"}), name
        assert runs["mls"] == Pretrain(dataset="coco"), name
        found = runs["mls"].mls.model_dump()
        assert {key: found[key] for key in term | phases} == term | phases, name
        assert (runs["mls"].moco, runs["mls"].epochs, runs["mls"].backbone.name) == (Moco(), 400, "resnet50"), name


def test_classification_is_of_the_default_experiments_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    default, probes = plan_file(Path("params.yaml")), plan_file(Path("experiments/classification.yaml"))
    for run in RUNS:
        assert default.find("pretrain", run) == probes.find("pretrain", run), run
        assert default.find("probe", f"linear/{run}") == probes.find("probe", f"scenes-linear/{run}"), run


def test_experiments_shown_in_the_docs_of_probes_are_valid() -> None:
    tasks, mine = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/classification.md").read_text(), re.DOTALL)
    voc = {"datasets": {**SMALL["datasets"], "voc07": {"source": "voc"}}}
    columns = {"main": {"columns": ["linear.mAP", "svm.mAP_envelope", "svm.low_shot_96", "early.mAP", "tuned.mAP"]}}
    plan = plan_of(small(**parse_yaml(tasks, "docs"), **voc, tables=columns))
    assert len(plan.stage("features")) == 2 * 3, "linear and svm share theirs"
    assert len(plan_of(parse_yaml(mine, "docs")).stage("probe")) == 2


def test_the_sweeps_shown_in_the_docs_are_valid() -> None:
    """As many runs, with the names that the comments say."""
    found = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/experiments.md").read_text(), re.DOTALL)
    (block,) = [text for text in found if text.startswith("sweep:")]
    plan = plan_of(small(**parse_yaml(block, "docs"), pretrain={**SMALL["pretrain"], "epochs": 40}))
    named = re.findall(r"# (\S+?\])", block)
    assert len(named) == 3 and set(named) < set(plan.loaded.runs) and len(plan.loaded.runs) == 3 + 4 + 2


def test_the_page_on_experiments_is_valid_and_whole() -> None:
    text = (ROOT / "docs/experiments.md").read_text()
    tables, _, weights, data = (
        parse_yaml(block, "docs") for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    )
    probe = {**SMALL["probe"], "tuned": {"kind": "finetune", "dataset": "scenes"}}
    plan = plan_of(small(**tables, probe=probe, runs={**SMALL["runs"], "k": {}}))
    assert plan.tables.params["tables"]["topk"]["plot"]["x"] == {"k[topk=1]": 1, "k[topk=5]": 5, "k[topk=20]": 20}
    assert plan.tables.params["draw"].keys() == {"mls"}
    assert len(plan_of(small(**weights)).stage("pretrain")) == 1
    plan_of(small(datasets=SMALL["datasets"] | data["datasets"]))
    for section in (Experiment, Table, Paper):
        for key in section.model_fields:
            assert f"`{key}`" in text, f"{section.__name__}.{key}"


def test_every_figure_with_a_caption_is_listed() -> None:
    captions = re.findall(r'^  "(\w+)": ', (ROOT / "workflow/report/figure.rst").read_text(), re.MULTILINE)
    listed = re.findall(r"^\| `(\w+)[-`]", (ROOT / "docs/experiments.md").read_text(), re.MULTILINE)
    assert captions and set(captions) <= set(listed)


@pytest.mark.parametrize(("page", "trainings"), [("method", [7, 1]), ("peers", [5])])
def test_the_runs_shown_in_the_docs_are_valid(page: str, trainings: list[int]) -> None:
    """In method.md 4 runs, one of them in its own sweep of 4; and one with local crops."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / f"docs/{page}.md").read_text(), re.DOTALL)
    pretrain = {**SMALL["pretrain"], "moco": {"bn_splits": 2}, "mls": {}}
    plans = [plan_of(small(**parse_yaml(block, page), pretrain=pretrain)) for block in blocks]
    assert [len(plan.stage("pretrain")) for plan in plans] == trainings


def test_the_tasks_shown_in_the_docs_of_transfers_are_valid() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/protocols.md").read_text(), re.DOTALL)
    data = {**SMALL["datasets"], "coco": {"source": "coco"}, "cityscapes": {"source": "cityscapes"}}
    base = {**SMALL["pretrain"], "backbone": {"name": "resnet50"}}
    counts = [
        len(plan_of(small(**parse_yaml(block, "docs"), datasets=data, pretrain=base)).stage("transfer"))
        for block in blocks
    ]
    assert counts == [3 * 7, 3, 3], "of three runs; two tasks are done twice"


@pytest.mark.parametrize("page", ["README.md", "docs/protocols.md"])
def test_the_detectron2_that_is_named_is_the_one_that_was_tested(page: str) -> None:
    named = re.findall(r"detectron2@(\w+)", (ROOT / page).read_text())
    assert named == [DETECTRON2_COMMIT]


def test_the_papers_transfers_are_its_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the paper states: iterations, architectures, how often; the rest is the schema's defaults."""
    monkeypatch.chdir(ROOT)
    found: dict[str, Any] = {
        name: next(iter(load(Path(f"experiments/paper-{name}.yaml")).experiment.transfer.values()))
        for name in ("table1", "table2", "table4", "table3")
    }
    assert [(task.kind, task.backend, task.iterations, task.trials) for task in found.values()] == [
        ("instance", "detectron2", 90_000, 1),
        ("instance", "detectron2", 90_000, 1),
        ("detection", "detectron2", 24_000, 3),
        ("semantic", "torchvision", 40_000, 2),
    ]
    assert [found[name].architecture for name in ("table1", "table2", "table4")] == ["fpn", "c4", "c4"]
    assert {found[name].scale for name in ("table1", "table2", "table4")} == {1}


def test_one_pair_of_artifacts_has_one_value_wherever_it_is_published() -> None:
    """Results that were made on different machines would contradict one another under the same ids."""
    published: dict[tuple[str, str, str], list[set[float]]] = {}
    for folder in sorted((ROOT / "results").iterdir()):
        sources = json.loads((folder / "provenance.json").read_text())["cells"]
        for table, rows in sources.items():
            for line in csv.DictReader((folder / "tables" / f"{table}.csv").open()):
                pairs = rows.get(line["row"], {}).get(line["column"], {})
                values = {float(value) for value in line.get("values", "").split(";") if value}
                if " - " in line["row"] or any(len(tasks) > 1 for tasks in pairs.values()):
                    continue  # a difference, or the mean of several trials
                for pretrain, (task,) in pairs.items():
                    published.setdefault((pretrain, task, line["column"].split(".")[1]), []).append(values)
    assert sum(len(found) > 1 for found in published.values()) > 7
    for pair, found in published.items():
        assert not found[0] or set.intersection(*found), pair
