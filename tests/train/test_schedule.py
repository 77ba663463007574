"""The learning rate: a linear rise and half a cosine."""

from __future__ import annotations

import math

import pytest

from mls.config.experiment import Optimizer
from mls.train.schedule import warmup_cosine


def test_without_warmup_it_is_half_a_cosine_from_lr_to_zero() -> None:
    config = Optimizer(lr=0.3)
    rates = [warmup_cosine(step, 100, 10, config) for step in range(101)]
    assert rates == [0.5 * 0.3 * (1 + math.cos(math.pi * step / 100)) for step in range(101)]
    assert rates[0] == 0.3
    assert rates[50] == pytest.approx(0.15)
    assert rates[100] == pytest.approx(0, abs=1e-12)


def test_warmup_rises_linearly_and_the_cosine_follows() -> None:
    config = Optimizer(lr=0.5, warmup_epochs=1.6)  # of 5 steps: 8 steps
    rates = [warmup_cosine(step, 40, 5, config) for step in range(41)]
    assert rates[:8] == pytest.approx([0.5 * n / 9 for n in range(1, 9)])
    assert rates[8] == 0.5 == max(rates)
    assert rates[8:] == [warmup_cosine(step, 32, 5, Optimizer(lr=0.5)) for step in range(33)]


def test_warmup_is_rounded_to_whole_steps() -> None:
    for epochs, peak in ((0.24, 0), (0.26, 1), (0.29, 1), (0.76, 2)):
        config = Optimizer(lr=1.0, warmup_epochs=epochs)
        assert [warmup_cosine(step, 20, 2, config) for step in range(20)].index(1.0) == peak


def test_warmup_counts_in_epochs() -> None:
    config = Optimizer(lr=1.0, warmup_epochs=0.29)
    assert warmup_cosine(28, 1000, 100, config) < 1
    assert warmup_cosine(29, 1000, 100, config) == 1
