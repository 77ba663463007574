"""Equations 7 to 10 of the paper and every switch, against plain Python and cases computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from mls.config.methods import Mls
from mls.methods.method import Embedded
from mls.methods.mls import MLS, multi_label_loss, weight_at
from mls.methods.moco import MoCo
from mls.methods.pseudo_labels import pseudo_labels, true_neighbours
from mls.runtime import collectives
from tests.methods.support import TRUE, build, config, pair, unit

LOGITS = [[0.9, -0.2, 0.1, 0.3], [0.0, 0.5, -1.0, 0.7]]
LABELS = [[True, False, False, True], [False, True, False, True]]
T = 0.2


def test_pseudo_labels_are_the_k_nearest_whatever_the_scale_of_g() -> None:
    queue = torch.eye(4)
    g = torch.tensor([[0.1, 0.5, 0.4, 0.0], [9.0, 1.0, -3.0, 8.0]])
    expected = torch.tensor([[False, True, True, False], [True, False, False, True]])
    assert torch.equal(pseudo_labels(g, queue, 2), expected)
    assert torch.equal(pseudo_labels(100 * g, queue, 2), expected)


def test_exactly_k_positives_also_among_ties() -> None:
    labels = pseudo_labels(torch.ones(3, 2), torch.ones(7, 2), 4)
    assert labels.sum(1).tolist() == [4, 4, 4] and labels.dtype == torch.bool


@pytest.mark.parametrize("k", [0, 8])
def test_k_outside_the_dictionary_is_an_error(k: int) -> None:
    with pytest.raises(ValueError, match=r"1\.\.7"):
        pseudo_labels(torch.ones(1, 2), torch.ones(7, 2), k)


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def by_hand(terms: str, reduction: str, bias: float) -> float:
    """Eq. 9 and its variants, one image and one entry at a time; ``knn`` has no bias."""
    total = 0.0
    for row, truth in zip(LOGITS, LABELS, strict=True):
        scaled = [p / T + bias * (terms != "knn") for p in row]
        positives = [-log_sigmoid(p) for p, y in zip(scaled, truth, strict=True) if y]
        negatives = [-log_sigmoid(-p) for p, y in zip(scaled, truth, strict=True) if not y]
        if terms == "bce_pos":
            negatives = [0.0] * len(negatives)
        if terms == "knn":
            log_sum = math.log(sum(math.exp(p) for p in scaled))
            total += sum(log_sum - p for p, y in zip(scaled, truth, strict=True) if y) / 2
        elif reduction == "balanced":
            total += sum(positives) / len(positives) + sum(negatives) / len(negatives)
        else:
            divisor = {"mean": 4, "sum": 1, "positives": 2}[reduction]
            total += (sum(positives) + sum(negatives)) / divisor
    return total / 2


@pytest.mark.parametrize("bias", [0.0, -1.5, 0.7])
@pytest.mark.parametrize("reduction", ["mean", "sum", "balanced", "positives"])
@pytest.mark.parametrize("terms", ["bce", "bce_pos", "knn"])
def test_the_loss_equals_the_formula_in_plain_python(terms: Any, reduction: Any, bias: float) -> None:
    logits = torch.tensor(LOGITS, dtype=torch.float64)
    loss = multi_label_loss(logits, torch.tensor(LABELS), T, terms, reduction, bias)
    assert float(loss) == pytest.approx(by_hand(terms, reduction, bias), rel=1e-12)
    single = multi_label_loss(logits.float(), torch.tensor(LABELS), T, terms, reduction, bias)
    assert single.dtype == torch.float32 and float(single) == pytest.approx(float(loss), rel=1e-6)


def test_equation_9_is_the_default() -> None:
    logits, labels = torch.tensor(LOGITS), torch.tensor(LABELS)
    assert torch.equal(multi_label_loss(logits, labels, T), multi_label_loss(logits, labels, T, "bce", "mean", 0.0))
    assert Mls().bias == "none" and build(MLS).bias == 0


def test_terms_none_gives_zero() -> None:
    assert float(multi_label_loss(torch.tensor(LOGITS), torch.tensor(LABELS), T, "none")) == 0
    assert float(multi_label_loss(torch.tensor(LOGITS), torch.tensor(LABELS), T, "none", bias=-1.0)) == 0


def test_untrained_logits_give_ln_2() -> None:
    """Paper facts: at cosine 0 each sigmoid is one half."""
    loss = multi_label_loss(torch.zeros(2, 5), torch.zeros(2, 5, dtype=torch.bool), T)
    assert float(loss) == pytest.approx(math.log(2))


# -------------------------------------------------------------------------------------- the prior


def uninformed(mls: MLS) -> Embedded:
    """Embeddings whose cosines with the dictionary are all 0."""
    e = mls.embed(pair())
    return replace(e, z_query_Bd=torch.zeros_like(e.z_query_Bd))


@pytest.mark.parametrize(("k", "size"), [(3, 12), (1, 12), (6, 12), (20, 4096)])
def test_the_prior_bias_predicts_k_of_d(k: int, size: int) -> None:
    mls = build(MLS, config({"queue_size": size}, topk=k, bias="prior"))
    assert 1 / (1 + math.exp(-mls.bias)) == pytest.approx(k / size, rel=1e-12)


def test_the_loss_at_cosine_0_by_hand() -> None:
    """k / D = 1/4 of the entries are positive. The prior predicts 1/4; without it the prediction is 1/2."""
    literal, prior = (build(MLS, config(bias=bias)) for bias in ("none", "prior"))
    assert float(literal.losses(uninformed(literal))["multi_label"]) == pytest.approx(math.log(2))
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert float(prior.losses(uninformed(prior))["multi_label"]) == pytest.approx(entropy)


@pytest.mark.parametrize(("reduction", "divisor"), [("mean", 12), ("sum", 1), ("positives", 3)])
def test_only_the_prior_balances_positives_and_negatives_at_cosine_0(reduction: Any, divisor: int) -> None:
    labels = torch.arange(12)[None] < 3
    for bias, pulls in ((0.0, (-3 / 2, 9 / 2)), (math.log(3 / 9), (-3 * 3 / 4, 9 * 1 / 4))):
        logits = torch.zeros(1, 12, dtype=torch.float64, requires_grad=True)
        multi_label_loss(logits, labels, T, "bce", reduction, bias).backward()
        assert logits.grad is not None
        found = [float(logits.grad[labels].sum()), float(logits.grad[~labels].sum())]
        assert found == pytest.approx([pull / T / divisor for pull in pulls], rel=1e-12)
        assert (sum(found) == pytest.approx(0, abs=1e-12)) == (bias != 0)


# ------------------------------------------------------------------------------- centred classifiers


@pytest.mark.parametrize("logit_space", ["projection", "backbone"])
def test_centring_subtracts_each_images_mean_logit_and_keeps_its_labels(logit_space: Any) -> None:
    literal, centred = (build(MLS, config(logit_space=logit_space, centre=centre)) for centre in (False, True))
    e = literal.embed(pair())
    (labels, logits), (same, less) = literal.classify(e), centred.classify(e)
    assert torch.equal(labels, same)
    torch.testing.assert_close(less, logits - logits.mean(1, keepdim=True))
    assert logits.mean(1).abs().max() > 1e-3


def test_centring_removes_the_push_in_a_narrow_cone() -> None:
    """See docs/method.md: at first all embeddings point in one direction, and all negatives push against it."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.nn.functional.normalize(torch.ones(8), dim=0)
    cone = torch.nn.functional.normalize(axis + 0.05 * torch.randn(16, 8, generator=generator), dim=1)
    pushes = {}
    for centre in (False, True):
        mls = build(MLS, config(centre=centre))
        e = mls.embed(pair())
        mls.dictionary.z_Dd.copy_(cone[:12])
        z = cone[12:].clone().requires_grad_()
        mls.losses(replace(e, z_query_Bd=z))["multi_label"].backward()
        assert z.grad is not None
        pushes[centre] = float((4 * z.grad @ axis).mean())  # 4 images: undo the batch's mean
    assert pushes[False] == pytest.approx(0.75 / 0.2, rel=0.05), "all but k / D, at sigmoid 1, over the temperature"
    assert abs(pushes[True]) < 0.02 * pushes[False]


