"""One training step never waits for the device; memory formats and compilation agree; what is logged."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

import mls.train.pretrain
from mls.methods.method import Pair
from mls.methods.moco import MoCo
from mls.pipeline.plan import Plan
from mls.pipeline.runner import run_stage
from tests.conftest import PEERS, SMALL, plan_of, small, with_peers
from tests.train.support import HostReads, job_of, trainer_of


@pytest.mark.parametrize(
    ("run", "optimizer"), [("mls", "adamw"), *((run, "sgd") for run in ("mls", "multicrop", *PEERS))]
)
def test_no_step_reads_a_value_on_the_host(plan: Plan, run: str, optimizer: str) -> None:
    pretrain = {**SMALL["pretrain"], "optimizer": {"name": optimizer, "lr": 0.01}}
    trainer = trainer_of(plan_of(with_peers(pretrain=pretrain)), run)
    steps = [trainer.views[0], trainer.views[1]]
    for batch in steps:
        with HostReads() as reads:
            trainer._train_step(batch)
        assert not reads.found, "".join(reads.found)


@pytest.mark.parametrize("run", ["mls", *PEERS])
def test_compiled_encoders_train_as_eager_ones(plan: Plan, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a backend that only captures the graph: the same losses, and the same names in the state."""
    captured: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        captured.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    trainers = [
        trainer_of(plan_of(with_peers(pretrain={**SMALL["pretrain"], "compile": chosen})), run)
        for chosen in (False, True)
    ]
    for trainer in trainers:
        for step in range(2):
            trainer._train_step(trainer.views[step])
    eager, compiled = (trainer.window.means() for trainer in trainers)
    assert compiled == pytest.approx(eager, rel=1e-4, nan_ok=True)
    assert captured, "the encoders did run compiled"
    assert trainers[0].method.state_dict().keys() == trainers[1].method.state_dict().keys()


def test_both_memory_formats_give_the_same_loss(plan: Plan) -> None:
    trainers = [
        trainer_of(plan_of(small(pretrain={**SMALL["pretrain"], "channels_last": chosen}))) for chosen in (False, True)
    ]
    for trainer in trainers:
        trainer._train_step(trainer.views[0])
    one, two = (trainer.window.means() for trainer in trainers)
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
    assert trainers[1].method.backbone.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_log_explains_a_rising_loss_and_a_large_dictionary(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    run_stage(plan, job_of(plan, "mls"), mls.train.pretrain.run)
    log = capsys.readouterr().err
    assert "the loss rises until it is full of keys, at step 3; this is normal" in log
    assert "warning: moco.queue_size 20 is more than a quarter of the 24 train images" in log


def test_a_collapse_is_named_when_it_happens(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = MoCo.embed

    def collapsed(self: MoCo, pair: Pair) -> Any:
        e = original(self, pair)
        same = torch.zeros_like(e.keys.z_Nd)
        same[:, 0] = 1
        return replace(e, z_query_Bd=e.z_query_Bd * 0 + same, keys=e.keys._replace(z_Nd=same))

    monkeypatch.setattr(MoCo, "embed", collapsed)
    run_stage(plan, job_of(plan, "moco-v2"), mls.train.pretrain.run)
    log = capsys.readouterr().err
    assert log.count("the embeddings have collapsed") == 1 and "epoch 2:" in log
