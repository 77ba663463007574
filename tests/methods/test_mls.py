"""The paper's equations 7 to 10 on cases computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mls.experiment.params import Backbone, Mls, Moco, Pretrain
from mls.methods.mls import MLS, multi_label_loss, pseudo_labels
from mls.methods.moco import MoCo


def test_pseudo_labels_are_the_k_nearest_whatever_the_scale_of_g() -> None:
    queue = torch.eye(4)[[0, 1, 2, 3]]
    g = torch.tensor([[0.1, 0.5, 0.4, 0.0], [9.0, 1.0, -3.0, 8.0]])
    expected = torch.tensor([[False, True, True, False], [True, False, False, True]])
    assert torch.equal(pseudo_labels(g, queue, 2), expected)
    assert torch.equal(pseudo_labels(100 * g, queue, 2), expected)


def test_exactly_k_positives_also_among_ties() -> None:
    labels = pseudo_labels(torch.ones(3, 2), torch.ones(7, 2), 4)
    assert labels.sum(1).tolist() == [4, 4, 4] and labels.dtype == torch.bool


@pytest.mark.parametrize("k", [0, 8])
def test_k_outside_the_dictionary_is_an_error(k: int) -> None:
    with pytest.raises(ValueError, match=r"1\.\.7"):
        pseudo_labels(torch.ones(1, 2), torch.ones(7, 2), k)


def test_the_loss_equals_equation_9_in_plain_python() -> None:
    logits = [[0.9, -0.2, 0.1], [0.0, 0.5, -1.0]]
    labels = [[True, False, False], [False, True, False]]
    t, total = 0.2, 0.0
    for row, truth in zip(logits, labels, strict=True):
        for p, y in zip(row, truth, strict=True):
            s = 1 / (1 + math.exp(-p / t))
            total -= math.log(s) if y else math.log(1 - s)
    loss = multi_label_loss(torch.tensor(logits), torch.tensor(labels), t)
    assert float(loss) == pytest.approx(total / 6, rel=1e-6) and loss.dtype == torch.float32


def test_untrained_logits_give_ln_2() -> None:
    """Paper facts: at cosine 0 each sigmoid is one half."""
    loss = multi_label_loss(torch.zeros(2, 5), torch.zeros(2, 5, dtype=torch.bool), 0.2)
    assert float(loss) == pytest.approx(math.log(2))


def config(weight: float) -> Pretrain:
    backbone = Backbone(name="resnet18", width=0.125, stem="small")
    return Pretrain(backbone=backbone, moco=Moco(queue_size=12, projection_dim=8), mls=Mls(topk=3, weight=weight))


def build(kind: type[MoCo], weight: float) -> MoCo:
    torch.manual_seed(0)
    return kind(config(weight)).train()


def test_the_total_is_info_nce_plus_lambda_times_the_term() -> None:
    views = torch.randn(2, 4, 3, 16, 16)
    losses = build(MLS, 0.5)(*views)
    expected = losses["info_nce"] + 0.5 * losses["multi_label"]
    assert torch.equal(losses["loss"], expected) and losses["multi_label"].item() > 0


def test_labels_come_from_backbone_features_and_gradient_flows_through_logits_alone() -> None:
    mls = build(MLS, 1.0)
    assert isinstance(mls, MLS)
    views = torch.randn(2, 4, 3, 16, 16)
    embedded = mls.embed(*views)
    labels = pseudo_labels(embedded.g_query_BG, mls.queue_g.entries_Dd, 3)
    logits = embedded.z_query_Bd @ mls.queue_z.entries_Dd.T
    assert torch.equal(mls.losses(embedded)["multi_label"], multi_label_loss(logits, labels, 0.2))
    mls.losses(embedded)["multi_label"].backward()
    assert embedded.g_query_BG.grad_fn is not None and not labels.requires_grad
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in mls.projector.parameters())


def test_both_dictionaries_hold_the_same_keys_in_the_same_order() -> None:
    mls = build(MLS, 0.5)
    assert isinstance(mls, MLS)
    for _ in range(4):  # 4 x 5 keys wrap around 12 entries
        views = torch.randn(2, 5, 3, 16, 16)
        mls(*views)
        keys = mls._keys
        assert keys is not None
        mls.finish_step()
        places = (torch.arange(5) + int(mls.queue_z.pointer) - 5) % 12
        assert torch.equal(mls.queue_g.entries_Dd[places], keys.g_key_BG)
        assert torch.equal(mls.queue_z.entries_Dd[places], keys.z_key_Bd)


def test_weight_zero_trains_as_moco_does() -> None:
    """The same encoder, batch and random draws up to the second dictionary."""
    moco, mls = build(MoCo, 0.0), build(MLS, 0.0)
    views = torch.randn(2, 4, 3, 16, 16)
    for method in (moco, mls):
        method(*views)["loss"].backward()
    for a, b in zip(moco.backbone.parameters(), mls.backbone.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad)
