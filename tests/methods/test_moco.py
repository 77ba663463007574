"""InfoNCE and the queue against plain Python; the step as MoCo defines it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from mls.experiment.params import Backbone, Moco, Pretrain
from mls.methods.moco import MoCo, info_nce
from mls.methods.momentum import Queue, update_key_encoder


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=1)


def test_info_nce_equals_equation_1_in_plain_python() -> None:
    torch.manual_seed(0)
    q, k, queue, t = unit(3, 4), unit(3, 4), unit(5, 4), 0.2
    total = 0.0
    for i in range(3):
        positive = math.exp(sum(a * b for a, b in zip(q[i].tolist(), k[i].tolist(), strict=True)) / t)
        negatives = sum(math.exp(sum(a * b for a, b in zip(q[i].tolist(), e, strict=True)) / t) for e in queue.tolist())
        total += -math.log(positive / (positive + negatives)) / 3
    assert float(info_nce(q, k, queue, t)) == pytest.approx(total, rel=1e-6)


def test_the_queue_is_first_in_first_out_for_any_batch_size() -> None:
    queue = Queue(5, 2)
    assert torch.allclose(queue.entries_Dd.norm(dim=1), torch.ones(5))
    keys = torch.arange(14, dtype=torch.float32).reshape(7, 2)
    queue.enqueue(keys[:3])
    queue.enqueue(keys[3:7])  # wraps: 5 entries, no divisibility rule
    held = {tuple(row) for row in queue.entries_Dd.tolist()}
    assert held == {tuple(row) for row in keys[2:].tolist()}
    assert queue.entries_Dd[1].tolist() == keys[6].tolist() and int(queue.pointer) == 2


def test_a_batch_larger_than_the_queue_leaves_its_last_keys() -> None:
    queue = Queue(3, 1)
    queue.enqueue(torch.arange(8, dtype=torch.float32)[:, None])
    assert sorted(queue.entries_Dd[:, 0].tolist()) == [5, 6, 7]


def test_the_key_encoder_moves_by_one_minus_m() -> None:
    online, key = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    before, target = key.weight.clone(), online.weight.clone()
    update_key_encoder(online, key, 0.9)
    assert torch.allclose(key.weight, 0.9 * before + 0.1 * target)


def method() -> MoCo:
    torch.manual_seed(0)
    backbone = Backbone(name="resnet18", width=0.125, stem="small")
    return MoCo(Pretrain(backbone=backbone, moco=Moco(queue_size=6, projection_dim=8)))


def test_keys_enter_the_queue_after_the_loss_and_carry_no_gradient() -> None:
    moco = method().train()
    query, key = torch.randn(2, 4, 3, 16, 16)
    before = moco.queue_z.entries_Dd.clone()
    losses = moco(query, key)
    assert torch.equal(moco.queue_z.entries_Dd, before)
    losses["loss"].backward()
    assert all(p.grad is None for p in moco.key_backbone.parameters())
    assert all(p.grad is not None for p in moco.backbone.parameters())
    moco.finish_step()
    assert int(moco.queue_z.pointer) == 4
    assert torch.equal(moco.queue_z.entries_Dd[4:], before[4:])
    assert not torch.equal(moco.queue_z.entries_Dd[:4], before[:4])


def test_both_encoders_begin_equal() -> None:
    moco = method()
    for online, key in zip(moco.backbone.parameters(), moco.key_backbone.parameters(), strict=True):
        assert torch.equal(online, key) and not key.requires_grad


def test_finish_without_a_step_is_an_error() -> None:
    with pytest.raises(RuntimeError):
        method().finish_step()
