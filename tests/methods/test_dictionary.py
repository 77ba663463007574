"""Both dictionaries are first in, first out, in the same order, and keep each key's origin."""

from __future__ import annotations

import torch

from mls.methods.dictionary import RANDOM, Dictionary, Keys

TRUE, FALSE = torch.tensor(True), torch.tensor(False)


def keys(first: int, count: int) -> Keys:
    """Keys whose features, projections, rows and boxes all hold their number."""
    number = torch.arange(first, first + count)
    as_float = number.float()[:, None]
    return Keys(as_float.repeat(1, 3), as_float.repeat(1, 2), number, number[:, None].repeat(1, 4))


def numbers(d: Dictionary) -> list[int]:
    """The entries' numbers, checked to be the same in every part; RANDOM where none was enqueued yet."""
    held = d.row_D.tolist()
    for part in (d.g_DG, d.z_Dd, d.box_D4):
        for row, number in zip(part.tolist(), held, strict=True):
            assert number == RANDOM or set(row) == {number}
    return list(held)


def test_entries_begin_as_random_unit_vectors() -> None:
    torch.manual_seed(0)
    d = Dictionary(500, 64, 16)
    assert torch.allclose(d.g_DG.norm(dim=1), torch.ones(500)) and torch.allclose(d.z_Dd.norm(dim=1), torch.ones(500))
    assert not d.known_D.any() and set(d.row_D.tolist()) == {RANDOM}
    assert abs(float(d.g_DG.std()) - 64**-0.5) < 0.005, "the spread of Fig. 3 (a) is 1 / sqrt(G)"


def test_first_in_first_out_for_any_batch_size() -> None:
    d = Dictionary(5, 3, 2)
    d.enqueue(keys(0, 3), TRUE)
    assert numbers(d) == [0, 1, 2, RANDOM, RANDOM] and int(d.pointer) == 3
    d.enqueue(keys(3, 4), TRUE)  # wraps: 5 entries, no divisibility rule
    assert numbers(d) == [5, 6, 2, 3, 4] and int(d.pointer) == 2
    assert d.known_D.all()


def test_a_batch_larger_than_the_dictionary_leaves_its_last_keys() -> None:
    d = Dictionary(3, 3, 2)
    d.enqueue(keys(0, 8), TRUE)
    assert sorted(numbers(d)) == [5, 6, 7]


def test_a_non_finite_step_enqueues_nothing() -> None:
    d = Dictionary(5, 3, 2)
    d.enqueue(keys(0, 3), TRUE)
    before = {name: value.clone() for name, value in d.state_dict().items()}
    poisoned = keys(3, 3)._replace(g_NG=torch.full((3, 3), torch.nan))
    d.enqueue(poisoned, FALSE)
    assert all(torch.equal(value, before[name]) for name, value in d.state_dict().items())


def test_a_snapshot_is_what_enqueueing_gives_and_changes_nothing() -> None:
    d = Dictionary(5, 3, 2)
    d.enqueue(keys(0, 4), TRUE)
    before = d.g_DG.clone()
    g, z = d.snapshot_with(keys(4, 3))
    assert torch.equal(d.g_DG, before)
    d.enqueue(keys(4, 3), TRUE)
    assert torch.equal(g, d.g_DG) and torch.equal(z, d.z_Dd)


def test_write_follows_the_dictionarys_order() -> None:
    """Written before each enqueueing; it wraps, and of more keys than entries the last stay."""
    d, beside = Dictionary(5, 3, 2), torch.full((5, 1), float(RANDOM))
    for first, count in ((0, 3), (3, 4), (7, 8), (15, 2)):
        new = keys(first, count)
        pointer = int(d.pointer)
        d.write(beside, new.row_N[:, None].double(), TRUE)
        assert int(d.pointer) == pointer, "only enqueueing moves it"
        d.enqueue(new, TRUE)
        assert beside[:, 0].tolist() == numbers(d)
    assert beside.dtype == torch.float32


def test_a_non_finite_step_writes_nothing() -> None:
    d, beside = Dictionary(5, 3, 2), torch.arange(10.0).view(5, 2)
    d.write(beside, torch.full((3, 2), torch.nan), FALSE)
    assert torch.equal(beside, torch.arange(10.0).view(5, 2))
