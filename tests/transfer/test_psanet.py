"""PSANet relates cells as the official operator does, in the memory of its attention; its head is mmsegmentation's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mls.config.experiment import Backbone
from mls.config.transfers import SemanticTransfer
from mls.models.backbone import build_backbone, feature_dims, feature_maps
from mls.transfer.psanet import Attention, PSANet, by_cell
from mls.transfer.pspnet import dilate
from tests.transfer.semantic_support import tiny_task
from tests.transfer.test_pspnet import randomise_norms

WINDOWS = [
    ((3, 4), (5, 7)),  # all offsets
    ((3, 4), (9, 9)),  # and further ones
    ((5, 6), (3, 5)),  # smaller than the map
    ((5, 6), (11, 3)),  # smaller in one direction
    ((5, 6), (4, 4)),  # nothing in the middle
    ((4, 7), (1, 1)),
    ((1, 5), (3, 3)),
]


def plain(weights: Tensor, kind: str) -> Tensor:
    """What the paper says, in loops: weights of other cells (dimension 1) for the cell at h, w (collect), or of the
    cell (dimension 1) for others (distribute), (B, N, h, w)."""
    batch, height, width, rows, columns = weights.shape
    out = weights.new_zeros(batch, height, width, height, width)
    for y in range(height):
        for x in range(width):
            for r in range(rows):
                for s in range(columns):
                    v, u = y + r - (rows - 1) // 2, x + s - (columns - 1) // 2
                    if 0 <= v < height and 0 <= u < width:
                        place = (v, u, y, x) if kind == "collect" else (y, x, v, u)
                        out[(slice(None), *place)] = weights[:, y, x, r, s]
    return out.flatten(1, 2)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("size", "window"), WINDOWS)
def test_weights_of_offsets_become_weights_of_cells(size: Any, window: Any, channels_last: bool) -> None:
    torch.manual_seed(0)
    weights = torch.randn(2, *size, *window) if channels_last else torch.randn(2, *window, *size).permute(0, 3, 4, 1, 2)
    weights.requires_grad_()
    found = by_cell(weights)
    assert torch.equal(found, plain(weights, "distribute").flatten(2))
    assert torch.equal(found.mT, plain(weights, "collect").flatten(2))
    outside = (by_cell(torch.ones_like(weights)) == 0)[0].sum()
    whole = all(cells >= 2 * side - 1 for cells, side in zip(window, size, strict=True))
    assert (outside == 0) == whole, "only a window of all offsets leaves nothing out"
    gradient = torch.randn_like(found)
    (ours,) = torch.autograd.grad(found, weights, gradient)
    (theirs,) = torch.autograd.grad(plain(weights, "distribute").flatten(2), weights, gradient)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", ["collect", "distribute"])
def test_cells_outside_of_the_window_have_the_weight_of_a_zero(kind: str) -> None:
    """As in the official operator, whose zeros go through the softmax."""
    torch.manual_seed(0)
    attention = Attention(8, 4, 3, distribute=kind == "distribute").eval()
    randomise_norms(attention)
    images = torch.randn(2, 8, 5, 7)
    found = attention(images, [5, 7], corners=True)
    x = attention.reduced(images)
    scores = plain(attention.weights(x).permute(0, 2, 3, 1).unflatten(3, (3, 3)), kind)
    expected = torch.einsum("bcj,bjhw->bchw", x.flatten(2), scores.softmax(dim=1))
    torch.testing.assert_close(found, expected)
    cut = scores.masked_fill(plain(torch.ones(2, 5, 7, 3, 3), kind) == 0, -torch.inf).softmax(dim=1)
    assert not torch.allclose(found, torch.einsum("bcj,bjhw->bchw", x.flatten(2), cut), atol=1e-3)


class Allocated(TorchDispatchMode):
    """Bytes of every storage that is made, largest first."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, torch.UntypedStorage] = {}  # kept, so that no address is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self.storages.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage())
        return made

    def sizes(self, *known: Tensor) -> list[int]:
        for tensor in known:
            self.storages.pop(tensor.untyped_storage().data_ptr(), None)
        return sorted((storage.nbytes() for storage in self.storages.values()), reverse=True)


def test_nothing_but_the_attention_is_kept_in_memory() -> None:
    """Beside it there is one row at a time, and the backward pass needs neither the weights nor an index."""
    height, width = 16, 20
    weights = torch.randn(2, height, width, 13, 13, requires_grad=True)
    saved: list[Tensor] = []

    def save(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), Allocated() as forward:
        attention = by_cell(weights)
    whole = attention.nbytes
    assert whole == 4 * 2 * (height * width) ** 2 and not saved
    largest, *rows = forward.sizes(weights)
    assert largest == whole and len(rows) == height and max(rows) <= 2 * whole / height
    with Allocated() as backward:
        attention.backward(gradient := torch.ones_like(attention))
    largest, *rows = backward.sizes(weights, attention, gradient)
    assert largest == weights.nbytes and max(rows) <= 2 * whole / height


