"""Samples are a function of seed, epoch and row; image and mask are transformed alike."""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mls.config.transfers import SemanticTransfer
from mls.data.image_store import IGNORE
from mls.transfer.index_masks import IndexMasks
from mls.transfer.semantic_data import HUE, Samples, distorted, draw_crop, resized
from tests.transfer.semantic_support import COLOURS, masked_store, tiny_task


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    store = masked_store(tmp_path / "masked")
    return Samples(IndexMasks(store, "train"), tiny_task(), seed=1000)


def with_task(samples: Samples, seed: int = 1000, **changes: Any) -> Samples:
    return Samples(samples.masks, tiny_task(**changes), seed)


def test_samples_repeat(samples: Samples) -> None:
    torch.manual_seed(1)
    first = samples.load((2, False, 5))
    torch.manual_seed(2)
    np.random.seed(3)
    samples.load((1, True, 5))
    again = samples.load((2, False, 5))
    assert first[0].dtype == first[1].dtype == torch.uint8
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_samples_differ_between_epochs_rows_and_seeds(samples: Samples) -> None:
    same_content = masked_store(samples.masks.store.path.parent / "same", train=1, test=1, same=True)
    rows = Samples(IndexMasks(same_content, "train+test"), samples.task, 1000)
    pairs = [
        [samples.load((0, False, epoch)) for epoch in range(8)],
        [with_task(samples, seed=seed).load((0, False, 0)) for seed in range(8)],
        [rows.load((index, False, 0)) for index in range(2)],
    ]
    for drawn in pairs:
        assert len({(image.shape, image.numpy().tobytes()) for image, _ in drawn}) == len(drawn)


def pure(image_CHW: Tensor) -> Tensor:
    """The class whose colour a pixel has, where it has one; else 255."""
    found_HW = torch.full(image_CHW.shape[1:], IGNORE, dtype=torch.uint8)
    for label, colour in enumerate(COLOURS):
        found_HW[(image_CHW == torch.from_numpy(colour)[:, None, None]).all(0)] = label
    return found_HW


@pytest.mark.parametrize("flip", [False, True])
def test_image_and_mask_are_transformed_alike(samples: Samples, flip: bool) -> None:
    """A pixel in a class's pure colour was made of pixels of that class, so its mask must say that class."""
    plain = with_task(samples, photometric=False)
    sizes, shares = set(), []
    for index in range(len(plain.masks)):
        for epoch in range(5):
            image_CHW, mask_HW = plain.load((index, flip, epoch))
            assert image_CHW.shape[1:] == mask_HW.shape
            sizes.add(tuple(mask_HW.shape))
            shown_HW, known_HW = pure(image_CHW), mask_HW != IGNORE
            compared_HW = known_HW & (shown_HW != IGNORE)
            assert torch.equal(shown_HW[compared_HW], mask_HW[compared_HW])
            shares.append(float(compared_HW.sum() / known_HW.sum()))
            assert {1, 2, 3} & set(mask_HW.unique().tolist()), "the crop shows nothing that could be out of place"
    assert np.mean(shares) > 0.7
    assert max(height for height, _ in sizes) == 24 and max(width for _, width in sizes) == 32


def test_flip_mirrors(samples: Samples) -> None:
    plain = with_task(samples, photometric=False)
    there, back = plain.load((3, False, 0)), plain.load((3, True, 0))
    assert all(torch.equal(a.flip(-1), b) for a, b in zip(there, back, strict=True))
    assert not torch.equal(there[1], back[1])


def test_scales_cover_their_range(samples: Samples) -> None:
    task: dict[str, Any] = {"photometric": False, "crop": [200, 200]}  # larger than any image: all of it is taken
    sides = []
    for epoch in range(60):
        height, width = with_task(samples, **task).load((0, False, epoch))[1].shape
        assert abs(height / 32 - width / 48) < 0.03
        sides.append(width / 48)
    assert 0.75 <= min(sides) < 0.8 and 1.45 < max(sides) <= 1.51
    fixed, _ = with_task(samples, **task, scale=[1.0, 1.0]).load((0, False, 0))
    assert torch.equal(fixed, samples.masks.store.decode(0))


def test_resize_rounds_as_mmcv() -> None:
    image, mask = resized(torch.zeros(3, 9, 11, dtype=torch.uint8), torch.zeros(9, 11, dtype=torch.uint8), 0.5)
    assert image.shape == (3, 5, 6) and mask.shape == (5, 6)  # 4.5 and 5.5 up


def test_shrinking_is_not_antialiased() -> None:
    image_CHW = torch.zeros(3, 2, 8, dtype=torch.uint8)
    image_CHW[:, :, 3] = 200
    shrunk_CHW, _ = resized(image_CHW, torch.zeros(2, 8, dtype=torch.uint8), 0.5)
    assert shrunk_CHW[0].tolist() == [[0, 100, 0, 0]]  # of two pixels; neighbours do not see it


