"""SlotCon: learnt prototypes group the cells of a map, and the groups are contrasted (arXiv 2205.15288).

Student and teacher must group alike what both views show. Each prototype pools its cells into a slot; slots in use in
both views are contrasted with the slots of all images. An image uses at most S prototypes, one per cell, so its slots
are packed into M = min(K, S) places, those in use by the teacher first. The host knows M without reading a count.

Shapes: V = 2 views, B images of this rank, N of the global batch, K prototypes, M packed slots, S = h x w cells, G
backbone and d embedding dimensions, C channels, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mls.config.experiment import Pretrain
from mls.data.geometry import align, common_region
from mls.methods.method import Embedded, Method, Pair, keys_of
from mls.methods.momentum import rising_momentum
from mls.models.precision import at_least_float32
from mls.models.projector import SlotPredictor, build_pixel_projector
from mls.runtime.collectives import gather, mean_over_ranks, per_rank, rank


def pool_slots(x_Bdhw: Tensor, prototypes_Kd: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return slots (B, K, d), means of the cells weighted by their assignment, and scores (B, K, h, w), cosines.

    A cell's assignment is the softmax over prototypes of score / temperature, plus 1e-6 [the authors' code].

    Args:
        x_Bdhw: projections of the cells, not normalised.
        prototypes_Kd: not normalised.
        temperature: tau_t > 0.
    """
    scores_BKhw = torch.einsum("kd,bdhw->bkhw", F.normalize(prototypes_Kd, dim=1), F.normalize(x_Bdhw, dim=1))
    share_BKhw = (scores_BKhw / temperature).softmax(1) + 1e-6
    share_BKhw = share_BKhw / share_BKhw.sum((2, 3), keepdim=True)
    return torch.einsum("bdhw,bkhw->bkd", x_Bdhw, share_BKhw), scores_BKhw


def in_use(scores_BKhw: Tensor) -> Tensor:
    """Return which prototypes are the best match of at least one cell, bool (B, K)."""
    best_BS = scores_BKhw.argmax(1).flatten(1)
    return torch.zeros_like(scores_BKhw[:, :, 0, 0], dtype=torch.bool).scatter_(1, best_BS, True)


