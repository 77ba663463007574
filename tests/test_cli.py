"""The command line: exit codes, one-line errors, and help."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from mls import cli
from mls.pipeline.make import STAGE_MODULES
from mls.runtime.errors import Interrupted
from mls.runtime.signals import SIGNALS

ROOT = Path(__file__).parents[1]


def test_errors_for_people_are_one_line_and_exit_1(
    in_tmp: Path, run_mls: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_mls("status") == 1
    error = capsys.readouterr().err
    assert error.startswith("mls status: params.yaml: can't be read") and "Traceback" not in error
    assert run_mls("pretrain", "mls", "-e", "absent.yaml") == 1
    assert run_mls("data", "pin") == 1


@pytest.mark.parametrize("error", [Interrupted("saved"), KeyboardInterrupt()])
def test_interruptions_exit_75(
    error: BaseException,
    in_tmp: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_mls: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(path: Path) -> None:
        raise error

    monkeypatch.setattr(cli, "plan_here", interrupted)
    assert run_mls("status") == 75
    assert capsys.readouterr().err.count("\n") == 1


def test_a_signal_while_a_file_is_read_is_no_error_of_the_file(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch, run_mls: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """The handler may raise anywhere; what explains a library's errors must let it pass."""
    (in_tmp / "one.yaml").write_text("experiment: one")

    def slow(self: YAML, stream: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(YAML, "load", slow)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        assert run_mls("pretrain", "mls", "-e", "one.yaml") == 75
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "stopped by SIGTERM" in (error := capsys.readouterr().err) and "YAML" not in error


def test_validate_lists_every_file_and_every_problem(
    in_tmp: Path, run_mls: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ROOT / "experiments" / "micro.yaml", "params.yaml")
    assert run_mls("validate") == 0
    assert "params.yaml: valid; 23 jobs (1 data, 3 pretrain, 3 features, 9 probe" in capsys.readouterr().out
    Path("experiments").mkdir()
    for name in ("a", "b"):
        Path(f"experiments/{name}.yaml").write_text("experiment: 1\n")
    assert run_mls("validate") == 1
    error = capsys.readouterr().err
    assert "experiments/a.yaml" in error and "experiments/b.yaml" in error


def test_planning_imports_neither_torch_nor_snakemake() -> None:
    code = "import sys, mls.pipeline.artifact_store\nfrom pathlib import Path\n"
    code += "from mls.pipeline.plan import plan_file\n"
    code += "plan_file(Path('experiments/micro.yaml')); print({'torch', 'snakemake', 'dvc'} & set(sys.modules))\n"
    code += "import mls.data.build_store, mls.report.build_tables\n"
    code += "assert 'torch' not in sys.modules, 'these stages start seconds earlier without it'\n"
    code += "import mls.probe.run_probe\n"
    code += "assert 'torchvision' not in sys.modules, 'it takes as long as torch itself, and only images need it'"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_mls_imports_neither_snakemake_nor_dvc() -> None:
    """They call mls, never the other way round."""
    for file in (ROOT / "mls").rglob("*.py"):
        text = file.read_text()
        assert "import snakemake" not in text and "import dvc" not in text and "from snakemake" not in text, file


def test_help_lists_every_command_with_a_sentence() -> None:
    env = {**os.environ, "COLUMNS": "200"}
    text = subprocess.run(
        [sys.executable, "-m", "mls", "--help"], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    ).stdout
    assert "pretrain an image" in text, "what the program is for"
    for command in cli.COMMANDS:
        assert re.search(rf"^  {command} .*\.$", text, re.MULTILINE), f"{command} has a sentence"


def test_the_stages_differ_in_their_help(run_mls: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    sentences = set()
    for stage in STAGE_MODULES:
        assert run_mls(stage, "--help") == 0
        text = capsys.readouterr().out
        sentences.add(text.split("\n\n")[1])
        assert f"  mls {stage} " in text.split("examples:")[1]
    assert len(sentences) == len(STAGE_MODULES) == 6


def test_make_help_lists_every_target() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = [
        line.split(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if ": " in line and "## " in line
    ]
    assert len(targets) >= 9 and all(f"make {target}" in listed for target in targets if target.isalpha())