def test_crops_that_one_class_fills_are_drawn_again() -> None:
    mask_HW = torch.zeros(40, 400, dtype=torch.uint8)
    mask_HW[:, :60] = 1

    def shares(limit: float) -> list[float]:
        rng = np.random.default_rng(0)
        boxes = [draw_crop(mask_HW, [20, 40], limit, rng) for _ in range(200)]
        return [float(mask_HW[box].float().mean()) for box in boxes]

    free, limited = (np.array(shares(limit)) for limit in (1.0, 0.75))
    mixed = [float(((s > 0.25) & (s < 0.75)).mean()) for s in (free, limited)]
    assert mixed[0] < 0.15 and mixed[1] > 0.4


def test_ignored_pixels_are_not_counted_in_crops() -> None:
    """Half of every crop is ignored and one class fills the rest: ten are drawn again, and the last is kept."""
    mask_HW = torch.ones(40, 400, dtype=torch.uint8)
    mask_HW[::2] = IGNORE
    top, left = draw_crop(mask_HW, [20, 40], 0.75, np.random.default_rng(0))
    draws = np.random.default_rng(0)
    assert (top.start, left.start) == [(int(draws.integers(21)), int(draws.integers(361))) for _ in range(11)][-1]


class Scripted:
    """A generator that returns given draws."""

    def __init__(self, chosen: list[bool], brightness: float, hue: float, contrast: float, saturation: float) -> None:
        self.chosen = np.where(chosen, 0.2, 0.8)
        self.signed, self.factors = np.array([brightness, hue]), np.array([contrast, saturation])

    def random(self, count: int) -> Any:
        assert count == 5
        return self.chosen

    def uniform(self, low: float, high: float, count: int) -> Any:
        assert (low, high, count) in [(-1, 1, 2), (0.5, 1.5, 2)]
        return self.signed if low == -1 else self.factors


@pytest.mark.parametrize("first", [True, False])
def test_distortion_equals_pythons_colour_conversion(first: bool) -> None:
    """Against Python's own colour conversion, pixel by pixel."""
    image_CHW = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 6, 7), dtype=np.uint8))
    image_CHW[:, 0] = 200  # grey has no hue
    image_CHW[:, 1] = 0
    for bits in range(16):
        chosen = [bool(bits >> i & 1) for i in range(4)]
        brightness, contrast, saturation, hue = chosen
        rng: Any = Scripted([brightness, first, contrast, saturation, hue], 0.6, -0.7, 1.4, 1.3)
        found_CHW = distorted(image_CHW, rng)
        assert found_CHW.dtype == torch.uint8
        for y, x in np.ndindex(6, 7):
            rgb = image_CHW[:, y, x].double().numpy() / 255
            if brightness:
                rgb = (rgb + 0.6 * 32 / 255).clip(0, 1)
            if contrast and first:
                rgb = (rgb * 1.4).clip(0, 1)
            h, s, v = colorsys.rgb_to_hsv(*rgb)
            s = min(1.0, s * 1.3) if saturation else s
            h = (h - 0.7 * HUE) % 1 if hue else h
            rgb = np.array(colorsys.hsv_to_rgb(h, s, v))
            if contrast and not first:
                rgb = (rgb * 1.4).clip(0, 1)
            assert np.abs(found_CHW[:, y, x].numpy() - 255 * rgb).max() <= 0.51, (bits, y, x)


def test_half_of_the_images_are_changed_by_each_operation() -> None:
    grey_CHW = torch.full((3, 2, 2), 100, dtype=torch.uint8)  # saturation and hue do not change grey
    values = [int(distorted(grey_CHW, np.random.default_rng(i))[0, 0, 0]) for i in range(400)]
    assert 0.17 < np.mean([value == 100 for value in values]) < 0.33  # neither brightness nor contrast
    assert 30 < min(values) <= 60 and 175 <= max(values) < 200  # (100 +- 32) times 0.5 to 1.5
    red_CHW = torch.tensor([150, 50, 50], dtype=torch.uint8)[:, None, None]
    changed = [distorted(red_CHW, np.random.default_rng(i)).flatten().tolist() for i in range(400)]
    hues = [colorsys.rgb_to_hsv(*(value / 255 for value in rgb))[0] for rgb in changed]
    degrees = np.array([360 * (hue - (hue > 0.5)) for hue in hues])
    assert 0.4 < float((np.abs(degrees) < 1).mean()) < 0.6
    assert -37 < degrees.min() < -32 and 32 < degrees.max() < 37


def test_photometric_can_be_switched_off(samples: Samples) -> None:
    task: dict[str, Any] = {"scale": [1.0, 1.0], "crop": [32, 48]}
    assert isinstance(samples.task, SemanticTransfer) and samples.task.photometric
    plain, coloured = with_task(samples, photometric=False, **task), with_task(samples, **task)
    assert all(torch.equal(plain.load((0, False, e))[0], samples.masks.store.decode(0)) for e in range(8))
    assert not all(torch.equal(coloured.load((0, False, e))[0], samples.masks.store.decode(0)) for e in range(8))
    assert torch.equal(plain.load((0, False, 3))[1], coloured.load((0, False, 3))[1])