def build(task: SemanticTransfer, classes: int = 5) -> PSANet:
    config = Backbone(name="resnet18", width=0.125, stem="small")
    backbone = build_backbone(config)
    dilate(backbone, task.output_stride, 2)
    return PSANet(backbone, feature_dims(config), task, classes)


@pytest.mark.parametrize(
    ("image", "small", "corners"), [((40, 56), (5, 7), False), ((36, 52), (5, 7), True), ((36, 56), (4, 7), False)]
)
def test_the_head_computes_what_mmsegmentation_says(image: Any, small: Any, corners: bool) -> None:
    """Against plain functions of the same weights; maps of even size, odd size, and one of each."""
    torch.manual_seed(0)
    net = build(tiny_task(head="psa", dropout=0.9)).eval()  # dropout does nothing here
    randomise_norms(net)
    for name, parameter in net.named_parameters():
        if name.endswith("weights.3.weight"):
            nn.init.normal_(parameter)  # so that cells differ
    images = torch.randn(2, 3, *image)
    c5 = feature_maps(net.backbone, images)["3"]
    assert tuple(c5.shape[2:]) == tuple(-(-side // 4) for side in image)
    weights = net.state_dict()

    def block(x: Tensor, name: str, first: int, padding: int) -> Tensor:
        conv, norm = f"{name}.{first}", f"{name}.{first + 1}"
        x = F.conv2d(x, weights[f"{conv}.weight"], padding=padding)
        statistics = (weights[f"{norm}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(x, *statistics))

    attended = []
    for kind in ("collect", "distribute"):
        x = block(c5, f"{kind}.reduced", 0, 0)
        x = F.interpolate(x, size=small, mode="bilinear", align_corners=corners)
        scores = F.conv2d(block(x, f"{kind}.weights", 0, 0), weights[f"{kind}.weights.3.weight"])
        y = plain(scores.permute(0, 2, 3, 1).unflatten(3, (5, 5)), kind).softmax(dim=1)
        attended.append(torch.bmm(x.flatten(2), y.flatten(2)).unflatten(2, small))
    x = block(torch.cat(attended, 1), "projected", 1, padding=1)
    assert tuple(x.shape[2:]) == (small[0] + 2, small[1] + 2), "the border of mmsegmentation's projection"
    x = F.interpolate(x, size=c5.shape[2:], mode="bilinear", align_corners=corners)
    x = block(torch.cat([c5, x], 1), "head", 0, padding=1)
    x = F.conv2d(x, weights["head.4.weight"], weights["head.4.bias"])
    expected = F.interpolate(x, size=image, mode="bilinear", align_corners=False)
    found = net(images)
    assert list(found) == ["out"]
    torch.testing.assert_close(found["out"], expected)


def test_a_map_of_one_row_has_attention_too() -> None:
    net = build(tiny_task(head="psa", output_stride=8)).eval()
    assert net(torch.randn(1, 3, 8, 32))["out"].shape == (1, 5, 8, 32)


def test_initialisation_is_mmsegmentations() -> None:
    torch.manual_seed(0)
    net = build(tiny_task(head="psa", head_channels=256, attention_window=9), classes=19)
    for attention in (net.collect, net.distribute):
        last = attention.weights[3]
        assert isinstance(last, nn.Conv2d) and last.bias is None and last.weight.shape == (81, 256, 1, 1)
        assert float(last.weight.detach().abs().max()) == pytest.approx(256**-0.5, rel=0.01)  # uniform: torch's own
        reduced = attention.reduced[0]
        assert isinstance(reduced, nn.Conv2d)
        assert float(reduced.weight.detach().std()) == pytest.approx((2 / 256) ** 0.5, rel=0.05)  # He's, fan out
    for classifier in (net.head[4], net.aux[4]):
        assert isinstance(classifier, nn.Conv2d) and classifier.bias is not None and not classifier.bias.any()
        assert float(classifier.weight.detach().std()) == pytest.approx(0.01, rel=0.1)


def test_bf16_stays_inside_the_network() -> None:
    torch.manual_seed(0)
    net = build(tiny_task(head="psa", precision="bf16")).train()
    inside: list[torch.dtype] = []
    for part in (net.backbone.layer4[1].conv2, net.collect, net.distribute, net.projected[1], net.head, net.aux):
        part.register_forward_hook(lambda module, args, out: inside.append(out.dtype))
    found = net(torch.randn(2, 3, 24, 32))
    assert inside == [torch.bfloat16] * 6
    assert {name: logits.dtype for name, logits in found.items()} == dict.fromkeys(("out", "aux"), torch.float32)
    found["out"].sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.collect.parameters())
