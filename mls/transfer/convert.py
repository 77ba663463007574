"""A backbone's tensors loaded into a larger model so that none is lost, and proof that its features stay equal.

    load(model, state, {"backbone.fpn_": "FPN", "proposal_generator.": "RPN", "roi_heads.": "heads"}, log)
    prove(source_maps, converted_maps, ("C2", "C3", "C4", "C5"), log)

What the tensors are called in each library: ``mls.models.names``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mls.data.eval_view import normalise
from mls.data.image_store import ImageStore
from mls.models.names import COUNTER, few
from mls.runtime.errors import DeterministicError

TOLERANCE = 1e-4
"""Greatest difference of a map's cells, as a share of the greatest cell. Both are computed in float64: in float32 the
order of sums alone moved C5 of a briefly trained ResNet-50 by 2.5e-5 of it."""


def load(model: nn.Module, state: Mapping[str, Tensor], new: Mapping[str, str], log: Callable[[str], None]) -> None:
    """Load a backbone's tensors into a larger model, each of them or none; say what was matched.

    Args:
        model: is changed in place.
        state: the backbone's tensors under the model's names.
        new: beginnings of names, the longer ones first, and the new parts that they belong to (``RPN``); what
            begins with one of an empty part belongs to the backbone.
        log: takes a line.

    Raises:
        DeterministicError: a tensor of the backbone has no place in the model or another shape, or the model lacks
            one that is not of its new parts. Nothing was loaded.
    """
    own = model.state_dict()
    given = {name: tensor for name, tensor in state.items() if name in own or not name.endswith(COUNTER)}
    unexpected = [name for name in given if name not in own]
    misshapen = [n for n, t in given.items() if n in own and own[n].shape != t.shape]
    parts: dict[str, int] = {}
    missing = []
    for name in own:
        if name not in given:
            part = next((part for start, part in new.items() if name.startswith(start)), None)
            if not part:
                missing.append(name)
            else:
                parts[part] = parts.get(part, 0) + 1
    counted = f"{len(given) - len(unexpected) - len(misshapen)} of {len(given)} tensors match"
    if unexpected or misshapen or missing:
        raise DeterministicError(
            f"the backbone does not fit this model, and nothing was loaded: {counted}; "
            f"no place for: {few(unexpected)}; other shape: {few(misshapen)}; missing: {few(missing)}"
        )
    model.load_state_dict(dict(given), strict=False)
    fresh = ", ".join(f"{part} {count}" for part, count in parts.items()) or "none"
    log(f"backbone loaded: {counted}, 0 missing, 0 unexpected; new, as expected: {fresh}")


def first_pixels(store: ImageStore, row: int) -> Tensor:
    """An image's upper left part, uint8 (3, H, W): at most 512 pixels a side, both multiples of 32 where they can be.

    Detectors pad to such multiples, and would see other pixels at the edge.
    """
    image_CHW = store.decode(row)
    height, width = (max(min(side, 512) // 32 * 32, min(side, 32)) for side in image_CHW.shape[1:])
    return image_CHW[:, :height, :width]


def as_pretrained(pixels_CHW: Tensor) -> Tensor:
    """Pixels as pretraining's networks see them: float64 (1, 3, H, W)."""
    return normalise(pixels_CHW[None], torch.device("cpu")).double()


def prove(
    source: Sequence[Tensor], converted: Sequence[Tensor], names: Sequence[str], log: Callable[[str], None]
) -> None:
    """Check that two backbones made the same maps of one image, up to `TOLERANCE`; log the greatest difference.

    Args:
        source: maps of the pretrained backbone, float64.
        converted: those of the model that is to be trained, likewise.
        names: what each is called: ``C2``.
        log: takes a line.

    Raises:
        DeterministicError: they differ, or are not finite.
    """
    worst = (-1.0, "")
    for name, map_BCHW, other_BCHW in zip(names, source, converted, strict=True):
        if map_BCHW.shape != other_BCHW.shape:
            raise DeterministicError(
                f"the converted backbone is another network: {name} of one image is {tuple(other_BCHW.shape)} instead "
                f"of {tuple(map_BCHW.shape)}; it is not trained"
            )
        if not bool(torch.isfinite(map_BCHW).all()):
            raise DeterministicError(
                f"the pretrained backbone's features of one image are not finite ({name}): look whether the "
                "pretraining diverged"
            )
        scale = float(map_BCHW.abs().max().clamp(min=1e-12))
        difference = float((map_BCHW - other_BCHW).abs().max()) / scale
        if not difference <= TOLERANCE:
            raise DeterministicError(
                f"the converted backbone gives other features: {name} of one image differs by {difference:.2g} of its "
                f"greatest value (tolerance {TOLERANCE:g}); it is not trained"
            )
        worst = max(worst, (difference, name))
    log(
        f"features of one image are equal in both backbones, {names[0]} to {names[-1]}: greatest difference "
        f"{worst[0]:.1e} of the greatest value ({worst[1]}; tolerance {TOLERANCE:g})"
    )
