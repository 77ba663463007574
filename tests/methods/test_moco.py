"""InfoNCE against plain Python; the step as MoCo defines it."""

from __future__ import annotations

import math

import pytest
import torch

from mls.methods.moco import MoCo, info_nce
from tests.methods.support import TRUE, build, config, pair, unit


def test_info_nce_equals_equation_1_in_plain_python() -> None:
    torch.manual_seed(0)
    q, k, queue, t = unit(3, 4), unit(3, 4), unit(5, 4), 0.2
    total = 0.0
    for i in range(3):
        positive = math.exp(sum(a * b for a, b in zip(q[i].tolist(), k[i].tolist(), strict=True)) / t)
        negatives = sum(math.exp(sum(a * b for a, b in zip(q[i].tolist(), e, strict=True)) / t) for e in queue.tolist())
        total += -math.log(positive / (positive + negatives)) / 3
    assert float(info_nce(q, k, queue, t)) == pytest.approx(total, rel=1e-12)


def test_losses_are_float32_at_least() -> None:
    q = unit(3, 4).bfloat16()
    assert info_nce(q, q, q, 0.2).dtype == torch.float32
    assert info_nce(unit(3, 4), unit(3, 4), unit(5, 4), 0.2).dtype == torch.float64


def test_keys_enter_the_dictionary_after_the_loss_and_carry_no_gradient() -> None:
    moco = build(MoCo)
    before = moco.dictionary.z_Dd.clone()
    losses = moco(pair())
    assert torch.equal(moco.dictionary.z_Dd, before)
    losses["loss"].backward()
    assert all(p.grad is None for p in moco.key_backbone.parameters())
    assert all(p.grad is not None for p in moco.backbone.parameters())
    keys = moco.embedded.keys
    moco.finish_step(TRUE)
    d = moco.dictionary
    assert int(d.pointer) == 4 and torch.equal(d.z_Dd[4:], before[4:])
    assert torch.equal(d.z_Dd[:4], keys.z_Nd) and torch.equal(d.g_DG[:4], keys.g_NG)
    assert d.row_D[:4].tolist() == [100, 101, 102, 103] and d.box_D4[3].tolist() == [103] * 4


def test_keys_come_from_the_second_view_and_the_key_encoder() -> None:
    moco = build(MoCo)
    for p in moco.key_backbone.parameters():
        p.data.mul_(1.01)
    views = pair()
    embedded = moco.embed(views)
    other_query = moco.embed(views._replace(query_BCHW=torch.randn(4, 3, 16, 16)))
    assert torch.equal(embedded.keys.z_Nd, other_query.keys.z_Nd)
    g = moco.key_backbone(views.key_BCHW)
    assert torch.allclose(embedded.keys.g_NG, g / g.norm(dim=1, keepdim=True), atol=1e-6)
    assert torch.equal(embedded.z_key_Bd, embedded.keys.z_Nd)
    assert torch.allclose(embedded.z_query_Bd.norm(dim=1), torch.ones(4))


def test_groups_hide_the_statistics_of_a_pair() -> None:
    """With 2 groups and shuffled keys, a query's embedding does not depend on images of the other group."""
    moco = build(MoCo, config({"bn_splits": 2}))
    views = pair(order=torch.tensor([0, 2, 1, 3]))
    changed = views._replace(query_BCHW=views.query_BCHW.clone(), key_BCHW=views.key_BCHW.clone())
    changed.query_BCHW[2:] += 1
    changed.key_BCHW[1] += 1
    one, two = moco.embed(views), moco.embed(changed)
    assert torch.allclose(one.z_query_Bd[:2], two.z_query_Bd[:2]), "groups of queries: 0, 1 and 2, 3"
    assert not torch.allclose(one.z_query_Bd[2:], two.z_query_Bd[2:])
    assert torch.allclose(one.keys.z_Nd[[0, 2]], two.keys.z_Nd[[0, 2]], atol=1e-6), "groups of keys: 0, 2 and 1, 3"
    assert not torch.allclose(one.keys.z_Nd[3], two.keys.z_Nd[3], atol=1e-6)


def test_both_encoders_begin_equal() -> None:
    moco = build(MoCo)
    for online, key in zip(moco.backbone.parameters(), moco.key_backbone.parameters(), strict=True):
        assert torch.equal(online, key) and not key.requires_grad


def test_finish_without_a_step_is_an_error() -> None:
    with pytest.raises(RuntimeError):
        build(MoCo).finish_step(TRUE)
