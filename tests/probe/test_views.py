"""Each epoch has every image once, in full batches that repeat from any step; views are only cropped and flipped."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize, resized_crop_image

from mls.config.probes import FinetuneProbe, TrainAugment
from mls.data.augment import FLIP, MEAN, STD, ColourAugment
from mls.data.image_store import ImageStore
from mls.data.writer import Record, write_store
from mls.probe.finetune import LabelledBatch, Views, mixture_of
from mls.runtime.errors import MlsError

SEED = 1000


def png(number: int, width: int, height: int) -> bytes:
    """An image of noise."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """Seven train images, the first two val; of image 3 class 0 has only a difficult object, of image 4 another too."""
    records = []
    for number in range(7):
        difficult = {"category_id": 1, "bbox": [0.0, 0.0, 2.0, 2.0], "area": 4.0, "iscrowd": 0, "difficult": 1}
        annotations = [difficult] if number in (3, 4) else []
        classes = [0] if number == 4 else [1]
        records.append(Record(f"{number}.png", "train", png(number, 40, 20), 40, 20, classes, annotations))
    records.append(Record("val.png", "val", b"no image", 40, 20, [0], []))
    write_store(tmp_path, records, ["a", "b"], True, [])
    return ImageStore(tmp_path)


def make_views(store: ImageStore, split: str = "train", seed: int = SEED, **changes: object) -> Views:
    task = FinetuneProbe.model_validate(
        {"kind": "finetune", "dataset": "d", "epochs": 4, "batch_size": 4, "augment": {"crop": 16}, **changes}
    )
    return Views(store, store.split(split), task, seed)


def same(one: LabelledBatch, other: LabelledBatch) -> bool:
    """Whether two batches are equal bit for bit; of the mixtures only the share."""
    tensors = [(batch.crops_BCHW, batch.draws_BU, batch.truth_BC, batch.kept_BC) for batch in (one, other)]
    shares = {batch.mixture and batch.mixture.share for batch in (one, other)}
    return len(shares) == 1 and all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


def test_each_epoch_has_every_image_once(store: ImageStore) -> None:
    views = make_views(store)
    assert (len(views), views.steps) == (7, 7)
    planned = [one for step in range(views.steps) for one in views.plan(step)]
    assert [epoch for _, epoch in planned] == [epoch for epoch in range(4) for _ in range(7)]
    orders = [tuple(index for index, epoch in planned if epoch == wanted) for wanted in range(4)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len(set(orders)) == 4
    assert [one for step in range(7) for one in make_views(store, seed=SEED + 1).plan(step)] != planned


@pytest.mark.parametrize(
    ("epochs", "batch_size", "steps"), [(1, 2, 4), (3, 4, 5), (1, 7, 1), (1, 64, 1), (30, 64, 3), (1, 100, 1)]
)
def test_epochs_are_over_to_within_half_a_batch(store: ImageStore, epochs: int, batch_size: int, steps: int) -> None:
    assert make_views(store, epochs=epochs, batch_size=batch_size).steps == steps


def test_fewer_images_than_a_batch_come_again_as_other_views(store: ImageStore) -> None:
    views = make_views(store, batch_size=16)
    (batch,) = views.batches(range(1), workers=1)
    assert batch.crops_BCHW.shape == (16, 3, 16, 16)
    first = [index for index, _ in views.plan(0)].index(0)
    again = [index for index, _ in views.plan(0)].index(0, first + 1)
    assert not torch.equal(batch.crops_BCHW[first], batch.crops_BCHW[again])


def test_batches_repeat_from_any_step_with_any_threads(store: ImageStore) -> None:
    whole = list(make_views(store).batches(range(7), workers=1))
    assert len(whole) == 7
    for got, wanted in zip(make_views(store).batches(range(3, 7), workers=3), whole[3:], strict=True):
        assert same(got, wanted)
    assert not torch.equal(whole[0].crops_BCHW, next(make_views(store, seed=1).batches(range(1), 0)).crops_BCHW)


def test_labels_go_with_their_images(store: ImageStore) -> None:
    views = make_views(store, batch_size=7)
    (batch,) = views.batches(range(1), workers=0)
    place = {index: i for i, (index, _) in enumerate(views.plan(0))}
    truth, kept = batch.truth_BC.tolist(), batch.kept_BC.tolist()
    assert (truth[place[3]], kept[place[3]]) == ([False, True], [False, True])  # only difficult: ignored
    assert (truth[place[4]], kept[place[4]]) == ([True, False], [True, True])  # a positive all the same
    assert (truth[place[0]], kept[place[0]]) == ([False, True], [True, True])


def test_boxes_are_of_the_images_own_size(store: ImageStore) -> None:
    views = make_views(store, augment={"crop": 16, "scale": [1.0, 1.0]})
    _, crop_CHW, _ = views.load((2, 0))  # nothing of ratio 4/3 at most covers 40 x 20: the widest one in its middle
    assert torch.equal(crop_CHW, resized_crop_image(store.decode(2), 0, 6, 20, 27, size=[16, 16], antialias=True))


def test_a_plain_crop_is_a_random_square_of_the_resized_image(store: ImageStore) -> None:
    """torchvision's ``Resize(20)`` and ``RandomCrop(16)``, as in S3L: every place comes, equally often."""
    views = make_views(store, augment={"crop": 16, "resize": 20})
    squares = resize(store.decode(2), [20], antialias=True).unfold(1, 16, 1).unfold(2, 16, 1)  # of every place
    assert squares.shape[1:3] == (5, 25), "40 x 20 pixels stay as they are"
    found = []
    for epoch in range(500):
        _, view_CHW, _ = views.load((2, epoch))
        equal = (squares == view_CHW[:, None, None]).all(dim=(0, 3, 4)).nonzero()
        assert len(equal) == 1
        found.append(equal[0].tolist())
    tops, lefts = (np.bincount(places) for places in zip(*found, strict=True))
    assert len(tops) == 5 and len(lefts) == 25
    assert ((tops - 100) ** 2 / 100).sum() < 18.5 and ((lefts - 20) ** 2 / 20).sum() < 51.2  # p = 0.001
    smaller = make_views(store, augment={"crop": 16, "resize": 16}).load((2, 0))[1]
    assert smaller.shape == (3, 16, 16) and smaller.is_contiguous()


