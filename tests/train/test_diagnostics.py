"""Diagnostics against plain-Python loops; collapse is reported once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mls.train.diagnostics import (
    CollapseWatch,
    alignment,
    contrast_accuracy,
    label_agreement,
    mean_direction,
    score_mean_std,
    uniformity,
)


def unit(rows: int, seed: int, dim: int = 4) -> Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def dot(a: Tensor, b: Tensor) -> float:
    return sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


def squared_distance(a: Tensor, b: Tensor) -> float:
    return sum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True))


def test_contrast_accuracy_equals_loops() -> None:
    q, k, queue = unit(40, 0), unit(40, 1), unit(3, 2)
    hits = [all(dot(q[i], k[i]) > dot(q[i], entry) for entry in queue) for i in range(40)]
    assert 0 < sum(hits) < 40
    assert float(contrast_accuracy(q, k, queue)) == pytest.approx(sum(hits) / 40)


def test_contrast_accuracy_by_hand() -> None:
    q = torch.eye(2)
    far, near = torch.tensor([[-1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    assert float(contrast_accuracy(q, q, far)) == 1
    assert float(contrast_accuracy(q, near.expand(2, 2), torch.tensor([[0.8, 0.6]]))) == 0.5
    assert float(contrast_accuracy(q, q, q)) == 0, "a tie with a negative is a miss"
    assert contrast_accuracy(q * math.nan, q, far).isnan()


def test_contrast_accuracy_leaves_autocast() -> None:
    """bfloat16 would round the negative's 0.999 to 1, more than the key's 0.9995."""
    q, k, queue = (torch.tensor([[cosine, math.sqrt(1 - cosine**2)]]) for cosine in (1.0, 0.9995, 0.999))
    with torch.autocast("cpu", torch.bfloat16):
        assert float(contrast_accuracy(q, k, queue)) == 1


def test_score_mean_std_counts_only_known_entries() -> None:
    scores = torch.randn(5, 7, generator=torch.Generator().manual_seed(3))
    known = torch.tensor([True, False, True, True, False, False, True])
    scores[:, 1] = math.nan  # unknown entries have no influence
    values = [scores[b, d].item() for b in range(5) for d in range(7) if known[d]]
    mean = sum(values) / len(values)
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
    found = score_mean_std(scores, known)
    assert [float(v) for v in found] == pytest.approx([mean, std], rel=1e-5)
    assert all(v.isnan() for v in score_mean_std(scores, torch.zeros(7, dtype=torch.bool)))


def test_a_small_spread_around_a_large_mean_is_measured() -> None:
    """E[x^2] - E[x]^2 in float32 would lose it: this is what a collapse looks like."""
    scores = 0.99 + 1e-4 * torch.randn(64, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    _, std = score_mean_std(scores.float(), torch.ones(256, dtype=torch.bool))
    assert float(std) == pytest.approx(1e-4, rel=0.02)


def test_mean_direction_squared_is_the_mean_cosine_of_known_entries() -> None:
    queue = unit(9, 11)
    known = torch.tensor([True, False, True, True, False, True, True, False, True])
    queue[1] = math.nan  # unknown entries have no influence
    entries = [queue[i] for i in range(9) if known[i]]
    cosines = [dot(a, b) for a in entries for b in entries]
    found = float(mean_direction(queue, known))
    assert found**2 == pytest.approx(sum(cosines) / 36, rel=1e-5) and 0.01 < found < 0.99


def test_the_limits_of_mean_direction() -> None:
    every = torch.ones(4, dtype=torch.bool)
    one = unit(1, 7)
    assert float(mean_direction(one.expand(4, 4), every)) == pytest.approx(1)
    assert float(mean_direction(torch.cat([one, -one, one, -one]), every)) == 0
    assert float(mean_direction(torch.eye(4), every)) == pytest.approx(0.5)
    assert mean_direction(torch.eye(4), ~every).isnan()


def test_alignment_and_uniformity_equal_loops() -> None:
    q, k = unit(9, 5), unit(9, 6)
    assert float(alignment(q, k)) == pytest.approx(sum(squared_distance(q[i], k[i]) for i in range(9)) / 9, rel=1e-5)
    pairs = [math.exp(-2 * squared_distance(q[i], q[j])) for i in range(9) for j in range(i + 1, 9)]
    assert float(uniformity(q)) == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-5)


def test_the_limits_of_alignment_and_uniformity() -> None:
    one = unit(1, 7)
    assert float(alignment(one, one)) == 0 and float(alignment(one, -one)) == pytest.approx(4)
    assert float(uniformity(one.expand(6, 4))) == 0
    assert float(uniformity(torch.cat([one, -one]))) == pytest.approx(-8)
    assert uniformity(one).isnan(), "one embedding has no pair"


def test_label_agreement_equals_loops() -> None:
    generator = torch.Generator().manual_seed(8)
    positives, labels, entry_labels = (
        torch.rand(shape, generator=generator) < share
        for shape, share in (((6, 11), 0.4), ((6, 3), 0.4), ((11, 3), 0.3))
    )
    known = torch.tensor([True] * 8 + [False] * 3)
    positive, every = [], []
    for b in range(6):
        for d in range(8):
            shares = any(labels[b, c] and entry_labels[d, c] for c in range(3))
            every.append(shares)
            if positives[b, d]:
                positive.append(shares)
    agreement, base_rate = label_agreement(positives, known, labels, entry_labels)
    assert 0 < sum(positive) < len(positive) and sum(positive) / len(positive) != sum(every) / len(every)
    assert float(agreement) == pytest.approx(sum(positive) / len(positive))
    assert float(base_rate) == pytest.approx(sum(every) / len(every))


def test_agreement_by_hand_and_without_known_entries() -> None:
    labels = torch.tensor([[True, True, False], [False, False, False]])  # the second image has no label
    entries = torch.tensor([[False, True, True], [False, False, True], [True, True, True]])
    positives = torch.tensor([[True, False, True], [True, False, False]])
    found = label_agreement(positives, torch.tensor([True, True, False]), labels, entries)
    assert [float(v) for v in found] == [0.5, 0.25]
    agreement, base_rate = label_agreement(positives, torch.tensor([False, True, False]), labels, entries)
    assert agreement.isnan() and float(base_rate) == 0, "an entry is known, but no positive one"
    assert all(v.isnan() for v in label_agreement(positives, torch.zeros(3, dtype=torch.bool), labels, entries))


SCALARS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, ...]]] = {
    "contrast_accuracy": lambda z, flags: (contrast_accuracy(z, z, z),),
    "score_mean_std": lambda z, flags: score_mean_std(z, flags),
    "mean_direction": lambda z, flags: (mean_direction(z, flags),),
    "alignment": lambda z, flags: (alignment(z, z),),
    "uniformity": lambda z, flags: (uniformity(z),),
    "label_agreement": lambda z, flags: label_agreement(z > 0, flags, z > 0, z > 0),
}


class NoReading(TorchDispatchMode):
    """Fail if a value is read on the host, or decides a shape: on a GPU both wait for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = func.overloadpacket in {
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.nonzero,
            torch.ops.aten.masked_select,
            torch.ops.aten.equal,
        }
        if func.overloadpacket is torch.ops.aten.index:
            waits = any(index is not None and index.dtype == torch.bool for index in args[1])
        assert not waits, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", SCALARS)
