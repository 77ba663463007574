"""Split batch norm is plain batch norm of each group, masked batch norm that of the valid vectors.

python -m tests.models.test_batchnorm FOLDER RANK        # one of two ranks of the test of synced statistics
"""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mls.models.batchnorm import (
    MaskedBatchNorm,
    RunningStatistics,
    SplitBatchNorm1d,
    SplitBatchNorm2d,
    split_batch_norm,
)


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Convolutions, batch norms (an odd number: two that swap groups undo each other) and ReLUs, not freshly made."""
    torch.manual_seed(3)
    norms = nn.BatchNorm2d(8), nn.BatchNorm2d(4, momentum=0.3), nn.BatchNorm2d(4)
    for norm in norms:
        for name, value in norm.state_dict().items():
            if name != "num_batches_tracked":
                value.uniform_(0.5, 1.5)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        norms[0],
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(8, 4, 3, stride=2, bias=False), norms[1], nn.ReLU()),
        norms[2],
    ).to(dtype)


def images(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Groups of different mean and scale, so that their statistics differ."""
    generator = torch.Generator().manual_seed(5)
    x_BCHW = torch.randn(count, 3, 9, 9, generator=generator, dtype=dtype)
    return x_BCHW * torch.linspace(0.5, 3, count, dtype=dtype).view(-1, 1, 1, 1) + torch.arange(count).view(-1, 1, 1, 1)


def statistics(net: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in net.named_buffers() if name.endswith(("running_mean", "running_var"))}


@pytest.mark.parametrize("splits", [2, 3, 6])
def test_equals_the_network_on_each_group(splits: int) -> None:
    plain, split = network(), network()
    split_batch_norm(split, splits)
    x_BCHW = images(12)
    leaf = x_BCHW.clone().requires_grad_()
    weight = torch.randn(12, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = split(leaf)
    (y * weight).sum().backward()

    copies = [copy.deepcopy(plain) for _ in range(splits)]
    expected_leaf = x_BCHW.clone().requires_grad_()
    expected = torch.cat([net(x) for net, x in zip(copies, expected_leaf.chunk(splits), strict=True)])
    (expected * weight).sum().backward()

    close = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-12)
    close(y, expected)
    close(leaf.grad, expected_leaf.grad)
    for parameter, *parts in zip(split.parameters(), *(net.parameters() for net in copies), strict=True):
        close(parameter.grad, sum(part.grad for part in parts), rtol=1e-12)
    for name, value in statistics(split).items():
        average = torch.stack([statistics(net)[name] for net in copies]).mean(0)
        close(value, average)
        assert not torch.allclose(value, statistics(plain)[name])
    assert int(split.state_dict()["1.num_batches_tracked"]) == 1
    assert not torch.allclose(expected, plain(x_BCHW))  # groups matter for these images


@pytest.mark.parametrize("splits", [2, 4])
def test_vectors_too_are_normalised_by_group(splits: int) -> None:
    plain = nn.BatchNorm1d(3).double()
    nn.init.uniform_(plain.weight)
    split, copies = copy.deepcopy(plain), [copy.deepcopy(plain) for _ in range(splits)]
    split_batch_norm(split, splits)
    assert isinstance(split, SplitBatchNorm1d)
    x_BC = torch.randn(8, 3, dtype=torch.float64) * torch.arange(1, 9)[:, None]
    expected = torch.cat([net(x) for net, x in zip(copies, x_BC.chunk(splits), strict=True)])
    torch.testing.assert_close(split(x_BC), expected, rtol=0, atol=1e-12)
    for name, value in statistics(split).items():
        average = torch.stack([statistics(net)[name] for net in copies]).mean(0)
        torch.testing.assert_close(value, average, rtol=0, atol=1e-12)
    assert not torch.allclose(expected, plain(x_BC))
    with pytest.raises(ValueError, match="expected 2D or 3D"):
        split(torch.randn(8, 3, 2, 2))


def test_ranks_that_average_agree_with_one_device() -> None:
    whole, ranks = network(), [network(), network()]
    split_batch_norm(whole, 4)
    x_BCHW = images(8)
    for net in ranks:
        split_batch_norm(net, 2)
    for _ in range(3):
        whole(x_BCHW)
        for net, x in zip(ranks, x_BCHW.chunk(2), strict=True):
            net(x)
        running = [RunningStatistics(net) for net in ranks]
        average = torch.stack([each.read() for each in running]).mean(0)
        for each in running:
            each.write(average)
    torch.testing.assert_close(average, RunningStatistics(whole).read(), rtol=0, atol=1e-12)