@pytest.mark.parametrize(("terms", "reduction"), [("focal", "mean"), ("bce", "median")])
def test_an_unknown_switch_is_an_error(terms: Any, reduction: Any) -> None:
    with pytest.raises(ValueError, match=r"focal|median"):
        multi_label_loss(torch.tensor(LOGITS), torch.tensor(LABELS), T, terms, reduction)


def test_lambda_waits_then_rises_linearly() -> None:
    chosen = Mls(weight=0.5, warmup_epochs=2.0, ramp_epochs=4.0)
    found = [weight_at(chosen, epoch) for epoch in (0, 1.9, 2, 3, 5, 6, 100)]
    assert found == pytest.approx([0, 0, 0, 0.125, 0.375, 0.5, 0.5])
    assert weight_at(Mls(), 0.0) == 0.5, "the paper's: both terms from the first step on"
    assert [weight_at(Mls(warmup_epochs=1.0), epoch) for epoch in (0.99, 1.0)] == [0.0, 0.5]


def test_the_total_is_info_nce_plus_lambda_times_the_term() -> None:
    losses = build(MLS)(pair())
    expected = losses["info_nce"] + 0.5 * losses["multi_label"]
    assert torch.equal(losses["loss"], expected) and losses["multi_label"].item() > 0


def test_warm_up_is_only_info_nce() -> None:
    mls = build(MLS, config(warmup_epochs=1.0))
    early, late = mls(pair(epoch=0.5)), mls(pair(epoch=1.0))
    assert torch.equal(early["loss"], early["info_nce"]) and early["multi_label"] > 0, "still logged"
    assert torch.equal(late["loss"], late["info_nce"] + 0.5 * late["multi_label"])


