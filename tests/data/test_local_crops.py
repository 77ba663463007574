"""Local crops and AutoAugment: drawn from seed, epoch and image alone; without them nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import AutoAugment

import mls.data.build_store
from mls.config.experiment import Pretrain
from mls.config.views import Augment
from mls.data.augment import (
    ATTEMPTS,
    AUTO,
    DRAWS,
    POLICY,
    ColourAugment,
    auto_augment,
    crop,
    crop_boxes,
    draw,
    shared_area,
)
from mls.data.image_store import ImageStore
from mls.data.loader import LocalBatch, TwoViews, batches
from mls.data.resident import Resident
from mls.pipeline.runner import run_stage
from mls.runtime.streams import LOCAL
from mls.train.pairs import pair_of
from tests.conftest import SMALL, plan_of, small
from tests.data.test_loader import crops, equal

CPU = torch.device("cpu")
THREE = {"count": 3, "size": 16, "scale": [0.05, 0.2]}
Make = Callable[..., TwoViews]


@pytest.fixture
def make(in_tmp: Path) -> Make:
    plan = plan_of(small())
    run_stage(plan, plan.stage("data")[0], mls.data.build_store.run)
    store, config = ImageStore(plan.stage("data")[0].path), plan.loaded.runs["mls"]

    def made(resident: str = "no", **augment: Any) -> TwoViews:
        changed = {**config.augment.model_dump(exclude={"local_crops"}), "crop": 24, **augment}
        changes = {"augment": Augment.model_validate(changed), "resident": resident}
        return TwoViews(store, config.model_copy(update=changes), 0)

    return made


def local(views: TwoViews, step: int) -> LocalBatch:
    found = views[step].local
    assert found is not None
    return found


def test_local_crops_change_neither_view(make: Make) -> None:
    without, with_crops = make()[5], make(local_crops=THREE)[5]
    assert without.local is None and with_crops.local is not None
    assert equal(without, with_crops._replace(local=None))


def test_each_local_crop_is_a_small_crop_of_its_image_with_draws_of_its_own(make: Make) -> None:
    views = make(local_crops=THREE)
    batch, found = views[4], local(views, 4)
    assert found.crops_BLCHW is not None and found.crops_BLCHW.shape == (8, 3, 3, 16, 16)
    assert found.draws_BLU.shape == (8, 3, DRAWS) and found.boxes_BL4.shape == (8, 3, 4)
    epoch = 4 // views.steps_per_epoch
    for i, row in enumerate(batch.rows_B.tolist()):
        image_CHW, size_12 = views.store.decode(row), views.sizes_N2[views.rows == row]
        for n in range(3):
            u_1U = draw(0, epoch, np.array([row]), LOCAL + n)
            box_4 = crop_boxes(u_1U, size_12, [0.05, 0.2])[0]
            assert np.array_equal(found.draws_BLU[i, n].numpy(), u_1U[0])
            assert found.boxes_BL4[i, n].tolist() == box_4.tolist()
            assert torch.equal(found.crops_BLCHW[i, n], crop(image_CHW, box_4, 16))
    share_BL = found.boxes_BL4[..., 2:].prod(-1) / (32 * 32)
    assert share_BL.min() > 0.03 and share_BL.max() < 0.23


@pytest.mark.parametrize("workers", [0, 2])
def test_a_later_start_gives_the_same_local_crops(make: Make, workers: int) -> None:
    changes: dict[str, Any] = {"local_crops": {**THREE, "overlap": 0.5}, "auto_augment_p": 0.5}
    views, later = make(**changes), batches(make(**changes), 7, workers)
    assert equal(views[7], next(later)) and equal(views[8], next(later))


def test_resident_images_give_the_same_local_crops(make: Make) -> None:
    assert equal(make(local_crops=THREE)[2], make("cpu", local_crops=THREE)[2])


def test_the_gpus_path_cuts_the_same_local_crops(make: Make) -> None:
    """With one level of rounding; here on the CPU."""
    views, without = make(local_crops=THREE), make("cuda", local_crops=THREE)
    batch = without[1]
    assert batch.crops_VBCHW is None and batch.local is not None and batch.local.crops_BLCHW is None
    pairs = (
        pair_of(views[1], views, views.config, 1, CPU),
        pair_of(batch, without, without.config, 1, CPU, Resident(views.store, views.rows, 1)),
    )
    ours, theirs = (pair.local_XCHW for pair in pairs)
    assert ours is not None and theirs is not None and ours.shape == (24, 3, 16, 16)
    # jitter can enlarge a level: a typical pixel tells a wrong crop from another rounding
    assert (ours - theirs).abs().mean() < 0.02 < (ours - ours.roll(1, 0)).abs().mean()


def test_local_crops_are_augmented_like_the_first_view(make: Make) -> None:
    views = make(local_crops=THREE, blur_p=[1.0, 0.0], solarize_p=[0.0, 1.0])
    batch, found = views[3], local(views, 3)
    pair = pair_of(batch, views, views.config, 3, CPU)
    assert found.crops_BLCHW is not None and pair.local_XCHW is not None
    for n in range(3):
        alone_BCHW = ColourAugment(views.config.augment, 0)(found.crops_BLCHW[:, n], found.draws_BLU[:, n])
        assert torch.allclose(pair.local_XCHW.unflatten(0, (8, 3))[:, n], alone_BCHW, atol=1e-5)


@pytest.mark.parametrize("least", [0.3, 1.0])
def test_local_crops_are_drawn_again_until_they_overlap_the_key(make: Make, least: float) -> None:
    plain, asked = (make(local_crops={**THREE, "overlap": o}, scale=[0.2, 0.4]) for o in (0.0, least))
    drawn_again = 0
    for step in range(6):
        before, after, key_B4 = local(plain, step), local(asked, step), asked[step].boxes_VB4[1].numpy()
        rows, epoch = asked[step].rows_B.numpy(), step // asked.steps_per_epoch
        for n in range(3):
            tries = [before.boxes_BL4[:, n].numpy()]
            for attempt in range(1, ATTEMPTS + 1):
                u_BU = draw(0, epoch, rows, LOCAL + n, attempt)
                tries.append(crop_boxes(u_BU, asked.sizes_N2[np.searchsorted(asked.rows, rows)], [0.05, 0.2]))
            enough_TB = np.stack([shared_area(key_B4, box_B4) >= least for box_B4 in tries])
            first_B = enough_TB.argmax(0)  # 0, the first draw, if none fits
            expected_B4 = np.stack([tries[first_B[i]][i] for i in range(len(rows))])
            assert np.array_equal(after.boxes_BL4[:, n].numpy(), expected_B4)
            drawn_again += int((first_B > 0).sum())
            boxes_B4 = crop_boxes(after.draws_BLU[:, n].numpy(), np.full((8, 2), 32), [0.05, 0.2])
            assert np.array_equal(boxes_B4, expected_B4), "the draws give the box"
    assert drawn_again > 20


def test_auto_augment_is_torchvisions_with_draws_of_its_own() -> None:
    image_CHW = torch.randint(40, 160, (3, 24, 24), dtype=torch.uint8)  # all operations then change it
    before = torch.get_rng_state()
    found = [auto_augment(image_CHW, u) for u in np.linspace(0, 0.99, 60)]
    assert torch.equal(torch.get_rng_state(), before)
    for made_CHW, u in zip(found, np.linspace(0, 0.99, 60), strict=True):
        torch.default_generator.manual_seed(int(u * 2**53))
        assert torch.equal(made_CHW, AutoAugment()(image_CHW))
    assert len({made_CHW.numpy().tobytes() for made_CHW in found}) > 15, "25 sub-policies, some of which rarely act"
    torch.set_rng_state(before)


def test_auto_augment_takes_the_place_of_the_colour_changes(make: Make) -> None:
    views = make(auto_augment_p=[0.5, 0.0], local_crops=THREE, blur_p=1.0, solarize_p=1.0)
    plain = make(auto_augment_p=0.0, local_crops=THREE, blur_p=1.0, solarize_p=1.0)
    changed = 0
    for step in range(6):
        batch, before = views[step], plain[step]
        assert torch.equal(crops(batch)[1], crops(before)[1]), "the second view's share is 0"
        pair = pair_of(batch, views, views.config, step, CPU)
        whole = pair_of(before, plain, plain.config, step, CPU)
        chosen_B = batch.draws_VBU[0, :, AUTO] < 0.5
        for i in range(8):
            given_CHW = crops(before)[0, i]
            if not chosen_B[i]:
                assert torch.equal(crops(batch)[0, i], given_CHW)
                assert torch.allclose(pair.query_BCHW[i], whole.query_BCHW[i], atol=1e-5)
                continue
            made_CHW = auto_augment(given_CHW, float(batch.draws_VBU[0, i, POLICY]))
            assert torch.equal(crops(batch)[0, i], made_CHW)
            bare = Augment(crop=24, jitter_p=0, gray_p=0, blur_p=0, solarize_p=0, flip_p=views.config.augment.flip_p)
            expected = ColourAugment(bare, 0)(made_CHW[None], batch.draws_VBU[0, i : i + 1])[0]
            assert torch.allclose(pair.query_BCHW[i], expected, atol=1e-5)
            changed += int(not torch.equal(made_CHW, given_CHW))
        assert batch.local is not None and before.local is not None
        assert not torch.equal(batch.local.crops_BLCHW, before.local.crops_BLCHW)  # type: ignore[arg-type]
    assert changed > 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": {"local_crops": {"count": 33}}}, "at most 32"),
        (
            {"method": "byol", "augment": {"local_crops": {"count": 1}}},
            "method 'byol' has no use for them, only mls, moco",
        ),
        ({"batch_size": 65_536, "augment": {"crop": 64, "local_crops": {"count": 32}}}, "pixels"),
        ({"resident": "cuda", "augment": {"auto_augment_p": [0.5, 0]}}, "AutoAugment runs on the CPU"),
    ],
)
def test_what_can_not_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pretrain.model_validate(changes)


def test_local_crops_may_be_switched_off_and_swept() -> None:
    crops = {"count": 2, "size": 32, "scale": [0.1, 0.2]}
    off, none = (Pretrain.model_validate({"augment": {"local_crops": c}}) for c in ({**crops, "count": 0}, {}))
    assert off == none and Pretrain.model_validate({"augment": {"local_crops": crops}}) != none
    base = {**SMALL["pretrain"], "augment": {"crop": 16, "local_crops": crops}}
    runs = {"byol": {"method": "byol", "augment": {"local_crops": {"count": 0}}}, "mls": {}}
    plan = plan_of(small(pretrain=base, runs=runs, sweep={"mls": {"augment.local_crops.count": [0, 3]}}))
    without = plan_of(small(pretrain={**base, "augment": {"crop": 16}}, runs={"mls": {}}))
    assert plan.find("pretrain", "mls[count=0]") == without.find("pretrain", "mls")
