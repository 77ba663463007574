"""Load a backbone into a larger model, all tensors or none, and prove that its features stay the same.

    load(model, state, {"backbone.fpn_": "FPN", "proposal_generator.": "RPN", "roi_heads.": "heads"}, log)
    prove(source_maps, converted_maps, log)

A converted backbone with one wrong stride, one swapped tensor or BGR instead of RGB still trains, only worse. Counting
tensors does not reveal this; comparing the feature maps of one image does.

`mls.models.names` has the tensor names of each library.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mls.data.eval_view import normalise
from mls.data.image_store import ImageStore
from mls.models.names import COUNTER, few
from mls.runtime.errors import DeterministicError

TOLERANCE = 1e-4
"""Largest allowed difference between two maps, as a share of the largest absolute value. Both maps are computed in
float64: in float32, a different order of summation changed C5 of a briefly trained ResNet-50 by 2.5e-5 of it."""
STAGES = ("C2", "C3", "C4", "C5")
"""Maps of a ResNet's four stages."""


def load(model: nn.Module, state: Mapping[str, Tensor], new: Mapping[str, str], log: Callable[[str], None]) -> None:
    """Load a backbone's tensors into a larger model, all or none; log how many match.

    Args:
        model: is changed in place.
        state: the backbone's tensors under the model's names.
        new: name prefix -> the new part that it belongs to (``RPN``); the first match counts, so longer prefixes come
            first. An empty part means that the prefix belongs to the backbone.
        log: takes a line.

    Raises:
        DeterministicError: a tensor of the backbone has no place in the model or a different shape there, or a tensor
            of the model is neither in the backbone nor in a new part. Nothing was loaded.
    """
    own = model.state_dict()
    # Detectron2's frozen batch norm has no counter of batches, and nothing here reads the counter.
    given = {name: tensor for name, tensor in state.items() if name in own or not name.endswith(COUNTER)}
    unexpected = [name for name in given if name not in own]
    misshapen = [n for n, t in given.items() if n in own and own[n].shape != t.shape]
    absent = [name for name in own if name not in given]
    part_of = {name: next((part for start, part in new.items() if name.startswith(start)), "") for name in absent}
    missing = [name for name, part in part_of.items() if not part]
    counted = f"{len(given) - len(unexpected) - len(misshapen)} of {len(given)} tensors match"
    if unexpected or misshapen or missing:
        raise DeterministicError(
            f"the backbone does not fit this model, and nothing was loaded: {counted}; "
            f"no place for: {few(unexpected)}; different shape: {few(misshapen)}; missing: {few(missing)}"
        )
    model.load_state_dict(dict(given), strict=False)
    fresh = ", ".join(f"{part} {count}" for part, count in Counter(part_of.values()).items()) or "none"
    log(f"backbone loaded: {counted}, 0 missing, 0 unexpected; new, as expected: {fresh}")


def first_pixels(store: ImageStore, row: int) -> Tensor:
    """Return an image's upper left part, uint8 (3, H, W): at most 512 pixels per side, a multiple of 32 if possible.

    Detectors pad images to multiples of 32, which would change the maps at the edges. Only a side of less than 32
    pixels stays as it is.
    """
    image_CHW = store.decode(row)
    height, width = (max(min(side, 512) // 32 * 32, min(side, 32)) for side in image_CHW.shape[1:])
    return image_CHW[:, :height, :width]


def as_pretrained(pixels_CHW: Tensor) -> Tensor:
    """Return pixels normalised as in pretraining, float64 (1, 3, H, W)."""
    return normalise(pixels_CHW[None], torch.device("cpu")).double()


def prove(source: Sequence[Tensor], converted: Sequence[Tensor], log: Callable[[str], None]) -> None:
    """Check that two backbones computed the same maps of one image, up to `TOLERANCE`; log the largest difference.

    Args:
        source: the last maps, up to C5, of the pretrained backbone, float64.
        converted: the same maps of the model to train, float64.
        log: takes a line.

    Raises:
        DeterministicError: their shapes or values differ, or they are not finite.
    """
    worst, names = (-1.0, ""), STAGES[-len(source) :]
    for name, map_BCHW, other_BCHW in zip(names, source, converted, strict=True):
        if map_BCHW.shape != other_BCHW.shape:
            raise DeterministicError(
                f"the converted backbone is a different network: {name} of one image is {tuple(other_BCHW.shape)} "
                f"instead of {tuple(map_BCHW.shape)}; it is not trained"
            )
        if not bool(torch.isfinite(map_BCHW).all()):
            raise DeterministicError(
                f"the pretrained backbone's features of one image are not finite ({name}): check whether the "
                "pretraining diverged"
            )
        # Relative to the largest value of the map, not cell by cell: after ReLU, many cells are 0.
        scale = float(map_BCHW.abs().max().clamp(min=1e-12))
        difference = float((map_BCHW - other_BCHW).abs().max()) / scale
        if not difference <= TOLERANCE:  # rejects NaN too
            raise DeterministicError(
                f"the converted backbone gives different features: {name} of one image differs by {difference:.2g} of "
                f"its greatest value (tolerance {TOLERANCE:g}); it is not trained"
            )
        worst = max(worst, (difference, name))
    log(
        f"features of one image are equal in both backbones, {names[0]} to {names[-1]}: greatest difference "
        f"{worst[0]:.1e} of the greatest value ({worst[1]}; tolerance {TOLERANCE:g})"
    )
