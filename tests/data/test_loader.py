"""The order of batches is a function of seed and step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import mls.data.stage
from mls.data.loader import Batch, TwoViews, batches
from mls.data.store import Store
from mls.experiment.stage import run_stage
from tests.conftest import plan_of, small


@pytest.fixture
def views(in_tmp: Path) -> TwoViews:
    plan = plan_of(small())
    run_stage(plan, plan.stage("data")[0], mls.data.stage.run)
    return TwoViews(Store(plan.stage("data")[0].path), plan.loaded.runs["mls"], 0)


def crops(batch: Batch) -> torch.Tensor:
    assert batch.crops_VBCHW is not None
    return batch.crops_VBCHW


def test_each_epoch_shows_every_train_image_once_in_another_order(views: TwoViews) -> None:
    rows = [torch.cat([views[step].rows_B for step in range(3 * e, 3 * e + 3)]).numpy() for e in range(3)]
    for epoch in rows:
        assert sorted(epoch) == list(views.store.split("train"))
    assert not np.array_equal(rows[0], rows[1]) and not np.array_equal(rows[1], rows[2])


def test_any_step_is_the_same_whenever_it_is_asked_for(views: TwoViews) -> None:
    last = views[8]
    views[0]
    for a, b in zip(last, views[8], strict=True):
        assert a is not None and b is not None and torch.equal(a, b)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_later_start_gives_the_rest(views: TwoViews, workers: int) -> None:
    rest = list(batches(views, 5, workers))
    assert len(rest) == 4
    for step, batch in enumerate(rest, start=5):
        assert torch.equal(crops(batch), crops(views[step]))
        assert torch.equal(batch.draws_VBU, views[step].draws_VBU)


def test_the_two_views_differ_and_lie_in_the_image(views: TwoViews) -> None:
    batch = views[0]
    assert crops(batch).shape == (2, 8, 3, 16, 16) and crops(batch).dtype == torch.uint8
    assert not torch.equal(batch.boxes_VB4[0], batch.boxes_VB4[1])
    top, left, height, width = batch.boxes_VB4.unbind(-1)
    assert ((top >= 0) & (left >= 0) & (top + height <= 32) & (left + width <= 32)).all()


def test_another_seed_is_another_order(views: TwoViews) -> None:
    other = TwoViews(views.store, views.config, 1)
    assert not torch.equal(views[0].rows_B, other[0].rows_B)
