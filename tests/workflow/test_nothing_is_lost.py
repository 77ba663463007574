"""Finished artifacts and resumable state survive DVC, git and the copies that DVC makes; with the real tools."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.workflow.clone import Clone


def test_dvc_and_git_lose_no_artifact(original: Clone) -> None:
    original.run("dvc", "exp", "save", "-q", "-n", "before")
    original.run("git", "switch", "-q", "-c", "renamed")
    original.edit(runs__mls=None, runs__ours={}, draw=["ours"])
    original.run("snakemake")
    made = original.digests()
    original.commit("another row; dvc.lock knows nothing of its tables")

    def lost() -> set[str]:
        return {name.split("/")[0] for name in made.keys() - original.digests().keys()}

    original.run("dvc", "exp", "apply", "before")
    assert lost() == {"tables"}
    original.run("git", "clean", "-fdq")
    original.run("git", "reset", "-q", "--hard")
    assert original.planned() == {}
    assert original.digests() == made

    original.run("git", "switch", "-q", "main")
    original.run("dvc", "checkout", "--force")
    assert lost() == {"tables"}
    original.run("git", "switch", "-q", "renamed")
    assert "0 damaged, 0 missing" in original.run("mls", "verify")
    assert original.digests() == made


def test_a_clone_that_shares_the_store_has_nothing_to_do(finished: Clone, fresh: Clone) -> None:
    shared = ("env", f"MLS_STORE={finished.path / '.store'}")
    text = fresh.run(*shared, "snakemake", "-n")
    assert "12 of 12 artifacts linked" in text and "Nothing to be done" in text
    assert fresh.digests() == finished.digests()
    assert "12 done" in fresh.run(*shared, "mls", "status")


def test_two_clones_with_one_store_make_a_shared_artifact_once(finished: Clone, tmp_path: Path) -> None:
    clones = [finished.clone(tmp_path / name) for name in ("a", "b")]
    command = ("env", f"MLS_STORE={tmp_path / 'common'}", "snakemake", "data")
    assert [started.wait() for started in [clone.start(*command) for clone in clones]] == [0, 0]
    manifests = [file.read_text() for clone in clones for file in clone.path.glob("artifacts/data/*/artifact.json")]
    assert len(manifests) == 2 and manifests[0] == manifests[1], "same host, time and duration: it was made once"
    assert clones[0].digests() == clones[1].digests()


def test_a_killed_queued_experiment_resumes_when_queued_again(pulled: Clone) -> None:
    def queue(name: str) -> None:
        pulled.run("dvc", "exp", "run", "-q", "--queue", "-n", name, "-S", "pretrain.epochs=6", "pretrain")

    def trainers() -> list[int]:
        copies = [Clone(path) for path in (pulled.path / ".dvc" / "tmp" / "exps").glob("tmp*")]
        return [pid for copy in copies for pid, line in copy.processes().items() if "-m mls pretrain" in line]

    pulled.edit(runs__mls=None, tables={"main": {"columns": ["linear.mAP"]}}, draw=[])
    pulled.commit("one run")
    queue("killed")
    started = pulled.start("dvc", "exp", "run", "--run-all")
    pulled.wait_for("work/*/checkpoint-*.pt")
    for pid in trainers():
        os.kill(pid, signal.SIGKILL)
    started.wait()
    assert "Failed" in pulled.run("dvc", "queue", "status") and not pulled.run("dvc", "exp", "list").strip()
    queue("again")
    assert "resumes at step" in pulled.run("dvc", "exp", "run", "--run-all")
    assert "again" in pulled.run("dvc", "exp", "list")
