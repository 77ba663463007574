"""`mls doctor` finds what is missing, says what to do, and survives broken packages."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from mls import cli, doctor
from mls.doctor import Finding, diagnose, examine
from mls.pipeline.plan import plan_file
from mls.runtime.errors import MlsError
from mls.transfer.detectron2_install import DETECTRON2_COMMIT, detectron2_problem
from tests.conftest import SMALL, small

ROOT = Path(__file__).parents[1]
FILE = Path("params.yaml")
WITH_DETECTRON2: dict[str, Any] = {
    "pretrain": {**SMALL["pretrain"], "backbone": {"name": "resnet18"}},
    "transfer": {"boxes": {"kind": "instance", "backend": "detectron2", "dataset": "scenes"}},
}


@pytest.fixture(autouse=True)
def machine(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, on a machine without GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("MLS_DATA", "MLS_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fake Detectron2 of three files that works, whether or not the real one is installed."""
    folder = tmp_path / "site" / "detectron2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("__version__ = '0.6'\n")
    (folder / "_C.py").touch()
    (folder / "model_zoo.py").write_text("import pkg_resources\ndef get_config_file(name):\n    return name\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    for name in _modules():
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pkg_resources", types.ModuleType("pkg_resources"))
    yield folder
    for name in _modules():  # before monkeypatch puts the real ones back
        del sys.modules[name]


def _modules() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] == "detectron2"]


def write(**changes: Any) -> None:
    FILE.write_text(json.dumps(small(**changes)))  # JSON is YAML


def found(name: str) -> Finding:
    """The only finding with this name."""
    (finding,) = [finding for finding in examine(FILE) if finding.name == name]
    return finding


def seen(name: str) -> tuple[str, str]:
    return found(name).status, found(name).text


