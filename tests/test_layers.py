"""Imports run down the layers of pyproject.toml, and an import that runs up is found."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)


def test_imports_run_down() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


def test_an_import_that_runs_up_is_named(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "mls", tmp_path / "mls", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "mls" / "runtime" / "files.py").open("a") as file:
        file.write("\nfrom mls.report import tables\n")
    done = lint_imports(tmp_path)
    assert done.returncode != 0
    assert "mls.runtime.files -> mls.report.tables" in done.stdout, done.stdout
