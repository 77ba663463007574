"""DenseCL against plain Python: matches, losses, the dense dictionary and gradients."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mls.config.methods import Densecl
from mls.methods.densecl import DenseCL, dense_info_nce, match
from mls.methods.moco import MoCo
from mls.models.backbone import last_map
from tests.methods.support import TRUE, build, config, doubled, gradients, moved, pair, unit

VIEWS = doubled(pair(side=48))
CELLS = 9
exact = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-10)


def densecl(weight: float = 0.5, **moco: Any) -> Any:
    """In float64."""
    return build(DenseCL, config(moco).model_copy(update={"densecl": Densecl(weight=weight)})).double()


def cells(x_BdS: Tensor) -> list[list[list[float]]]:
    """The vector of each cell of each image."""
    return [[cell.tolist() for cell in image.T] for image in x_BdS.detach()]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def matched_by_hand(query: list[list[float]], key: list[list[float]]) -> list[int]:
    """Eq. 4, one image."""
    found = []
    for a in query:
        cosines = [dot(a, b) / math.sqrt(dot(a, a) * dot(b, b)) for b in key]
        found.append(cosines.index(max(cosines)))
    return found


def info_nce_by_hand(q: list[float], k: list[float], queue: list[list[float]], t: float) -> float:
    """Eq. 1, one query."""
    positive = math.exp(dot(q, k) / t)
    return -math.log(positive / (positive + sum(math.exp(dot(q, e) / t) for e in queue)))


# ------------------------------------------------------------------------------------ the equations


def test_match_is_the_nearest_cell_in_plain_python() -> None:
    query, key = (torch.randn(3, 5, 12, dtype=torch.float64) for _ in "qk")
    expected = [matched_by_hand(q, k) for q, k in zip(cells(query), cells(key), strict=True)]
    assert match(query, key).tolist() == expected
    scaled = query * torch.rand(3, 1, 12) + 0, key * (0.1 + 9 * torch.rand(3, 1, 12))
    assert match(*scaled).tolist() == expected, "cosines, whatever the scale of a cell"
    assert len({tuple(row) for row in expected}) > 1


def test_ties_match_the_first_cell() -> None:
    query = torch.eye(3)[None]
    key = torch.eye(3)[:, [1, 0, 0, 2, 1, 2]][None]
    assert match(query, key).tolist() == [[1, 0, 3]]


def test_matches_follow_a_permutation_of_the_keys_cells() -> None:
    query, key = (torch.randn(3, 5, CELLS, dtype=torch.float64) for _ in "qk")
    q, k = (F.normalize(torch.randn(3, 4, CELLS, dtype=torch.float64), dim=1) for _ in "qk")
    order, queue = torch.randperm(CELLS), unit(7, 4)
    matched, other = match(query, key), match(query, key[:, :, order])
    assert torch.equal(order[other], matched) and not torch.equal(other, matched)
    losses = dense_info_nce(q, k, matched, queue, 0.2), dense_info_nce(q, k[:, :, order], other, queue, 0.2)
    exact(*losses)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_dense_loss_equals_equation_2_in_plain_python(dtype: torch.dtype) -> None:
    q, k = (F.normalize(torch.randn(3, 4, 6, dtype=torch.float64), dim=1) for _ in "qk")
    matched, queue, t = torch.randint(6, (3, 6)), unit(5, 4), 0.2
    total = 0.0
    for query, key, places in zip(cells(q), cells(k), matched.tolist(), strict=True):
        for cell, place in zip(query, places, strict=True):
            total += info_nce_by_hand(cell, key[place], queue.tolist(), t) / 18
    found = dense_info_nce(q.to(dtype), k.to(dtype), matched, queue.to(dtype), t)
    assert found.dtype == dtype
    assert float(found) == pytest.approx(total, rel=1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("weight", [0.5, 0.3])
def test_the_total_equals_equation_3_from_maps_to_loss(weight: float) -> None:
    """From the outputs of the networks on, everything is plain Python."""
    method = moved(densecl(weight, temperature=0.3))
    found = method(VIEWS)
    networks = {"": VIEWS.query_BCHW, "key_": VIEWS.key_BCHW}
    maps, means, dense = {}, {}, {}
    for prefix, images in networks.items():
        backbone, projector, cell = (method.get_submodule(prefix + name) for name in method.followed)
        map_BGhw = last_map(backbone, images)
        first, _, second = cell
        hidden = F.relu(F.linear(map_BGhw.flatten(2).mT, first.weight[:, :, 0, 0], first.bias))
        maps[prefix] = cells(map_BGhw.flatten(2))
        dense[prefix] = F.normalize(F.linear(hidden, second.weight[:, :, 0, 0], second.bias), dim=2).tolist()
        means[prefix] = F.normalize(projector(map_BGhw.mean((2, 3))), dim=1).tolist()
    single = local = 0.0
    for i in range(4):
        single += info_nce_by_hand(means[""][i], means["key_"][i], method.dictionary.z_Dd.tolist(), 0.3) / 4
        for s, place in enumerate(matched_by_hand(maps[""][i], maps["key_"][i])):
            local += info_nce_by_hand(dense[""][i][s], dense["key_"][i][place], method.dense_Dd.tolist(), 0.3)
    local /= 4 * CELLS
    assert found["info_nce"].item() == pytest.approx(single, abs=1e-10)
    assert found["dense"].item() == pytest.approx(local, abs=1e-10)
    assert found["loss"].item() == pytest.approx((1 - weight) * single + weight * local, abs=1e-10)


# ----------------------------------------------------------------------------------- the dictionary


def test_dense_negatives_are_pooled_keys_in_the_order_of_the_dictionary() -> None:
    """After 3 batches of 5, the dictionary holds the last 12 images: it has wrapped."""
    method = moved(densecl())
    made: dict[int, Tensor] = {}
    begin = method.dense_Dd.clone()
    torch.testing.assert_close(begin.norm(dim=1), torch.ones(12, dtype=torch.float64), rtol=0, atol=1e-6)
    for step in range(3):
        views = doubled(pair(5, seed=step, side=48))
        views = views._replace(row_B=views.row_B + 5 * step)
        held = method.dense_Dd.clone()
        method(views)["loss"].backward()
        assert torch.equal(method.dense_Dd, held), "not before the loss"
        cells_BdS = method.key_dense_projector(last_map(method.key_backbone, views.key_BCHW)).flatten(2)
        pooled_Bd = torch.stack([cells_BdS[..., s] for s in range(CELLS)]).sum(0)
        made.update(zip(views.row_B.tolist(), pooled_Bd / pooled_Bd.norm(dim=1, keepdim=True), strict=True))
        method.finish_step(TRUE)
    assert method.dictionary.row_D.tolist() == [112, 113, 114, *range(103, 112)]
    for row, entry in zip(method.dictionary.row_D.tolist(), method.dense_Dd, strict=True):
        exact(entry, made[row].detach())
    assert not torch.equal(method.dense_Dd, method.dictionary.z_Dd)


def test_a_non_finite_step_changes_no_dictionary_and_no_key_encoder() -> None:
    method = moved(densecl())
    before = {name: value.clone() for name, value in method.state_dict().items() if "running" not in name}
    method(VIEWS)
    method.embedded.dense_Nd.fill_(torch.nan)
    method.finish_step(torch.tensor(False))
    after = method.state_dict()
    assert {n for n, v in before.items() if not torch.equal(v, after[n]) and "num_batches" not in n} == set()
    method(VIEWS)
    method.finish_step(TRUE)
    after = method.state_dict()
    changed = {n for n, v in before.items() if not torch.equal(v, after[n])}
    assert {"dense_Dd", "dictionary.z_Dd", "key_dense_projector.0.weight", "key_projector.0.weight"} <= changed


# --------------------------------------------------------------------------------------- gradients


def test_gradients_never_flow_into_matching_or_keys() -> None:
    method = moved(densecl())
    losses = method(VIEWS)
    e = method.embedded
    free = (e.map_query_BGS, e.map_key_BGS, e.dense_key_BdS, e.dense_Nd, e.z_key_Bd, e.keys.z_Nd, e.keys.g_NG)
    assert not any(x.requires_grad for x in free)
    losses["loss"].backward()
    with_gradient = gradients(method)
    assert not any(name.startswith("key_") for name in with_gradient)
    for name in method.followed:
        assert all(p.grad.abs().sum() > 0 for p in getattr(method, name).parameters())


def test_weight_0_is_moco_and_weight_1_does_not_train_the_global_projector() -> None:
    moco = build(MoCo).double()
    moco(VIEWS)["loss"].backward()
    expected = gradients(moco)
    for weight in (0.0, 1.0):
        method = densecl(weight)
        missing, unexpected = method.load_state_dict(moco.state_dict(), strict=False)
        assert not unexpected and all("dense" in name for name in missing)
        method(VIEWS)["loss"].backward()
        found = gradients(method)
        if weight == 0:
            assert all(torch.count_nonzero(g) == 0 for name, g in found.items() if "dense" in name)
            for name, gradient in expected.items():
                exact(found[name], gradient)
        else:
            assert all(torch.count_nonzero(g) == 0 for name, g in found.items() if name.startswith("projector"))
            assert found["backbone.conv1.weight"].abs().sum() > 0
            assert found["dense_projector.0.weight"].abs().sum() > 0


# --------------------------------------------------------------------------------- places and order


def test_equal_views_match_each_cell_to_itself() -> None:
    method = densecl()
    e = method.embed(VIEWS._replace(key_BCHW=VIEWS.query_BCHW))
    assert torch.equal(match(e.map_query_BGS, e.map_key_BGS), torch.arange(CELLS).expand(4, -1))
    exact(e.dense_query_BdS.detach(), e.dense_key_BdS)
    assert not torch.equal(match(e.map_query_BGS, e.map_key_BGS.roll(1, 2)), torch.arange(CELLS).expand(4, -1))


def test_shuffled_keys_maps_come_back_in_order() -> None:
    """Each key's map is normalised by the statistics of its own group."""
    method, plain = moved(densecl(bn_splits=2)), densecl()
    plain.load_state_dict(method.state_dict())
    order = torch.tensor([3, 0, 1, 2])
    e = method.embed(VIEWS._replace(key_order_N=order))
    assert torch.equal(e.keys.row_N, VIEWS.row_B)
    for group in order.chunk(2):
        map_BGhw = last_map(plain.key_backbone, VIEWS.key_BCHW[group])
        cells_BdS = plain.key_dense_projector(map_BGhw).flatten(2)
        exact(e.map_key_BGS[group], map_BGhw.flatten(2))
        exact(e.dense_key_BdS[group], F.normalize(cells_BdS, dim=1))
        exact(e.dense_Nd[group], F.normalize(cells_BdS.mean(2), dim=1))
        exact(e.keys.g_NG[group], F.normalize(map_BGhw.mean((2, 3)), dim=1))


def test_losses_are_float32_under_autocast() -> None:
    method = build(DenseCL)
    with torch.autocast("cpu", torch.bfloat16):
        losses = method(pair(side=48))
    assert {value.dtype for value in losses.values()} == {torch.float32}
    e = method.embedded
    assert {x.dtype for x in (e.g_query_BG, e.map_key_BGS, e.dense_query_BdS, e.dense_Nd)} == {torch.float32}
