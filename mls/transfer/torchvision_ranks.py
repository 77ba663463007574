"""What lets several ranks train torchvision's detectors like one process: one padding, keyed samples, global means.

    share_batch(model, draws)                   # once, before training
    losses = weighted(model, model(images, targets))

A rank's losses are means over its own samples. The mean of those means, which official trainings minimise, weighs a
sample by how few others its rank has; `weighted` makes it the mean over all samples.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from mls.runtime.collectives import largest, share
from mls.transfer.draws import Draws, Purpose


class KeyedSampler(BalancedPositiveNegativeSampler):  # type: ignore[misc]
    """Samples of each image by keyed draws; counts them."""

    sampled: Tensor
    """Number of samples of the last batch on this rank."""
    positive: Tensor
    """Those of objects."""

    def __init__(self, plain: BalancedPositiveNegativeSampler, draws: Draws, purpose: Purpose) -> None:
        """Take the sizes of a plain sampler."""
        super().__init__(plain.batch_size_per_image, plain.positive_fraction)
        self.draws, self.purpose = draws, purpose

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return masks of the positive and of the negative samples of each image."""
        positive, negative = [], []
        for image in matched_idxs:
            self.draws.key(self.purpose)
            of_positive, of_negative = super().__call__([image])
            positive += of_positive
            negative += of_negative
        self.positive = torch.cat(positive).sum()
        self.sampled = self.positive + torch.cat(negative).sum()
        return positive, negative


class SharedTransform(GeneralizedRCNNTransform):  # type: ignore[misc]
    """In training, pads every rank's images to the largest of the whole batch, which batch norm sees."""

    def max_by_axis(self, the_list: list[list[int]]) -> list[int]:
        """Return the largest channels, height and width."""
        size: list[int] = super().max_by_axis(the_list)
        return largest(size) if self.training else size


def share_batch(model: FasterRCNN, draws: Draws) -> None:
    """Make padding and samples independent of the number of ranks, in place."""
    model.transform.__class__ = SharedTransform
    for part, purpose in ((model.rpn, Purpose.ANCHORS), (model.roi_heads, Purpose.REGIONS)):
        part.fg_bg_sampler = KeyedSampler(part.fg_bg_sampler, draws, purpose)


def weighted(model: FasterRCNN, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weigh this rank's losses, so that their mean over ranks is the mean over all samples."""
    anchors, regions = model.rpn.fg_bg_sampler, model.roi_heads.fg_bg_sampler
    counts = {
        "loss_objectness": anchors.sampled,
        "loss_rpn_box_reg": anchors.sampled,
        "loss_classifier": regions.sampled,
        "loss_box_reg": regions.sampled,
        "loss_mask": regions.positive,
    }
    weights = share(torch.stack([counts[name] for name in losses]))
    return {name: loss * weight.to(loss.dtype) for (name, loss), weight in zip(losses.items(), weights, strict=True)}