@pytest.mark.parametrize("label_space", ["backbone", "projection"])
@pytest.mark.parametrize("logit_space", ["backbone", "projection"])
def test_spaces_of_table_7(label_space: str, logit_space: str) -> None:
    mls = build(MLS, config(label_space=label_space, logit_space=logit_space))
    e, d = mls.embed(pair()), mls.dictionary
    g = e.g_query_BG / e.g_query_BG.norm(dim=1, keepdim=True)
    labels = pseudo_labels(*((g, d.g_DG) if label_space == "backbone" else (e.z_query_Bd, d.z_Dd)), 3)
    logits = g @ d.g_DG.T if logit_space == "backbone" else e.z_query_Bd @ d.z_Dd.T
    found_labels, found_logits = mls.classify(e)
    assert torch.equal(found_labels, labels) and torch.allclose(found_logits, logits, atol=1e-6)
    assert found_logits.requires_grad and not found_labels.requires_grad
    mls.losses(e)["multi_label"].backward()
    reached = all(p.grad is not None and p.grad.abs().sum() > 0 for p in mls.projector.parameters())
    assert reached == (logit_space == "projection")
    assert mls.backbone.conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("enqueue", ["after", "before", "split"])
def test_which_dictionary_the_term_sees(enqueue: str) -> None:
    """Keys of images 0 to 3 will overwrite entries 0 to 3; no cosine is higher than a query's with its own key."""
    mls = build(MLS, config(enqueue=enqueue, topk=1))
    views = pair()
    views = views._replace(key_BCHW=views.query_BCHW)  # equal encoders and views: a query equals its own key
    e, old = mls.embed(views), mls.dictionary.z_Dd.clone()
    labels, logits = mls.classify(e)
    own = torch.eye(4, 12, dtype=torch.bool)
    assert torch.equal(labels, own) == (enqueue != "after"), "the own key is in the dictionary that labels"
    new = old.clone()
    new[:4] = e.keys.z_Nd
    expected = e.z_query_Bd @ (new if enqueue == "before" else old).T
    assert torch.allclose(logits, expected, atol=1e-6)
    assert torch.equal(mls.losses(e)["info_nce"], build(MoCo).losses(e)["info_nce"]), "negatives: always the old ones"
    assert torch.equal(mls.dictionary.z_Dd, old)


