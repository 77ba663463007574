"""Generate scenes: several objects of ten shapes on a background, with boxes, masks and labels.

    records = scenes.records(ScenesDataset(source="scenes", train=64, val=8, test=8))

A scene has two to six objects of at least two classes, 0.28 to 0.7 of the image's side long, which partly occlude one
another. Classes prefer some places and some partners (`PLACES`, `PAIRS`), so context is informative but not sufficient.
A class is defined by its silhouette, in any rotation and with some change of aspect. Most of its objects have its
texture, which other classes share, and half of them its hue.

Image ``index`` of a split has its own random stream, `mls.runtime.streams.scene`. Images do not depend on one
another, so a larger set begins with the images of a smaller one.

Shape legend: H, W final pixels; Y, X pixels at twice that resolution, at which objects are drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as rle

from mls.config.datasets import ScenesDataset
from mls.data.drawing import SHAPES, TEXTURES, Floats, hsv, polygon_area, ramp, silhouette, texture, value_noise
from mls.data.image_store import LABELLED
from mls.data.writer import Record, encode_jpeg
from mls.runtime import streams

CLASSES = SHAPES
SCALE = (0.28, 0.7)
"""Smallest and largest length of an object, as a share of the image's side."""
VISIBLE = 0.35
"""Smallest share of an object's area that stays visible despite other objects and the image's edge."""
TRIES = 24
"""Positions tried for an object before it is left out. The first two objects are tried until they fit."""


@dataclass(frozen=True)
class Place:
    """A kind of background."""

    stops: tuple[tuple[int, int, int], ...]
    """RGB colours, evenly spaced along the noise's value."""
    cells: tuple[int, int]
    """Rows and columns of the coarsest noise grid; unequal numbers give horizontal bands or trunks."""
    vertical: float
    """Share of the colour that the height in the image decides (sky above ground); noise decides the rest."""
    likes: str
    """Classes that are likelier here, separated by spaces."""


PLACES = (
    Place(((46, 78, 38), (86, 124, 52), (132, 158, 72), (176, 186, 108)), (3, 3), 0.0, "heart star triangle disc"),
    Place(((168, 204, 224), (88, 150, 184), (62, 112, 140), (206, 188, 146)), (5, 2), 0.75, "crescent ring disc arrow"),
    Place(((18, 20, 44), (40, 36, 82), (70, 56, 112), (28, 44, 76)), (3, 3), 0.2, "star crescent hexagon cross"),
    Place(((214, 178, 124), (190, 134, 82), (150, 92, 60), (112, 66, 50)), (6, 2), 0.35, "triangle square arrow heart"),
    Place(((92, 94, 100), (138, 136, 134), (120, 82, 72), (66, 68, 78)), (4, 4), 0.0, "square cross hexagon ring"),
    Place(
        ((226, 230, 234), (196, 208, 220), (158, 176, 194), (116, 136, 158)), (3, 4), 0.45, "hexagon star ring arrow"
    ),
    Place(((30, 42, 26), (58, 62, 34), (92, 74, 46), (50, 88, 62)), (2, 7), 0.0, "cross heart square crescent"),
)
LIKING, COMPANY = 2.0, 2.5
"""Factors by which a class is likelier in a place that it likes, and beside its partner."""
PAIRS = (("disc", "ring"), ("star", "crescent"), ("heart", "arrow"), ("square", "triangle"), ("cross", "hexagon"))
TYPICAL_TEXTURE, TYPICAL_HUE = 0.9, 0.5
"""Shares of objects with the texture and the hue of their class; the others draw any."""


@dataclass(frozen=True)
class _Object:
    """A placed object."""

    number: int
    """Class index."""
    centre: tuple[float, float]
    """x, y at double resolution."""
    radius: float
    """Half the length, at double resolution."""
    angle: float
    mask_YX: NDArray[np.bool_]
    area: float
    """Of the whole silhouette, including what lies beyond the image's edge; pixels at double resolution."""


def records(config: ScenesDataset) -> Iterator[Record]:
    """Yield the images of train, val and test, in that order.

    Args:
        config: numbers of images, their side and the seed.
    """
    for split in LABELLED:
        for index in range(getattr(config, split)):
            yield make_scene(config, split, index)


