"""Gradients of the terms, against finite differences on the sphere and by hand; diagnosing changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mls.methods.method import Embedded
from mls.methods.mls import MLS, multi_label_loss
from mls.methods.moco import MoCo, info_nce
from mls.methods.pseudo_labels import pseudo_labels
from mls.train.diagnostics import diagnose, gradients
from tests.methods.support import TRUE, build, config, pair

T, STEP = 0.2, 1e-5


def slope(f: Callable[[Tensor], Tensor], z_d: Tensor) -> Tensor:
    """The gradient of f(v / |v|) at v = z by central differences: tangential by itself."""
    moves = STEP * torch.eye(len(z_d), dtype=torch.float64)
    return torch.stack([f(F.normalize(z_d + m, dim=0)) - f(F.normalize(z_d - m, dim=0)) for m in moves]) / (2 * STEP)


SEEN = [
    {},
    {"weight": 0.0, "warmup_epochs": 1.0},
    {"bias": "prior", "reduction": "positives"},
    {"terms": "knn"},
    {"terms": "bce_pos", "reduction": "sum"},
    {"label_space": "projection"},
]


@pytest.mark.parametrize("chosen", SEEN, ids=str)
def test_gradients_equal_differences_image_by_image(chosen: dict[str, Any]) -> None:
    mls = build(MLS, config(**chosen))
    e = mls.embed(pair(5))
    queue = mls.dictionary.z_Dd.double()
    in_projection = chosen.get("label_space") == "projection"
    labels = (
        pseudo_labels(e.z_query_Bd, mls.dictionary.z_Dd, 3)
        if in_projection
        else pseudo_labels(e.g_query_BG, mls.dictionary.g_DG, 3)
    )
    terms, reduction = chosen.get("terms", "bce"), chosen.get("reduction", "mean")
    bias = math.log(3 / 9) if "bias" in chosen else 0.0
    nce, ml = [], []
    for z_d, key_d, labels_D in zip(e.z_query_Bd.detach().double(), e.z_key_Bd.double(), labels, strict=True):
        nce.append(slope(lambda z, k=key_d: info_nce(z[None], k[None], queue, T), z_d))  # type: ignore[misc]
        ml.append(
            slope(
                lambda z, y=labels_D: multi_label_loss(z[None] @ queue.T, y[None], T, terms, reduction, bias),  # type: ignore[misc]
                z_d,
            )
        )
    found = gradients(mls, e)
    assert list(found) == ["grad_nce", "grad_ml", "grad_cosine"]
    assert float(found["grad_nce"]) == pytest.approx(sum(float(v.norm()) for v in nce) / 5, rel=1e-4)
    assert float(found["grad_ml"]) == pytest.approx(sum(float(v.norm()) for v in ml) / 5, rel=1e-4)
    cosines = [float(a @ b / a.norm() / b.norm()) for a, b in zip(nce, ml, strict=True)]
    assert float(found["grad_cosine"]) == pytest.approx(sum(cosines) / 5, rel=1e-3)


def uninformed(method: MoCo, size: int = 4) -> Embedded:
    """Every entry points along axis 0, every query along axis 1, every key along axis 2: all cosines are 0."""
    axes = torch.eye(8)
    method.dictionary.z_Dd.copy_(axes[0].expand(12, 8))
    e = method.embed(pair(size))
    return replace(e, z_query_Bd=axes[1].expand(size, 8), z_key_Bd=axes[2].expand(size, 8))


def test_gradients_at_cosine_0_by_hand() -> None:
    """InfoNCE: 12/13 of the softmax is on the entries. The literal: 9 halves push, 3 halves pull, over D."""
    mls = build(MLS)
    found = {name: float(value) for name, value in gradients(mls, uninformed(mls)).items()}
    assert found == pytest.approx(
        {
            "grad_nce": 12 / 13 * math.sqrt(2) / T,
            "grad_ml": (9 - 3) / 2 / 12 / T,
            "grad_cosine": 1 / math.sqrt(2),
        },
        rel=1e-5,
    )
    prior = build(MLS, config(bias="prior", reduction="positives"))
    assert float(gradients(prior, uninformed(prior))["grad_ml"]) == pytest.approx(0, abs=1e-5), "in balance"
    smaller = {name: float(value) for name, value in gradients(mls, uninformed(mls, size=2)).items()}
    assert smaller == pytest.approx(found, rel=1e-5), "an image's gradient does not depend on the batch size"


def test_the_part_of_a_gradient_along_the_embedding_is_removed() -> None:
    """All entries equal the query: the loss has a slope there, but only along the query."""
    mls = build(MLS)
    e = uninformed(mls)
    e = replace(e, z_query_Bd=torch.eye(8)[0].expand(4, 8), z_key_Bd=torch.eye(8)[0].expand(4, 8))
    found = gradients(mls, e)
    assert float(found["grad_nce"]) == pytest.approx(0, abs=1e-5) == float(found["grad_ml"])
    assert found["grad_cosine"].isfinite()


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_the_same_under_no_grad_and_autocast(autocast: bool) -> None:
    mls = build(MLS)
    e = mls.embed(pair())
    expected = gradients(mls, e)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = gradients(mls, e)
        assert not torch.is_grad_enabled()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
        assert value.shape == () and value.dtype == torch.float32 and not value.requires_grad


@pytest.mark.parametrize(
    ("kind", "chosen"),
    [(MoCo, {}), (MLS, {"terms": "none"}), (MLS, {"logit_space": "backbone"})],
    ids=["moco", "no term", "g by Q_g"],
)
def test_a_term_that_does_not_read_z_has_no_gradient(kind: type[MoCo], chosen: dict[str, Any]) -> None:
    method = build(kind, config(**chosen))
    e = method.embed(pair())
    assert list(gradients(method, e)) == ["grad_nce"]
    mls = build(MLS)
    assert torch.equal(gradients(method, e)["grad_nce"], gradients(mls, mls.embed(pair()))["grad_nce"])


def test_diagnosing_changes_nothing() -> None:
    looked, undisturbed = build(MLS), build(MLS)
    losses, expected = looked(pair()), undisturbed(pair())
    state = {name: value.clone() for name, value in looked.state_dict().items()}
    values = diagnose(looked, pair().row_B, None)
    assert not any(value.requires_grad for value in values.values())
    assert all(parameter.grad is None for parameter in looked.parameters())
    assert all(torch.equal(state[name], value) for name, value in looked.state_dict().items())
    again = looked.losses(looked.embedded)
    assert again.keys() == expected.keys() and all(torch.equal(again[name], expected[name]) for name in again)
    losses["loss"].backward()  # the graph of the step is still there
    expected["loss"].backward()
    for one, other in zip(looked.parameters(), undisturbed.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None) and (one.grad is None or torch.equal(one.grad, other.grad))


def test_diagnosing_works_after_the_backward() -> None:
    """The loop diagnoses after the backward, when the step's graph is freed."""
    mls = build(MLS)
    before = gradients(mls, mls.embed(pair()))
    mls(pair())["loss"].backward()
    grads = [p.grad.clone() for p in mls.parameters() if p.grad is not None]
    found = diagnose(mls, pair().row_B, None)
    for name, value in before.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-4)
    after = [p.grad for p in mls.parameters() if p.grad is not None]
    assert grads and all(torch.equal(a, b) for a, b in zip(grads, after, strict=True))