@pytest.mark.parametrize("other", [config(terms="none"), config(weight=0.0)], ids=["terms none", "weight 0"])
def test_without_the_term_it_is_moco_bit_for_bit(other: Any) -> None:
    methods = build(MoCo), build(MLS, other)
    optimizers = [torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1) for m in methods]
    for step in range(5):
        for method, optimizer in zip(methods, optimizers, strict=True):
            optimizer.zero_grad()
            method(pair(5, epoch=step / 3, seed=step))["loss"].backward()
            optimizer.step()
            method.finish_step(TRUE)
    one, two = (method.state_dict() for method in methods)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_labels_and_losses_are_float32_under_autocast() -> None:
    mls = build(MLS)
    with torch.autocast("cpu", torch.bfloat16):
        losses = mls(pair())
    assert {value.dtype for value in losses.values()} == {torch.float32}
    e = mls.embedded
    assert e.g_query_BG.dtype == e.keys.z_Nd.dtype == torch.float32


def test_nearest_by_cosine_in_plain_python() -> None:
    torch.manual_seed(1)
    g, queue = 3 * unit(4, 6), unit(9, 6)
    labels = pseudo_labels(g, queue, 2)
    for i, query in enumerate(g.tolist()):
        scores = [sum(a * b for a, b in zip(query, entry, strict=True)) for entry in queue.tolist()]
        nearest = sorted(range(9), key=lambda j: -scores[j])[:2]
        assert sorted(labels[i].nonzero()[:, 0].tolist()) == sorted(nearest)


# --------------------------------------------------------------------------------- labels of the truth


def chosen(labels: Any) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in labels]


def classes(*rows: str) -> torch.Tensor:
    """Bool, one row per word, one column per letter of a to d; ``-`` has none."""
    return torch.tensor([[letter in row for letter in "abcd"] for row in rows])


