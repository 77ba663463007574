"""SlotCon against a slow reference: one image, prototype and cell at a time, without packing."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mls.config.methods import Slotcon
from mls.methods.method import Pair
from mls.methods.slotcon import SlotCon, grouping_loss, in_use, pool_slots, slot_loss
from mls.models.backbone import last_map
from tests.methods.support import TRUE, build, config, gradients, pair, unit

SIDE = 3
"""Cells of the last map of 48 x 48 pixels, along each axis."""
exact = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-10)
BOXES = [  # top, left, height, width of the first view and of the second
    ((10, 20, 90, 120), (40, 60, 100, 80)),  # a corner each
    ((0, 0, 60, 60), (30, 10, 45, 90)),
    ((0, 0, 50, 50), (60, 70, 80, 90)),  # nothing in common
    ((5, 5, 140, 160), (50, 40, 33, 47)),  # one within the other
    ((7, 9, 64, 48), (7, 9, 64, 48)),  # the same
    ((20, 0, 100, 30), (0, 29, 150, 90)),  # one column of pixels
]
DISJOINT = 2
FLIPS = [[True, True, False, False, True, False], [False, True, True, False, False, True]]


@pytest.fixture(autouse=True)
def in_float64(seeded: None) -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def slotcon(prototypes: int = 6, moco: dict[str, Any] | None = None, **changes: Any) -> Any:
    """With a teacher that is not the student, and heads that tell cells apart from the start."""
    section = Slotcon(prototypes=prototypes, hidden_dim=12, projection_dim=8, **changes)
    method = build(SlotCon, config(moco).model_copy(update={"slotcon": section, "epochs": 8}))
    with torch.no_grad():
        for name in (*method.followed, "predictor"):
            for p in getattr(method, name).parameters():
                p.add_(0.2 * torch.randn_like(p))
        for name in method.followed:
            for online, key in zip(
                getattr(method, name).parameters(), getattr(method, f"key_{name}").parameters(), strict=True
            ):
                key.copy_(online + 0.05 * torch.randn_like(online))
        method.centre_K.copy_(0.1 * torch.randn(prototypes))
    return method


def views(epoch: float = 0.0) -> Pair:
    """The second view is the first with noise, so that some slots are in use in both."""
    made = pair(len(BOXES), epoch=epoch, side=16 * SIDE)
    key_BCHW = made.query_BCHW + 0.5 * made.key_BCHW
    return made._replace(key_BCHW=key_BCHW, boxes_VB4=torch.tensor(BOXES).transpose(0, 1), flips_VB=torch.tensor(FLIPS))


# ------------------------------------------------------------------------------------- the slow path


def scores_of(x_dhw: Tensor, prototypes_Kd: Tensor) -> Tensor:
    """Cosine of each prototype with each cell (K, h, w)."""
    return torch.stack([F.cosine_similarity(p[:, None, None], x_dhw, dim=0) for p in prototypes_Kd])


def slot_of(x_dhw: Tensor, scores_Khw: Tensor, k: int, temperature: float) -> Tensor:
    """The mean of the cells, weighted by their assignment to prototype k."""
    share_hw = (scores_Khw[k] / temperature).exp() / (scores_Khw / temperature).exp().sum(0) + 1e-6
    total = sum(x_dhw[:, r, c] * share_hw[r, c] for r in range(SIDE) for c in range(SIDE))
    assert isinstance(total, Tensor)
    return total / share_hw.sum()


def best(scores_Khw: Tensor) -> set[int]:
    """The prototypes in use."""
    cells = scores_Khw.detach().flatten(1).T.tolist()
    return {cell.index(max(cell)) for cell in cells}


def common(box: list[int], other: list[int]) -> list[tuple[int, int]]:
    """Where the crops' common region begins and ends in the image, along y and x."""
    return [(max(box[d], other[d]), min(box[d] + box[d + 2], other[d] + other[d + 2])) for d in (0, 1)]