def test_queue_mean_counts_only_keys() -> None:
    moco = build(MoCo)
    moco(pair())
    assert diagnose(moco, pair().row_B, None)["queue_mean"].isnan(), "no key yet"
    moco.finish_step(TRUE)
    moco(pair(seed=1))
    keys = moco.dictionary.z_Dd[:4]
    expected = float(keys.sum(0).norm()) / 4
    assert float(diagnose(moco, pair().row_B, None)["queue_mean"]) == pytest.approx(expected, rel=1e-5)


def test_agreement_is_1_with_true_labels() -> None:
    """With true labels each query's positives share its class; its neighbours by g need not."""
    labels_RC = torch.zeros(108, 2, dtype=torch.bool)
    labels_RC[[100, 102, 104, 106], 0] = labels_RC[[101, 103, 105, 107], 1] = True
    found = {}
    for space in ("truth", "backbone"):
        mls = build(MLS, config(label_space=space, topk=4))
        mls.use_labels(labels_RC)
        mls(pair(8))
        mls.finish_step(TRUE)
        mls(pair(8, seed=1))
        found[space] = diagnose(mls, pair(8).row_B, labels_RC)
    assert float(found["truth"]["agreement"]) == 1 > float(found["backbone"]["agreement"])
    assert float(found["truth"]["agreement_base"]) == 0.5
