"""Recorded boxes and flips say where in the image every pixel of a view lies; aligned maps show the same places."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mls.config.experiment import Pretrain
from mls.config.views import Augment
from mls.data.augment import MEAN, STD, ColourAugment, crop_boxes, draw, flips
from mls.data.geometry import align, common_region
from mls.data.image_store import ImageStore
from mls.data.loader import TwoViews
from mls.data.writer import Record, write_store

SIZES = [(240, 200), (97, 180), (200, 70), (256, 256), (64, 48), (130, 131), (256, 90), (80, 80)]
SIDE = 32
PLAIN = {"jitter_p": 0.0, "gray_p": 0.0, "blur_p": 0.0}
FLOATS = torch.float64


@pytest.fixture
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(FLOATS)
    yield
    torch.set_default_dtype(torch.float32)


class Seen(NamedTuple):
    """What the views of some batches show: the x and y in the stored image of each pixel."""

    xy_VB2SS: Tensor
    boxes_VB4: Tensor
    flips_VB: Tensor


@pytest.fixture
def seen(tmp_path: Path, in_float64: None) -> Seen:
    """Views of images whose red is x and whose green is y, as the loader makes them and the network gets them."""
    records = []
    for i, (width, height) in enumerate(SIZES):
        y, x = np.mgrid[:height, :width].astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1)).save(file, "png")
        records.append(Record(f"image{i}", "train", file.getvalue(), width, height, [0], []))
    write_store(tmp_path, records, ["a"], True, [])
    augment = {"crop": SIDE, "scale": [0.1, 1.0], "overlap": 0.1, **PLAIN}
    config = Pretrain.model_validate({"batch_size": len(SIZES), "epochs": 20, "augment": augment})
    views = TwoViews(ImageStore(tmp_path), config, 0)
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    shown, boxes, mirrored = [], [], []
    for step in range(views.steps):
        batch = views[step]
        assert batch.crops_VBCHW is not None
        pixels = [ColourAugment(config.augment, v)(batch.crops_VBCHW[v], batch.draws_VBU[v]) for v in (0, 1)]
        shown.append(((torch.stack(pixels) * std + mean) * 255)[:, :, :2])
        boxes.append(batch.boxes_VB4)
        mirrored.append(flips(config.augment, batch.draws_VBU))
    return Seen(torch.cat(shown, 1), torch.cat(boxes, 1), torch.cat(mirrored, 1))


def predicted(boxes_VB4: Tensor, flips_VB: Tensor) -> Tensor:
    """The x and y that each pixel of a view should show (V, B, 2, S, S): the middle of the first pixel is 0."""
    place_S = (torch.arange(SIDE) + 0.5) / SIDE
    top, left, height, width = boxes_VB4[..., None].unbind(2)
    x_VBS = left + torch.where(flips_VB[..., None], 1 - place_S, place_S) * width - 0.5
    y_VBS = top + place_S * height - 0.5
    shape = (*flips_VB.shape, SIDE, SIDE)
    return torch.stack([x_VBS[:, :, None, :].expand(shape), y_VBS[:, :, :, None].expand(shape)], 2)


def worst(error: Tensor) -> Tensor:
    """The largest absolute error of each view of each image (V, B)."""
    return error.abs().amax((2, 3, 4))


def test_boxes_and_flips_say_what_every_pixel_of_a_view_shows(seen: Seen) -> None:
    mirrored = seen.flips_VB.double().mean()
    assert 0.3 < mirrored < 0.7
    error = seen.xy_VB2SS - predicted(seen.boxes_VB4, seen.flips_VB)
    assert worst(error[..., 1:-1, 1:-1]).max() < 0.51, "rounding to whole levels is all there is"
    assert worst(error).max() < 1.3, "the resize's filter is cut off at the edge of the box"


def test_a_wrong_flip_or_box_is_noticed(seen: Seen) -> None:
    """Negative controls: the checks above and below fail for each single view."""
    assert worst(seen.xy_VB2SS - predicted(seen.boxes_VB4, ~seen.flips_VB)).min() > 5
    swapped = seen.boxes_VB4.flip(0)
    other = ((swapped - seen.boxes_VB4).abs().amax(-1) > 4).all(0)
    assert other.double().mean() > 0.9
    assert worst(seen.xy_VB2SS - predicted(swapped, seen.flips_VB))[:, other].min() > 1.3


def places(boxes_VB4: Tensor) -> Tensor:
    """The x and y of every cell of the common region (B, 2, S, S)."""
    low_B2, high_B2 = boxes_VB4[..., :2].amax(0), (boxes_VB4[..., :2] + boxes_VB4[..., 2:]).amin(0)
    region_1B4 = torch.cat([low_B2, high_B2 - low_B2], -1)[None]
    return predicted(region_1B4, torch.zeros(region_1B4.shape[:2], dtype=torch.bool))[0]


def aligned_errors(seen: Seen, boxes_VB4: Tensor, flips_VB: Tensor) -> tuple[Tensor, Tensor]:
    """How far both views' aligned x and y are from those of the common region, and from one another.

    In units of what is due. A cell within half a cell of its view's edge shows the edge cell; that one lies up to a
    tenth of a cell inwards (the resize's cut filter), or half a pixel where the crop was enlarged; and levels are
    rounded.
    """
    region_VB4, overlaps_B = common_region(boxes_VB4, flips_VB)
    assert overlaps_B.all(), "augment.overlap"
    xy_VB2SS = torch.stack([align(seen.xy_VB2SS[v], region_VB4[v], flips_VB[v]) for v in (0, 1)])
    there_B2SS, size_VB2 = places(seen.boxes_VB4), seen.boxes_VB4[..., 2:].flip(-1)
    due_VB2 = 0.6 * size_VB2 / SIDE + 1
    apart = worst(((xy_VB2SS[0] - xy_VB2SS[1]) / due_VB2.sum(0)[..., None, None])[None])[0]
    return worst((xy_VB2SS - there_B2SS) / due_VB2[..., None, None]), apart


def test_aligned_views_show_the_same_places(seen: Seen) -> None:
    error_VB, apart_B = aligned_errors(seen, seen.boxes_VB4, seen.flips_VB)
    assert error_VB.max() < 1 and apart_B.max() < 1


def test_views_aligned_by_a_wrong_flip_or_box_show_other_places(seen: Seen) -> None:
    one_wrong = torch.stack([~seen.flips_VB[0], seen.flips_VB[1]])
    for boxes_VB4, flips_VB in ((seen.boxes_VB4, one_wrong), (seen.boxes_VB4.flip(0), seen.flips_VB)):
        error_VB, apart_B = aligned_errors(seen, boxes_VB4, flips_VB)
        assert (error_VB[0] > 1).double().mean() > 0.9 and (apart_B > 1).double().mean() > 0.9


def test_alignment_is_exact_away_from_the_views_edge(in_float64: None) -> None:
    boxes_VB4, flips_VB = random_geometry(500)
    region_VB4, overlaps_B = common_region(boxes_VB4, flips_VB)
    there_B2SS = places(boxes_VB4)
    for view in (0, 1):
        shown_B2SS = predicted(boxes_VB4, flips_VB)[view]
        error_B2SS = (align(shown_B2SS, region_VB4[view], flips_VB[view]) - there_B2SS)[overlaps_B].abs()
        low, high = shown_B2SS.amin((2, 3), keepdim=True), shown_B2SS.amax((2, 3), keepdim=True)
        around_B2SS = ((there_B2SS >= low) & (there_B2SS <= high))[overlaps_B]
        assert around_B2SS.double().mean() > 0.9 and error_B2SS[around_B2SS].max() < 1e-9


BOX = [10, 20, 40, 80]  # top, left, height, width
Case = tuple[list[int], list[float], list[float]]
"""The second box; the common region in the first and in the second view."""
REGIONS: dict[str, Case] = {
    "identical": (BOX, [0, 0, 1, 1], [0, 0, 1, 1]),
    "right half": ([10, 60, 40, 80], [0.5, 0, 1, 1], [0, 0, 0.5, 1]),
    "lower quarter": ([40, 20, 80, 80], [0, 0.75, 1, 1], [0, 0, 1, 0.125]),
    "within": ([20, 40, 10, 20], [0.25, 0.25, 0.5, 0.5], [0, 0, 1, 1]),
    "a corner": ([0, 0, 20, 40], [0, 0, 0.25, 0.25], [0.5, 0.5, 1, 1]),
}
APART = {
    "they touch at the side": [10, 100, 40, 80],
    "they touch below": [50, 20, 40, 80],
    "they touch at a corner": [50, 100, 40, 80],
    "apart along x": [10, 150, 40, 80],
    "apart along both": [90, 150, 40, 80],
}


@pytest.mark.parametrize("mirrored", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("case", REGIONS)
def test_the_common_region_by_hand(case: str, mirrored: tuple[bool, bool]) -> None:
    second, *expected = REGIONS[case]
    region_VB4, overlaps_B = common_region(torch.tensor([[BOX], [second]]), torch.tensor(mirrored)[:, None])
    assert region_VB4.dtype == torch.float32 and overlaps_B.tolist() == [True]
    for view in (0, 1):
        x1, y1, x2, y2 = expected[view]
        wanted = [1 - x2, y1, 1 - x1, y2] if mirrored[view] else [x1, y1, x2, y2]
        assert region_VB4[view, 0].tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("case", APART)
def test_crops_without_a_common_area_have_the_whole_view_as_region(case: str) -> None:
    boxes_VB4 = torch.tensor([[BOX, BOX], [APART[case], BOX]])
    region_VB4, overlaps_B = common_region(boxes_VB4, torch.tensor([[True, False], [False, True]]))
    assert overlaps_B.tolist() == [False, True], "the other image of the batch is not touched"
    assert region_VB4[:, 0].tolist() == [[0, 0, 1, 1]] * 2


def random_geometry(count: int) -> tuple[Tensor, Tensor]:
    """Boxes of two views of images of 100 x 80 pixels, and flips."""
    draws = np.stack([draw(5, 0, np.arange(count), view) for view in (0, 1)])
    boxes = np.stack([crop_boxes(u_BU, np.full((count, 2), (100, 80)), [0.1, 1.0]) for u_BU in draws])
    return torch.from_numpy(boxes), flips(Augment(), torch.from_numpy(draws))


def test_a_region_maps_back_to_the_same_pixels_of_the_image(in_float64: None) -> None:
    boxes_VB4, flips_VB = random_geometry(300)
    region_VB4, overlaps_B = common_region(boxes_VB4, flips_VB)
    assert region_VB4.dtype == FLOATS and 0.9 < overlaps_B.double().mean() < 1
    assert (region_VB4[..., :2] >= 0).all() and (region_VB4[..., 2:] <= 1).all()
    assert (region_VB4[..., 2:] > region_VB4[..., :2]).all()
    for i in np.flatnonzero(overlaps_B.numpy()):
        corners = []
        for view in (0, 1):
            top, left, height, width = boxes_VB4[view, i].tolist()
            x1, y1, x2, y2 = region_VB4[view, i].tolist()
            if flips_VB[view, i]:
                x1, x2 = 1 - x2, 1 - x1
            corners.append([left + x1 * width, top + y1 * height, left + x2 * width, top + y2 * height])
        assert corners[0] == pytest.approx(corners[1], abs=1e-9)


def by_hand(map_HW: NDArray[np.float64], region: list[float], mirrored: bool) -> NDArray[np.float64]:
    """One map, one cell at a time."""
    height, width = map_HW.shape
    x1, y1, x2, y2 = region
    out = np.empty_like(map_HW)
    for i in range(height):
        for j in range(width):
            y = (y1 + (i + 0.5) / height * (y2 - y1)) * height - 0.5
            x = (x1 + (j + 0.5) / width * (x2 - x1)) * width - 0.5
            y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
            i0, j0 = int(y), int(x)
            i1, j1 = min(i0 + 1, height - 1), min(j0 + 1, width - 1)
            upper = (1 - x + j0) * map_HW[i0, j0] + (x - j0) * map_HW[i0, j1]
            lower = (1 - x + j0) * map_HW[i1, j0] + (x - j0) * map_HW[i1, j1]
            out[i, width - 1 - j if mirrored else j] = (1 - y + i0) * upper + (y - i0) * lower
    return out


@pytest.mark.parametrize("shape", [(7, 7), (5, 9), (1, 1)])
def test_alignment_equals_a_loop_over_cells(in_float64: None, shape: tuple[int, int]) -> None:
    region_VB4, _ = common_region(*random_geometry(20))
    flip_B = random_geometry(20)[1][0]
    maps_BCHW = torch.randn(20, 3, *shape)
    ours = align(maps_BCHW, region_VB4[0], flip_B)
    assert ours.dtype == FLOATS and ours.shape == maps_BCHW.shape
    for b in range(20):
        for c in range(3):
            theirs = by_hand(maps_BCHW[b, c].numpy(), region_VB4[0, b].tolist(), bool(flip_B[b]))
            assert np.abs(ours[b, c].numpy() - theirs).max() < 1e-10


def test_aligning_on_the_whole_view_changes_nothing(in_float64: None) -> None:
    maps_BCHW = torch.randn(2, 3, 7, 7)
    whole = torch.tensor([[0.0, 0, 1, 1]]).expand(2, 4)
    ours = align(maps_BCHW, whole, torch.tensor([False, True]))
    assert torch.allclose(ours[0], maps_BCHW[0]) and torch.allclose(ours[1], maps_BCHW[1].flip(-1))


def test_alignment_is_differentiable_in_its_maps(in_float64: None) -> None:
    region_VB4, _ = common_region(*random_geometry(3))
    maps_BCHW = torch.randn(3, 2, 4, 4, requires_grad=True)
    flip_B = torch.tensor([True, False, True])
    assert torch.autograd.gradcheck(lambda maps: align(maps, region_VB4[1], flip_B), (maps_BCHW,))


def test_maps_of_16_bits_do_not_mix_up_the_images_of_a_large_batch() -> None:
    """bfloat16 rounds 257 to 256: the box of one image would be cut out of a different one."""
    count = 300
    maps_BCHW = (torch.arange(count) % 7).to(torch.bfloat16)[:, None, None, None].expand(-1, 1, 2, 2)
    ours = align(maps_BCHW, torch.tensor([[0.0, 0, 1, 1]]).expand(count, 4), torch.zeros(count, dtype=torch.bool))
    assert ours.dtype == torch.float32 and torch.equal(ours, maps_BCHW.float())


def test_no_value_is_read_on_the_host() -> None:
    """Tensors of the meta device have no values, so reading one fails."""
    boxes_VB4, flips_VB = (x.to("meta") for x in random_geometry(4))
    region_VB4, overlaps_B = common_region(boxes_VB4, flips_VB)
    aligned_BCHW = align(torch.empty(4, 3, 5, 5, device="meta"), region_VB4[0], flips_VB[0])
    assert aligned_BCHW.shape == (4, 3, 5, 5) and overlaps_B.shape == (4,)
    with pytest.raises(RuntimeError):
        overlaps_B.any().item()
