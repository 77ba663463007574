"""Generated scenes: repeatable, independent, and annotated as they are drawn."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from mls.config.datasets import ScenesDataset
from mls.data import scenes
from mls.data.drawing import SHAPES, polygon_area, silhouette
from mls.data.scenes import CLASSES, make_scene, records

CONFIG = ScenesDataset(source="scenes", train=6, val=2, test=3, size=64, seed=7)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def masks(annotations: Sequence[dict[str, Any]]) -> np.ndarray:
    return np.stack([rle.decode(a["segmentation"]) for a in annotations]).astype(bool)


def test_same_parameters_same_records() -> None:
    first, second = list(records(CONFIG)), list(records(CONFIG))
    assert first == second
    assert [r.split for r in first] == ["train"] * 6 + ["val"] * 2 + ["test"] * 3
    assert len({r.sha256 for r in first}) == 11


def test_images_do_not_depend_on_one_another() -> None:
    larger = CONFIG.model_copy(update={"train": 9, "val": 5})
    small, large = ({r.name: r for r in records(c)} for c in (CONFIG, larger))
    assert all(large[name] == record for name, record in small.items())
    assert make_scene(CONFIG, "train", 4) == small["train/0000004.jpg"]


def test_seed_changes_every_image() -> None:
    other = CONFIG.model_copy(update={"seed": 8})
    assert all(a.data != b.data for a, b in zip(records(CONFIG), records(other), strict=True))


@pytest.mark.parametrize("size", [32, 64, 200])
def test_masks_boxes_areas_and_labels_agree(size: int) -> None:
    config = CONFIG.model_copy(update={"size": size})
    for index in range(30):
        record = make_scene(config, "train", index)
        assert pixels(record.data).shape == (size, size, 3)
        assert 2 <= len(record.annotations) <= 6
        assert len(record.classes) >= 2
        assert record.classes == sorted({a["category_id"] - 1 for a in record.annotations})
        masks_NHW = masks(record.annotations)
        assert masks_NHW.sum(axis=0).max() == 1, "visible parts do not overlap"
        for annotation, mask_HW in zip(record.annotations, masks_NHW, strict=True):
            rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
            box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
            assert annotation["bbox"] == box
            assert annotation["area"] == mask_HW.sum() > 0
            assert isinstance(annotation["segmentation"]["counts"], str)


def test_masks_are_where_objects_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the objects, nothing changes outside the masks, and nearly everything inside."""
    outside, inside, small = [], [], []
    for index in range(40):
        with_objects = make_scene(CONFIG, "train", index)
        with monkeypatch.context() as patch:
            original = scenes._halved
            patch.setattr(scenes, "_halved", lambda values, f=original: f(values) * 0)
            without = make_scene(CONFIG, "train", index)
        difference_HW = np.abs(pixels(with_objects.data).astype(int) - pixels(without.data)).sum(axis=2)
        any_HW = masks(with_objects.annotations).any(axis=0)
        grown_HW, shrunk_HW = any_HW.copy(), any_HW.copy()
        for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)):
            moved_HW = np.roll(any_HW, (dy, dx), (0, 1))
            grown_HW, shrunk_HW = grown_HW | moved_HW, shrunk_HW & moved_HW
        outside.append(difference_HW[~grown_HW].mean())
        inside.append((difference_HW[shrunk_HW] > 40).mean())
        small.append((difference_HW[~grown_HW] > 60).mean())
    assert np.mean(outside) < 6, "only JPEG ringing"
    assert np.mean(small) < 0.005
    assert np.mean(inside) > 0.85


def test_every_object_stays_visible() -> None:
    for index in range(60):
        rng = np.random.default_rng(index)
        objects = scenes._compose(rng, index % len(scenes.PLACES), 128)
        for i, item in enumerate(objects):
            hidden = np.zeros_like(item.mask_YX)
            for later in objects[i + 1 :]:
                hidden |= later.mask_YX
            assert np.count_nonzero(item.mask_YX & ~hidden) >= scenes.VISIBLE * item.area


def test_classes_are_balanced_and_follow_context() -> None:
    config = CONFIG.model_copy(update={"train": 400})
    labels = np.zeros((400, len(CLASSES)), dtype=bool)
    places = np.zeros(400, dtype=int)
    for index in range(400):
        labels[index, make_scene(config, "train", index).classes] = True
        places[index] = np.random.default_rng((7, 0, index)).integers(len(scenes.PLACES))
    share_C = labels.mean(axis=0)
    assert share_C.min() >= 0.15 and share_C.max() <= 0.6
    at_home = [
        labels[places == p][:, CLASSES.index(c)].mean() for p, x in enumerate(scenes.PLACES) for c in x.likes.split()
    ]
    assert np.mean(at_home) > share_C.mean() + 0.05


@pytest.mark.parametrize("shape", SHAPES)
def test_silhouettes_fill_their_square(shape: str) -> None:
    outline, hole = silhouette(shape)
    assert np.abs(outline).max() == pytest.approx(1, abs=1e-5)
    area = polygon_area(outline) - (0 if hole is None else polygon_area(hole))
    assert 0.8 < area <= 4


def test_places_and_pairs_name_real_classes() -> None:
    named = {name for place in scenes.PLACES for name in place.likes.split()} | {
        n for pair in scenes.PAIRS for n in pair
    }
    assert named == set(CLASSES)
