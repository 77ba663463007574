"""Split batch norm is plain batch norm on each group; running statistics are one vector."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import Tensor, nn

from mls.models.batchnorm import RunningStatistics, SplitBatchNorm2d, split_batch_norm


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


def test_same_objects_and_state_dict_names() -> None:
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


def test_a_batch_that_the_groups_do_not_divide() -> None:
    net = network()
    split_batch_norm(net, 4)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="a batch of 6 images does not divide into 4 groups"):
        net[1](torch.randn(6, 8, 2, 2, dtype=torch.float64))
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    with pytest.raises(ValueError, match="not 0"):
        split_batch_norm(net, 0)


@pytest.mark.parametrize("change", [{"momentum": None}, {"track_running_stats": False}])
def test_what_has_no_moving_average_is_refused(change: dict[str, bool | None]) -> None:
    norm = nn.BatchNorm2d(8, **change)  # type: ignore[arg-type]
    split_batch_norm(norm, 2)
    with pytest.raises(ValueError, match="needs running statistics and a momentum"):
        norm(torch.randn(6, 8, 2, 2))


def test_channels_last_stays() -> None:
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


def test_running_statistics_survive_a_move() -> None:
    net = network(torch.float32)
    running = RunningStatistics(net)
    net.to(torch.float64)
    assert running.read().dtype == torch.float64
    running.write(torch.arange(32, dtype=torch.float64))
    assert torch.equal(net.state_dict()["1.running_var"], torch.arange(8, 16, dtype=torch.float64))


def test_a_module_without_batch_norm() -> None:
    running = RunningStatistics(nn.Linear(2, 2))
    assert running.read().shape == (0,)
    running.write(running.read())
    with pytest.raises(RuntimeError):
        running.write(torch.zeros(1))


def test_a_batch_that_does_not_count_is_taken_out_of_the_count() -> None:
    net = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(3))
    running = RunningStatistics(net)
    for norm in running.norms:
        norm.num_batches_tracked.add_(4)  # type: ignore[union-attr]
    running.uncount(torch.tensor(True))
    assert [int(norm.num_batches_tracked) for norm in running.norms] == [4, 4]  # type: ignore[arg-type]
    running.uncount(torch.tensor(False))
    assert [int(norm.num_batches_tracked) for norm in running.norms] == [3, 3]  # type: ignore[arg-type]
