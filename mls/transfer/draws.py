"""Random numbers of a training step that do not depend on how many ranks share its batch.

    draws = Draws(seed=1000)
    draws.begin(step=7, places=range(2, 4))     # this rank has the batch's third and fourth image
    for image in images:
        draws.key(Purpose.ANCHORS)              # what torch draws next is a function of seed, step and image
        ...

A single process does not need it: it draws from torch's generator as it goes, and its checkpoints hold the state.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

import torch
from torch import Tensor, nn

from mls.runtime import streams


class Purpose(IntEnum):
    """What is drawn for an image: the last word of its stream."""

    ANCHORS = 5
    REGIONS = 6
    HEAD = 7
    """Dropped channels."""
    AUX = 8


class Draws:
    """Keys torch's generator by seed, step, image and purpose."""

    def __init__(self, seed: int) -> None:
        """Keep the seed; `begin` comes before the first draw."""
        self.seed, self.step = seed, 0
        self._places: dict[Purpose, Iterator[int]] = {}

    def begin(self, step: int, places: range) -> None:
        """Begin a step, or a part of one, in which this rank has the images at some places of the batch."""
        self.step, self._places = step, {purpose: iter(places) for purpose in Purpose}

    def key(self, purpose: Purpose) -> None:
        """Seed torch's generator for the next image; images come in the order of the batch."""
        rng = streams.sampled(self.seed, self.step, next(self._places[purpose]), purpose)
        torch.manual_seed(int(rng.integers(2**63)))


class KeyedDropout2d(nn.Dropout2d):
    """Dropout of whole channels whose draws are keyed; made from a plain one by `keyed`."""

    draws: Draws
    purpose: Purpose

    def forward(self, input: Tensor) -> Tensor:
        """Drop channels of (B, C, H, W), image by image."""
        if not self.training:
            return input
        images = []
        for image_1CHW in input.split(1):
            self.draws.key(self.purpose)
            images.append(super().forward(image_1CHW))
        return torch.cat(images)

    @classmethod
    def keyed(cls, module: nn.Module, draws: Draws, purpose: Purpose) -> None:
        """Key every dropout in a module."""
        for child in module.modules():
            if isinstance(child, nn.Dropout2d):
                child.__class__ = cls
                child.draws, child.purpose = draws, purpose  # type: ignore[assignment]
