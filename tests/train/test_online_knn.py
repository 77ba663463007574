"""The online kNN against loops and hand-made neighbours; scoring changes nothing."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import ResNet

from mls.config.experiment import Backbone
from mls.data.augment import MEAN, STD
from mls.data.image_store import ImageStore
from mls.data.writer import Record, write_store
from mls.metrics import average_precision
from mls.models.backbone import build_backbone
from mls.train import online_knn
from mls.train.online_knn import OnlineKnn

CPU = torch.device("cpu")
SIDE = 8
Picture = tuple[str, tuple[int, int, int], list[int]]
"""Split, colour, classes."""
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(
    path: Path,
    images: list[Picture],
    *,
    multi_label: bool = True,
    classes: int = 3,
) -> ImageStore:
    """A store of plain pictures, sorted by split."""
    path.mkdir()
    records = []
    for number, (split, colour, labels) in enumerate(images):
        buffer = io.BytesIO()
        Image.new("RGB", (SIDE + 4, SIDE), colour).save(buffer, "PNG")
        records.append(Record(f"{number:05d}.png", split, buffer.getvalue(), SIDE + 4, SIDE, labels, []))
    write_store(path, records, [f"class {i}" for i in range(classes)], multi_label, [])
    return ImageStore(path)


class MeanColour(nn.Module):
    """Features are the picture's mean colour, 0 to 1, with the normalisation undone."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        assert not self.training
        return images_BCHW.mean((2, 3)) * torch.tensor(STD) + torch.tensor(MEAN)


def noisy(path: Path, *, multi_label: bool, val: int = 70) -> ImageStore:
    """Random colours and labels: 40 train images, more than one batch of validation images."""
    draw = np.random.default_rng(0)

    def one(split: str) -> Picture:
        r, g, b = (int(v) for v in draw.integers(0, 256, 3))
        some = [c for c in range(3) if draw.random() < 0.4]
        return split, (r, g, b), some if multi_label else [int(draw.integers(3))]

    return make(path, [one(split) for split in ["train"] * 40 + ["val"] * val], multi_label=multi_label)


@pytest.mark.parametrize("multi_label", [True, False])
def test_the_score_equals_plain_loops(tmp_path: Path, multi_label: bool) -> None:
    store = noisy(tmp_path / "store", multi_label=multi_label)
    generator = torch.Generator().manual_seed(1)
    g = F.normalize(torch.rand(60, 3, generator=generator), dim=1)
    row = torch.randint(-1, 40, (60,), generator=generator)
    assert (row == -1).any() and (row >= 0).sum() > online_knn.VOTERS

    colours = {int(r): [v / 255 for v in store.decode(int(r))[:, 0, 0].tolist()] for r in store.split("val")}
    scores = []
    for colour in colours.values():
        length = math.sqrt(sum(v * v for v in colour))
        votes = []
        for d in range(60):
            if row[d] >= 0:
                votes.append((sum(a / length * b for a, b in zip(colour, g[d].tolist(), strict=True)), int(row[d])))
        nearest = sorted(votes, reverse=True)[:20]
        weights = [math.exp(cosine / 0.07) for cosine, _ in nearest]
        truth = [store.labels([r])[0] for _, r in nearest]
        scores.append(
            [sum(w * bool(t[c]) for w, t in zip(weights, truth, strict=True)) / sum(weights) for c in range(3)]
        )
    truth_NC = store.labels(list(colours))
    if multi_label:
        expected = sum(average_precision(np.array(scores)[:, c], truth_NC[:, c]) for c in range(3)) / 3
    else:
        hits = [s.index(max(s)) == t.tolist().index(True) for s, t in zip(scores, truth_NC, strict=True)]
        expected = sum(hits) / len(hits)
    assert 0.2 < expected < 0.8
    assert OnlineKnn(store, SIDE, CPU).score(MeanColour(), g, row) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_that_all_images_have_counts_in_no_mean(tmp_path: Path, split: str) -> None:
    """As a perfect class it would raise 1/3 to 1/2; scored by chance it would change it too."""
    pictures: list[Picture] = [(s, colour, [c]) for s in ("train", "val") for c, colour in enumerate(COLOURS.values())]
    wide: list[Picture] = [(s, colour, [*own, 3] if s == split else own) for s, colour, own in pictures]
    knn = OnlineKnn(make(tmp_path / "store", wide, classes=4), SIDE, CPU)
    wrong = knn.score(MeanColour(), torch.eye(3), torch.tensor([1, 2, 0]))
    assert knn.available and wrong == pytest.approx(1 / 3)
    every: list[Picture] = [(s, colour, [0]) for s, colour, _ in pictures]
    assert OnlineKnn(make(tmp_path / "same", every), SIDE, CPU).available is False, "nothing to tell apart"