def test_one_group_is_plain_batch_norm_bit_for_bit() -> None:
    plain, left_alone, one = network(torch.float32), network(torch.float32), network(torch.float32)
    split_batch_norm(left_alone, 1)
    assert type(left_alone[1]) is nn.BatchNorm2d
    split_batch_norm(one, 2)
    split_batch_norm(one, 1)
    assert isinstance(one[1], SplitBatchNorm2d)
    x_BCHW = images(6, torch.float32)
    y, expected = one(x_BCHW), plain(x_BCHW)
    assert torch.equal(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    for ours, theirs in zip(one.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)
    assert all(torch.equal(one.state_dict()[name], value) for name, value in plain.state_dict().items())


def test_evaluation_is_plain_batch_norm_for_any_batch() -> None:
    plain, split = network().eval(), network().eval()
    split_batch_norm(split, 4)
    before = copy.deepcopy(split.state_dict())
    x_BCHW = images(5)
    assert torch.equal(split(x_BCHW), plain(x_BCHW))
    assert all(torch.equal(split.state_dict()[name], value) for name, value in before.items())


def test_splitting_keeps_objects_and_state_dict_names() -> None:
    net = network()
    names, parameters, modules = list(net.state_dict()), list(net.parameters()), list(net.modules())
    split_batch_norm(net, 4)
    assert list(net.state_dict()) == names
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(net.modules(), modules, strict=True))
    assert [m.splits for m in net.modules() if isinstance(m, SplitBatchNorm2d)] == [4, 4, 4]
    assert "splits=4" in repr(net)
    split_batch_norm(net, 2)
    assert [m.splits for m in net.modules() if isinstance(m, SplitBatchNorm2d)] == [2, 2, 2]


def test_a_batch_that_the_groups_do_not_divide_is_an_error() -> None:
    net = network()
    split_batch_norm(net, 4)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="a batch of 6 images does not divide into 4 groups"):
        net[1](torch.randn(6, 8, 2, 2, dtype=torch.float64))
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    with pytest.raises(ValueError, match="not 0"):
        split_batch_norm(net, 0)


@pytest.mark.parametrize("change", [{"momentum": None}, {"track_running_stats": False}])
def test_norms_without_running_statistics_are_rejected(change: dict[str, bool | None]) -> None:
    norm = nn.BatchNorm2d(8, **change)  # type: ignore[arg-type]
    split_batch_norm(norm, 2)
    with pytest.raises(ValueError, match="needs running statistics and a momentum"):
        norm(torch.randn(6, 8, 2, 2))


def test_the_memory_format_stays() -> None:
    net = network(torch.float32)
    split_batch_norm(net, 3)
    x_BCHW = torch.randn(6, 8, 5, 5)
    assert net[1](x_BCHW.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)
    assert net[1](x_BCHW).is_contiguous()


def test_bf16_autocast_keeps_float32_statistics() -> None:
    net, exact = network(torch.float32), network(torch.float32)
    for each in (net, exact):
        split_batch_norm(each, 3)
    x_BCHW = images(6, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x_BCHW)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())
    assert {value.dtype for value in statistics(net).values()} == {torch.float32}
    torch.testing.assert_close(y.float(), exact(x_BCHW), rtol=0.05, atol=0.05)


def test_deepcopy_is_independent_and_split_too() -> None:
    net = network()
    split_batch_norm(net, 3)
    twin = copy.deepcopy(net)
    before = RunningStatistics(net).read()
    x_BCHW = images(6)
    y = twin(x_BCHW)
    assert torch.equal(RunningStatistics(net).read(), before)
    assert torch.equal(net(x_BCHW), y)
    assert torch.equal(RunningStatistics(net).read(), RunningStatistics(twin).read())


def test_running_statistics_are_read_and_written_in_order() -> None:
    net = nn.Sequential(network(torch.float32), nn.BatchNorm1d(2))
    running = RunningStatistics(net)
    flat_P = running.read()
    assert torch.equal(flat_P, torch.cat(list(statistics(net).values())))
    kept = flat_P.clone()
    net[0](images(4, torch.float32))
    assert torch.equal(flat_P, kept)  # a copy
    assert not torch.equal(running.read(), kept)
    running.write(kept)
    assert torch.equal(running.read(), kept)
    assert int(net.state_dict()["0.1.num_batches_tracked"]) == 1  # not written
    with pytest.raises(RuntimeError):
        running.write(kept[:-1])
    with pytest.raises(RuntimeError):
        running.write(torch.cat([kept, kept[:1]]))


def test_running_statistics_survive_loading_and_splitting() -> None:
    net = network(torch.float32)
    running = RunningStatistics(net)
    net.load_state_dict({name: value + 1 for name, value in net.state_dict().items()})
    split_batch_norm(net, 2)
    running.write(torch.arange(32, dtype=torch.float32))
    assert torch.equal(net.state_dict()["1.running_var"], torch.arange(8, 16, dtype=torch.float32))


def test_skipped_batches_are_not_counted() -> None:
    """A step may run a norm any number of times."""
    net = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(3))
    running = RunningStatistics(net)
    before = running.counts()
    for norm, seen in zip(net, (1, 2), strict=True):
        norm.get_buffer("num_batches_tracked").add_(seen)
    running.uncount(torch.tensor(True), before)
    assert running.counts().tolist() == [1, 2]
    running.uncount(torch.tensor(False), before)
    assert running.counts().tolist() == [0, 0]


# ------------------------------------------------------------------------------------ masked batch norm

