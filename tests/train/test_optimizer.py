"""The optimisers against their definitions, and a masked step that changes nothing."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mls.config.experiment import Optimizer
from mls.train.optimizer import build_optimizer, masked_step

Name = Literal["sgd", "lars", "adamw"]
NAMES: list[Name] = ["sgd", "lars", "adamw"]
SHAPES = [(4, 3, 3, 3), (5, 7), (5,), (1,), ()]
BAD = torch.tensor(False)
GOOD = torch.tensor(True)


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fill memory that torch leaves uninitialised: it must not matter, and zeros by luck would hide that."""
    before = torch.are_deterministic_algorithms_enabled()
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


def config(name: Name, **changes: Any) -> Optimizer:
    return Optimizer(name=name, **{"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, **changes})


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]
    values[0] = values[0].to(memory_format=torch.channels_last)
    return [nn.Parameter(value) for value in values]


def set_gradients(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))


def train(params: list[nn.Parameter], optimizer: torch.optim.Optimizer, steps: list[int]) -> None:
    """Take one step per number; it decides the gradients and the learning rate."""
    for step in steps:
        set_gradients(params, step)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + step)
        masked_step(optimizer, GOOD)


def tensors(optimizer: torch.optim.Optimizer) -> dict[tuple[int, str], Tensor]:
    state = optimizer.state_dict()["state"]
    return {(index, key): value for index, values in state.items() for key, value in values.items()}


def assert_same(a: list[nn.Parameter], b: list[nn.Parameter]) -> None:
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("bad_at", [0, 2])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("name", NAMES)
def test_a_masked_step_changes_nothing(name: Name, momentum: float, bad_at: int, poison: float) -> None:
    params, expected = parameters(), parameters()
    optimizer = build_optimizer(params, config(name, momentum=momentum))
    undisturbed = build_optimizer(expected, config(name, momentum=momentum))

    train(params, optimizer, list(range(bad_at)))
    values, state = copy.deepcopy(params), copy.deepcopy(tensors(optimizer))
    for p in params:
        p.grad = torch.full_like(p, poison)
    masked_step(optimizer, BAD)
    assert_same(params, values)
    after = tensors(optimizer)
    assert all(torch.equal(after[key], value) for key, value in state.items())
    assert not any(bool(after[key].any()) for key in after.keys() - state.keys())  # made by this step: zeros

    train(params, optimizer, list(range(bad_at, 5)))
    train(expected, undisturbed, list(range(5)))
    assert_same(params, expected)
    assert not any(torch.equal(p, q) for p, q in zip(params, values, strict=True))
    assert tensors(optimizer).keys() == tensors(undisturbed).keys()
    assert all(torch.equal(tensors(optimizer)[key], value) for key, value in tensors(undisturbed).items())


@pytest.mark.parametrize("name", NAMES)
def test_the_flag_does_not_outlive_its_step(name: Name) -> None:
    params, expected = parameters(), parameters()
    optimizer = build_optimizer(params, config(name))
    set_gradients(params, 0)
    masked_step(optimizer, BAD)
    optimizer.step()
    train(expected, build_optimizer(expected, config(name)), [0])
    assert_same(params, expected)


@pytest.mark.parametrize("weight_decay", [0.05, 0.0])
def test_sgd_is_torchs_and_decays_everything(weight_decay: float) -> None:
    params, expected = parameters(torch.float64), parameters(torch.float64)
    plain = torch.optim.SGD(expected, 0.1, 0.9, weight_decay=weight_decay, foreach=False, fused=False)
    train(params, build_optimizer(params, config("sgd", weight_decay=weight_decay)), list(range(5)))
    train(expected, plain, list(range(5)))
    for p, q in zip(params, expected, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_sgds_zeroed_buffers_change_no_bit() -> None:
    params, expected = parameters(), parameters()
    train(params, build_optimizer(params, config("sgd")), list(range(3)))
    train(expected, torch.optim.SGD(expected, 0.1, 0.9, weight_decay=0.05, fused=True), list(range(3)))
    assert_same(params, expected)


def test_adamw_is_torchs_and_decays_only_weights() -> None:
    params, expected = parameters(torch.float64), parameters(torch.float64)
    groups: list[dict[str, Any]] = [{"params": expected[:2]}, {"params": expected[2:], "weight_decay": 0.0}]
    plain = torch.optim.AdamW(groups, 0.1, (0.8, 0.999), weight_decay=0.05, foreach=False, fused=False)
    train(params, build_optimizer(params, config("adamw", momentum=0.8)), list(range(5)))
    train(expected, plain, list(range(5)))
    for p, q in zip(params, expected, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


@pytest.mark.parametrize("weight_decay", [0.05, 0.0])
def test_lars_equals_its_formula(weight_decay: float) -> None:
    weight = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64))
    bias = nn.Parameter(torch.tensor([0.3, -0.7], dtype=torch.float64))
    optimizer = build_optimizer([weight, bias], config("lars", weight_decay=weight_decay))
    w, b = weight.flatten().tolist(), bias.tolist()
    momentum_w, momentum_b = [0.0] * 4, [0.0] * 2
    for step in range(4):
        set_gradients([weight, bias], step)
        assert weight.grad is not None
        assert bias.grad is not None
        g, h = weight.grad.flatten().tolist(), bias.grad.tolist()
        masked_step(optimizer, GOOD)
        # You, Gitman, Ginsburg 2017: local rate 0.001 |w| / (|g| + decay |w|), here inside the momentum
        trust = 0.001 * math.hypot(*w) / (math.hypot(*g) + weight_decay * math.hypot(*w) + 1e-8)
        momentum_w = [0.9 * m + trust * (gi + weight_decay * wi) for m, gi, wi in zip(momentum_w, g, w, strict=True)]
        momentum_b = [0.9 * m + hi for m, hi in zip(momentum_b, h, strict=True)]  # neither scaled nor decayed
        w = [wi - 0.1 * m for wi, m in zip(w, momentum_w, strict=True)]
        b = [bi - 0.1 * m for bi, m in zip(b, momentum_b, strict=True)]
        assert weight.flatten().tolist() == pytest.approx(w, abs=1e-12, rel=0)
        assert bias.tolist() == pytest.approx(b, abs=1e-12, rel=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_state_continues_bit_for_bit(name: Name) -> None:
    expected = parameters()
    train(expected, build_optimizer(expected, config(name)), list(range(5)))

    params = parameters()
    optimizer = build_optimizer(params, config(name))
    train(params, optimizer, [0, 1])
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "values": [p.detach() for p in params]}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = [nn.Parameter(value) for value in saved["values"]]
    optimizer = build_optimizer(resumed, config(name))
    optimizer.load_state_dict(saved["optimizer"])
    train(resumed, optimizer, [2, 3, 4])
    assert_same(resumed, expected)


class HostReads(TorchDispatchMode):
    """Counts the reads of a tensor's value by the host."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "reads"), [("sgd", 0), ("adamw", 0), ("lars", 1)])
def test_how_often_the_host_waits(name: Name, reads: int) -> None:
    params = parameters()
    optimizer = build_optimizer(params, config(name))
    for step in range(2):
        set_gradients(params, step)
        with HostReads() as mode:
            masked_step(optimizer, GOOD)
        assert mode.count == reads


def test_parameters_that_cannot_be_fused_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="fused"):
        params = [nn.Parameter(torch.zeros(2, dtype=torch.complex64))]
        optimizer = build_optimizer(params, config("sgd"))
        params[0].grad = torch.zeros_like(params[0])
        masked_step(optimizer, GOOD)
