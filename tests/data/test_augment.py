"""Each operation equals torchvision's own, given the same parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as TF

from mls.config.views import Augment
from mls.data import augment
from mls.data.augment import DRAWS, MEAN, RATIO, STD, ColourAugment, blur, crop, crop_boxes, draw, flips, shared_area


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(6, 3, 5, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(20, 20), mode="bilinear")


OPERATIONS = {
    "_brightness": lambda x, c: TF.adjust_brightness(x, 1 + c),
    "_contrast": lambda x, c: TF.adjust_contrast(x, 1 + c),
    "_saturation": lambda x, c: TF.adjust_saturation(x, 1 + c),
    "_hue": lambda x, c: TF.adjust_hue(x, c),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_colour_operations_equal_torchvisions(name: str, images: torch.Tensor) -> None:
    changes = torch.tensor([-0.4, -0.1, 0.0, 0.05, 0.2, 0.4])
    ours = images.clone()
    getattr(augment, name)(ours, changes[:, None, None, None])
    theirs = torch.stack([OPERATIONS[name](x, float(c)) for x, c in zip(images, changes, strict=True)])
    assert torch.allclose(ours, theirs, atol=2e-5)


def test_grey_pixels_survive_a_hue_change() -> None:
    grey = torch.full((1, 3, 4, 4), 0.3)
    turned = grey.clone()
    augment._hue(turned, torch.full((1, 1, 1, 1), 0.3))
    assert torch.allclose(turned, grey)


def test_blur_equals_torchvisions(images: torch.Tensor) -> None:
    sigmas = torch.tensor([0.1, 0.4, 0.8, 1.0, 1.5, 2.0])
    ours = blur(images, sigmas, radius=6)
    theirs = torch.stack(
        [TF.gaussian_blur(x, kernel_size=[13, 13], sigma=[float(s)] * 2) for x, s in zip(images, sigmas, strict=True)]
    )
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_without_any_operation_only_normalisation_is_left() -> None:
    config = Augment(jitter_p=0.0, gray_p=0.0, blur_p=0.0, flip_p=0.0)
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    out = ColourAugment(config, 0)(image, torch.rand(2, DRAWS, dtype=torch.float64))
    expected = TF.normalize(image.float() / 255, list(MEAN), list(STD))
    assert torch.allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_solarisation_equals_torchvisions(seed: int) -> None:
    pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    pixels[0, 0, 0, :5] = torch.tensor([0.0, 0.5, 1.0, 0.5 - 2**-25, 0.5 + 2**-24])
    ours = pixels.clone()
    augment._solarize(ours)
    assert torch.equal(ours, TF.solarize(pixels, 0.5))


def test_solarisation_inverts_levels_from_128() -> None:
    config = Augment(jitter_p=0.0, gray_p=0.0, blur_p=0.0, flip_p=0.0, solarize_p=1.0)
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, -1, -1)
    out = ColourAugment(config, 0)(levels, torch.rand(1, DRAWS, dtype=torch.float64))
    expected = TF.normalize(TF.solarize(levels, 128).float() / 255, list(MEAN), list(STD))
    assert torch.allclose(out, expected, atol=1e-6)


def test_solarisation_comes_after_the_blur(images: torch.Tensor) -> None:
    config = Augment(jitter_p=0.0, gray_p=0.0, blur_p=1.0, blur_sigma=[2.0, 2.0], flip_p=0.0, solarize_p=1.0)
    pixels = (images * 255).to(torch.uint8)
    out = ColourAugment(config, 0)(pixels, torch.rand(6, DRAWS, dtype=torch.float64))
    blurred = TF.gaussian_blur(pixels.float() / 255, kernel_size=[13, 13], sigma=[2.0, 2.0])
    expected = TF.normalize(TF.solarize(blurred, 0.5), list(MEAN), list(STD))
    assert torch.allclose(out, expected, atol=1e-4)


def test_only_the_drawn_images_are_solarised() -> None:
    image = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8)
    draws = torch.from_numpy(draw(0, 0, np.arange(40), 1))
    plain = ColourAugment(Augment(crop=16), 1)(image, draws)
    some = ColourAugment(Augment(crop=16, solarize_p=0.3), 1)(image, draws)
    taken = draws[:, augment.SOLARIZE] < 0.3
    assert 5 < int(taken.sum()) < 20
    assert torch.equal(plain[~taken], some[~taken])
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    inverted = (TF.solarize(plain[taken] * std + mean, 0.5) - mean) / std
    assert torch.allclose(some[taken], inverted, atol=1e-5) and not torch.allclose(some[taken], plain[taken])


def test_each_view_has_its_own_probability() -> None:
    image = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8)
    draws = torch.from_numpy(draw(0, 0, np.arange(40), 0))
    both = Augment(crop=16, blur_p=[1.0, 0.1], solarize_p=[0.0, 0.2])
    for view, alone in enumerate((Augment(crop=16, blur_p=1.0), Augment(crop=16, blur_p=0.1, solarize_p=0.2))):
        assert torch.equal(ColourAugment(both, view)(image, draws), ColourAugment(alone, view)(image, draws))
    assert not torch.equal(ColourAugment(both, 0)(image, draws), ColourAugment(both, 1)(image, draws))


def test_flips_names_the_mirrored_views() -> None:
    config = Augment(crop=16, jitter_p=0.0, gray_p=0.0, blur_p=0.0, flip_p=0.3)
    image = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8)
    draws = torch.from_numpy(np.stack([draw(0, 0, np.arange(40), view) for view in (0, 1)]))
    mirrored = flips(config, draws)
    assert mirrored.shape == (2, 40) and mirrored.dtype == torch.bool and 10 < int(mirrored.sum()) < 40
    for view in (0, 1):
        out = ColourAugment(config, view)(image, draws[view])
        upright = torch.where(mirrored[view, :, None, None, None], out.flip(-1), out)
        assert torch.allclose(upright, TF.normalize(image.float() / 255, list(MEAN), list(STD)), atol=1e-6)


def test_each_image_follows_its_own_draws() -> None:
    config = Augment(crop=16)
    image = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8)
    draws = torch.from_numpy(draw(0, 0, np.arange(16), 0))
    together = ColourAugment(config, 0)(image, draws)
    alone = torch.cat([ColourAugment(config, 0)(image[i : i + 1], draws[i : i + 1]) for i in range(16)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_operations_are_as_frequent_as_their_probabilities() -> None:
    draws = draw(1, 0, np.arange(4000), 0)
    shares = {augment.JITTER: 0.8, augment.GRAYED: 0.2, augment.BLUR: 0.5, augment.FLIP: 0.5, augment.SOLARIZE: 0.2}
    for column, p in shares.items():
        assert abs((draws[:, column] < p).mean() - p) < 0.03
    first = draws[:, augment.ORDER].argsort(1)[:, 0]
    assert np.abs(np.bincount(first, minlength=4) / 4000 - 0.25).max() < 0.03


def test_draws_depend_on_seed_epoch_row_and_view_only() -> None:
    base = draw(0, 0, np.array([5]), 0)
    assert np.array_equal(base, draw(0, 0, np.array([3, 5]), 0)[1:])
    for other in (draw(1, 0, np.array([5]), 0), draw(0, 1, np.array([5]), 0), draw(0, 0, np.array([6]), 0)):
        assert not np.array_equal(base, other)
    assert not np.array_equal(base, draw(0, 0, np.array([5]), 1))


def test_a_new_column_does_not_change_earlier_ones() -> None:
    before = np.stack([np.random.default_rng((3, 2, row, 1)).random(35) for row in range(20)])
    assert [augment.SOLARIZE, augment.AUTO, augment.POLICY] == [35, 36, 37] == [*range(35, DRAWS)]
    assert np.array_equal(draw(3, 2, np.arange(20), 1)[:, :35], before)


def test_each_attempt_draws_different_numbers() -> None:
    drawn = [draw(0, 0, np.array([5]), 1, *attempt) for attempt in ((), (1,), (2,))]
    assert len({u_BU.tobytes() for u_BU in drawn}) == 3
    assert np.array_equal(drawn[2][0], np.random.default_rng((0, 0, 5, 1, 2)).random(DRAWS))


@pytest.mark.parametrize(
    ("second", "share"),
    [
        ([10, 20, 40, 30], 1.0),  # the same
        ([20, 25, 10, 10], 1.0),  # inside
        ([10, 35, 40, 30], 0.5),
        ([0, 0, 100, 100], 0.12),  # the second around the first: a share of the second
        ([50, 20, 40, 30], 0.0),  # they touch
        ([60, 60, 9, 9], 0.0),  # apart on both axes: no positive product of two negatives
    ],
)
def test_shared_area_is_a_share_of_the_second_box(second: list[int], share: float) -> None:
    assert shared_area(np.array([[10, 20, 40, 30]]), np.array([second])) == pytest.approx(share)


def test_crops_are_distributed_as_torchvisions() -> None:
    torch.manual_seed(0)
    sizes = np.full((3000, 2), (100, 80))
    ours = crop_boxes(draw(0, 0, np.arange(3000), 0), sizes, [0.2, 1.0])
    image = torch.empty(3, 80, 100)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.2, 1.0], list(RATIO)) for _ in range(3000)])
    assert (ours[:, :2] >= 0).all() and (ours[:, 0] + ours[:, 2] <= 80).all() and (ours[:, 1] + ours[:, 3] <= 100).all()
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 0.001
    areas = (ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    assert ks_2samp(*areas).pvalue > 0.001


def test_an_image_too_narrow_for_any_crop_gets_the_central_crop() -> None:
    boxes = crop_boxes(draw(0, 0, np.arange(4), 0), np.full((4, 2), (10, 100)), [0.9, 1.0])
    assert (boxes == [43, 0, 13, 10]).all()


def test_crop_cuts_the_box() -> None:
    image = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8).expand(3, -1, -1)
    assert torch.equal(crop(image, np.array([2, 3, 4, 4]), 4), image[:, 2:6, 3:7])
