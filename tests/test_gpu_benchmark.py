"""benchmarks/gpu.py works where only the packages that it lists are installed; a failure stops nothing else."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]
LISTED = (ROOT / "benchmarks" / "gpu-requirements.txt").read_text().splitlines()
ASSUMED = ("torch", "torchvision", "numpy", "pillow")
HIDE = """
from importlib.machinery import PathFinder

HIDDEN = {hidden!r}


class Hider:
    original = PathFinder.find_spec

    def find_spec(self, name, *given, **named):
        return None if name.split(".")[0] in HIDDEN else self.original(name, *given, **named)


PathFinder.find_spec = Hider().find_spec
"""
"""Every Python that finds this as its ``sitecustomize`` can't import some packages, nor can the processes it starts."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def with_requirements(names: Iterable[str]) -> set[str]:
    """Distributions and, in turn, those that they require."""
    found: set[str] = set()
    left = [normal(name) for name in names]
    while left:
        name = left.pop()
        if name in found:
            continue
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # for another platform
            continue
        found.add(name)
        left += [normal(re.split(r"[^\w.-]", line)[0]) for line in required if "extra ==" not in line]
    return found


def bare(folder: Path, *missing: str) -> dict[str, str]:
    """An environment in which only the listed packages can be imported, without those that are ``missing``."""
    listed = [line for line in LISTED if line and not line.startswith("#") and line not in missing]
    here = with_requirements([*ASSUMED, *listed])
    modules = importlib.metadata.packages_distributions()
    hidden = {module for module, of in modules.items() if not here & {normal(one) for one in of}} - {"mls"}
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HIDE.format(hidden=hidden))
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


def smoke(environment: dict[str, str], out: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--device", "cpu", "--smoke", "--out", str(out), *args]
    return subprocess.run(command, cwd=out.parent, env=environment, capture_output=True, text=True)


def test_every_part_runs_where_only_the_listed_packages_are(tmp_path: Path) -> None:
    environment = bare(tmp_path / "bare")
    for module, found in (("pandas", False), ("sklearn", False), ("faster_coco_eval", False), ("pyarrow", True)):
        tried = subprocess.run([sys.executable, "-c", f"import {module}"], env=environment, capture_output=True)
        assert (tried.returncode == 0) == found, f"{module}: {tried.stderr.decode()}"
    out = tmp_path / "gpu.csv"
    committed = ROOT / "benchmarks" / "results" / "gpu.csv"
    before = committed.read_bytes() if committed.exists() else None
    done = smoke(environment, out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    left_out = [line.strip() for line in done.stdout.splitlines() if "left out" in line and "SKIPPED" not in line]
    assert left_out == ["left out: Detectron2's Mask R-CNN FPN: Detectron2 is not installed"]
    with out.open() as file:
        rows = list(csv.DictReader(file))
    measured = {
        part: [row for row in rows if row["part"] == part] for part in dict.fromkeys(row["part"] for row in rows)
    }
    counts = {part: len(of) for part, of in measured.items()}
    assert counts == {"data": 1, "tests": 1, "pretrain": 13, "transfer": 5, "probe": 3, "agree": 2}
    assert int(float(measured["tests"][0]["value"])) >= 5 and "failed" not in measured["tests"][0]["note"]
    for row in rows:
        assert row["card"] == "CPU, 1 threads" and row["torch"] and row["torchvision"] and row["code"], row
        assert float(row["value"]) > 0 or row["unit"] in ("share", "s"), row
    assert [row["goal"] for row in measured["pretrain"] if row["goal"]] == [
        ">= 3,000 on an H100-class card",
        ">= 0.9",
        ">= 0.9",
    ]
    assert before == (committed.read_bytes() if committed.exists() else None), "a smoke run writes elsewhere"


def test_a_missing_package_costs_its_part_and_is_named(tmp_path: Path) -> None:
    done = smoke(bare(tmp_path / "bare", "pytest", "threadpoolctl"), tmp_path / "gpu.csv", "--parts", "tests", "probe")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left out: tests: needs pytest, which is not installed" in done.stdout
    assert "left out: linear probe: needs threadpoolctl, which is not installed" in done.stdout
    assert "features, a tiny ResNet, 32 px, fp32" in done.stdout


def test_what_every_part_needs_is_said_at_once(tmp_path: Path) -> None:
    done = smoke(bare(tmp_path / "bare", "pydantic"), tmp_path / "gpu.csv")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "No module named 'pydantic'" in last and "benchmarks/gpu-requirements.txt" in last
    assert "tests ..." not in done.stdout


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--out", str(tmp_path / "gpu.csv")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "torch sees no GPU here" in done.stderr
    assert not (tmp_path / "gpu.csv").exists()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu")


def alive(pid: str) -> bool:
    try:
        return "zombie" not in Path("/proc", pid, "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_part_over_its_time_is_stopped_with_its_workers_and_what_it_had_counts(
    gpu: ModuleType, tmp_path: Path
) -> None:
    part = """
import json, subprocess, sys, time
print("not for us")
print("@" + json.dumps({"row": {"measured": "x", "value": 1.5, "unit": "s"}}), flush=True)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("@" + json.dumps({"note": str(worker.pid)}), flush=True)
time.sleep(600)
"""
    found = gpu.run_part([sys.executable, "-c", part], tmp_path, time.monotonic() + 4)
    assert found.rows == [{"measured": "x", "value": 1.5, "unit": "s"}]
    (failure,) = found.failures
    assert re.fullmatch(r"stopped after \d+ s, its time; what it had not measured by then is missing", failure)
    (worker,) = found.remarks
    for _ in range(300):  # the kernel may take a moment
        if not alive(worker):
            break
        time.sleep(0.1)
    assert not alive(worker)


def test_a_part_that_dies_is_named_with_its_last_words(gpu: ModuleType, tmp_path: Path) -> None:
    found = gpu.run_part([sys.executable, "-c", "raise SystemExit('no such kernel')"], tmp_path, time.monotonic() + 60)
    assert found.failures == ["ended with 1: no such kernel"] and not found.rows
    data = gpu.Found(facts={"card": "H100", "driver": ""})
    assert gpu.summary({"data": data, "pretrain": found}).splitlines()[1:] == [
        "card H100",
        "",
        "data",
        "",
        "pretrain",
        "  FAILED: ended with 1: no such kernel",
    ]


@pytest.mark.parametrize(
    ("first", "later", "failed"), [(1.004, 1.02, 0), (1.006, 1.0, 1), (1.0, 0.96, 1), (1, math.nan, 1)]
)
def test_losses_beyond_the_band_fail(
    gpu: ModuleType, capsys: pytest.CaptureFixture[str], first: float, later: float, failed: int
) -> None:
    agreement = importlib.import_module("gpu_parts.agreement")
    on_cpu_S = torch.tensor([5.0, 5.2, 6.0, 6.4, 7.0, 6.9])
    factor_S = torch.tensor([first, first, 1.0, 1.0, later, later])
    agreement.compare(on_cpu_S * factor_S, on_cpu_S, 2, 64)
    found = gpu.Found()
    for line in capsys.readouterr().out.splitlines():
        gpu.hear(json.loads(line.removeprefix("@")), found)
    assert len(found.rows) == 2 and len(found.failures) == failed


def test_the_parts_take_eight_minutes_at_most(gpu: ModuleType) -> None:
    assert sum(seconds for _, seconds in gpu.PARTS.values()) <= 8 * 60
