"""Curves and trackers show each row once and in order, even if the process was killed."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mls.runtime.errors import Interrupted, MlsError
from mls.train import log
from mls.train.log import Curves, Row, write_curves
from tests.train.support import rows_until

NAN = float("nan")


def expected(rows: list[Row], name: str) -> list[tuple[int, float]]:
    return [(int(row["step"]), row[name]) for row in rows if name in row and not math.isnan(row[name])]


def tensorboard_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar event of a folder, as a tool that knows nothing of purging reads them."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for event in loader.EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                number = value.tensor.float_val[0] if value.HasField("tensor") else value.simple_value
                found.setdefault(value.tag, []).append((event.step, number))
    return found


def dvclive_metrics(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = {}
    for file in sorted((folder / "plots" / "metrics").glob("*.tsv")):
        with file.open(newline="") as text:
            found[file.stem] = [(int(r["step"]), float(r[file.stem])) for r in csv.DictReader(text, delimiter="\t")]
    return found


def shown(tracker: str, folder: Path) -> dict[str, list[tuple[int, float]]]:
    read = tensorboard_scalars if tracker == "tensorboard" else dvclive_metrics
    return read(folder / tracker)


def assert_shows(tracker: str, folder: Path, rows: list[Row]) -> None:
    found = shown(tracker, folder)
    assert set(found) == {"loss", "lr", "knn"}, "the step is not a curve"
    for name, points in found.items():
        steps, values = zip(*points, strict=True)
        wanted_steps, wanted = zip(*expected(rows, name), strict=True)
        assert steps == wanted_steps, name
        assert values == pytest.approx(wanted, rel=1e-6), name


# ------------------------------------------------------------------------------------------ the file


def test_curves_are_csv_with_six_digits(tmp_path: Path) -> None:
    rows = [
        {"step": 1234567, "loss": 1 / 3, "knn": NAN},
        {"step": 1234587, "loss": 12345678.0, "late": 1e-9},
        {"step": 1234607, "late": float("inf")},
    ]
    write_curves(rows, tmp_path / "curves.csv")
    assert (tmp_path / "curves.csv").read_bytes() == (
        b"step,loss,knn,late\n1234567,0.333333,,\n1234587,1.23457e+07,,1e-09\n1234607,,,inf\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["curves.csv"]


def test_the_live_file_is_updated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    file = tmp_path / "curves.csv"
    first, second, third, fourth = rows_until(40)
    with Curves(tmp_path, []) as curves:
        curves.add(first)
        assert file.read_text() == "step,loss,lr\n10,6.99,0.03\n"
        now = 129.0
        curves.add(second)
        assert file.read_text().count("\n") == 2, "not yet"
        now = 130.0
        curves.add(third)
        assert file.read_text().splitlines()[2:] == ["20,,0.03,", "30,6.97,0.03,0.3"]
        curves.add(fourth)
    assert file.read_text().endswith("\n40,6.96,0.03,\n")
    assert curves.rows == [first, second, third, fourth]


def test_other_ranks_only_collect_rows(tmp_path: Path) -> None:
    with Curves(tmp_path, ["tensorboard", "dvclive", "wandb"], write=False) as curves:
        for row in rows_until(30):
            curves.add(row)
    assert len(curves.rows) == 3 and not list(tmp_path.iterdir())


def test_a_full_disk_stops_the_training_and_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log, "write_atomic", full)
    with pytest.raises(OSError, match="No space left"), Curves(tmp_path, []) as curves:
        curves.add({"step": 1, "loss": 1.0})
    with pytest.raises(OSError, match="No space left"), Curves(tmp_path, []) as curves:
        curves.rows.append({"step": 1, "loss": 1.0})  # at the end
    with pytest.raises(Interrupted), Curves(tmp_path, []) as curves:
        curves.rows.append({"step": 1, "loss": 1.0})
        raise Interrupted("saved")


# -------------------------------------------------------------------------------------- the trackers


@pytest.mark.parametrize("tracker", ["tensorboard", "dvclive"])
def test_a_tracker_shows_the_rows(tracker: str, tmp_path: Path) -> None:
    pytest.importorskip(tracker)
    with Curves(tmp_path, [tracker]) as curves:
        for row in rows_until(60):
            curves.add(row)
    assert_shows(tracker, tmp_path, rows_until(60))


KILLED = """
import os, signal, sys
from pathlib import Path
from mls.train.log import Curves
from tests.train.support import rows_until
with Curves(Path(sys.argv[1]), [sys.argv[2]]) as curves:
    for row in rows_until(90):
        curves.add(row)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("tracker", ["tensorboard", "dvclive"])
