"""Load a backbone into a larger model without losing a tensor, and prove that its features stay equal.

    load(model, state, {"backbone.fpn_": "FPN", "proposal_generator.": "RPN", "roi_heads.": "heads"}, log)
    prove(source_maps, converted_maps, log)

A converted backbone that is wrong in one stride, one tensor or the order of colours still trains, only worse. Counting
tensors does not show it; comparing the maps of one image does.

The names of tensors in each library are in `mls.models.names`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mls.data.eval_view import normalise
from mls.data.image_store import ImageStore
from mls.models.backbone import feature_maps, load_backbone
from mls.models.names import COUNTER, few
from mls.runtime.errors import DeterministicError
from mls.transfer.interface import Given

TOLERANCE = 1e-4
"""Greatest difference of a map's cells, as a share of the greatest cell. Both maps are computed in float64: in float32,
the order of sums alone changed C5 of a briefly trained ResNet-50 by 2.5e-5 of it."""
STAGES = ("C2", "C3", "C4", "C5")
"""Maps of a ResNet's four stages."""


def load_and_prove(
    model: nn.Module,
    name_of: Callable[[str], str],
    new: Mapping[str, str],
    maps_of: Callable[[Tensor], list[Tensor]],
    given: Given,
    row: int,
) -> None:
    """Load the pretrained weights into a model on the CPU, and compare both backbones' features of one image.

    Args:
        model: is changed in place.
        name_of: the model's name of a tensor of the backbone.
        new: see `load`.
        maps_of: the model's last maps, up to C5, of an image, uint8 (3, H, W).
        given: the pretrained backbone.
        row: the image.

    Raises:
        MlsError: the weights do not fit, or the features differ.
    """
    load(model, {name_of(name): tensor for name, tensor in load_file(given.weights).items()}, new, given.log)
    with torch.random.fork_rng(devices=[]):  # building the copy to compare with must not advance the generator
        source = load_backbone(given.config, given.weights).eval().double()
    pixels_CHW = first_pixels(given.store, row)
    model.eval().double()
    with torch.inference_mode():
        expected = list(feature_maps(source, as_pretrained(pixels_CHW)).values())
        found = maps_of(pixels_CHW)
    model.float()  # restores every bit: float32 -> float64 -> float32 is exact
    prove(expected[-len(found) :], found, given.log)


def load(model: nn.Module, state: Mapping[str, Tensor], new: Mapping[str, str], log: Callable[[str], None]) -> None:
    """Load a backbone's tensors into a larger model, all or none; log how many match.

    Args:
        model: is changed in place.
        state: the backbone's tensors under the model's names.
        new: beginnings of names, the longer ones first, and the new parts that they belong to (``RPN``). An empty part
            means that the names belong to the backbone.
        log: takes a line.

    Raises:
        DeterministicError: a tensor of the backbone has no place in the model or a different shape there, or a tensor
            of the model is neither in the backbone nor in a new part. Nothing was loaded.
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
            f"no place for: {few(unexpected)}; different shape: {few(misshapen)}; missing: {few(missing)}"
        )
    model.load_state_dict(dict(given), strict=False)
    fresh = ", ".join(f"{part} {count}" for part, count in parts.items()) or "none"
    log(f"backbone loaded: {counted}, 0 missing, 0 unexpected; new, as expected: {fresh}")


def first_pixels(store: ImageStore, row: int) -> Tensor:
    """An image's upper left part, uint8 (3, H, W): at most 512 pixels per side, multiples of 32 if it is large enough.

    Detectors pad images to such multiples, which would change the maps at the edge.
    """
    image_CHW = store.decode(row)
    height, width = (max(min(side, 512) // 32 * 32, min(side, 32)) for side in image_CHW.shape[1:])
    return image_CHW[:, :height, :width]


def as_pretrained(pixels_CHW: Tensor) -> Tensor:
    """Pixels normalised as in pretraining: float64 (1, 3, H, W)."""
    return normalise(pixels_CHW[None], torch.device("cpu")).double()


def prove(source: Sequence[Tensor], converted: Sequence[Tensor], log: Callable[[str], None]) -> None:
    """Check that two backbones computed the same maps of one image, up to `TOLERANCE`; log the greatest difference.

    Args:
        source: the last maps, up to C5, of the pretrained backbone, float64.
        converted: those of the model to train, likewise.
        log: takes a line.

    Raises:
        DeterministicError: they differ, or are not finite.
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
        scale = float(map_BCHW.abs().max().clamp(min=1e-12))
        difference = float((map_BCHW - other_BCHW).abs().max()) / scale
        if not difference <= TOLERANCE:
            raise DeterministicError(
                f"the converted backbone gives different features: {name} of one image differs by {difference:.2g} of "
                f"its greatest value (tolerance {TOLERANCE:g}); it is not trained"
            )
        worst = max(worst, (difference, name))
    log(
        f"features of one image are equal in both backbones, {names[0]} to {names[-1]}: greatest difference "
        f"{worst[0]:.1e} of the greatest value ({worst[1]}; tolerance {TOLERANCE:g})"
    )