def shown(scores_Khw: Tensor, box: list[int], other: list[int], mirrored: bool) -> list[Tensor]:
    """The scores, bilinear, at the centres of the SIDE x SIDE cells of the common region."""
    ends, found = common(box, other), []
    for r in range(SIDE):
        for c in range(SIDE):
            at = []
            for d, cell in ((0, r), (1, c)):
                low, high = ends[d]
                share = (low + (cell + 0.5) / SIDE * (high - low) - box[d]) / box[d + 2]
                share = 1 - share if d == 1 and mirrored else share
                at.append(min(max(share * SIDE - 0.5, 0.0), SIDE - 1.0))
            (y, x), (y0, x0) = at, (min(int(v), SIDE - 2) for v in at)
            rows = [
                (1 - (x - x0)) * scores_Khw[:, y0 + i, x0] + (x - x0) * scores_Khw[:, y0 + i, x0 + 1] for i in (0, 1)
            ]
            found.append((1 - (y - y0)) * rows[0] + (y - y0) * rows[1])
    return found


def predicted(method: Any, rows: list[Tensor]) -> list[Tensor]:
    """Predictions of a group's valid slots, the only ones that batch norm sees."""
    x = method.predictor.linears[0](torch.stack(rows))
    for norm, linear in zip(method.predictor.norms, method.predictor.linears[1:], strict=True):
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() * norm.weight + norm.bias
        x = linear(F.gelu(x))
    return list(x / x.norm(dim=1, keepdim=True))