def test_true_neighbours_have_the_highest_intersection_over_union() -> None:
    """IoU with ab: ab 1, abc 2/3, abcd 1/2, a 1/2, bc 1/3, cd 0. Neither the common count nor the recall orders so."""
    entries = classes("cd", "a", "abcd", "bc", "abc", "ab")
    cosines = torch.tensor([[0.9, -0.9, 0.8, 0.9, -0.5, -0.9]])  # the opposite of the right order, with one tie
    known = torch.ones(6, dtype=torch.bool)
    found = [chosen(true_neighbours(classes("ab"), entries, known, cosines, k))[0] for k in range(1, 7)]
    assert found == [[5], [4, 5], [2, 4, 5], [1, 2, 4, 5], [1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]


def test_ties_are_ordered_by_cosine() -> None:
    entries = classes("a", "a", "b", "a", "b")
    cosines = torch.tensor([[0.1, 0.3, 0.9, -0.2, 0.8], [0.3, 0.1, 0.0, 0.2, 0.1]])
    known = torch.ones(5, dtype=torch.bool)
    queries = classes("a", "b")
    assert chosen(true_neighbours(queries, entries, known, cosines, 1)) == [[1], [4]]
    assert chosen(true_neighbours(queries, entries, known, cosines, 2)) == [[0, 1], [2, 4]]
    assert chosen(true_neighbours(queries, entries, known, cosines, 3)) == [[0, 1, 3], [0, 2, 4]]


def test_a_cosine_never_outweighs_a_class() -> None:
    """The two closest ratios with 80 classes are 1/79 and 1/80."""
    query, entries = torch.arange(80)[None] < 1, torch.arange(80) < torch.tensor([[80], [79]])
    cosines = torch.tensor([[1.0, -1.0]])
    assert chosen(true_neighbours(query, entries, torch.tensor([True, True]), cosines, 1)) == [[1]]


def test_random_entries_come_last() -> None:
    entries, cosines = classes("a", "a", "b", "-"), torch.tensor([[1.0, 0.9, -1.0, -0.9]])
    known = torch.tensor([False, False, True, True])
    assert chosen(true_neighbours(classes("a"), entries, known, cosines, 1)) == [[3]]
    assert chosen(true_neighbours(classes("a"), entries, known, cosines, 2)) == [[2, 3]]
    unknown = true_neighbours(classes("a", "b"), entries, torch.zeros(4, dtype=torch.bool), cosines.expand(2, 4), 3)
    assert unknown.dtype == torch.bool and unknown.sum(1).tolist() == [3, 3], "exactly k all the same"


def test_an_image_without_classes_gets_its_nearest_entries() -> None:
    entries, cosines = classes("a", "-", "abcd", "b"), torch.tensor([[0.2, 0.1, 0.9, -0.3]])
    known = torch.tensor([True, True, True, False])
    assert chosen(true_neighbours(classes("-"), entries, known, cosines, 1)) == [[2]]
    assert chosen(true_neighbours(classes("-"), entries, known, cosines, 2)) == [[0, 2]]


def truthful(**mls: Any) -> Any:
    """An MLS that knows the classes of images 100 to 105; entries 0 to 3 are keys of images 100 to 103."""
    method = build(MLS, config(label_space="truth", topk=2, **mls))
    method.truth_RC = torch.zeros(106, 4, dtype=torch.bool)
    method.truth_RC[100:] = classes("a", "b", "ab", "cd", "abc", "d")
    method(pair())
    method.finish_step(TRUE)
    return method


@pytest.mark.parametrize("logit_space", ["backbone", "projection"])
def test_true_labels_by_hand(logit_space: str) -> None:
    """ab, cd, abc and d find their best among a, b, ab, cd; the cosine decides ties."""
    method = truthful(logit_space=logit_space)
    views = pair()
    e = method.embed(views._replace(row_B=views.row_B + 2))
    labels, logits = method.classify(e)
    g_BD = torch.nn.functional.normalize(e.g_query_BG, dim=1) @ method.dictionary.g_DG.T
    best = (2, 3, 2, 3)  # and all entries before it are as good as each other
    assert chosen(labels) == [[int(g_D[:entry].argmax()), entry] for g_D, entry in zip(g_BD, best, strict=True)]
    expected = g_BD if logit_space == "backbone" else e.z_query_Bd @ method.dictionary.z_Dd.T
    assert torch.allclose(logits, expected, atol=1e-6) and logits.requires_grad and not labels.requires_grad
    assert method.losses(e)["multi_label"] > 0


def test_each_rank_looks_up_its_own_images(monkeypatch: pytest.MonkeyPatch) -> None:
    method = truthful()
    e = method.embed(pair())
    labels, _ = method.classify(e)
    assert not torch.equal(labels[:2], labels[2:])
    monkeypatch.setattr(collectives, "world", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
        part = slice(2 * rank, 2 * rank + 2)
        mine = replace(e, g_query_BG=e.g_query_BG[part], z_query_Bd=e.z_query_Bd[part], z_key_Bd=e.z_key_Bd[part])
        assert torch.equal(method.classify(mine)[0], labels[part]), "keys are of the global batch, queries of a rank"


def test_the_ground_truth_is_not_in_the_state_dict() -> None:
    method = truthful()
    assert method.state_dict().keys() == build(MoCo).state_dict().keys()
    method.truth_RC = None
    with pytest.raises(RuntimeError, match="needs use_labels first"):
        method(pair())
