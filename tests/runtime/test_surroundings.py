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
    monkeypatch.delenv(surroundings.ROOT)
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


MICRO = ["-e", str(ROOT / "experiments" / "micro.yaml")]


@pytest.mark.parametrize(
    "command",
    [
        ["data", "scenes", *MICRO],
        ["data", "pin", "scenes", *MICRO],
        ["data", "check", "scenes", *MICRO],
        ["pretrain", "mls", *MICRO],
        ["tables", "tables", *MICRO],
        ["status", *MICRO],
        ["publish", *MICRO],
        ["score", "linear/mls:0", *MICRO],
        ["gc"],
        ["store", "add"],
        ["retry", "0123456789"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_outside_a_clone_a_command_refuses_and_leaves_nothing(
    command: list[str], in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(surroundings.ROOT)
    monkeypatch.setattr(sys, "argv", ["mls", *command])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    assert capsys.readouterr().err == (
        f"mls {command[0]}: {in_tmp} is not in a clone of this repository, where artifacts/, .store/ and work/ belong: "
        "change to one, or set MLS_ROOT to the folder that should hold them (MLS_ROOT=. for this one)\n"
    )
    assert not list(in_tmp.iterdir())


def test_experiment_files_are_read_anywhere(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(surroundings.ROOT)
    for command in (["validate", MICRO[1]], ["plan", MICRO[1]]):
        monkeypatch.setattr(sys, "argv", ["mls", *command])
        cli.main()
    assert f"{MICRO[1]}: valid" in capsys.readouterr().out
    assert not list(in_tmp.iterdir())
    monkeypatch.setattr(sys, "argv", ["mls", "score", "other.parquet"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "clone" not in (err := capsys.readouterr().err) and "other.parquet" in err


def test_a_named_root_is_used_from_any_folder(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (in_tmp / "mine").mkdir()
    (in_tmp / "mine" / "a.yaml").write_text((ROOT / "experiments" / "micro.yaml").read_text())
    monkeypatch.setenv(surroundings.ROOT, "mine")
    monkeypatch.setenv(surroundings.CALLED_FROM, "")
    monkeypatch.setattr(sys, "argv", ["mls", "data", "scenes", "-e", "mine/a.yaml"])
    cli.main()
    assert Path.cwd() == in_tmp / "mine" and [*in_tmp.glob("mine/artifacts/data/*/artifact.json")]
    assert os.environ[surroundings.ROOT] == ".", "for processes that are started there"
    assert [path.name for path in in_tmp.iterdir()] == ["mine"]


def test_a_named_root_must_be_there(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(surroundings.ROOT, "typo")
    monkeypatch.setattr(sys, "argv", ["mls", "status"])
    with pytest.raises(SystemExit, match="mls: MLS_ROOT is 'typo': there is no such folder"):
        cli.main()


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