def make_scene(config: ScenesDataset, split: str, index: int) -> Record:
    """Draw one scene; the same arguments give the same bytes.

    Args:
        config: side of the image, pixels, and the seed.
        split: train, val or test.
        index: of the image within its split, from 0.
    """
    # Everything below draws from this one stream, so the order of the calls is part of the image.
    rng = streams.scene(config.seed, LABELLED.index(split), index)
    side = config.size
    place = int(rng.integers(len(PLACES)))
    image_HWC = _background(rng, PLACES[place], side)
    objects = _compose(rng, place, 2 * side)
    owner_YX = np.full((2 * side, 2 * side), -1, dtype=np.int8)
    for i, item in enumerate(objects):
        owner_YX[item.mask_YX] = i
    layer_YXC = np.zeros((2 * side, 2 * side, 3), dtype=np.float32)
    light = rng.uniform(0, 2 * np.pi)
    for i, item in enumerate(objects):
        _paint(rng, layer_YXC, owner_YX == i, item, light, image_HWC)
    covered_HW = _halved((owner_YX >= 0).astype(np.float32))
    image_HWC = image_HWC * (1 - covered_HW[..., None]) + _halved(layer_YXC)
    masks_HWN = _visible(owner_YX, len(objects))
    data = _finish(rng, image_HWC)
    annotations = _annotations(objects, masks_HWN)
    classes = sorted({item.number for item in objects})
    return Record(f"{split}/{index:07d}.jpg", split, data, side, side, classes, annotations)


def _background(rng: np.random.Generator, place: Place, side: int) -> Floats:
    """Draw a place's noise with a jittered palette: float32 (H, W, 3) in [0, 255]."""
    stops = np.array(place.stops, dtype=np.float32)
    stops = stops * rng.uniform(0.8, 1.2) + rng.normal(0, 9, stops.shape).astype(np.float32)
    value_HW = (value_noise(rng, side, side, place.cells, 4) - 0.5) * 1.8 + 0.5
    if place.vertical:
        tilt = rng.uniform(-0.15, 0.15)
        line = np.linspace(0, 1, side, dtype=np.float32)
        height_HW = line[:, None] + np.float32(tilt) * (line[None, :] - np.float32(0.5))
        value_HW = value_HW * (1 - place.vertical) + height_HW * place.vertical
    shade_HW = value_noise(rng, side, side, (2, 2), 2) * 0.3 + 0.85
    return np.clip(ramp(stops, value_HW.astype(np.float32)) * shade_HW[..., None], 0, 255).astype(np.float32)


def _chances(place: int, present: list[int]) -> NDArray[np.float64]:
    """Return each class's probability for the next object of a scene."""
    weights = np.array([LIKING if name in PLACES[place].likes.split() else 1.0 for name in CLASSES])
    for pair in PAIRS:
        a, b = (CLASSES.index(name) for name in pair)
        weights[b] *= COMPANY if a in present else 1.0
        weights[a] *= COMPANY if b in present else 1.0
    if len(present) == 1:  # a scene has at least two classes
        weights[present[0]] = 0
    chances: NDArray[np.float64] = weights / weights.sum()
    return chances


def _compose(rng: np.random.Generator, place: int, side: int) -> list[_Object]:
    """Choose and place 2 to 6 objects, later ones in front. At least `VISIBLE` of each one's area stays visible."""
    objects: list[_Object] = []
    shown: list[NDArray[np.bool_]] = []  # the visible part of each object so far
    for _ in range(int(rng.integers(2, 7))):
        number = int(rng.choice(len(CLASSES), p=_chances(place, [item.number for item in objects])))
        for attempt in itertools.count():
            if attempt >= TRIES and len(objects) >= 2:
                break
            item = _place(rng, number, side)
            left = [part & ~item.mask_YX for part in shown]
            seen = [np.count_nonzero(part) for part in [*left, item.mask_YX]]
            if all(n >= VISIBLE * o.area for n, o in zip(seen, [*objects, item], strict=True)):
                objects, shown = [*objects, item], [*left, item.mask_YX]
                break
    return objects


