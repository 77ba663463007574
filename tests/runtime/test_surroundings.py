"""Commands work in the clone's root from any folder below it, and with closed streams."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mls import cli
from mls.runtime import surroundings

ROOT = Path(__file__).parents[2]
CLOSED = """
import os, sys
for number in (1, 2):
    os.close(number)
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
"""
PRINTS = """
import os, sys
from mls.runtime.surroundings import open_streams
open_streams()
handle = open({path!r}, "w")
print("out", flush=True)
print("err", file=sys.stderr, flush=True)
os.write(2, b"raw")
assert handle.fileno() > 2 and not sys.stderr.isatty()
handle.write("done")
"""


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The least that looks like a clone, with an experiment in a folder, where the command is called."""
    (tmp_path / "data.lock").touch()
    (tmp_path / "mls").mkdir()
    (tmp_path / "experiments").mkdir()
    text = (ROOT / "experiments" / "micro.yaml").read_text()
    (tmp_path / "experiments" / "micro.yaml").write_text(text)
    (tmp_path / "params.yaml").write_text(text)
    monkeypatch.chdir(tmp_path / "experiments")
    monkeypatch.setenv(surroundings.CALLED_FROM, "")
    return tmp_path


def test_a_command_works_in_the_root_and_its_paths_are_the_callers(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mls", "validate", "micro.yaml", "../params.yaml"])
    cli.main()
    assert Path.cwd() == clone and surroundings.CALLED_FROM not in os.environ
    out = capsys.readouterr().out
    assert "experiments/micro.yaml: valid" in out and "\nparams.yaml: valid" in out


def test_the_default_experiment_is_the_roots(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mls", "data", "scenes"])
    cli.main()
    assert (clone / ".store" / "data").is_dir() and [*clone.glob("artifacts/data/*/artifact.json")]
    assert sorted(path.name for path in (clone / "experiments").iterdir()) == ["micro.yaml"]
    assert "not in a clone" not in capsys.readouterr().err


def test_outside_a_clone_a_stage_says_where_it_keeps_artifacts(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mls", "data", "scenes", "-e", str(ROOT / "experiments" / "micro.yaml")])
    cli.main()
    assert f"{in_tmp} is not in a clone of this repository; artifacts are kept there" in capsys.readouterr().err


def test_closed_streams_write_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "kept.txt"
    program = PRINTS.format(path=str(path))
    subprocess.run([sys.executable, "-c", CLOSED, program], check=True, cwd=ROOT, env=os.environ)
    assert path.read_text() == "done"


@pytest.mark.parametrize("folder", ["", "experiments/", "docs/a/"])
def test_git_ignores_what_runs_leave_in_any_folder(folder: str) -> None:
    names = ["artifacts/photos/x", ".store/data/x", "work/x/lock", "logs/x", "drawn/x", "dvc_plots/index.html"]
    paths = [f"{folder}{name}" for name in names]
    done = subprocess.run(["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == paths
    kept = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    assert subprocess.run(kept, cwd=ROOT, capture_output=True, text=True, check=True).stdout == ""
