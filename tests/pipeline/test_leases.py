"""Each device is leased to one job at a time, and freed when its holder dies. No GPU is needed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mls.config.experiment import Execution
from mls.pipeline import leases
from mls.pipeline.leases import gpus_of, leased
from mls.runtime.errors import MlsError
from tests.conftest import plan_of, small

ROOT = Path(__file__).parents[2]
HOLDER = """
import os, sys, time
from pathlib import Path
from mls.pipeline.leases import leased
name, count = sys.argv[1:]
with leased(int(count)):
    Path(name).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    if os.fork() == 0:  # like a loader's worker, which outlives its parent
        time.sleep(30)
    while not Path("leave").exists():
        time.sleep(0.02)
Path(name).unlink()
os._exit(0)
"""
"""Writes its devices into a file with its name, and holds them until the file `leave` exists."""


@pytest.fixture(autouse=True)
def two_devices(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLS_LEASES", str(in_tmp / "leases"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "a,b")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def hold(name: str, count: int = 1) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", HOLDER, name, str(count)], start_new_session=True)


def held() -> dict[str, str]:
    """Holder -> devices."""
    return {file.name: file.read_text() for file in Path().glob("holder-*") if file.read_text()}


def wait_until_held(*, by: int) -> dict[str, str]:
    end = time.monotonic() + 120
    while len(found := held()) < by:
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found


def test_four_jobs_on_two_devices_and_one_is_killed() -> None:
    """A waiting job gets the killed one's device, although the killed one's forked child lives on."""
    jobs = {f"holder-{i}": hold(f"holder-{i}") for i in range(4)}
    try:
        first = wait_until_held(by=2)
        assert sorted(first.values()) == ["a", "b"]
        time.sleep(3 * leases.POLL_S)
        assert held() == first, "two wait"
        victim, device = next(iter(first.items()))
        jobs[victim].kill()
        jobs[victim].wait()
        Path(victim).unlink()
        second = wait_until_held(by=2)
        (new,) = second.keys() - first.keys()
        assert second[new] == device
        assert sorted(second.values()) == ["a", "b"]
        Path("leave").touch()
        assert [job.wait(120) for name, job in jobs.items() if name != victim] == [0, 0, 0]
    finally:
        for job in jobs.values():
            subprocess.run(["kill", "-9", "--", f"-{job.pid}"], check=False, stderr=subprocess.DEVNULL)


def test_a_job_that_needs_two_devices_is_not_overtaken() -> None:
    jobs = [hold("holder-one")]
    try:
        wait_until_held(by=1)
        jobs.append(hold("holder-pair", 2))
        end = time.monotonic() + 60
        while nobody_waits_for("b"):
            assert time.monotonic() < end
            time.sleep(0.05)
        jobs.append(hold("holder-late"))
        time.sleep(3 * leases.POLL_S)
        assert held() == {"holder-one": "a"}, "the late one waits, although b is free"
        jobs[0].kill()
        jobs[0].wait()
        Path("holder-one").unlink()
        assert wait_until_held(by=1) == {"holder-pair": "a,b"}
    finally:
        for job in jobs:
            subprocess.run(["kill", "-9", "--", f"-{job.pid}"], check=False, stderr=subprocess.DEVNULL)


def test_a_job_that_waits_for_one_device_does_not_delay_jobs_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "a")
    jobs = [hold("holder-first")]
    try:
        wait_until_held(by=1)
        jobs.append(hold("holder-waits"))
        end = time.monotonic() + 60
        while nobody_waits_for("a"):
            assert time.monotonic() < end
            time.sleep(0.05)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "b")
        jobs.append(hold("holder-other"))
        assert wait_until_held(by=2) == {"holder-first": "a", "holder-other": "b"}
    finally:
        for job in jobs:
            subprocess.run(["kill", "-9", "--", f"-{job.pid}"], check=False, stderr=subprocess.DEVNULL)


def nobody_waits_for(device: str) -> bool:
    """Whether a device's turn is free, asked from another process: a process does not see its own locks as held."""
    code = f"from fcntl import *; lockf(open('leases/{device}.lock', 'r+'), LOCK_EX | LOCK_NB, 1, {leases.TURN})"
    return subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL, check=False).returncode == 0


def test_the_variable_is_restored() -> None:
    with leased(2):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "a,b"
    with leased(1):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "a"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "a,b"
    with leased(0):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "a,b"


def test_more_devices_than_there_are() -> None:
    with pytest.raises(MlsError, match=r"3 GPUs .* offers 2 \(a, b\)"), leased(3):
        pass


def test_no_known_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job for one device then runs, and torch says what there is; a job for several can't."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert leases.devices() == []
    with leased(1):
        assert not Path("leases").exists()
    with pytest.raises(MlsError, match="offers none"), leased(2):
        pass


def test_a_slurm_job_has_lock_files_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two jobs on a node both call their one device 0."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    with leased(1):
        assert {file.name for file in Path("leases").iterdir()} == {"slurm-7-n1-a.lock", "slurm-7-n1-b.lock"}


def test_a_folder_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").touch()
    monkeypatch.setenv("MLS_LEASES", "file")
    with pytest.raises(MlsError, match="set MLS_LEASES"), leased(1):
        pass


def test_all_users_can_write_the_folder_whatever_the_umask(in_tmp: Path) -> None:
    before = os.umask(0o077)
    try:
        with leased(1):
            assert (in_tmp / "leases").stat().st_mode & 0o7777 == 0o1777
            assert (in_tmp / "leases" / "a.lock").stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(before)
    assert [file.name for file in in_tmp.iterdir()] == ["leases"]


def test_a_symbolic_link_in_place_of_the_folder_is_refused(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lock files would be made wherever it leads. A link that the user names in $MLS_LEASES is followed."""
    Path("elsewhere").mkdir()
    Path("link").symlink_to("elsewhere")
    monkeypatch.delenv("MLS_LEASES")
    monkeypatch.setattr(leases, "FOLDER", in_tmp / "link")
    with pytest.raises(MlsError, match="set MLS_LEASES"), leased(1):
        pass
    assert not list(Path("elsewhere").iterdir())
    monkeypatch.setenv("MLS_LEASES", "link")
    with leased(1):
        assert list(Path("elsewhere").iterdir())


def test_which_jobs_take_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = small(probe={kind: {"kind": kind, "dataset": "scenes", "image_size": 32} for kind in ("linear", "svm")})
    plan = plan_of(raw)
    four = Execution(gpus=4)

    def taken(execution: Execution) -> dict[str, int]:
        return {plan.name(job): gpus_of(job, execution) for job in plan.jobs.values()}

    by_stage = {name.split(" [")[0]: count for name, count in taken(four).items()}
    assert by_stage["pretrain mls:0"] == by_stage["pretrain moco-v2:0"] == 4
    assert by_stage["pretrain random:0"] == 1
    assert by_stage["data scenes"] == by_stage["probe svm/mls:0"] == 0
    assert by_stage["probe linear/mls:0"] == 1
    assert {count for name, count in taken(four).items() if name.startswith("features")} == {1}
    assert set(taken(four.model_copy(update={"device": "cpu"})).values()) == {0}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert set(taken(four).values()) == {0}, "auto, and none here"
    assert max(taken(four.model_copy(update={"device": "cuda"})).values()) == 4, "a login node need not have any"