@pytest.mark.parametrize("resumed_at", [0, 60])  # without any checkpoint; three rows later than the last
def test_no_row_comes_twice_after_a_kill(tracker: str, resumed_at: int, tmp_path: Path) -> None:
    pytest.importorskip(tracker)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), tracker], env=environment, check=False)
    assert killed.returncode == -9
    assert_shows(tracker, tmp_path, rows_until(90))
    every = rows_until(120)
    curves = Curves(tmp_path, [tracker])
    curves.resume([row for row in every if row["step"] <= resumed_at])
    with curves:
        for row in every[len(curves.rows) :]:
            curves.add(row)
    assert str(curves.rows) == str(every)  # as text: NaN is not NaN
    assert_shows(tracker, tmp_path, every)


def test_tensorboard_itself_reads_it_after_a_kill(tmp_path: Path) -> None:
    """Also a TensorBoard that was watching while the process was killed and resumed."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Curves(tmp_path, ["tensorboard"]) as curves:
        for row in rows_until(90):
            curves.add(row)
    files = {file.name: file.read_bytes() for file in (tmp_path / "tensorboard").iterdir()}
    curves = Curves(tmp_path, ["tensorboard"])
    curves.resume(rows_until(60))
    with curves:
        for row in rows_until(120)[6:]:
            curves.add(row)
    for name, content in files.items():  # what it had read of the removed files, under names that come first
        (tmp_path / "tensorboard" / name.replace("tfevents.", "tfevents.0")).write_bytes(content)
    reader = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(reader.Tags()["scalars"]) == ["knn", "loss", "lr"]
    assert [event.step for event in reader.Scalars("lr")] == list(range(10, 121, 10))


def test_a_tracker_may_be_added_later(tmp_path: Path) -> None:
    curves = Curves(tmp_path, ["dvclive"])
    curves.resume(rows_until(60))
    with curves:
        pass
    assert_shows("dvclive", tmp_path, rows_until(60))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_of_the_writers_thread_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard writes in a thread of its own."""
    writer = pytest.importorskip("tensorboard.summary.writer.record_writer")

    def full(self: object, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"), Curves(tmp_path, ["tensorboard"]) as curves:
        monkeypatch.setattr(writer.RecordWriter, "write", full)
        curves.add({"step": 1, "loss": 1.0})


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("place", ["no repository", "git", "git and dvc", "dvc exp run"])
def test_dvclive_touches_neither_git_nor_dvc(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No commit, nothing staged, no dvc.yaml, no .dvc, no network, even where a token for DVC Studio is set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    if place != "no repository":
        git(tmp_path, "init", "--quiet")
        git(tmp_path, "remote", "add", "origin", "https://example.invalid/one.git")
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "--quiet", "--message", "first")
    if place in ("git and dvc", "dvc exp run"):
        from dvc.repo import Repo

        Repo.init(str(tmp_path)).close()
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "--quiet", "--message", "second")
    if place == "dvc exp run":
        monkeypatch.setenv("DVC_ROOT", str(tmp_path))
        monkeypatch.setenv("DVC_EXP_BASELINE_REV", git(tmp_path, "rev-parse", "HEAD").strip())
        monkeypatch.setenv("DVC_EXP_NAME", "one")
    monkeypatch.setenv("DVC_STUDIO_TOKEN", "isat_secret")
    monkeypatch.setenv("DVC_STUDIO_REPO_URL", "https://example.invalid/one.git")
    monkeypatch.setenv("DVCLIVE_RESUME", "1")

    asked: list[object] = []

    def forbidden(*args: object, **kwargs: object) -> Any:
        asked.append(args)
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)

    def others() -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and "work" not in p.parts}

    before = others()
    (tmp_path / "work").mkdir()
    for until in (60, 90):  # a second process would resume
        curves = Curves(tmp_path / "work", ["dvclive"])
        curves.resume(rows_until(until - 30))
        with curves:
            for row in rows_until(until)[len(curves.rows) :]:
                curves.add(row)
        assert_shows("dvclive", tmp_path / "work", rows_until(until))
    assert others() == before
    assert asked == []
    summary = json.loads((tmp_path / "work" / "dvclive" / "metrics.json").read_text())
    assert summary == {"loss": 7 - 0.09, "lr": 0.03, "knn": 0.9, "step": 90}


def test_tensorboard_must_be_installed_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("torch.utils.tensorboard", "tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with (
        pytest.raises(MlsError, match=r"names 'tensorboard', which is not installed .*\[trackers\]"),
        Curves(tmp_path, ["tensorboard"]),
    ):
        pass


def test_trackers_are_imported_only_if_chosen() -> None:
    code = (
        "import sys, mls.train.log as m; m.Curves(m.Path(), []); "
        "print({'dvclive', 'tensorboard', 'wandb'} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True).stdout
    assert out == "set()\n"
