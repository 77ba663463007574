"""Operations and memory of a step, counted on tensors that have a shape and a type, but no numbers.

    step = count_step(32, build, run)   # of a ResNet-50 on 32 squares of 224 pixels
    step.operations                     # 24.3e9 operations an image, forward and backward; a multiply-add is two
    step.memory                         # 86e6 bytes an image that are alive at the peak

torch's own counter counts the operations of convolutions and matrix products; the rest is left out, as is usual.
ResNet-50 takes a second on one core, whatever the number of images.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Step:
    """What a step takes, divided by its number of images."""

    operations: float
    """Floating-point operations; a multiply-add is two."""
    memory: float
    """Bytes at the peak of what the step makes: activations, gradients, temporary tensors."""


class LiveBytes(TorchDispatchMode):
    """Follow the bytes of the tensors that are made inside it: ``now``, and ``peak``, the most at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        """Count a storage once, until it is freed."""
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.now -= size


class Undrawn(TorchFunctionMode):
    """Leave out the drawing of initial values, which without numbers takes most of the time, and changes no size."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in (torch.Tensor.normal_, torch.Tensor.uniform_) else func(*args, **(kwargs or {}))


def on_meta(build: Callable[[], M]) -> M:
    """Build a network whose tensors have a size, but neither numbers nor memory."""
    with torch.device("meta"), Undrawn():
        return build()


def count_step(images: int, build: Callable[[], M], run: Callable[[M], Tensor]) -> Step:
    """Count a step: the forward pass and, if what it returns has a gradient, the backward pass.

    Args:
        images: of the batch, by which everything is divided.
        build: makes the network; its weights are not counted.
        run: the forward pass, on inputs that it makes; returns a scalar to minimise.
    """
    network = on_meta(build)  # not under FakeTensorMode, whose tensors can't be copied
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        network._apply(lambda tensor: FakeTensor(mode, tensor.detach(), torch.device("cpu")))
        return counted(images, lambda: run(network))


def counted(images: int, run: Callable[[], Tensor]) -> Step:
    """Count a step on the tensors that ``run`` makes, real ones too."""
    with LiveBytes() as live, FlopCounterMode(display=False) as counter:
        loss = run()
        if loss.requires_grad:
            loss.backward()
    return Step(counter.get_total_flops() / images, live.peak / images)
