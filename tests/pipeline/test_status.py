"""What `mls status` prints, and what a failed run lists at its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from mls.pipeline.runner import Context, run_stage
from mls.pipeline.status import failures, print_states, print_status
from mls.runtime.errors import DeterministicError
from tests.conftest import plan_of, small


def diverge(context: Context) -> None:
    raise DeterministicError("the loss is not finite")


def stumble(context: Context) -> None:
    raise RuntimeError("boom")


def test_failures_are_listed_with_how_to_try_again(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(small())
    (sure, unsure) = (plan.find("pretrain", run)[0] for run in ("random", "moco-v2"))
    assert failures(plan) == []
    plan.jobs = {job.id: job for job in (sure, unsure)}  # what follows needs no data
    object.__setattr__(unsure, "inputs", {})
    for job, fails in ((sure, diverge), (unsure, stumble)):
        with pytest.raises((DeterministicError, RuntimeError)):
            run_stage(plan, job, fails)
    expected = [
        f"pretrain random:0 [{sure.id}] failed: the loss is not finite "
        f"(to try again: mls retry {sure.id}, then the same command)",
        f"pretrain moco-v2:0 [{unsure.id}] failed: RuntimeError: boom (to try again: the same command)",
    ]
    assert failures(plan) == expected
    print_status(plan)
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["stage", "id", "state", "code", "labels"]
    assert said[1].split() == ["pretrain", sure.id, "failed", "random:0"]
    assert said[-3:] == ["2 failed", *expected]


def test_a_finished_job_has_no_failure(in_tmp: Path) -> None:
    plan = plan_of(small())
    (job,) = plan.find("pretrain", "random")
    run_stage(plan, job, lambda context: None)
    (job.work / "failed.json").write_text("a leftover")
    assert failures(plan) == []


def test_states_are_aligned_and_plain_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_states(("k", "state"), [("mls[topk=1]", "done"), ("a", "2 done, 1 running")])
    assert capsys.readouterr().out == "k            state\nmls[topk=1]  done\na            2 done, 1 running\n"