def _place(rng: np.random.Generator, number: int, side: int) -> _Object:
    """Place an object of a class at random and draw its silhouette."""
    length = side * SCALE[0] * (SCALE[1] / SCALE[0]) ** rng.random()  # log-uniform: small and large are equally common
    angle = rng.uniform(0, 2 * np.pi)
    aspect = rng.uniform(0.75, 1.0)
    x, y = rng.uniform(0.3 * length, side - 0.3 * length, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    squeeze = np.array([1.0, aspect] if rng.random() < 0.5 else [aspect, 1.0])
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    area = 0.0
    for outline, fill in zip(silhouette(CLASSES[number]), (1, 0), strict=True):
        if outline is not None:
            points = (outline * squeeze * (length / 2)) @ turn.T + [x, y]
            draw.polygon([tuple(point) for point in points.tolist()], fill=fill)
            area += polygon_area(points) * (1 if fill else -1)
    mask_YX = np.asarray(canvas).astype(bool)
    return _Object(number, (float(x), float(y)), float(length / 2), float(angle), mask_YX, area)


def _paint(
    rng: np.random.Generator,
    layer_YXC: Floats,
    visible_YX: NDArray[np.bool_],
    item: _Object,
    light: float,
    background_HWC: Floats,
) -> None:
    """Add an object's visible part to the layer, in place: two colours mixed by a texture, lit from one side."""
    rows, columns = np.flatnonzero(visible_YX.any(axis=1)), np.flatnonzero(visible_YX.any(axis=0))
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    (x, y), radius = item.centre, item.radius
    dx = ((np.arange(columns[0], columns[-1] + 1) - x) / radius).astype(np.float32)[None, :]
    dy = ((np.arange(rows[0], rows[-1] + 1) - y) / radius).astype(np.float32)[:, None]
    angle = item.angle + rng.choice([0.0, np.pi / 4, np.pi / 2])
    u_YX = dx * np.float32(np.cos(angle)) + dy * np.float32(np.sin(angle))
    v_YX = dy * np.float32(np.cos(angle)) - dx * np.float32(np.sin(angle))
    typical = rng.random() < TYPICAL_TEXTURE
    kind = TEXTURES[item.number % len(TEXTURES) if typical else int(rng.integers(len(TEXTURES)))]
    period = max(8 / radius, rng.uniform(0.35, 0.7))  # at least 4 final pixels, or the marks blur to a mean
    mix_YX = texture(kind, u_YX, v_YX, period, rng)[..., None]
    first, second = _colours(rng, item.number, background_HWC[int(y) // 2, int(x) // 2])
    colour_YXC = first * (1 - mix_YX) + second * mix_YX
    lit_YX = 1 + np.float32(0.18) * (dx * np.float32(np.cos(light)) + dy * np.float32(np.sin(light)))
    layer_YXC[window] += np.clip(colour_YXC * lit_YX[..., None], 0, 255) * visible_YX[window][..., None]


def _colours(rng: np.random.Generator, number: int, behind: Floats) -> tuple[Floats, Floats]:
    """Draw an object's two colours; the first contrasts with the background behind the object."""
    while True:
        typical = rng.random() < TYPICAL_HUE
        hue = number / len(CLASSES) + rng.normal(0, 0.05) if typical else rng.random()
        saturation, value = rng.uniform(0.25, 0.95), rng.uniform(0.3, 1.0)
        first = hsv(hue, saturation, value)
        if np.abs(first - behind).sum() > 110:
            break
    darker = value > 0.6
    second = hsv(hue + rng.normal(0, 0.12), saturation * rng.uniform(0.5, 1.1), value + (-0.4 if darker else 0.4))
    return first, second


def _halved(values: Floats) -> Floats:
    """Average blocks of 2 x 2 over the first two axes."""
    halved: Floats = (values[::2, ::2] + values[1::2, ::2] + values[::2, 1::2] + values[1::2, 1::2]) * np.float32(0.25)
    return halved


def _visible(owner_YX: NDArray[np.int8], count: int) -> NDArray[np.uint8]:
    """Return disjoint masks at the final resolution: uint8 (H, W, objects).

    Each pixel belongs to the object that covers at least half of it. If two objects cover half each, it belongs to the
    front one.
    """
    side = len(owner_YX) // 2
    # Fortran order, as pycocotools' encoder requires.
    masks_HWN = np.zeros((side, side, count), dtype=np.uint8, order="F")
    free_HW = np.ones((side, side), dtype=bool)
    for i in reversed(range(count)):
        mask_HW = (_halved((owner_YX == i).astype(np.float32)) >= 0.5) & free_HW
        masks_HWN[:, :, i] = mask_HW
        free_HW &= ~mask_HW
    return masks_HWN


def _finish(rng: np.random.Generator, image_HWC: Floats) -> bytes:
    """Apply exposure and sensor noise, then encode as JPEG (4:4:4)."""
    noisy = image_HWC * np.float32(rng.uniform(0.9, 1.08))
    noisy = noisy + rng.standard_normal(image_HWC.shape, dtype=np.float32) * np.float32(rng.uniform(1.5, 5))
    return encode_jpeg(np.clip(noisy + 0.5, 0, 255).astype(np.uint8))


def _annotations(objects: list[_Object], masks_HWN: NDArray[np.uint8]) -> list[dict[str, object]]:
    """Return COCO annotations of the objects, in their order.

    Boxes and areas come from the final masks, not from the polygons: they describe the visible part, in whole pixels,
    and agree with the masks exactly.
    """
    encoded = rle.encode(masks_HWN)
    areas, boxes = rle.area(encoded), rle.toBbox(encoded)
    return [
        {
            "category_id": item.number + 1,
            "bbox": box.tolist(),
            "area": int(area),
            "iscrowd": 0,
            "segmentation": {"size": code["size"], "counts": code["counts"].decode("ascii")},
        }
        for item, code, area, box in zip(objects, encoded, areas, boxes, strict=True)
    ]
