"""Features are the frozen backbone's, of the middle of each image, whatever the image's size."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from mls.config.experiment import Backbone
from mls.config.probes import Features
from mls.data.augment import MEAN, STD
from mls.data.eval_view import normalise, square
from mls.data.image_store import ImageStore
from mls.data.writer import Record, write_store
from mls.models.backbone import build_backbone, feature_maps
from mls.probe.features import extract
from mls.runtime.errors import MlsError

CPU = torch.device("cpu")


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """Seventy images of different sizes, more than one batch."""
    records = []
    for number in range(70):
        width, height = 24 + number % 9, 24 + number % 5
        pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize((width, height)).save(buffer, "PNG")
        records.append(Record(f"{number:03d}.png", "train", buffer.getvalue(), width, height, [0], []))
    write_store(tmp_path, records, ["thing"], True, [])
    return ImageStore(tmp_path)


def test_features_are_the_frozen_backbones(store: ImageStore) -> None:
    torch.manual_seed(0)
    net = build_backbone(Backbone(name="resnet18", width=0.125, stem="small"))
    net.train()(torch.rand(8, 3, 24, 24))  # running statistics away from their start
    before = {key: value.clone() for key, value in net.state_dict().items()}
    features = extract(net, store, store.split("train"), Features(image_size=24), CPU)
    assert features.shape == (70, 64) and features.dtype == np.float32
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())

    image = store.decode(66)
    height, width = image.shape[1:]
    assert (width, height) == (27, 25)
    scale = 24 / 25
    wide = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((int(27 * scale), 24), Image.Resampling.BILINEAR)
    cropped = torch.from_numpy(np.array(wide)).permute(2, 0, 1)[:, :, :24] if wide.width > 24 else None
    assert cropped is not None
    crop = cropped.float() / 255
    normal = (crop - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.inference_mode():
        expected = net.eval()(normal[None])[0].numpy()
    np.testing.assert_allclose(features[66], expected, rtol=0.05, atol=0.05 * np.abs(expected).max())


def test_threads_change_nothing(store: ImageStore) -> None:
    torch.manual_seed(0)
    net = build_backbone(Backbone(name="resnet18", width=0.125, stem="small"))
    rows = store.split("train")[::-1]
    config = Features(image_size=16)
    assert np.array_equal(extract(net, store, rows, config, CPU), extract(net, store, rows, config, CPU, workers=3))


def test_prepare_covers_then_crops_the_middle() -> None:
    image = torch.zeros(3, 10, 30, dtype=torch.uint8)
    image[:, :, 10:20] = 200
    assert torch.equal(square(image, 10), torch.full((3, 10, 10), 200, dtype=torch.uint8))
    assert square(image, 24).shape == (3, 24, 24)  # enlarged
    assert square(torch.zeros(3, 50, 41, dtype=torch.uint8), 16).shape == (3, 16, 16)
    assert torch.equal(square(image, 8, resize=10), image[:, 1:9, 11:19])
    assert square(image, 8, fit="squash").float().mean(dim=(0, 1)).tolist() == pytest.approx(
        [0, 0, 0, 200, 200, 0, 0, 0], abs=140
    )
    plane = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    assert torch.equal(square(plane, 16), plane)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(60, 97), (130, 71)])
def test_vissls_two_resizes_are_those_of_pil(
    shape: tuple[int, int], interpolation: Literal["bilinear", "bicubic"]
) -> None:
    """Resize(32), then Resize((28, 28)): 256 and 224 in VISSL and ORL. Rounding may differ by a level in each step."""
    noise = np.random.default_rng(0).integers(256, size=(*shape, 3), dtype=np.uint8)
    image, kind = Image.fromarray(noise), getattr(Image.Resampling, interpolation.upper())
    height, width = shape
    first = (32, int(32 * height / width)) if width < height else (int(32 * width / height), 32)
    once, twice = (np.asarray(one.resize((28, 28), kind), int) for one in (image, image.resize(first, kind)))
    tensor = torch.from_numpy(noise).permute(2, 0, 1)
    found = square(tensor, 28, 32, "squash", interpolation).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found - twice).max() <= 2 < np.abs(found - once).max()
    cropped = square(tensor, 28, 32, "crop", interpolation).permute(1, 2, 0).numpy().astype(int)
    resized = np.asarray(image.resize(first, kind), int)
    top, left = round((resized.shape[0] - 28) / 2), round((resized.shape[1] - 28) / 2)
    assert np.abs(cropped - resized[top : top + 28, left : left + 28]).max() <= 1


def test_two_places_are_vissls_average_pooling(store: ImageStore) -> None:
    """AvgPool2d((6, 6), 1, 0) of 7 x 7 positions, as loops; the adaptive pooling of 2 x 2 has smaller windows."""
    torch.manual_seed(0)
    net = build_backbone(Backbone(name="resnet18", width=0.125))
    rows = store.split("train")[:2]
    pooled, config = {}, {"image_size": 224, "resize": 256, "fit": "squash"}
    for places in (1, 2):
        pooled[places] = extract(net, store, rows, Features.model_validate({**config, "pool": places}), CPU)
    images = torch.stack([square(store.decode(int(row)), 224, 256, "squash") for row in rows])
    with torch.inference_mode():
        maps = feature_maps(net, normalise(images, CPU))["3"].numpy().astype(np.float64)
    assert maps.shape[2:] == (7, 7) and pooled[2].shape == (2, 4 * maps.shape[1])
    for b, d, y, x in np.ndindex(2, maps.shape[1], 2, 2):
        mean = sum(maps[b, d, y + i, x + j] for i in range(6) for j in range(6)) / 36
        assert pooled[2][b, 4 * d + 2 * y + x] == pytest.approx(mean, rel=1e-4, abs=1e-6)
    np.testing.assert_allclose(pooled[1], maps.mean(axis=(2, 3)), rtol=1e-4, atol=1e-6)
    with pytest.raises(MlsError, match="pool: 2 needs at least 2 x 2 positions; layer4 has 1 x 1: raise image_size"):
        extract(net, store, rows, Features(image_size=32, pool=2), CPU)