def test_nothing_is_missing_for_generated_scenes(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write()
    monkeypatch.setattr(sys, "argv", ["mls", "doctor"])
    cli.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["ok", "experiment", "params.yaml"]
    assert lines[-1] == "everything that params.yaml needs is here"
    assert {line.split()[0] for line in lines[:-1]} == {"ok", "note"}
    assert {line.index(line.split()[2]) for line in lines[:-1]} == {lines[0].index("params.yaml")}, "aligned"
    assert "ok       detectron2  0.6, model zoo and compiled operators load" in lines
    assert any(line.split()[:3] == ["ok", "data", "scenes:"] for line in lines)


def test_missing_things_are_counted_and_the_exit_code_is_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(**WITH_DETECTRON2, execution={"device": "cuda"})
    monkeypatch.setitem(sys.modules, "detectron2", None)
    monkeypatch.setattr(sys, "argv", ["mls", "doctor"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    output = capsys.readouterr()
    assert output.err == "mls doctor: 2 things are missing\n"
    lines = output.out.splitlines()
    (at,) = [i for i, line in enumerate(lines) if line.startswith("missing  detectron2")]
    assert lines[at + 1].strip().startswith("-> pip install") and lines[at + 1].startswith(" " * 21 + "->")


def test_detectron2_is_missing_only_for_tasks_that_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "detectron2", None)
    write()
    assert seen("detectron2") == ("note", "Detectron2 is not installed; no task of this experiment needs it")
    diagnose(FILE)
    write(**WITH_DETECTRON2)
    assert seen("detectron2") == ("missing", "Detectron2 is not installed; needed by transfer boxes")
    with pytest.raises(MlsError, match="1 thing is missing"):
        diagnose(FILE)
    problem = detectron2_problem()
    assert problem and "not installed; pip install --no-build-isolation git+https://" in problem
    assert f"detectron2@{DETECTRON2_COMMIT} in this environment" in problem


def test_the_packages_of_trackers_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    write(execution={"trackers": ["tensorboard", "dvclive", "wandb"]})
    monkeypatch.setattr("mls.doctor.version", {"tensorboard": "2.21.0"}.get)
    assert seen("tensorboard") == ("ok", "2.21.0")

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("mls.doctor.version", absent)
    for name, extra in {"tensorboard": "trackers", "wandb": "wandb"}.items():
        assert seen(name) == ("missing", "not installed; execution.trackers names it")
        assert found(name).remedy == f"pip install -e '.[{extra}]', or remove it from execution.trackers"
    assert not [finding for finding in examine(FILE) if finding.name == "dvclive"]


def test_the_readme_names_the_same_commit() -> None:
    assert f"detectron2@{DETECTRON2_COMMIT}" in (ROOT / "README.md").read_text()


def test_a_detectron2_that_works_is_no_problem(package: Path) -> None:
    assert detectron2_problem() is None
    write(**WITH_DETECTRON2)
    assert seen("detectron2")[0] == "ok"


@pytest.mark.parametrize(
    ("file", "code", "says", "remedy"),
    [
        ("_C.py", "raise ImportError('_C.so: undefined symbol: _ZN3c10')", "undefined symbol", "--no-cache-dir"),
        ("_C.py", None, "No module named 'detectron2._C'", "--force-reinstall"),
        (
            "model_zoo.py",
            "import nowhere_to_be_found",
            "model_zoo fails (No module named 'nowhere",
            "pip install --no-",
        ),
        ("__init__.py", "raise OSError('libc10.so: cannot open')", "detectron2 fails (libc10.so", "pip install --no-"),
    ],
)
def test_every_kind_of_broken_detectron2_has_a_remedy(
    package: Path, file: str, code: str | None, says: str, remedy: str
) -> None:
    (package / file).unlink()
    if code:
        (package / file).write_text(code)
    problem = detectron2_problem()
    assert problem and says in problem and remedy in problem


def test_a_setuptools_that_is_too_new_for_the_model_zoo_is_found(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pkg_resources", None)
    problem = detectron2_problem()
    assert problem and "pkg_resources" in problem and problem.endswith("; pip install 'setuptools<81'")


@pytest.mark.parametrize("name", ["torch", "torchvision"])
def test_without_torch_the_rest_is_still_checked(name: str, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write()
    monkeypatch.setitem(sys.modules, name, None)
    assert found("torch").status == "missing" and name in found("torch").text and "make setup" in found("torch").remedy
    assert {"experiment", "python", "snakemake", "detectron2", "disk", "data"} <= {one.name for one in examine(FILE)}


def test_a_torchvision_built_for_another_torch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def nms(*_: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nand more")

    write()
    monkeypatch.setattr(torchvision.ops, "nms", nms)
    assert seen("torch") == ("missing", "torch or torchvision fails: operator torchvision::nms does not exist")


def test_importing_the_doctor_does_not_import_torch() -> None:
    code = "import sys, mls.doctor; print({'torch', 'torchvision', 'detectron2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_python_and_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    write()
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    statuses = {one.name: one.status for one in examine(FILE)}
    assert [statuses[name] for name in ("python", "snakemake", "dvc", "git")] == ["ok", "missing", "note", "note"]


def test_a_gpu_that_the_experiment_demands(monkeypatch: pytest.MonkeyPatch) -> None:
    write(execution={"device": "cuda"})
    assert found("device").status == "missing" and "execution.device: cuda" in found("device").text
    write(pretrain={**SMALL["pretrain"], "resident": "cuda"})
    assert found("device").status == "missing" and "pretrain.resident: cuda" in found("device").text
    gpu = types.SimpleNamespace(name="H100", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    assert seen("device") == ("ok", "H100 (80 GiB), H100 (80 GiB)")
    write(execution={"device": "cpu"})
    assert seen("device") == ("ok", "H100 (80 GiB), H100 (80 GiB); execution.device: cpu")


def test_torchs_warning_about_a_driver_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_available() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    write()
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    assert "no GPU that torch can use (The NVIDIA driver on your system is too old)" in found("device").text


def test_bf16_on_a_cpu_without_bf16_instructions_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "cpu_has_bf16", lambda: False)
    write()
    assert not [one for one in examine(FILE) if one.name == "bf16"]
    write(pretrain={**SMALL["pretrain"], "precision": "bf16"})
    assert found("bf16").status == "note" and "slower" in found("bf16").text
    monkeypatch.setattr(doctor, "cpu_has_bf16", lambda: True)
    assert not [one for one in examine(FILE) if one.name == "bf16"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("flags\t\t: fpu avx512_bf16 sse\n", True), ("model : bf16\nflags : fpu avx512f\n", False), ("", False)],
)
def test_the_cpus_flags(text: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_: text)
    assert doctor.cpu_has_bf16() is expected


def test_a_disk_that_is_nearly_full(monkeypatch: pytest.MonkeyPatch) -> None:
    write()
    usage = types.SimpleNamespace(free=50_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert seen("disk") == ("note", "50.0 GB free for artifacts/, work/, .store/")
    usage.free = 900_000_000
    assert found("disk").status == "missing" and "mls gc" in found("disk").remedy


def test_a_check_that_fails_itself_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_usage(_: Path) -> None:
        raise PermissionError("no")

    write()
    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    assert seen("disk") == ("missing", "can't be checked (no)")
    assert found("data").status == "ok"


def test_a_folder_of_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = {"datasets": {**SMALL["datasets"], "photos": {"source": "folder"}}}
    write(**photos, pretrain={**SMALL["pretrain"], "dataset": "photos"})
    Path("data.lock").write_text(f"photos: {{sha256: {'f' * 64}}}\n")
    monkeypatch.setenv("MLS_DATA", str(tmp_path / "data"))

    def data() -> Finding:
        return next(one for one in examine(FILE) if one.name == "data" and "photos" in one.text)

    assert data().status == "missing" and "there is no folder" in data().text
    (tmp_path / "data" / "photos").mkdir(parents=True)
    assert data() == Finding("ok", "data", f"photos: {tmp_path}/data/photos")
    job = plan_file(FILE).find("data", "photos")[0]
    job.path.mkdir(parents=True)
    (job.path / "artifact.json").write_text('{"files": {"images.bin": {"size": 1, "sha256": ""}}}')
    assert data().status == "missing" and "is damaged" in data().text and "rm -r" in data().remedy
    (job.path / "images.bin").write_text("1")
    (tmp_path / "data" / "photos").rmdir()  # needed no more
    assert data() == Finding("ok", "data", f"photos: {job.path} is made")


def test_sources_that_are_downloaded_or_provided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLS_DATA", str(tmp_path))
    write(datasets={"scenes": {"source": "voc"}})
    assert found("data").status == "note"
    assert f"to be downloaded into {tmp_path}/scenes (0.9 GB): VOCtrainval_06-Nov-2007.tar" in found("data").text
    (tmp_path / "scenes" / "VOC2007").mkdir(parents=True)
    assert seen("data") == ("ok", f"scenes: {tmp_path}/scenes"), "a copy without the folder around it"
    write(datasets={"scenes": {"source": "coco", "subset": {"images": 20}}})
    Path("data.lock").write_text(f"{{scenes: {{sha256: {'f' * 64}}}, city: {{sha256: {'f' * 64}}}}}\n")
    assert found("data").text.endswith("annotations_trainval2017.zip, images one by one")
    city = {"datasets": {**SMALL["datasets"], "city": {"source": "cityscapes", "root": None}}}
    write(**city, pretrain={**SMALL["pretrain"], "dataset": "city"})
    absent = next(one for one in examine(FILE) if "city" in one.text and one.name == "data")
    assert absent.status == "missing" and "gtFine_trainvaltest.zip" in absent.text and "account" in absent.remedy
    (tmp_path / "city").mkdir()
    for name in ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"):
        (tmp_path / "city" / name).touch()
    assert Finding("ok", "data", f"city: {tmp_path}/city") in examine(FILE)


def test_published_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"method": "weights", "weights": {"file": "own.pth", "sha256": "0" * 64}}
    pretrain = {**SMALL["pretrain"], "backbone": {"name": "resnet18"}}
    write(pretrain=pretrain, runs={"own": own, "supervised": {"method": "imagenet"}})
    monkeypatch.setenv("MLS_WEIGHTS", str(tmp_path))
    first, second = (one for one in examine(FILE) if one.name == "weights")
    assert (first.status, first.text) == ("missing", f"own:0: {tmp_path}/own.pth") and "MLS_WEIGHTS" in first.remedy
    assert second.status == "note" and f"downloaded into {tmp_path}" in second.text
    (tmp_path / "own.pth").touch()
    assert Finding("ok", "weights", f"own:0: {tmp_path}/own.pth") in examine(FILE)


@pytest.mark.parametrize("changes", [{"experimemt": 1}, {"datasets": {"scenes": {"source": "folder"}}}])
def test_a_file_that_can_not_be_planned_is_a_finding(
    changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write(**changes)
    assert found("experiment").status == "missing" and next(iter(changes))[:7] in found("experiment").text
    assert {"python", "torch", "device", "detectron2", "disk"} <= {one.name for one in examine(FILE)}
    with pytest.raises(MlsError, match="1 thing is missing"):
        diagnose(FILE)
    assert "is here" not in capsys.readouterr().out