def grouping_loss(
    student_BKhw: Tensor, teacher_BKhw: Tensor, counts_B: Tensor, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """Return the cross-entropy of the student's assignments against the teacher's, on the views' common region.

    Args:
        student_BKhw: scores.
        teacher_BKhw: scores of the same places, centred, without gradient.
        counts_B: bool, which images count: those whose views overlap. The loss is their mean over all ranks, to which
            each rank contributes its part.
        student_temperature: tau_s > 0.
        teacher_temperature: tau_t > 0.
    """
    log_q_BKhw = (student_BKhw / student_temperature).log_softmax(1)
    p_BKhw = (teacher_BKhw / teacher_temperature).softmax(1)
    loss_B = -(p_BKhw * log_q_BKhw).sum(1).mean((1, 2))
    return (loss_B * counts_B).sum() / per_rank(counts_B)


def slot_loss(q_BMd: Tensor, valid_BM: Tensor, k_NMd: Tensor, use_NM: Tensor, first: int, temperature: float) -> Tensor:
    """Return InfoNCE of slots against the slots of all images, times 2 tau [the authors' code].

    Args:
        q_BMd: predictions, L2-normalised; the positive is the key of the same image and place.
        valid_BM: bool, which slots count: those in use in both views. The loss is their mean over all ranks.
        k_NMd: keys of the global batch, L2-normalised, without gradient.
        use_NM: bool, which keys exist: those in use in the teacher's view.
        first: place of this rank's first image in the global batch.
        temperature: tau > 0.
    """
    logits = q_BMd.flatten(0, 1) @ k_NMd.flatten(0, 1).T / temperature
    logits = logits.masked_fill(~use_NM.flatten(), -torch.inf)
    valid = valid_BM.flatten()
    own_key = torch.arange(len(valid), device=valid.device) + first * valid_BM.shape[1]
    total = F.cross_entropy(logits, own_key.masked_fill(~valid, -100), reduction="sum")  # -100: ignored
    return 2 * temperature * total / per_rank(valid)


class View(NamedTuple):
    """One view by one network; g and z are means over the cells, z is L2-normalised."""

    g_BG: Tensor
    z_Bd: Tensor
    slots_BKd: Tensor
    scores_BKhw: Tensor


class Direction(NamedTuple):
    """One view by the student, the other by the teacher: inputs of `grouping_loss` and `slot_loss`."""

    student_BKhw: Tensor
    teacher_BKhw: Tensor
    q_BMd: Tensor
    valid_BM: Tensor
    k_NMd: Tensor
    use_NM: Tensor


@dataclass(frozen=True)
class Slots(Embedded):
    """Adds both directions of a pair; ``mean_K`` is the teacher's mean score over all cells, views and ranks."""

    directions: tuple[Direction, Direction]
    overlaps_B: Tensor
    mean_K: Tensor


class SlotCon(Method[Slots]):
    """Semantic grouping with slots. In the log, z is the mean of a view's projections."""

    followed = ("backbone", "projector", "prototypes")
    negatives = False
    exported = "key_backbone"  # as its authors transfer it
    centre_K: Tensor

    def __init__(self, config: Pretrain) -> None:
        super().__init__(config)
        self.register_buffer("centre_K", torch.zeros(config.slotcon.prototypes))

    def build_heads(self, feature_dim: int) -> int:
        """Set the projector of the cells, the prototypes and the predictor of the slots."""
        chosen = self.config.slotcon
        self.projector = build_pixel_projector(feature_dim, chosen.hidden_dim, chosen.projection_dim)
        self.prototypes = nn.Embedding(chosen.prototypes, chosen.projection_dim)
        self.predictor = SlotPredictor(chosen.projection_dim, chosen.hidden_dim)
        return chosen.projection_dim

    def momentum_at(self, epoch: float) -> float:
        """Return m, which rises to 1."""
        return rising_momentum(self.config.slotcon.momentum, epoch / self.config.epochs)

    def embed(self, pair: Pair) -> Slots:
        """Run both networks on both views; pair each view by the student with the other by the teacher."""
        students = [self._group(x, "") for x in (pair.query_BCHW, pair.key_BCHW)]
        with torch.no_grad():
            teachers = [self._group(x, "key_") for x in (pair.query_BCHW, pair.key_BCHW)]
        region_VB4, overlaps_B = common_region(pair.boxes_VB4, pair.flips_VB)

        def direction(a: int, b: int) -> Direction:
            student_BKhw = align(students[a].scores_BKhw, region_VB4[a], pair.flips_VB[a])
            teacher_BKhw = align(teachers[b].scores_BKhw, region_VB4[b], pair.flips_VB[b])
            return Direction(student_BKhw, teacher_BKhw, *self._contrast(students[a], teachers[b]))

        return Slots(
            g_query_BG=students[0].g_BG,
            z_query_Bd=students[0].z_Bd,
            z_key_Bd=teachers[1].z_Bd,
            keys=keys_of(pair, gather(teachers[1].g_BG), gather(teachers[1].z_Bd)),
            epoch=pair.epoch,
            directions=(direction(0, 1), direction(1, 0)),
            overlaps_B=overlaps_B,
            mean_K=mean_over_ranks(torch.cat([view.scores_BKhw for view in teachers]).mean((0, 2, 3))),
        )

    def _group(self, x_BCHW: Tensor, prefix: str) -> View:
        """Return a view by the student, or (prefix ``key_``) by the teacher."""
        backbone, projector = (self.get_submodule(f"{prefix}{name}") for name in ("backbone", "projector"))
        prototypes_Kd = self.get_parameter(f"{prefix}prototypes.weight")
        map_BGhw = self.map_of(backbone, x_BCHW)
        x_Bdhw = at_least_float32(projector(map_BGhw))
        with torch.autocast(x_Bdhw.device.type, enabled=False):
            slots = pool_slots(x_Bdhw, prototypes_Kd, self.config.slotcon.teacher_temperature)
        return View(at_least_float32(map_BGhw).mean((2, 3)), F.normalize(x_Bdhw.mean((2, 3)), dim=1), *slots)

    def _contrast(self, student: View, teacher: View) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the inputs of `slot_loss` for one direction."""
        use_BK = in_use(teacher.scores_BKhw)
        packed_BM = use_BK.int().argsort(dim=1, descending=True, stable=True)[:, : teacher.scores_BKhw[0, 0].numel()]
        index_BMd = packed_BM[:, :, None].expand(-1, -1, teacher.slots_BKd.shape[2])
        valid_BM = (use_BK & in_use(student.scores_BKhw)).gather(1, packed_BM)
        q_BMd = at_least_float32(self.predictor(student.slots_BKd.gather(1, index_BMd), valid_BM))
        k_BMd = F.normalize(teacher.slots_BKd.gather(1, index_BMd), dim=2)
        return F.normalize(q_BMd, dim=2), valid_BM, gather(k_BMd), gather(use_BK.gather(1, packed_BM))

    def losses(self, e: Slots) -> dict[str, Tensor]:
        """Return ``lambda_g grouping + (1 - lambda_g) slots``, each the sum of both directions."""
        chosen, first = self.config.slotcon, rank() * len(e.g_query_BG)
        temperatures = chosen.student_temperature, chosen.teacher_temperature
        grouping, slots = (e.mean_K.new_zeros(()) for _ in range(2))
        for d in e.directions:
            centred_BKhw = d.teacher_BKhw - self.centre_K[:, None, None]
            grouping = grouping + grouping_loss(d.student_BKhw, centred_BKhw, e.overlaps_B, *temperatures)
            slots = slots + slot_loss(d.q_BMd, d.valid_BM, d.k_NMd, d.use_NM, first, chosen.slot_temperature)
        loss = chosen.weight * grouping + (1 - chosen.weight) * slots
        return {"loss": loss, "grouping": grouping, "slots": slots}

    @torch.no_grad()
    def finish_step(self, finite: Tensor) -> None:
        """Move the centre, a moving average of the teacher's scores, then do what every method does."""
        if self.embedded is not None:
            moved_K = self.embedded.mean_K.lerp(self.centre_K, self.config.slotcon.centre_momentum)
            self.centre_K.copy_(torch.where(finite, moved_K, self.centre_K))
        super().finish_step(finite)
