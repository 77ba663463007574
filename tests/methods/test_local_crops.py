"""Local crops are further queries: losses against plain loops, and batch norm on their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mls.methods.method import Pair
from mls.methods.mls import MLS
from mls.methods.moco import MoCo
from mls.train.diagnostics import diagnose
from tests.methods.support import TRUE, build, config, doubled, moved, pair

EACH = 3


def with_crops(size: int = 4, each: int = EACH, seed: int = 1, **moco: Any) -> Pair:
    """A pair in float64 with local crops."""
    made, generator = doubled(pair(size, **moco)), torch.Generator().manual_seed(seed)
    return made._replace(local_XCHW=torch.randn(size * each, 3, 12, 12, generator=generator, dtype=torch.float64))


def full(method: Any) -> Any:
    """The same in float64, with a dictionary of keys of other images, so that all entries are known."""
    method = moved(method).double()
    method.dictionary.row_D.copy_(torch.arange(12))
    return method


def losses_in_loops(method: Any, given: Pair) -> tuple[float, float]:
    """InfoNCE and multi-label loss (Eq. 1, 7-9) of one query after another."""
    config, dictionary = method.config, method.dictionary
    with torch.no_grad():
        local_XCHW = given.local_XCHW
        assert local_XCHW is not None
        z_keys = F.normalize(method.key_projector(method.key_backbone(given.key_BCHW)), dim=1)
        queries = []
        for images, owner in (
            (given.query_BCHW, list(range(4))),
            (local_XCHW, [i for i in range(4) for _ in range(EACH)]),
        ):
            g_XG = method.backbone(images)
            queries += list(zip(g_XG, method.projector(g_XG), owner, strict=True))
        contrast, labelled = [], []
        for g_G, z_d, i in queries:
            z_d = z_d / z_d.norm()
            cosines = (
                torch.stack([z_d @ z_keys[i], *(z_d @ entry for entry in dictionary.z_Dd)]) / config.moco.temperature
            )
            contrast.append(float(cosines.exp().sum().log() - cosines[0]))
            near = sorted(range(12), key=lambda e: -float(g_G @ dictionary.g_DG[e]))[: config.mls.topk]
            chances = torch.sigmoid(cosines[1:])
            terms = [float((chances[e] if e in near else 1 - chances[e]).log()) for e in range(12)]
            labelled.append(-sum(terms) / 12)
    return sum(contrast) / len(contrast), sum(labelled) / len(labelled)


def test_losses_are_means_over_all_queries() -> None:
    method, given = full(build(MLS)), with_crops()
    contrast, labelled = losses_in_loops(method, given)
    losses = method(given)
    assert losses["info_nce"].item() == pytest.approx(contrast, rel=1e-9)
    assert losses["multi_label"].item() == pytest.approx(labelled, rel=1e-9)
    assert losses["loss"].item() == pytest.approx(contrast + 0.5 * labelled, rel=1e-9)
    moco = full(build(MoCo))
    assert moco(given)["loss"].item() == pytest.approx(contrast, rel=1e-9)


def test_keys_and_the_query_view_do_not_depend_on_local_crops() -> None:
    given = with_crops()
    one, other = (full(build(MLS)) for _ in range(2))
    e, without = one.embed(given), other.embed(given._replace(local_XCHW=None))
    assert torch.equal(e.z_query_Bd, without.z_query_Bd) and torch.equal(e.g_query_BG, without.g_query_BG)
    assert all(torch.equal(a, b) for a, b in zip(e.keys, without.keys, strict=True))
    one(given)
    one.finish_step(TRUE)
    assert one.dictionary.row_D[:4].tolist() == given.row_B.tolist(), "only the keys of the second view are enqueued"


def test_local_crops_are_normalised_among_themselves() -> None:
    """In groups of consecutive images, each with all its crops, like those of the views."""
    given = with_crops()
    assert given.local_XCHW is not None
    order = torch.arange(4)
    method = full(build(MoCo, config({"bn_splits": 2})))
    whole = method.embed(given._replace(key_order_N=order)).local
    plain = full(build(MoCo))
    for group in (slice(0, 2), slice(2, 4)):
        crops = slice(group.start * EACH, group.stop * EACH)
        alone = plain.embed(
            given._replace(
                query_BCHW=given.query_BCHW[group],
                key_BCHW=given.key_BCHW[group],
                row_B=given.row_B[group],
                boxes_VB4=given.boxes_VB4[:, group],
                local_XCHW=given.local_XCHW[crops],
            )
        ).local
        assert torch.allclose(whole.z_Xd[crops], alone.z_Xd, atol=1e-10)


def test_a_local_crop_reaches_the_gradient_and_the_image_that_it_is_of() -> None:
    method, given = full(build(MLS)), with_crops()
    e = method.embed(given)
    all_queries = e.all_queries()
    assert torch.equal(all_queries.z_key_Bd[4:], e.z_key_Bd.repeat_interleave(EACH, 0))
    pulled = torch.autograd.grad(method.losses(e)["loss"], e.local.z_Xd)[0]
    assert (pulled.norm(dim=1) > 0).all()


@pytest.mark.parametrize("size", [2, 4])
def test_true_labels_follow_each_crops_image(size: int) -> None:
    method, given = full(build(MLS, config(label_space="truth"))), with_crops(size)
    truth_RC = torch.zeros(120, 12, dtype=torch.bool)
    truth_RC[torch.arange(12), torch.arange(12)] = True  # entry e has class e
    truth_RC[100 : 100 + size, :size] = torch.eye(size, dtype=torch.bool)  # image 100 + i has class i
    method.use_labels(truth_RC)
    labels_QD, logits_QD = method.classify(method.embed(given).all_queries())
    owner_Q: Tensor = torch.cat([torch.arange(size), torch.arange(size).repeat_interleave(EACH)])
    assert labels_QD.shape == logits_QD.shape == (size * (1 + EACH), 12)
    assert labels_QD[torch.arange(len(owner_Q)), owner_Q].all()


def test_the_log_is_of_the_query_view_alone() -> None:
    """Its means, and the gradient of an image's own term, can then be compared with those of two views."""
    given = with_crops()
    one, other = (full(build(MLS)) for _ in range(2))
    one(given), other(given._replace(local_XCHW=None))
    labels_RC = torch.rand(120, 5) < 0.4
    found, without = (diagnose(method, given.row_B, labels_RC) for method in (one, other))
    assert found.keys() == without.keys() and {"grad_nce", "grad_ml", "agreement"} <= found.keys()
    for name in found:
        assert torch.equal(found[name], without[name]), name
