"""A training step on a device: it waits for nothing, its losses are those of a CPU, bf16 is near float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from mls.pipeline.plan import Plan
from mls.train.loop import Trainer
from tests.conftest import PEERS, SMALL, plan_of, with_peers
from tests.gpu.conftest import with_data
from tests.train.support import HostReads, trainer_of

RUNS = ["mls", *PEERS]


def plan_on(device: str, **pretrain: Any) -> Plan:
    """The small experiment on a device, in float32, with its data."""
    execution = {**SMALL["execution"], "device": device}
    return with_data(plan_of(with_peers(execution=execution, pretrain={**SMALL["pretrain"], **pretrain})))


@contextmanager
def no_wait(device: torch.device) -> Iterator[None]:
    """Within the block, an operation for which the host waits is an error."""
    if device.type == "cpu":
        with HostReads() as reads:
            yield
        assert not reads.found, "".join(reads.found)
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("run", "changes"),
    [
        *((run, {}) for run in RUNS),
        ("mls", {"resident": "cuda"}),
        ("mls", {"precision": "bf16"}),
        ("mls", {"optimizer": {"name": "adamw", "lr": 0.01}}),
    ],
)
@pytest.mark.usefixtures("in_tmp")
def test_no_step_waits_for_the_device(run: str, changes: dict[str, Any], device: torch.device) -> None:
    if "resident" in changes and device.type == "cpu":
        pytest.skip("reads sizes of boxes, which are on the CPU everywhere")
    trainer = trainer_of(plan_on(device.type, **changes), run)
    first, *others = [trainer.views[step] for step in range(4)]
    trainer._train_step(first)  # constants are copied to the device once
    for batch in others:
        with no_wait(device):
            trainer._train_step(batch)
    trainer._handle(trainer.late.drain())
    assert trainer.nonfinite == 0 and trainer.step == 4


def losses(trainer: Trainer, steps: int = 3) -> list[float]:
    """The loss of each of the first steps."""
    found = []
    for step in range(steps):
        trainer._train_step(trainer.views[step])
        found.append(trainer.window.means()["loss"])
    return found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.usefixtures("in_tmp")
def test_losses_are_those_of_the_cpu(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # by default convolutions round to 10 bits
    on_cpu, on_gpu = (losses(trainer_of(plan_on(device), run)) for device in ("cpu", "cuda"))
    assert on_gpu == pytest.approx(on_cpu, rel=1e-3)
    assert len(set(on_cpu)) == 3, "the weights move"


@pytest.mark.usefixtures("in_tmp")
def test_bf16_is_near_float32(device: torch.device) -> None:
    """8 bits in the networks; losses, gradients, weights and the dictionary stay float32."""
    trainers = {precision: trainer_of(plan_on(device.type, precision=precision)) for precision in ("fp32", "bf16")}
    seen: list[torch.dtype] = []
    for trainer in trainers.values():
        trainer.method.backbone.layer1[0].conv1.register_forward_hook(lambda *given: seen.append(given[-1].dtype))
    exact, near = (losses(trainer) for trainer in trainers.values())
    assert near[0] == pytest.approx(exact[0], rel=0.03) and near != exact
    assert near == pytest.approx(exact, rel=0.3), "training amplifies the difference"
    assert seen == [torch.float32] * 3 + [torch.bfloat16] * 3
    kept = trainers["bf16"]
    assert {value.dtype for value in kept.method.state_dict().values() if value.is_floating_point()} == {torch.float32}
    assert all(p.grad.dtype == torch.float32 for p in kept.parameters if p.grad is not None)
