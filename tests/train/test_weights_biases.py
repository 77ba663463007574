"""Weights & Biases, read back from its files: each row of curves.csv once, over all folders of a run, sent nowhere."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

import mls.train.pretrain
from mls.pipeline.artifact import VOLATILE
from mls.pipeline.plan import Plan
from mls.pipeline.runner import run_stage
from mls.runtime.errors import Interrupted, MlsError
from mls.train import weights_biases
from mls.train.log import Curves
from mls.train.wandb_folders import keep_true, read_rows, records
from tests.conftest import SMALL, plan_of, small
from tests.train.support import job_of
from tests.train.test_loop import stop_at

ROOT = Path(__file__).parents[2]
ID = "3f2a91c4d0"
needs_wandb = pytest.mark.skipif(find_spec("wandb") is None, reason="needs wandb")

TRAINING = """
import json, math, resource, sys, time
from pathlib import Path
from mls.runtime.errors import Interrupted
from mls.runtime.files import write_atomic
from mls.runtime.signals import InterruptGuard
from mls.train.log import Curves
from mls.train.weights_biases import RunInfo

last, pause, limit, broken = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
work, curves = Path("work"), Curves(Path("work"), ["wandb"], info=RunInfo("3f2a91c4d0", "mls:0", "micro", {"k": 3}))
work.mkdir(exist_ok=True)
state = work / "checkpoint.json"
if state.exists():
    curves.resume(json.loads(state.read_text()))

def save():
    write_atomic(state, json.dumps(curves.rows))
    curves.saved()

try:
    with curves, InterruptGuard() as guard:
        for step in range(20 * len(curves.rows) + 20, last + 1, 20):
            loss = math.inf if step == 80 else 7 + math.sin(step)
            curves.add({"step": step, "loss": loss, "g_mean": math.nan if step % 60 else step / 7})
            if step % 100 == 0:
                save()
            if step == broken:
                raise RuntimeError("broken")
            time.sleep(pause)
            guard.stop_if_asked(save)
except Interrupted:
    sys.exit(75)
"""


def start(
    last: int, *, pause: float = 0, limit: int = 0, broken: int = 0, environment: Mapping[str, str] = os.environ
) -> subprocess.Popen[str]:
    """Start a training that goes on from its checkpoint to a step.

    Args:
        last: step of the last row.
        pause: seconds per row.
        limit: the largest file that may be written, in bytes.
        broken: step at which it fails.
        environment: its variables.
    """
    command = [sys.executable, "-c", TRAINING, str(last), str(pause), str(limit), str(broken)]
    full = {**environment, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.Popen(command, env=full, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def saved() -> list[dict[str, float]]:
    """Rows of the checkpoint."""
    return json.loads(Path("work/checkpoint.json").read_text()) if Path("work/checkpoint.json").exists() else []


def wait_for_checkpoint(process: subprocess.Popen[str]) -> None:
    """Wait for the next one."""
    before = len(saved())
    while len(saved()) == before:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def end(process: subprocess.Popen[str], code: int = 0) -> str:
    """What it said on stderr; it says nothing on stdout, and leaves no process of wandb's."""
    out, err = process.communicate(timeout=200)
    assert (process.returncode, out) == (code, ""), err
    assert cores() == []
    return err


def cores() -> list[int]:
    """Every ``wandb-core`` that writes below this folder."""
    found = []
    for process in psutil.process_iter(["name"]):
        with suppress(psutil.Error):
            if process.info["name"] == "wandb-core" and process.environ().get("PWD_OF_TEST") == str(Path.cwd()):
                found.append(process.pid)
    return found


