"""The key encoder's moving average, and shuffled batch norm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mls.methods.momentum import key_order, rising_momentum, shuffled, update_key_encoder
from mls.models.batchnorm import split_batch_norm


def test_the_key_encoder_moves_by_one_minus_m() -> None:
    online, key = nn.Linear(2, 2), nn.Linear(2, 2)
    before, target = key.weight.clone(), online.weight.clone()
    update_key_encoder(online, key, 0.9, torch.tensor(True))
    assert torch.allclose(key.weight, 0.9 * before + 0.1 * target)
    assert torch.equal(online.weight, target)


def test_a_non_finite_step_does_not_move_the_key_encoder() -> None:
    online, key = nn.Linear(2, 2), nn.Linear(2, 2)
    before = key.weight.clone()
    update_key_encoder(online, key, 0.9, torch.tensor(False))
    assert torch.equal(key.weight, before)


@pytest.mark.parametrize(
    ("base", "progress", "expected"),
    [
        (0.99, 0.0, 0.99),
        (0.99, 0.5, 0.995),
        (0.99, 1.0, 1.0),
        (0.996, 1 / 3, 0.997),  # cos(pi / 3) = 1/2: three quarters of the way are left
        (0.996, 2 / 3, 0.999),
        (0.0, 0.5, 0.5),
    ],
)
def test_momentum_rises_by_half_a_cosine(base: float, progress: float, expected: float) -> None:
    assert rising_momentum(base, progress) == pytest.approx(expected, abs=1e-15)


def test_momentum_never_falls() -> None:
    course = [rising_momentum(0.9, step / 100) for step in range(101)]
    assert course == sorted(course) and course[1] - course[0] < course[50] - course[49]


def test_the_key_order_depends_on_seed_and_step() -> None:
    orders = [key_order(seed, step, 64) for seed, step in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order.tolist()) == list(range(64)) for order in orders)
    assert torch.equal(orders[0], key_order(0, 0, 64))
    assert not torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])


@pytest.mark.parametrize("splits", [1, 2])
def test_shuffled_keys_come_back_in_order(splits: int) -> None:
    """Each key is normalised by the statistics of its own group, computed by hand."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm2d(3)).double()
    split_batch_norm(net, splits)
    images = torch.randn(6, 3, 2, 2, dtype=torch.float64)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    g, z = shuffled(lambda x: (net(x).flatten(1), x.flatten(1)), images, order)
    assert torch.equal(z, images.flatten(1)), "values that depend only on the image are in the queries' order"
    for group in order.chunk(splits):
        mean, var = images[group].mean((0, 2, 3), keepdim=True), images[group].var((0, 2, 3), False, keepdim=True)
        expected = ((images[group] - mean) / (var + 1e-5).sqrt()).flatten(1)
        assert torch.allclose(g[group], expected, atol=1e-12)


def test_without_an_order_keys_stay_in_the_order_of_the_queries() -> None:
    images = torch.randn(4, 3, 2, 2)
    g, _ = shuffled(lambda x: (x.flatten(1), x.flatten(1)), images, None)
    assert torch.equal(g, images.flatten(1))