def slow_losses(method: Any, made: Pair, splits: int = 1) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The losses, and the number of slots of each kind."""
    chosen, size = method.config.slotcon, len(made.row_B)
    images = (made.query_BCHW, made.key_BCHW)
    student = [method.projector(last_map(method.backbone, x)) for x in images]
    with torch.no_grad():
        teacher = [method.key_projector(last_map(method.key_backbone, x)) for x in images]
    student_scores = [[scores_of(x, method.prototypes.weight) for x in view] for view in student]
    teacher_scores = [[scores_of(x, method.key_prototypes.weight.detach()) for x in view] for view in teacher]
    boxes, flips = made.boxes_VB4.tolist(), made.flips_VB.tolist()
    grouping = slots = torch.zeros(())
    counts = {"valid": 0, "teacher": 0, "student": 0}
    for a, b in ((0, 1), (1, 0)):
        entropies = []
        for i in range(size):
            if any(low >= high for low, high in common(boxes[a][i], boxes[b][i])):
                continue
            q_S = shown(student_scores[a][i], boxes[a][i], boxes[b][i], flips[a][i])
            p_S = shown(teacher_scores[b][i], boxes[b][i], boxes[a][i], flips[b][i])
            for q_K, p_K in zip(q_S, p_S, strict=True):
                p_K = ((p_K - method.centre_K) / chosen.teacher_temperature).softmax(0)
                entropies.append(-(p_K * (q_K / chosen.student_temperature).log_softmax(0)).sum())
        grouping = grouping + torch.stack(entropies).mean()
        uses = [best(teacher_scores[b][i]) for i in range(size)]
        keys = {
            (i, k): F.normalize(slot_of(teacher[b][i], teacher_scores[b][i], k, chosen.teacher_temperature), dim=0)
            for i in range(size)
            for k in uses[i]
        }
        asked = [(i, k) for i in range(size) for k in sorted(uses[i] & best(student_scores[a][i]))]
        rows = {(i, k): slot_of(student[a][i], student_scores[a][i], k, chosen.teacher_temperature) for i, k in asked}
        terms = []
        for group in range(splits):
            own = [place for place in asked if place[0] * splits // size == group]
            for place, q_d in zip(own, predicted(method, [rows[p] for p in own]), strict=True):
                cosines = {other: q_d @ k_d / chosen.slot_temperature for other, k_d in keys.items()}
                terms.append(torch.stack(list(cosines.values())).logsumexp(0) - cosines[place])
        slots = slots + 2 * chosen.slot_temperature * torch.stack(terms).mean()
        counts["valid"] += len(asked)
        counts["teacher"] += len(keys)
        counts["student"] += sum(len(best(scores)) for scores in student_scores[a])
    loss = chosen.weight * grouping + (1 - chosen.weight) * slots
    return {"loss": loss, "grouping": grouping, "slots": slots}, counts


@pytest.mark.parametrize(("prototypes", "splits"), [(6, 1), (20, 1), (6, 2), (20, 2)])
def test_losses_and_gradients_equal_those_of_the_slow_path(prototypes: int, splits: int) -> None:
    """6 prototypes are fewer than the 9 cells; 20 are more, and then 9 places hold all slots in use."""
    method = slotcon(prototypes, {"bn_splits": splits}, weight=0.3, slot_temperature=0.25)
    made = views()
    found = method.losses(method.embed(made))
    expected, counts = slow_losses(method, made, splits)
    assert 10 < counts["valid"] < min(counts["teacher"], counts["student"]), "some slots are in use in only one view"
    assert counts["teacher"] < 2 * len(BOXES) * min(prototypes, SIDE**2), "and some in none"
    for name, value in expected.items():
        exact(found[name], value)
    found["loss"].backward()
    ours = gradients(method)
    method.zero_grad()
    expected["loss"].backward()
    theirs = gradients(method)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize("prototypes", [9, 20])
def test_an_image_may_use_one_prototype_per_cell(prototypes: int) -> None:
    """All places are taken if the first 9 prototypes are the cells of an image."""
    method, made = slotcon(prototypes), views()
    with torch.no_grad():
        cells_Sd = method.key_projector(last_map(method.key_backbone, made.key_BCHW))[0].flatten(1).T
        for weight in (method.prototypes.weight, method.key_prototypes.weight):
            weight[: SIDE**2] = cells_Sd
    e = method.embed(made)
    assert e.directions[0].use_NM[0].tolist() == [True] * 9
    expected, _ = slow_losses(method, made)
    exact(method.losses(e)["slots"], expected["slots"])


# ------------------------------------------------------------------------------ its parts, in numbers


def test_pooled_slots_in_plain_python() -> None:
    x, prototypes, t = 3 * torch.randn(2, 4, 2, 3), 5 * torch.randn(5, 4), 0.3
    slots, scores = pool_slots(x, prototypes, t)
    for i in range(2):
        cells = [x[i, :, r, c].tolist() for r in range(2) for c in range(3)]
        cosines = [
            [
                sum(a * b for a, b in zip(p, cell, strict=True))
                / math.sqrt(sum(a * a for a in p) * sum(b * b for b in cell))
                for cell in cells
            ]
            for p in prototypes.tolist()
        ]
        for k in range(5):
            assert scores[i, k].flatten().tolist() == pytest.approx(cosines[k], abs=1e-12)
            shares = [
                math.exp(cosines[k][s] / t) / sum(math.exp(row[s] / t) for row in cosines) + 1e-6 for s in range(6)
            ]
            expected = [sum(w * cell[d] for w, cell in zip(shares, cells, strict=True)) / sum(shares) for d in range(4)]
            assert slots[i, k].tolist() == pytest.approx(expected, abs=1e-12)


def test_a_prototype_is_in_use_if_it_is_the_best_of_some_cell() -> None:
    scores = torch.randn(7, 5, 2, 2)
    expected = [[k in best(image) for k in range(5)] for image in scores]
    assert in_use(scores).tolist() == expected
    assert 0 < sum(sum(row) for row in expected) < 7 * 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_grouping_loss_in_plain_python(dtype: torch.dtype) -> None:
    student, teacher, counts = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), [True, False, True]
    total = 0.0
    for i in (0, 2):
        for r in range(2):
            for c in range(2):
                q = [math.exp(v / 0.1) for v in student[i, :, r, c].tolist()]
                p = [math.exp(v / 0.07) for v in teacher[i, :, r, c].tolist()]
                total -= sum(b / sum(p) * math.log(a / sum(q)) for a, b in zip(q, p, strict=True)) / 8
    found = grouping_loss(student.to(dtype), teacher.to(dtype), torch.tensor(counts), 0.1, 0.07)
    assert float(found) == pytest.approx(total, rel=1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_slot_loss_in_plain_python_as_a_later_rank_sees_it(dtype: torch.dtype) -> None:
    """2 images of 3 places, the third and fourth of the global batch's 5."""
    q, k, t = unit(6, 4).view(2, 3, 4), unit(15, 4).view(5, 3, 4), 0.2
    use = torch.rand(5, 3) < 0.7
    use[2:4] = torch.tensor([[True, True, True], [True, False, True]])
    valid = [(0, 0), (0, 2), (1, 2)]
    total = 0.0
    for i, m in valid:
        dots = {
            (n, o): math.exp(sum(a * b for a, b in zip(q[i, m].tolist(), k[n, o].tolist(), strict=True)) / t)
            for n in range(5)
            for o in range(3)
            if use[n, o]
        }
        total -= math.log(dots[i + 2, m] / sum(dots.values())) * 2 * t / 3
    valid_BM = torch.zeros(2, 3, dtype=torch.bool)
    valid_BM[tuple(zip(*valid, strict=True))] = True
    found = slot_loss(q.to(dtype), valid_BM, k.to(dtype), use, 2, t)
    assert not use.all()
    assert float(found) == pytest.approx(total, rel=1e-12 if dtype == torch.float64 else 1e-5)


