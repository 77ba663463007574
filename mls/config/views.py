"""The schema of random views: crops and changes of colour, of pretraining and of what is trained on labels."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mls.config.section import Ascending, HalfACircle, Positive, Section, Share, Shares


class Augment(Section):
    """MoCo-v2's two views [lineage: DenseCL and ORL on COCO]; with other values those of BYOL and SlotCon.

    A key of type ``Shares`` takes one share of the images for both views, or a list of two: of the first view (query)
    and of the second (key).
    """

    crop: Annotated[int, Field(ge=16)] = 224
    """Side of a view, pixels."""
    scale: Annotated[list[Share], Field(min_length=2, max_length=2), Ascending] = [0.2, 1.0]
    """Least and greatest area of a crop, as a share of the image."""
    jitter: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=4, max_length=4), HalfACircle] = [
        0.4,
        0.4,
        0.4,
        0.1,
    ]
    """Strength of brightness, contrast, saturation and hue (a share of its circle, 0.5 at most)."""
    jitter_p: Share = 0.8
    gray_p: Share = 0.2
    blur_p: Shares = 0.5
    """[BYOL, arXiv 2006.07733, appendix B, and SlotCon: 1.0 and 0.1]"""
    blur_sigma: Annotated[list[Positive], Field(min_length=2, max_length=2), Ascending] = [0.1, 2.0]
    """Range of the Gaussian's standard deviation, pixels of the view."""
    solarize_p: Shares = 0.0
    """Pixels of at least 0.5 are inverted, after the blur [BYOL and SlotCon: 0.0 and 0.2]."""
    flip_p: Share = 0.5
    overlap: Share = 0.0
    """Least share of the second crop's area that lies within the first. A crop below it is drawn anew, 10 times at
    most; if none will do, the first drawn stays [SlotCon, arXiv 2205.15288, and its code: 0.01, 10 tries]."""