IMAGES, PLACES, CHANNELS = 6, 5, 3
VALID_BM = torch.tensor([[c == "x" for c in row] for row in ("x..x.", ".....", "xxxxx", ".x.x.", "..x.x", "x....")])
"""At least two vectors of any third or half of the images are valid."""


def masked(splits: int = 1) -> MaskedBatchNorm:
    """With weights that are not 1 and 0, in float64."""
    torch.manual_seed(2)
    norm = MaskedBatchNorm(CHANNELS).double()
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    if splits > 1:
        split_batch_norm(norm, splits)
    return norm


def vectors() -> tuple[Tensor, Tensor]:
    """Vectors with a different mean and scale for each image, and as many weights of a loss."""
    generator = torch.Generator().manual_seed(4)
    x_BMC, weight_BMC = torch.randn(2, IMAGES, PLACES, CHANNELS, generator=generator, dtype=torch.float64)
    return x_BMC * torch.arange(1, 7).view(-1, 1, 1) + torch.arange(6).view(-1, 1, 1), weight_BMC


@pytest.mark.parametrize("splits", [1, 2, 3])
@pytest.mark.parametrize("everything", [False, True])
def test_masked_batch_norm_is_plain_batch_norm_of_the_valid_vectors(splits: int, everything: bool) -> None:
    (x_BMC, weight_BMC), norm = vectors(), masked(splits)
    valid_BM = torch.ones_like(VALID_BM) if everything else VALID_BM
    leaf, expected_leaf = x_BMC.clone().requires_grad_(), x_BMC.clone().requires_grad_()
    found = norm(leaf, valid_BM)
    (found * weight_BMC)[valid_BM].sum().backward()

    plain = nn.BatchNorm1d(CHANNELS).double()
    plain.load_state_dict(norm.state_dict(), strict=False)
    groups = zip(expected_leaf.chunk(splits), valid_BM.chunk(splits), strict=True)
    expected = torch.cat([plain(x[valid]) for x, valid in groups])
    (expected * weight_BMC[valid_BM]).sum().backward()

    close = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-12)
    close(found[valid_BM], expected)
    close(leaf.grad, expected_leaf.grad)
    close(norm.weight.grad, plain.weight.grad)
    close(norm.bias.grad, plain.bias.grad)
    if not everything:
        other = torch.where(valid_BM[:, :, None], x_BMC, 1e6)
        assert torch.equal(norm(other, valid_BM)[valid_BM], found[valid_BM]), "what does not count is not seen"


@pytest.mark.parametrize("count", [0, 1])
def test_a_group_with_less_than_two_vectors_gets_the_bias(count: int) -> None:
    (x_BMC, weight_BMC), norm = vectors(), masked(2)
    valid_BM = VALID_BM.clone()
    valid_BM[:3] = False
    valid_BM[1, :count] = True
    leaf = x_BMC.clone().requires_grad_()
    found = norm(leaf, valid_BM)
    assert torch.allclose(found[:3], norm.bias) and found.isfinite().all()
    (found * weight_BMC).sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (leaf, norm.weight, norm.bias))
    assert leaf.grad is not None
    assert torch.count_nonzero(leaf.grad[:3]) == 0 and leaf.grad[3:].abs().sum() > 0


def test_masked_keeps_the_dtype_and_computes_in_float32() -> None:
    (x_BMC, _), norm = vectors(), masked().float()
    half_BMC = x_BMC.bfloat16() + 300  # in bf16 a variance about this mean would be lost
    found, exact = norm(half_BMC, VALID_BM), norm(half_BMC.float(), VALID_BM)
    assert found.dtype == torch.bfloat16 and exact.dtype == torch.float32
    assert torch.equal(found, exact.bfloat16())


def synced(folder: Path, rank: int) -> None:
    """Run one of two ranks on its half of the images; write outputs and gradients to a file."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    (x_BMC, weight_BMC), norm = vectors(), masked()
    half = slice(3 * rank, 3 * rank + 3)
    leaf = x_BMC[half].clone().requires_grad_()
    found = norm(leaf, VALID_BM[half])
    (found * weight_BMC[half]).sum().backward()
    torch.save([found.detach(), leaf.grad, norm.weight.grad, norm.bias.grad], folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_masked_statistics_are_those_of_both_ranks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.models.test_batchnorm", str(tmp_path)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([*command, str(rank)], cwd=root, env=environment) for rank in (0, 1)]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    (x_BMC, weight_BMC), norm = vectors(), masked()
    leaf = x_BMC.clone().requires_grad_()
    found = norm(leaf, VALID_BM)
    (found * weight_BMC).sum().backward()
    close = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-12)
    close(torch.cat([part[0] for part in parts]), found.detach())
    close(torch.cat([part[1] for part in parts]), leaf.grad)
    close(parts[0][2] + parts[1][2], norm.weight.grad)
    close(parts[0][3] + parts[1][3], norm.bias.grad)


if __name__ == "__main__":
    synced(Path(sys.argv[1]), int(sys.argv[2]))
