"""BYOL: the loss by hand, both directions alike, targets without gradient, a momentum that rises."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from mls.config.methods import Byol
from mls.methods.byol import BYOL, prediction_loss
from tests.methods.support import TRUE, build, config, doubled, gradients, moved, pair, unit

VIEWS = doubled(pair())
exact = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-10)


def byol(**moco: Any) -> Any:
    """In float64, with a moving average that is not the online network."""
    chosen = config(moco).model_copy(update={"byol": Byol(hidden_dim=16, projection_dim=6), "epochs": 8})
    return moved(build(BYOL, chosen).double())


def test_the_loss_of_a_direction_is_the_squared_distance_in_plain_python() -> None:
    p, z = unit(5, 4), unit(5, 4)
    total = 0.0
    for prediction, target in zip(p.tolist(), z.tolist(), strict=True):
        total += sum((a - b) ** 2 for a, b in zip(prediction, target, strict=True)) / 5
    assert float(prediction_loss(p, z)) == pytest.approx(total, rel=1e-12)
    assert float(prediction_loss(p, p)) == pytest.approx(0, abs=1e-12)
    assert float(prediction_loss(p, -p)) == pytest.approx(4)
    assert float(prediction_loss(p.float(), z.float())) == pytest.approx(total, rel=1e-5)


def test_the_whole_loss_from_the_networks() -> None:
    """Each view's prediction by the online network meets the other view's projection by the moving average."""
    method = byol()
    found = method(VIEWS)["loss"]
    expected = torch.zeros((), dtype=torch.float64)
    for view, other in ((VIEWS.query_BCHW, VIEWS.key_BCHW), (VIEWS.key_BCHW, VIEWS.query_BCHW)):
        p_Bd = method.predictor(method.projector(method.backbone(view)))
        with torch.no_grad():
            z_Bd = method.key_projector(method.key_backbone(other))
        for p, z in zip(p_Bd, z_Bd, strict=True):
            expected = expected + (p / p.norm() - z / z.norm()).square().sum() / 4
    exact(found, expected)
    found.backward()
    ours = gradients(method)
    method.zero_grad()
    expected.backward()
    theirs = gradients(method)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        exact(gradient, theirs[name])


def test_swapping_the_views_does_not_change_the_loss() -> None:
    method = byol()
    swapped = VIEWS._replace(query_BCHW=VIEWS.key_BCHW, key_BCHW=VIEWS.query_BCHW)
    e = method.embed(VIEWS)
    exact(method(VIEWS)["loss"], method(swapped)["loss"])
    first, second = prediction_loss(e.z_query_Bd, e.z_key_Bd), prediction_loss(e.p_key_Bd, e.z_query_target_Bd)
    assert (first - second).abs() > 1e-4, "a loss of only one direction would fail"


def test_only_the_online_network_gets_gradients() -> None:
    method = byol()
    losses = method(VIEWS)
    e = method.embedded
    targets = (e.z_key_Bd, e.z_query_target_Bd, e.keys.z_Nd, e.keys.g_NG)
    assert not any(x.requires_grad for x in targets)
    losses["loss"].backward()
    found = gradients(method)
    assert {name.split(".")[0] for name in found} == {"backbone", "projector", "predictor"}
    trained = [name for name, p in method.named_parameters() if p.requires_grad]
    assert sorted(found) == sorted(trained) and all(g.abs().sum() > 0 for g in found.values())


def test_only_the_online_network_predicts() -> None:
    method = byol()
    names = {name.split(".")[0] for name in method.state_dict()}
    assert names == {"backbone", "projector", "predictor", "key_backbone", "key_projector", "dictionary"}
    before = method.embed(VIEWS)
    with torch.no_grad():
        method.predictor[3].weight.mul_(torch.rand(6, 1, dtype=torch.float64))
    after = method.embed(VIEWS)
    assert torch.equal(before.z_key_Bd, after.z_key_Bd)
    assert torch.equal(before.z_query_target_Bd, after.z_query_target_Bd)
    assert not torch.allclose(before.z_query_Bd, after.z_query_Bd)
    assert not torch.allclose(before.p_key_Bd, after.p_key_Bd)


def test_the_log_sees_the_prediction_and_its_target() -> None:
    """z is the prediction of the first view; keys are projections of the second by the moving average."""
    method = byol()
    e = method.embed(VIEWS)
    g_BG = method.backbone(VIEWS.query_BCHW)
    exact(e.g_query_BG, g_BG)
    exact(e.z_query_Bd, F.normalize(method.predictor(method.projector(g_BG)), dim=1))
    key_BG = method.key_backbone(VIEWS.key_BCHW)
    exact(e.keys.g_NG, F.normalize(key_BG, dim=1))
    exact(e.keys.z_Nd, F.normalize(method.key_projector(key_BG), dim=1))
    assert torch.equal(e.z_key_Bd, e.keys.z_Nd)
    assert e.keys.row_N.tolist() == [100, 101, 102, 103] and torch.equal(e.keys.box_N4, VIEWS.boxes_VB4[1])


def test_the_dictionary_is_filled_and_never_read() -> None:
    method = byol()
    found = method(VIEWS)["loss"]
    keys = method.embedded.keys
    method.finish_step(TRUE)
    assert torch.equal(method.dictionary.z_Dd[:4], keys.z_Nd) and int(method.dictionary.pointer) == 4
    other = byol()
    other.dictionary.z_Dd.fill_(torch.nan)
    other.dictionary.g_DG.fill_(torch.nan)
    assert torch.equal(other(VIEWS)["loss"], found)


@pytest.mark.parametrize(("epoch", "momentum"), [(0.0, 0.99), (4.0, 0.995), (8.0, 1.0), (2.0, 0.9914644660940673)])
def test_the_momentum_rises_to_1(epoch: float, momentum: float) -> None:
    """Over 8 epochs by hand: from 0.99 to 1; half way the middle; 1 - 0.01 (1 + sqrt(1/2)) / 2 at a quarter."""
    method = byol()
    assert method.momentum_at(epoch) == pytest.approx(momentum, abs=1e-15)
    key, online = method.key_projector[0].weight.clone(), method.projector[0].weight.clone()
    method(VIEWS._replace(epoch=epoch))
    method.finish_step(TRUE)
    exact(method.key_projector[0].weight, momentum * key + (1 - momentum) * online)


def test_each_group_has_statistics_of_its_own() -> None:
    """With 2 groups, the first group's predictions equal those of a batch of only its images."""
    method, single = byol(bn_splits=2), byol()
    single.load_state_dict(method.state_dict())
    half = VIEWS._replace(query_BCHW=VIEWS.query_BCHW[:2], key_BCHW=VIEWS.key_BCHW[:2])
    e, expected = method.embed(VIEWS), single.embed(half)
    for name in ("z_query_Bd", "p_key_Bd", "z_key_Bd", "z_query_target_Bd"):
        exact(getattr(e, name)[:2], getattr(expected, name))


def test_losses_are_float32_under_autocast() -> None:
    method = byol().float()
    with torch.autocast("cpu", torch.bfloat16):
        losses = method(pair())
    assert losses["loss"].dtype == method.embedded.keys.z_Nd.dtype == torch.float32
