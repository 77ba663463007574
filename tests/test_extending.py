"""The examples of docs/extending.md: each is applied to a copy of the code, planned and run."""

from __future__ import annotations

import json
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from mls.config.datasets import DATASETS, ScenesDataset
from mls.config.load import parse_yaml
from mls.config.methods import METHODS, TRAINED, Blocks
from mls.config.probes import FrozenProbe, RetrievalProbe
from mls.config.section import values_of
from mls.config.transfers import KINDS, TRANSFERS
from mls.data.sources import LISTINGS
from mls.methods.method import Method
from mls.probe.frozen import FITS
from tests.conftest import SMALL
from tests.workflow.clone import environment

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
PLACES = 3
"""Changes of existing code that an example needs, beside imports: a section, and a line in each of two lists."""
RUN = """
import importlib
import sys
from pathlib import Path
from mls.cli import main
from mls.pipeline.plan import plan_file
from mls.pipeline.runner import run_stage
from mls.pipeline.make import STAGE_MODULES

for command in (["validate", "tiny.yaml"], ["plan", "tiny.yaml"]):
    sys.argv = ["mls", *command]
    main()
plan = plan_file(Path("tiny.yaml"))
for job in plan.jobs.values():
    run_stage(plan, job, importlib.import_module(STAGE_MODULES[job.stage]).run)
    print(f"made {plan.name(job)}")
print((plan.tables.path / "tables" / "main.md").read_text())
"""


def blocks(section: str) -> list[tuple[str, str, str]]:
    """Of an example: file, language and text of each new file and each change."""
    return re.findall(r"^`([\w/.]+)`:\n\n```(python|diff)\n(.*?)^```", SECTIONS[section], re.DOTALL | re.MULTILINE)


def hunks(diff: str) -> list[tuple[str, str]]:
    """Text before and after of each change."""
    found = []
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        assert all(line[0] in " +-\n" for line in lines), hunk
        before, after = ("".join(line[1:] or "\n" for line in lines if line[0] != sign) for sign in "+-")
        found.append((before, after))
    return found


def apply(section: str, tree: Path) -> None:
    """Make an example's files and changes."""
    for name, language, text in blocks(section):
        file = tree / name
        if language == "python":
            assert not file.exists(), f"{name} is there already"
            file.write_text(text)
            continue
        for before, after in hunks(text):
            code = file.read_text()
            assert code.count(before) == 1, f"docs/extending.md no longer fits {name}:\n{before}"
            file.write_text(code.replace(before, after))


def run(tree: Path, *args: str) -> str:
    env = environment() | {"MLS_ROOT": "."}  # the code alone is no clone
    done = subprocess.run([sys.executable, *args], cwd=tree, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{args}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The code alone; with a folder of drawn pictures, as the data set of the page has them."""
    shutil.copytree(ROOT / "mls", tmp_path / "mls", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("dark", "light"):
            folder = tmp_path / "downloads" / "pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(0, 100, (32, 32, 3)) + 150 * (name == "light")
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("section", "made", "column"),
    [
        ("A method", "pretrain uniform:0", "linear.mAP"),
        ("A data set", "data pictures", "pictures.top1"),
        ("A probe", "probe nearest/random:0", "nearest.mAP"),
        ("A transfer task", "transfer count/random:0", "count.exact"),
    ],
)
def test_an_example_runs(section: str, made: str, column: str, copy: Path) -> None:
    apply(section, copy)
    run(copy, "-m", "ruff", "check", ".")
    run(copy, "-m", "ruff", "format", "--check", ".")
    (block,) = re.findall(r"```yaml\n(.*?)```", SECTIONS[section], re.DOTALL)
    raw = {**SMALL, "runs": {"random": {"method": "none"}}}
    for key, value in parse_yaml(block, section).items():
        raw[key] = value if key == "tables" else {**raw.get(key, {}), **value}
    (copy / "tiny.yaml").write_text(json.dumps(raw))
    if section == "A data set":
        run(copy, "-m", "mls", "data", "pin", "pictures", "-e", "tiny.yaml")
    told = run(copy, "-c", RUN)
    assert re.search(rf"made {re.escape(made)} \[", told), told
    row = "uniform" if section == "A method" else "random"
    table = [line.split("|") for line in told.splitlines() if line.startswith("|")]
    assert column in table[0][2] and any(row in line[1] and re.search(r"\d", line[2]) for line in table), told


@pytest.mark.parametrize("section", ["A method", "A data set", "A probe", "A transfer task"])
def test_an_example_touches_few_places(section: str) -> None:
    changed = [before for _, language, text in blocks(section) if language == "diff" for before, _ in hunks(text)]
    assert (
        len([before for before in changed if "import" not in before and before.strip() != "ScenesDataset,"]) <= PLACES
    )


def test_the_lists_are_whole() -> None:
    """What is named by a string is there; what has a section has a line in the other list."""
    for name in TRAINED:
        assert issubclass(pkgutil.resolve_name(METHODS[name].made_by), Method), name
    for name, entry in METHODS.items():
        assert {block.split(".")[0] for block in entry.blocks} <= set(Blocks.model_fields), name
    assert set(LISTINGS) == set(DATASETS.values()) - {ScenesDataset}
    assert set(FITS) == set(get_args(FrozenProbe)) - {RetrievalProbe}
    assert {kind for section in TRANSFERS for kind in values_of(section, "kind")} == set(KINDS)
    for kind, known in KINDS.items():
        assert callable(pkgutil.resolve_name(known.scored_by)), kind
    for section in TRANSFERS:  # not imported: its backend may be absent
        module, _, name = section.made_by.partition(":")
        assert f"class {name}(" in (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
