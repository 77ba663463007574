"""The order of batches is a function of seed and step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import mls.data.build_store
from mls.data.augment import ATTEMPTS, LEFT, crop, crop_boxes, draw
from mls.data.image_store import ImageStore
from mls.data.loader import LocalBatch, TwoViews, ViewBatch, batches
from mls.pipeline.runner import run_stage
from tests.conftest import plan_of, small


@pytest.fixture
def views(in_tmp: Path) -> TwoViews:
    plan = plan_of(small())
    run_stage(plan, plan.stage("data")[0], mls.data.build_store.run)
    return TwoViews(ImageStore(plan.stage("data")[0].path), plan.loaded.runs["mls"], 0)


def crops(batch: ViewBatch) -> torch.Tensor:
    assert batch.crops_VBCHW is not None
    return batch.crops_VBCHW


def equal(one: ViewBatch | LocalBatch, other: ViewBatch | LocalBatch) -> bool:
    """Whether all tensors of two batches are equal."""
    for a, b in zip(one, other, strict=True):
        if isinstance(a, LocalBatch) and isinstance(b, LocalBatch):
            same = equal(a, b)
        else:
            same = a is b is None or (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and torch.equal(a, b))
        if not same:
            return False
    return True


def test_each_epoch_shows_every_train_image_once_in_a_new_order(views: TwoViews) -> None:
    rows = [torch.cat([views[step].rows_B for step in range(3 * e, 3 * e + 3)]).numpy() for e in range(3)]
    for epoch in rows:
        assert sorted(epoch) == list(views.store.split("train"))
    assert not np.array_equal(rows[0], rows[1]) and not np.array_equal(rows[1], rows[2])


def test_a_step_does_not_depend_on_earlier_steps(views: TwoViews) -> None:
    last = views[8]
    views[0]
    assert equal(last, views[8])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_later_start_gives_the_remaining_batches(views: TwoViews, workers: int) -> None:
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


def test_the_order_depends_on_the_seed(views: TwoViews) -> None:
    other = TwoViews(views.store, views.config, 1)
    assert not torch.equal(views[0].rows_B, other[0].rows_B)


def overlapping(views: TwoViews, least: float, scale: list[float]) -> TwoViews:
    """The same loader with ``augment.overlap``."""
    augment = views.config.augment.model_copy(update={"overlap": least, "scale": scale})
    return TwoViews(views.store, views.config.model_copy(update={"augment": augment}), 0)


def share_inside(first_4: torch.Tensor, second_4: torch.Tensor) -> float:
    """The share of the second box that lies in the first, by counting pixels."""
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    for mask, (top, left, height, width) in zip(masks, (first_4.tolist(), second_4.tolist()), strict=True):
        mask[top : top + height, left : left + width] = True
    return float((masks[0] & masks[1]).sum() / masks[1].sum())


@pytest.mark.parametrize(("least", "scale"), [(0.01, [0.02, 0.1]), (0.3, [0.1, 0.3]), (1.0, [0.2, 0.6])])
def test_second_crops_are_drawn_again_until_they_overlap_enough(
    views: TwoViews, least: float, scale: list[float]
) -> None:
    plain, asked = overlapping(views, 0.0, scale), overlapping(views, least, scale)
    seen = {"at once": 0, "again": 0, "never": 0}
    for step in range(views.steps):
        before, after = plain[step], asked[step]
        assert torch.equal(before.boxes_VB4[0], after.boxes_VB4[0])
        assert torch.equal(before.draws_VBU[0], after.draws_VBU[0])
        assert torch.equal(before.draws_VBU[1, :, LEFT + 1 :], after.draws_VBU[1, :, LEFT + 1 :]), "colour and flip"
        for i, row in enumerate(after.rows_B.tolist()):
            first_4, second_4 = after.boxes_VB4[:, i]
            tries = [before.draws_VBU[1, i].numpy()[None]]
            tries += [draw(0, step // 3, np.array([row]), 1, k) for k in range(1, ATTEMPTS + 1)]
            boxes = [torch.from_numpy(crop_boxes(u_1U, np.array([[32, 32]]), scale)[0]) for u_1U in tries]
            enough = [share_inside(first_4, box_4) >= least for box_4 in boxes]
            chosen = enough.index(True) if any(enough) else 0
            seen["never" if not any(enough) else "again" if chosen else "at once"] += 1
            assert torch.equal(second_4, boxes[chosen])
            assert np.array_equal(after.draws_VBU[1, i, : LEFT + 1], tries[chosen][0, : LEFT + 1])
            cut = crop(views.store.decode(row), second_4.numpy(), 16)
            assert torch.equal(crops(after)[1, i], cut)
    assert seen["at once"] and seen["again"] and (seen["never"] or least < 1), seen


def test_redrawn_boxes_follow_from_the_draws(views: TwoViews) -> None:
    asked = overlapping(views, 0.5, [0.1, 0.5])
    for step in range(asked.steps):
        batch = asked[step]
        for u_BU, boxes_B4 in zip(batch.draws_VBU.numpy(), batch.boxes_VB4.numpy(), strict=True):
            assert np.array_equal(crop_boxes(u_BU, np.full((8, 2), 32), [0.1, 0.5]), boxes_B4)


def test_overlapping_crops_do_not_depend_on_earlier_steps(views: TwoViews) -> None:
    asked = overlapping(views, 0.5, [0.1, 0.5])
    asked[0]
    once, twice = asked[7], asked[7]
    later = next(batches(overlapping(views, 0.5, [0.1, 0.5]), 7, 0))
    assert equal(once, twice) and equal(once, later)