def hand_made(path: Path, *, multi_label: bool = False) -> ImageStore:
    """Rows 0 to 2 are red, green, blue train images of class 0 to 2; rows 3 to 5 the same for validation."""
    return make(
        path,
        [(split, colour, [c]) for split in ("train", "val") for c, colour in enumerate(COLOURS.values())],
        multi_label=multi_label,
    )


@pytest.mark.parametrize("multi_label", [True, False])
def test_the_nearest_entry_decides_by_its_images_labels(tmp_path: Path, multi_label: bool) -> None:
    knn = OnlineKnn(hand_made(tmp_path / "store", multi_label=multi_label), SIDE, CPU)
    assert knn.score(MeanColour(), torch.eye(3), torch.arange(3)) == 1
    wrong = knn.score(MeanColour(), torch.eye(3), torch.tensor([1, 2, 0]))
    # Another class is first; by class, the right image ties for the 2nd place of 3 with one more
    assert wrong == (pytest.approx(1 / 3) if multi_label else 0)


def test_random_entries_do_not_vote(tmp_path: Path) -> None:
    knn = OnlineKnn(hand_made(tmp_path / "store"), SIDE, CPU)
    g = torch.eye(3).repeat(30, 1)
    row = torch.full((90,), -1)
    assert math.isnan(knn.score(MeanColour(), g, row))
    row[:3] = torch.arange(3)
    assert knn.score(MeanColour(), g, row) == 1
    row[2] = -1  # blue is no longer known: the other two vote for red and green
    assert knn.score(MeanColour(), g, row) == pytest.approx(2 / 3)
    row[:3] = torch.arange(3)
    g[:3] = 0.5 * torch.eye(3) - 1  # cosines below 0, which is all there is
    assert knn.score(MeanColour(), g, row) == 1


@pytest.mark.parametrize(
    ("others", "cosine", "right"),
    [
        (19, 0.6, 1),  # exp(0.4 / 0.07) = 303 > 19
        (19, 0.9, 0),  # exp(0.1 / 0.07) = 4.2 < 19
        (400, 0.6, 1),  # still 19: the 20 nearest vote, not 401
    ],
)
def test_only_the_nearest_twenty_vote_and_votes_weigh_by_cosine(
    tmp_path: Path, others: int, cosine: float, right: int
) -> None:
    """One right entry at cosine 1 against many wrong ones farther away."""
    red = COLOURS["red"]
    store = make(tmp_path / "store", [("train", red, [2]), ("train", red, [1]), ("val", red, [2])], multi_label=False)
    wrong = torch.tensor([[cosine, math.sqrt(1 - cosine**2), 0.0]]).expand(others, 3)
    g, row = torch.cat([wrong, torch.eye(3)[:1]]), torch.tensor([1] * others + [0])
    assert OnlineKnn(store, SIDE, CPU).score(MeanColour(), g, row) == right


def real_backbone() -> ResNet:
    """A ResNet in training mode with a part that draws random numbers in it."""
    torch.manual_seed(0)
    net = build_backbone(Backbone(name="resnet18", width=0.125, stem="small"))
    net.fc = nn.Dropout(0.5)
    net.train()(torch.rand(8, 3, SIDE, SIDE))
    return net


