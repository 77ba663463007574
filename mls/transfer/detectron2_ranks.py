"""What lets several ranks train Detectron2's detectors like one process; `mls.transfer.torchvision_ranks` says why.

    batch = SharedBatch(model, draws)           # once, before training
    losses = batch.weighted(model(samples))

Losses of the RPN need no weights: Detectron2 divides them by the number of anchors to sample, not of those it found.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.structures import ImageList
from torch import Tensor
from torch.nn import functional as F

from mls.runtime.collectives import largest, share
from mls.transfer.draws import Draws, Purpose


class SharedBatch:
    """Hooks of one model, and the counts of this rank's samples in the current batch."""

    def __init__(self, model: Any, draws: Draws) -> None:
        """Make padding and samples of a GeneralizedRCNN independent of the number of ranks, in place."""
        self.model, self.draws = model, draws
        self.sampled = self.positive = torch.tensor(0)
        self._pad = model.preprocess_image
        self._anchors = model.proposal_generator._subsample_labels
        self._regions = model.roi_heads._sample_proposals
        model.preprocess_image = self.pad
        model.proposal_generator._subsample_labels = self.anchors
        model.roi_heads._sample_proposals = self.regions

    def pad(self, samples: list[dict[str, Any]]) -> ImageList:
        """In training, pad every rank's images to the largest of the whole batch, which batch norm sees."""
        images: ImageList = self._pad(samples)
        if not self.model.training:
            return images
        height, width = images.tensor.shape[-2:]
        high, wide = largest([height, width])
        return ImageList(F.pad(images.tensor, (0, wide - width, 0, high - height)), images.image_sizes)

    def anchors(self, label: Tensor) -> Tensor:
        """Sample the anchors of one image."""
        self.draws.key(Purpose.ANCHORS)
        sampled: Tensor = self._anchors(label)
        return sampled

    def regions(self, *matched: Tensor) -> tuple[Tensor, Tensor]:
        """Sample the regions of one image, and count them."""
        self.draws.key(Purpose.REGIONS)
        index_N, class_N = self._regions(*matched)
        self.sampled = self.sampled + len(class_N)
        self.positive = self.positive + (class_N != self.model.roi_heads.num_classes).sum()
        return index_N, class_N

    def weighted(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weigh this rank's losses, so that their mean over ranks is the mean over all samples. Counts start again."""
        device = next(iter(losses.values())).device
        sampled, positive = share(torch.stack([self.sampled.to(device), self.positive.to(device)]))
        self.sampled = self.positive = torch.tensor(0)
        weights = {"loss_cls": sampled, "loss_box_reg": sampled, "loss_mask": positive}
        return {name: loss * weights[name].to(loss.dtype) if name in weights else loss for name, loss in losses.items()}
