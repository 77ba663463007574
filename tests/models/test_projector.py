"""Projectors and predictors: their layers and their initialisation."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mls.models.batchnorm import split_batch_norm
from mls.models.projector import (
    SlotPredictor,
    build_byol_mlp,
    build_dense_projector,
    build_pixel_projector,
    build_projector,
)

close = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-12)


def shapes(module: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in module.parameters()]


def layers(module: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def applied(layer: nn.Linear | nn.Conv2d, x_RC: Tensor) -> Tensor:
    """A linear map of vectors; a convolution's kernel is 1 x 1."""
    y_RC = x_RC @ layer.weight.flatten(1).T
    return y_RC if layer.bias is None else y_RC + layer.bias


def normalised(x_RC: Tensor) -> Tensor:
    """Batch norm with weight 1 and bias 0."""
    return (x_RC - x_RC.mean(0)) / (x_RC.var(0, unbiased=False) + 1e-5).sqrt()


def with_biases(module: nn.Module) -> None:
    """Biases, which begin as 0."""
    for layer in layers(module):
        assert layer.bias is not None
        nn.init.normal_(layer.bias)


def test_the_dense_projector_is_the_projector_at_each_cell() -> None:
    plain, dense = build_projector(6, 4).double(), build_dense_projector(6, 4).double()
    for a, b in zip(plain.parameters(), dense.parameters(), strict=True):
        b.data.copy_(a.data.view_as(b))
    assert shapes(plain) == [(6, 6), (6,), (4, 6), (4,)]
    x_BGhw = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    found = dense(x_BGhw)
    for r in range(3):
        for c in range(5):
            close(found[:, :, r, c], plain(x_BGhw[:, :, r, c]))


def test_byols_mlp_by_hand() -> None:
    head, x_BG = build_byol_mlp(6, 10, 4).double(), torch.randn(5, 6, dtype=torch.float64)
    assert shapes(head) == [(10, 6), (10,), (10,), (10,), (4, 10)]
    first, second = layers(head)
    close(head(x_BG), applied(second, normalised(applied(first, x_BG)).relu()))


def test_the_pixel_projector_by_hand() -> None:
    """Batch norm's statistics are over all cells of all images."""
    head, x_BGhw = build_pixel_projector(6, 10, 4).double(), torch.randn(3, 6, 2, 3, dtype=torch.float64)
    first, second, third = layers(head)
    with_biases(head)
    x_RC = torch.stack([x_BGhw[b, :, r, c] for b in range(3) for r in range(2) for c in range(3)])
    for layer in (first, second):
        x_RC = F.gelu(normalised(applied(layer, x_RC)))
    expected = applied(third, x_RC)
    close(head(x_BGhw), expected.view(3, 2, 3, 4).permute(0, 3, 1, 2))


@pytest.mark.parametrize("splits", [1, 2])
def test_the_slot_predictor_by_hand(splits: int) -> None:
    """The valid slots of each group are one batch of vectors; the others have no influence."""
    head, slots_BMd = SlotPredictor(4, 10).double(), torch.randn(4, 5, 4, dtype=torch.float64)
    split_batch_norm(head, splits)
    first, second, third = layers(head)
    with_biases(head)
    valid_BM = torch.rand(4, 5) < 0.5
    found = head(slots_BMd, valid_BM)
    expected = []
    for slots, valid in zip(slots_BMd.chunk(splits), valid_BM.chunk(splits), strict=True):
        assert 2 <= valid.sum() < valid.numel()
        x = slots[valid]
        for layer in (first, second):
            x = F.gelu(normalised(applied(layer, x)))
        expected.append(applied(third, x))
    close(found[valid_BM], torch.cat(expected))
    moved = torch.where(valid_BM[:, :, None], slots_BMd, 1e3)
    assert torch.equal(head(moved, valid_BM)[valid_BM], found[valid_BM])


@pytest.mark.parametrize("build", [lambda: build_pixel_projector(64, 96, 80), lambda: SlotPredictor(64, 96)])
def test_slotcons_heads_begin_small(build: Callable[[], nn.Module]) -> None:
    found = layers(build())
    assert len(found) == 3
    for layer in found:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.03) and layer.bias is not None
        assert torch.count_nonzero(layer.bias) == 0