def test_scoring_changes_nothing(tmp_path: Path) -> None:
    store = noisy(tmp_path / "store", multi_label=True)
    net = real_backbone()
    g, row = F.normalize(torch.randn(50, 64), dim=1), torch.arange(-10, 40)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    flags = [part.training for part in net.modules()]
    kept = g.clone(), row.clone()
    random.seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    knn = OnlineKnn(store, SIDE, CPU)
    scores = [knn.score(net, g, row) for _ in range(2)]
    assert scores[0] == scores[1] and 0 < scores[0] < 1
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert [part.training for part in net.modules()] == flags and all(flags)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert torch.equal(g, kept[0]) and torch.equal(row, kept[1])
    assert all(p.grad is None for p in net.parameters())
    net(torch.rand(4, 3, SIDE, SIDE)).sum().backward()  # and it still trains


def test_training_mode_is_restored_after_an_error(tmp_path: Path) -> None:
    knn = OnlineKnn(hand_made(tmp_path / "store"), SIDE, CPU)
    net = real_backbone()
    flags = [part.training for part in net.modules()]
    with pytest.raises(RuntimeError):
        knn.score(net, torch.eye(3), torch.arange(3))  # 3 features are not the backbone's 64
    assert [part.training for part in net.modules()] == flags


def test_it_works_under_autocast_and_deterministic_algorithms(tmp_path: Path) -> None:
    store = noisy(tmp_path / "store", multi_label=True)
    net = real_backbone()
    g, row = F.normalize(torch.randn(50, 64), dim=1), torch.arange(-10, 40)
    knn = OnlineKnn(store, SIDE, CPU)
    plain = knn.score(net, g, row)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert knn.score(net, g, row) == plain, "float32 all the same"
    finally:
        torch.use_deterministic_algorithms(False)


def test_non_finite_features_have_no_score(tmp_path: Path) -> None:
    knn = OnlineKnn(hand_made(tmp_path / "store"), SIDE, CPU)
    net = real_backbone()
    for parameter in net.parameters():
        parameter.data.fill_(math.nan)
    assert math.isnan(knn.score(net, F.normalize(torch.randn(3, 64), dim=1), torch.arange(3)))


def test_images_are_evenly_spaced_and_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_knn, "IMAGES", 4)
    store = noisy(tmp_path / "store", multi_label=True, val=10)
    decoded: list[int] = []
    decode = store.decode
    monkeypatch.setattr(store, "decode", lambda row: decoded.append(row) or decode(row))  # type: ignore[func-returns-value]
    knn = OnlineKnn(store, SIDE, CPU)
    assert decoded == []
    for _ in range(2):
        knn.score(MeanColour(), torch.eye(3), torch.arange(3))
    assert decoded == [40, 42, 45, 47]
    monkeypatch.setattr(online_knn, "IMAGES", 11)
    assert OnlineKnn(store, SIDE, CPU).rows.tolist() == list(range(40, 50))


UNAVAILABLE: dict[str, tuple[list[Picture], int]] = {
    "no val image": ([("train", (9, 9, 9), [0])], 3),
    "no classes": ([("train", (9, 9, 9), []), ("val", (9, 9, 9), [])], 0),
    "no label": ([("train", (9, 9, 9), []), ("val", (9, 9, 9), [])], 3),
    "no label in train": ([("train", (9, 9, 9), []), ("val", (9, 9, 9), [0])], 3),
    "no label in val": ([("train", (9, 9, 9), [0]), ("val", (9, 9, 9), [])], 3),
}


@pytest.mark.parametrize("why", UNAVAILABLE)
@pytest.mark.parametrize("multi_label", [True, False])
def test_without_labels_the_score_is_nan(tmp_path: Path, why: str, multi_label: bool) -> None:
    images, classes = UNAVAILABLE[why]
    knn = OnlineKnn(make(tmp_path / "store", images, classes=classes, multi_label=multi_label), SIDE, CPU)
    assert knn.available is False
    assert math.isnan(knn.score(MeanColour(), torch.eye(3), torch.zeros(3, dtype=torch.int64)))


def test_available_with_labels_in_train_and_val(tmp_path: Path) -> None:
    assert OnlineKnn(hand_made(tmp_path / "store"), SIDE, CPU).available is True