def test_float32_scalars_without_reading_a_value(name: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        z = torch.randn(4, 4).to(dtype)
        for value in SCALARS[name](z, torch.tensor([True, True, False, True])):
            assert value.shape == () and value.dtype == torch.float32
    with NoReading():
        SCALARS[name](torch.ones(4, 4), torch.ones(4, dtype=torch.bool))


@pytest.mark.parametrize("reads", [lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: x[x > 0]])
def test_a_read_on_the_host_is_noticed(reads: Callable[[Tensor], object]) -> None:
    with NoReading(), pytest.raises(AssertionError, match="waits for the device"):
        reads(torch.ones(3))


def row(epoch: float, mean: float, std: float, filled: float = 1.0) -> dict[str, float]:
    return {"epoch": epoch, "loss": 1.0, "filled": filled, "z_mean": mean, "z_std": std}


def test_collapse_and_recovery_are_reported_once_each() -> None:
    watch = CollapseWatch()
    assert watch.message(row(1, 0.10, 0.1)) is None
    message = watch.message(row(2.5, 0.97, 0.05))
    assert message is not None and "\n" not in message
    for part in ("epoch 2.5", "0.970", "0.0500", "collapsed", "lr", "mls.weight", "mls.warmup_epochs", "moco.momentum"):
        assert part in message
    assert watch.message(row(3, 0.99, 0.001)) is None
    assert watch.message(row(4, 0.92, 0.1)) is None, "between the limits nothing changes"
    assert watch.message(row(5, 0.50, 0.015)) is None, "recovery needs both"
    message = watch.message(row(6, 0.50, 0.03))
    assert message is not None and "recovered" in message and "epoch 6" in message
    assert watch.message(row(7, 0.94, 0.011)) is None
    message = watch.message(row(8, 0.0, 0.009))
    assert message is not None and "collapsed" in message and "0.0090" in message, "a small spread is enough"


@pytest.mark.parametrize(
    "undecided",
    [
        row(1, 0.99, 0.001, filled=0.999),
        row(1, 0.99, 0.001, filled=math.nan),
        row(1, math.nan, math.nan),
        {"epoch": 1.0, "z_mean": 0.99},
        {"filled": 1.0},
        {},
    ],
)
def test_rows_without_values_or_a_full_dictionary_change_nothing(undecided: dict[str, float]) -> None:
    healthy, collapsed = CollapseWatch(), CollapseWatch([row(0, 0.99, 0.001)])
    assert healthy.message(undecided) is None and not healthy.collapsed
    assert collapsed.message(undecided) is None and collapsed.collapsed


def test_a_dictionary_full_up_to_rounding_counts_as_full() -> None:
    assert CollapseWatch().message(row(1, 0.99, 0.001, filled=0.99999994)) is not None
    assert CollapseWatch().message(row(1, 0.99, 0.001, filled=65535 / 65536)) is None


@pytest.mark.parametrize("unknown", [{"filled": 0.9}, {"filled": math.nan}, {"z_mean": math.nan}, {"z_std": math.nan}])
def test_recovery_needs_every_value(unknown: dict[str, float]) -> None:
    collapsed = CollapseWatch([row(0, 0.99, 0.001)])
    assert collapsed.message(row(1, 0.1, 0.1) | unknown) is None and collapsed.collapsed
    assert collapsed.message(row(1, 0.1, 0.1)) is not None and not collapsed.collapsed


def test_a_resumed_watch_reports_the_same() -> None:
    rows = [row(1, 0.1, 0.1), row(2, 0.97, 0.1), row(3, 0.98, 0.1), row(4, 0.3, 0.1), row(5, 0.97, 0.1)]
    undisturbed = CollapseWatch()
    messages = [undisturbed.message(r) for r in rows]
    assert [m is None for m in messages] == [True, False, True, False, False]
    for cut in range(len(rows)):
        resumed = CollapseWatch(rows[:cut])
        assert [resumed.message(r) for r in rows[cut:]] == messages[cut:]
