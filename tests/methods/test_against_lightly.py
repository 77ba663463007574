"""Losses, matching, BYOL's head and the moving average against those of lightly."""

from __future__ import annotations

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules.heads import BYOLProjectionHead, DenseCLProjectionHead
from lightly.models.utils import select_most_similar, update_momentum
from torch import Tensor, nn
from torch.nn import functional as F

from mls.methods.byol import prediction_loss
from mls.methods.densecl import dense_info_nce, match
from mls.methods.moco import info_nce
from mls.methods.momentum import update_key_encoder
from mls.models.projector import build_byol_mlp, build_dense_projector
from tests.methods.support import TRUE, unit

DTYPES = [torch.float64, torch.float32]


def near(found: Tensor | None, expected: Tensor | None) -> None:
    """To 1e-10 in float64; to 1e-5 of the greatest value in float32."""
    assert found is not None
    assert expected is not None
    assert found.dtype == expected.dtype
    tolerance = 1e-10 if found.dtype == torch.float64 else 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def same_loss_and_gradient(found: Tensor, expected: Tensor, ours: Tensor, theirs: Tensor) -> None:
    near(found, expected)
    found.backward()
    expected.backward()
    near(ours.grad, theirs.grad)


def twins(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two leaves with the same values."""
    return x.clone().requires_grad_(), x.clone().requires_grad_()


def nt_xent(queue_Dd: Tensor, temperature: float) -> NTXentLoss:
    """With a memory bank of negatives lightly's loss is MoCo's: first argument query, second argument positive."""
    loss = NTXentLoss(temperature, memory_bank_size=tuple(queue_Dd.shape))
    loss.memory_bank.bank = queue_Dd.clone()
    return loss


@pytest.mark.parametrize("temperature", [0.2, 0.07])
@pytest.mark.parametrize("dtype", DTYPES)
def test_info_nce(dtype: torch.dtype, temperature: float) -> None:
    """lightly normalises its inputs, so the leaves are raw queries, and ours are normalised here."""
    raw, k, queue = 3 * unit(16, 32).to(dtype) + 0.1, unit(16, 32).to(dtype), unit(64, 32).to(dtype)
    ours, theirs = twins(raw)
    found = info_nce(F.normalize(ours, dim=1), k, queue, temperature)
    expected = nt_xent(queue, temperature)(theirs, k)
    same_loss_and_gradient(found, expected, ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_matching_and_its_loss(dtype: torch.dtype) -> None:
    """lightly's cells are the last axis but one, and it returns the matched projections instead of indices."""
    maps = [torch.randn(4, 16, 9, dtype=torch.float64).to(dtype) for _ in "qk"]
    raw, k = (torch.randn(4, 8, 9, dtype=torch.float64).to(dtype) for _ in "qk")
    queue, (ours, theirs) = unit(20, 8).to(dtype), twins(raw)
    k = F.normalize(k, dim=1)
    found = dense_info_nce(F.normalize(ours, dim=1), k, match(maps[0], maps[1]), queue, 0.2)
    chosen = select_most_similar(maps[0].mT, maps[1].mT, k.mT)
    expected = nt_xent(queue, 0.2)(theirs.mT.flatten(0, 1), chosen.flatten(0, 1))
    same_loss_and_gradient(found, expected, ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_prediction_loss(dtype: torch.dtype) -> None:
    """Ours is a direction's squared distance, 2 - 2 cos; lightly's is - cos."""
    (ours, theirs), z = twins(torch.randn(16, 32, dtype=torch.float64).to(dtype)), unit(16, 32).to(dtype)
    found = prediction_loss(F.normalize(ours, dim=1), z)
    expected = 2 + 2 * NegativeCosineSimilarity()(theirs, z)
    same_loss_and_gradient(found, expected, ours, theirs)


def copied(source: nn.Module, target: nn.Module) -> None:
    """Weights in order; the shapes must be equal."""
    for a, b in zip(source.parameters(), target.parameters(), strict=True):
        b.data.copy_(a.data.view_as(b))


def test_byols_head() -> None:
    """lightly's only bias is in the last layer; ours, like the authors', in the first, where batch norm undoes it."""
    ours, theirs = build_byol_mlp(12, 20, 6).double(), BYOLProjectionHead(12, 20, 6).double()
    torch.nn.init.zeros_(theirs.layers[3].bias)
    theirs.layers.load_state_dict({k: v for k, v in ours.state_dict().items() if k != "0.bias"}, strict=False)
    x, y = twins(torch.randn(8, 12, dtype=torch.float64))
    found, expected = ours(x), theirs(y)
    near(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    near(x.grad, y.grad)


def test_densecls_head_is_an_mlp_at_each_cell() -> None:
    ours, theirs = build_dense_projector(12, 6).double(), DenseCLProjectionHead(12, 12, 6).double()
    copied(ours, theirs)
    x, y = twins(torch.randn(8, 9, 12, dtype=torch.float64))
    heads_agree(ours, theirs, x, y, ours(x.mT.view(8, 12, 3, 3)).flatten(2).mT)


def heads_agree(ours: nn.Module, theirs: nn.Module, x: Tensor, y: Tensor, found: Tensor) -> None:
    """Values, and gradients of input and weights."""
    expected = theirs(y)
    near(found, expected)
    weight = torch.randn_like(expected)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    near(x.grad, y.grad)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert a.grad is not None
        near(a.grad.view_as(b), b.grad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_moving_average(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)  # 1 - m is of it
    try:
        online, ours, theirs = (nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)) for _ in range(3))
        copied(ours, theirs)
        update_key_encoder(online, ours, 0.99, TRUE)
        update_momentum(online, theirs, 0.99)
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        near(a.detach(), b.detach())