@pytest.fixture(autouse=True)
def marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell the processes of this test from those of others."""
    monkeypatch.setenv("PWD_OF_TEST", str(tmp_path))


def folders(work: Path) -> list[Path]:
    return sorted(path for path in (work / "wandb").glob("*") if path.name != "cache")


def resume(work: Path, rows: list[dict[str, float]]) -> None:
    """A training that has nothing left to do."""
    curves = Curves(work, ["wandb"])
    curves.resume(rows)
    with curves:
        pass


def shown(work: Path, run: str = ID) -> list[dict[str, float]]:
    """Rows of all folders, in the order in which they are synced; each folder is offline and of this run."""
    rows = []
    for folder in folders(work):
        assert folder.name.startswith("offline-run-") and run in folder.name
        rows += [row for file in folder.glob(f"run-{run}.wandb") for row in read_rows(file)]
    return rows


def assert_shows(work: Path, curves: Path, run: str = ID) -> None:
    with curves.open(newline="") as file:
        expected = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    found = shown(work, run)
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


# --------------------------------------------------------------------------------------- stopped and killed


@needs_wandb
def test_killed_twice_stopped_and_finished(in_tmp: Path) -> None:
    work, moments = Path("work"), random.Random(1)
    for _ in range(2):
        running = start(100_000, pause=0.002)
        wait_for_checkpoint(running)
        time.sleep(moments.uniform(0, 0.2))
        running.kill()
        running.communicate()
        assert shown(work) == [], "no row that will be made again"
    running = start(100_000, pause=0.002)
    wait_for_checkpoint(running)
    running.terminate()
    assert end(running, 75) == ""
    stopped = saved()
    assert_shows(work, work / "curves.csv")
    assert len(shown(work)) == len(stopped)
    assert end(start(int(stopped[-1]["step"]) + 500)) == ""
    assert_shows(work, work / "curves.csv")
    assert len(shown(work)) == len(stopped) + 25
    assert len(folders(work)) == 2


@needs_wandb
def test_an_error_leaves_no_row_that_will_be_made_again(in_tmp: Path) -> None:
    assert "RuntimeError: broken" in end(start(2000, broken=1960), 1)
    assert [row["step"] for row in shown(Path("work"))] == list(range(20, 1901, 20))
    assert end(start(2000)) == ""
    assert_shows(Path("work"), Path("work/curves.csv"))


@needs_wandb
@pytest.mark.parametrize(("name", "message"), [("SIGKILL", "rows are only in"), ("SIGSTOP", "did not end within 10 s")])
def test_a_training_ends_though_wandb_core_is_killed_or_hangs(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    """Each of the two that are started; a resumption then writes the rows."""
    met, over = set[int](), threading.Event()

    def harm() -> None:
        while not over.is_set():
            for core in set(cores()) - met:
                os.kill(core, signal.Signals[name])
                met.add(core)
            time.sleep(0.005)

    monkeypatch.setattr(weights_biases, "DEADLINE", 10.0)
    harming = threading.Thread(target=harm)
    harming.start()
    rows = [{"step": step, "loss": 1.0} for step in range(20, 101, 20)]
    try:
        with Curves(in_tmp, ["wandb"]) as curves:
            for row in rows:
                curves.add(row)
    finally:
        over.set()
        harming.join()
    warning = capsys.readouterr().err
    assert warning.startswith("warning: Weights & Biases: 5 of 5 rows are only in curves.csv: ") and message in warning
    assert len(met) == 2 and cores() == []
    monkeypatch.undo()
    resume(in_tmp, rows)
    assert capsys.readouterr().err == ""
    assert shown(in_tmp, "run") == rows


@needs_wandb
def test_what_a_full_disk_refused_is_sent_by_the_resumption(in_tmp: Path) -> None:
    """wandb reports nothing: its process only writes a line into a log of its own."""
    err = end(start(9000, limit=32768))
    assert "of 450 rows are only in curves.csv" in err
    assert 0 < len(shown(Path("work"))) < 450
    assert end(start(9100)) == ""
    assert_shows(Path("work"), Path("work/curves.csv"))


@needs_wandb
def test_rows_count_and_not_the_times_in_the_names_of_folders(in_tmp: Path) -> None:
    """A clock that is set back, as each autumn; a folder whose rows are wrong is removed."""
    rows = [{"step": step, "loss": 1.0} for step in range(20, 101, 20)]
    for last in (3, 5):
        resume(in_tmp, rows[:last])
    first, second = folders(in_tmp)
    first.rename(first.with_name(second.name.replace("offline-run-2", "offline-run-3")))
    assert keep_true(in_tmp / "wandb", rows) == 5
    assert keep_true(in_tmp / "wandb", [*rows[:3], {"step": 80, "loss": 2.0}]) == 3
    assert len(folders(in_tmp)) == 1


@needs_wandb
def test_a_torn_file_gives_the_rows_before_the_tear(in_tmp: Path) -> None:
    end(start(6000))
    (folder,) = folders(Path("work"))
    whole, file = shown(Path("work")), folder / f"run-{ID}.wandb"
    data = file.read_bytes()
    assert len(whole) == 300 and len(data) > 2 * 32768, "several blocks"
    lengths = []
    for size in [*range(0, len(data), 997), 32768, 32775, 65536, len(data)]:
        file.write_bytes(data[:size])
        rows = read_rows(file)
        assert rows == whole[: len(rows)]
        lengths.append(len(rows))
    assert lengths[0] == 0 and lengths[-1] == 300
    file.write_bytes(data[:40_000] + bytes([data[40_000] ^ 1]) + data[40_001:])
    assert 0 < len(read_rows(file)) < 300, "a flipped bit"


# ------------------------------------------------------------------------------------------- nothing leaves


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


@needs_wandb
def test_nothing_is_sent_and_nothing_of_the_machine_is_written(in_tmp: Path, listener: socket.socket) -> None:
    """With a key, a server and the mode online set in each way that wandb knows; a proxy would see any request."""
    home, key, url = in_tmp / "home", "0123456789" * 4, f"http://127.0.0.1:{listener.getsockname()[1]}"
    (home / ".config" / "wandb").mkdir(parents=True)
    (home / ".config" / "wandb" / "settings").write_text(f"[default]\nmode = online\nbase_url = {url}\n")
    (home / ".netrc").write_text(f"machine 127.0.0.1\n  login user\n  password {key}\n")
    before = sorted(home.rglob("*"))
    secrets = {"WANDB_API_KEY": key, "WANDB_MODE": "online", "WANDB_BASE_URL": url, "WANDB_NOTES": "private"}
    secrets |= {"WANDB_RUN_ID": "other", "WANDB_RESUME": "allow", "WANDB_SERVICE": "3-1-tcp-127.0.0.1-1"}
    proxies = dict.fromkeys(["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"], url)
    running = start(100_000, pause=0.002, environment={**os.environ, "HOME": str(home), **secrets, **proxies})
    wait_for_checkpoint(running)
    running.terminate()
    while not (found := cores()):
        assert running.poll() is None, running.communicate()
    with suppress(psutil.NoSuchProcess):  # it may be quick
        core = psutil.Process(found[0])
        assert core.net_connections("inet") == []
        assert not [name for name in core.environ() if name in secrets]
    assert "WANDB_MODE=online has no effect" in end(running, 75)
    with pytest.raises(BlockingIOError):
        listener.accept()
    assert sorted(home.rglob("*")) == before
    (folder,) = folders(Path("work"))
    data = (folder / f"run-{ID}.wandb").read_bytes()
    for secret in [key, "private", url, str(in_tmp), str(ROOT), sys.executable]:
        assert secret.encode() not in data
    record = import_module("wandb.proto.wandb_internal_pb2").Record
    read = [record.FromString(content) for content in records(data)]
    kinds = {one.WhichOneof("record_type") for one in read}
    assert kinds == {"header", "run", "telemetry", "summary", "history", "exit"}
    (run,) = [one.run for one in read if one.HasField("run")]
    assert (run.run_id, run.display_name, run.project, run.host) == (ID, "mls:0", "micro", "")
    assert {item.key: json.loads(item.value_json) for item in run.config.update} == {"k": 3, "_wandb": {}}
    assert not list(folder.glob("files/*"))


# -------------------------------------------------------------------------------------------- real trainings


@needs_wandb
def test_a_training_is_the_same_with_it(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same id, same bytes; stopped after 4 of 9 steps, its two folders have the artifact's rows."""
    job = job_of(plan, "mls")
    run_stage(plan, job, mls.train.pretrain.run)
    expected = {file.name: file.read_bytes() for file in job.path.iterdir() if file.name not in VOLATILE}
    shutil.rmtree(job.path)
    shutil.rmtree(job.stored)
    shutil.rmtree(job.work)
    plan = plan_of(small(execution={**SMALL["execution"], "trackers": ["wandb"]}))
    assert job_of(plan, "mls").id == job.id
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(4, patch, signal.SIGINT)
        run_stage(plan, job, mls.train.pretrain.run)
    assert [row["step"] for row in shown(job.work, job.id)] == [3]
    run_stage(plan, job, mls.train.pretrain.run)
    assert {file.name: file.read_bytes() for file in job.path.iterdir() if file.name not in VOLATILE} == expected
    assert_shows(job.work, job.path / "curves.csv", job.id)
    assert len(folders(job.work)) == 2
    assert cores() == []


def test_wandb_must_be_installed_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its name, as its users have, does not count."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with (
        pytest.raises(MlsError, match=r"names 'wandb', which is not installed; .*\[wandb\]"),
        Curves(tmp_path, ["wandb"]),
    ):
        pass