# -------------------------------------------------------------------------- nothing in common, edges


def finite_gradients(method: Any, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of a backward; all losses and gradients must be finite."""
    method.zero_grad()
    losses["loss"].backward()
    assert all(value.isfinite() for value in losses.values())
    found = gradients(method)
    assert all(gradient.isfinite().all() for gradient in found.values())
    return found


def test_an_image_without_a_common_region_counts_only_for_slots() -> None:
    method, made = slotcon(), views()
    e = method.embed(made)
    assert e.overlaps_B.tolist() == [i != DISJOINT for i in range(len(BOXES))]
    for direction in e.directions:
        direction.student_BKhw.retain_grad()
    finite_gradients(method, method.losses(e))
    for direction in e.directions:
        reached = direction.student_BKhw.grad.abs().amax((1, 2, 3)) > 0
        assert torch.equal(reached, e.overlaps_B)
    elsewhere = made.boxes_VB4.clone()
    elsewhere[0, DISJOINT] = torch.tensor([400, 400, 30, 40])
    losses, others = (method.losses(method.embed(m)) for m in (made, made._replace(boxes_VB4=elsewhere)))
    assert all(torch.equal(losses[name], others[name]) for name in losses)


def test_a_batch_without_any_common_region_has_only_the_slot_loss() -> None:
    method, made = slotcon(), views()
    boxes = torch.tensor(BOXES[DISJOINT])[:, None].repeat(1, len(BOXES), 1)
    losses = method(made._replace(boxes_VB4=boxes))
    assert losses["grouping"].item() == 0 and losses["slots"].item() > 0
    assert finite_gradients(method, losses)["backbone.conv1.weight"].abs().sum() > 0


def without_common_slots(splits: int) -> Any:
    """All cells point one way; of 2 prototypes the student takes the first, the teacher the second."""
    method = slotcon(2, {"bn_splits": splits})
    way = torch.ones(8)
    with torch.no_grad():
        for prefix, sign in (("", 1.0), ("key_", -1.0)):
            method.get_submodule(f"{prefix}projector")[6].bias.copy_(100 * way)
            method.get_parameter(f"{prefix}prototypes.weight").copy_(torch.stack([sign * way, -sign * way]))
    return method


@pytest.mark.parametrize("splits", [1, 2])
def test_a_batch_without_common_slots_has_only_the_grouping_loss(splits: int) -> None:
    method = without_common_slots(splits)
    losses = method(views())
    assert not any(direction.valid_BM.any() for direction in method.embedded.directions)
    assert all(direction.use_NM.sum() == len(BOXES) for direction in method.embedded.directions)
    assert losses["slots"].item() == 0 and losses["grouping"].item() > 0
    found = finite_gradients(method, losses)
    assert all(torch.count_nonzero(g) == 0 for name, g in found.items() if name.startswith("predictor"))


def test_a_fresh_predictor_copes_with_invalid_slots() -> None:
    """Its biases are 0, so an invalid slot predicts exactly 0, which has no direction."""
    method = slotcon(20)
    with torch.no_grad():
        for name, p in method.predictor.named_parameters():
            if name.endswith("bias"):
                p.zero_()
    losses = method(views())
    assert any((~direction.valid_BM).any() for direction in method.embedded.directions)
    finite_gradients(method, losses)


# ------------------------------------------------------------------------------- teacher and centre


def test_only_the_student_gets_gradients() -> None:
    method = slotcon()
    losses = method(views())
    e = method.embedded
    free = [e.z_key_Bd, e.keys.z_Nd, e.keys.g_NG, e.mean_K]
    free += [x for d in e.directions for x in (d.teacher_BKhw, d.k_NMd)]
    assert not any(x.requires_grad for x in free)
    found = finite_gradients(method, losses)
    assert {name.split(".")[0] for name in found} == {"backbone", "projector", "prototypes", "predictor"}
    # what batch norm takes out again, a bias before it, moves nothing
    idle = {"projector.0.bias", "projector.3.bias", "predictor.linears.0.bias", "predictor.linears.1.bias"}
    assert all(g.abs().max() > 1e-8 for name, g in found.items() if name not in idle)


def test_each_term_trains_what_it_reads() -> None:
    for weight, predictor in ((1.0, False), (0.0, True)):
        method = slotcon(weight=weight)
        found = finite_gradients(method, method(views()))
        assert bool(found["predictor.linears.2.weight"].abs().sum() > 0) == predictor
        assert found["prototypes.weight"].abs().sum() > 0 and found["backbone.conv1.weight"].abs().sum() > 0


@pytest.mark.parametrize(("epoch", "momentum"), [(0.0, 0.99), (4.0, 0.995), (8.0, 1.0)])
def test_the_teachers_momentum_rises_to_1(epoch: float, momentum: float) -> None:
    method = slotcon()
    names = ("backbone.conv1.weight", "projector.6.weight", "prototypes.weight")
    before = {name: method.get_parameter(f"key_{name}").clone() for name in names}
    method(views(epoch))
    method.finish_step(TRUE)
    for name, key in before.items():
        expected = momentum * key + (1 - momentum) * method.get_parameter(name)
        exact(method.get_parameter(f"key_{name}"), expected)
        assert torch.equal(method.get_parameter(f"key_{name}"), key) == (momentum == 1)


@pytest.mark.parametrize("keep", [0.9, 0.5])
def test_the_centre_follows_the_teachers_scores_after_the_loss(keep: float) -> None:
    """Scores of both views as the teacher sees them, not aligned; image by image and cell by cell."""
    method, made = slotcon(centre_momentum=keep), views()
    before = method.centre_K.clone()
    method(made)
    assert torch.equal(method.centre_K, before)
    with torch.no_grad():
        seen = [
            scores_of(x, method.key_prototypes.weight)[:, r, c]
            for view in (made.query_BCHW, made.key_BCHW)
            for x in method.key_projector(last_map(method.key_backbone, view))
            for r in range(SIDE)
            for c in range(SIDE)
        ]
    method.finish_step(TRUE)
    expected = keep * before + (1 - keep) * torch.stack(seen).mean(0)
    exact(method.centre_K, expected)
    assert not torch.allclose(expected, before, atol=1e-3)


def test_the_centre_begins_at_0() -> None:
    chosen = config().model_copy(update={"slotcon": Slotcon(prototypes=6, hidden_dim=12, projection_dim=8)})
    assert torch.equal(build(SlotCon, chosen).centre_K, torch.zeros(6))


def test_a_non_finite_step_moves_nothing() -> None:
    method = slotcon()
    kept = ("key_", "centre_K", "dictionary")
    before = {n: v.clone() for n, v in method.state_dict().items() if n.startswith(kept) and "running" not in n}
    method(views())
    method.embedded.mean_K.fill_(torch.nan)
    method.finish_step(torch.tensor(False))
    after = method.state_dict()
    moved = {n for n, v in before.items() if not torch.equal(v, after[n])}
    assert {n for n in moved if not n.endswith("num_batches_tracked")} == set()


# ------------------------------------------------------------------------------------------ the log


def test_the_log_sees_means_over_the_cells() -> None:
    """Means over the cells: of the first view by the student, of the second by the teacher."""
    method, made = slotcon(), views()
    e = method.embed(made)
    map_BGhw, key_BGhw = last_map(method.backbone, made.query_BCHW), last_map(method.key_backbone, made.key_BCHW)
    z_Bd, key_Bd = method.projector(map_BGhw).mean((2, 3)), method.key_projector(key_BGhw).mean((2, 3))
    exact(e.g_query_BG, map_BGhw.mean((2, 3)))
    exact(e.z_query_Bd, F.normalize(z_Bd, dim=1))
    exact(e.keys.g_NG, F.normalize(key_BGhw.mean((2, 3)), dim=1))
    exact(e.keys.z_Nd, F.normalize(key_Bd, dim=1))
    assert torch.equal(e.z_key_Bd, e.keys.z_Nd)
    assert torch.equal(e.keys.box_N4, made.boxes_VB4[1]) and torch.equal(e.keys.row_N, made.row_B)


def test_losses_are_float32_under_autocast() -> None:
    torch.set_default_dtype(torch.float32)
    method = slotcon()
    with torch.autocast("cpu", torch.bfloat16):
        losses = method(views())
    assert {value.dtype for value in losses.values()} == {torch.float32}
    finite_gradients(method, losses)