def test_crops_and_plain_crops_are_bicubic_if_asked_for(store: ImageStore) -> None:
    whole = {"crop": 16, "scale": [1.0, 1.0], "interpolation": "bicubic"}
    _, crop_CHW, _ = make_views(store, augment=whole).load((2, 0))
    cut = partial(resized_crop_image, store.decode(2), 0, 6, 20, 27, size=[16, 16], antialias=True)
    assert torch.equal(crop_CHW, cut(interpolation=InterpolationMode.BICUBIC)) and not torch.equal(crop_CHW, cut())
    plain = {"crop": 16, "resize": 18}
    (_, linear_CHW, _), (_, cubic_CHW, _) = (
        make_views(store, augment={**plain, **other}).load((2, 0)) for other in ({}, {"interpolation": "bicubic"})
    )
    places = resize(store.decode(2), [18], InterpolationMode.BICUBIC, antialias=True).unfold(1, 16, 1).unfold(2, 16, 1)
    assert (places == cubic_CHW[:, None, None]).all(dim=(0, 3, 4)).any() and not torch.equal(linear_CHW, cubic_CHW)


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({"crop": 32, "resize": 31}, r"resize 31 must be at least crop \(32\)"),
        ({"crop": 32, "resize": 40, "scale": [0.2, 1.0]}, "plain crops, which have no scale"),
    ],
)
def test_plain_crops_that_cannot_be_cut_are_refused(augment: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainAugment.model_validate(augment)


def test_what_mixup_mixes_depends_only_on_seed_and_step(store: ImageStore) -> None:
    whole = list(make_views(store, mixup=1.0).batches(range(7), workers=1))
    for got, wanted in zip(make_views(store, mixup=1.0).batches(range(3, 7), workers=3), whole[3:], strict=True):
        assert same(got, wanted) and got.mixture and wanted.mixture
        assert torch.equal(got.mixture.partner_B, wanted.mixture.partner_B)
    assert len({batch.mixture.share for batch in whole if batch.mixture}) == 7
    assert same(whole[0], next(make_views(store).batches(range(1), 0))._replace(mixture=whole[0].mixture)), "views stay"
    other = make_views(store, mixup=1.0, seed=1).batches(range(1), 0)
    assert mixture_of(1, 0, 4, 1.0).share == next(other).mixture.share != whole[0].mixture.share  # type: ignore[union-attr]


def test_mixtures_are_drawn_from_the_papers_distribution() -> None:
    """Beta(alpha, alpha) has mean 1/2 and variance 1 / (4 (2 alpha + 1)); partners are permutations."""
    for alpha in (0.2, 1.0, 8.0):
        mixtures = [mixture_of(SEED, step, 5, alpha) for step in range(2000)]
        shares = np.array([one.share for one in mixtures])
        assert shares.mean() == pytest.approx(0.5, abs=0.02)
        assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)
        assert {tuple(sorted(one.partner_B.tolist())) for one in mixtures} == {(0, 1, 2, 3, 4)}
        assert len({tuple(one.partner_B.tolist()) for one in mixtures}) == 120


def test_views_are_only_flipped_and_normalised(store: ImageStore) -> None:
    (batch,) = make_views(store, batch_size=7).batches(range(1), workers=1)
    views_BCHW = ColourAugment(TrainAugment(crop=16), view=0)(batch.crops_BCHW, batch.draws_BU)
    flipped = batch.draws_BU[:, FLIP] < 0.5
    assert 0 < flipped.sum() < 7
    plain_BCHW = torch.where(flipped[:, None, None, None], batch.crops_BCHW.flip(-1), batch.crops_BCHW) / 255
    mean_C11, std_C11 = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    torch.testing.assert_close(views_BCHW, (plain_BCHW - mean_C11) / std_C11, rtol=1e-6, atol=1e-6)


def test_a_damaged_image_is_named(store: ImageStore) -> None:
    with pytest.raises(MlsError, match=r"val\.png"):
        list(make_views(store, "val").batches(range(1), workers=2))
