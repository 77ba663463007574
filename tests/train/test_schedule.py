"""The learning rate's half cosine."""

import pytest

from mls.train.schedule import cosine


def test_half_a_cosine_from_lr_to_zero() -> None:
    assert cosine(0, 100, 0.3) == 0.3
    assert cosine(50, 100, 0.3) == pytest.approx(0.15)
    assert cosine(100, 100, 0.3) == pytest.approx(0, abs=1e-12)
