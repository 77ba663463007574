"""The schema of random views: crops and colour changes, for pretraining and for training on labels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from mls.config.section import Section
from mls.config.values import NonNegative, PositiveRange, Share, ShareRange, Shares, Side, at_most


def half_a_circle(jitter: list[float]) -> list[float]:
    """Check that hues shift by at most half of the colour circle: a larger shift goes the other way round."""
    if len(jitter) == 4 and jitter[3] > 0.5:
        raise ValueError(f"the last value, hue, is {jitter[3]:g}; it must be at most 0.5")
    return jitter


Interpolation = Literal["bilinear", "bicubic"]
Jitter = Annotated[list[NonNegative], Field(min_length=4, max_length=4), AfterValidator(half_a_circle)]


class LocalCrops(Section):
    """Further, small queries of each image. They meet the second view's key, as the first view does [SwAV's multi-crop,
    arXiv 2006.09882; the paper cites it, and its ancestor trains so]."""

    count: Annotated[int, Field(ge=0), at_most(32, "each is one more pass through the network")] = 0
    """Local crops of an image; 0: none, as in MoCo-v2 [4 in the ancestor's code, arXiv 2106.05967]."""
    size: Side = 96
    """Side of a local crop, pixels [the ancestor: 96 beside views of 160]."""
    scale: ShareRange = [0.05, 0.14]
    """Smallest and largest area, as a share of the image [the ancestor]."""
    overlap: Share = 0.0
    """Smallest share of a local crop's area that must lie within the second view's crop; drawn again like
    ``augment.overlap`` [0.1 in the ancestor's code: its ``constrained-cropping``]."""


def used(local: LocalCrops) -> LocalCrops:
    """Forget the other keys where there are no local crops, so that they change no id."""
    return local if local.count else LocalCrops()


class Augment(Section):
    """The two views of an image. Defaults are MoCo-v2's [lineage: DenseCL and ORL on COCO].

    A key of type ``Shares`` takes one share of the images for both views, or a list of two: for the first view (query)
    and for the second (key).
    """

    crop: Side = 224
    """Side of a view, pixels."""
    scale: ShareRange = [0.2, 1.0]
    """Smallest and largest area of a crop, as a share of the image."""
    interpolation: Interpolation = "bilinear"
    """How a crop is resized; antialiased [``bicubic`` in BYOL's paper and SlotCon]."""
    jitter: Jitter = [0.4, 0.4, 0.4, 0.1]
    """Strength of brightness, contrast, saturation and hue changes. Hue is a share of its circle, at most 0.5."""
    jitter_p: Share = 0.8
    """Probability of the colour changes."""
    gray_p: Share = 0.2
    """Probability that a view loses its colours."""
    blur_p: Shares = 0.5
    """Probability of a Gaussian blur [BYOL, arXiv 2006.07733, appendix B, and SlotCon: 1.0 and 0.1]."""
    blur_sigma: Annotated[PositiveRange, at_most(100, "a wider blur leaves one colour")] = [0.1, 2.0]
    """Range of the Gaussian's standard deviation, pixels of the view."""
    solarize_p: Shares = 0.0
    """Probability that pixels of at least 0.5 are inverted, after the blur [BYOL and SlotCon: 0.0 and 0.2]."""
    flip_p: Share = 0.5
    """Probability of a horizontal flip."""
    overlap: Share = 0.0
    """Smallest share of the second crop's area that must lie within the first. A crop with less is drawn again, at most
    10 times; if none fits, the first one drawn stays [SlotCon, arXiv 2205.15288, and its code: 0.01, 10 tries]."""
    auto_augment_p: Shares = 0.0
    """Probability that a view gets AutoAugment's ImageNet policy (arXiv 1805.09501; torchvision's) in place of all
    colour changes and the blur; local crops count as the first view [0.5 and 0.0 in the ancestor's code]."""
    local_crops: Annotated[LocalCrops, AfterValidator(used)] = LocalCrops()
    """Methods ``moco`` and ``mls``."""
