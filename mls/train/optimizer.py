"""Optimisers, and a step that does nothing if the gradients are not finite.

    optimizer = build_optimizer([*method.backbone.parameters()], config.optimizer)
    loss.backward()
    masked_step(optimizer, torch.isfinite(loss.detach() + gradient_norm))

Move the parameters to their device before building the optimiser.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mls.config.experiment import Optimizer


def build_optimizer(parameters: list[nn.Parameter], config: Optimizer) -> torch.optim.Optimizer:
    """Return SGD or AdamW (torch's fused ones) or LARS (timm's, without Nesterov).

    SGD decays every parameter. AdamW and LARS have two groups: parameters with two or more dimensions, and the others
    (biases, batch norm), which are not decayed. timm's LARS scales a group by the trust ratio if
    ``weight_decay != 0 or always_adapt``. So it does not scale the second group; for the first, ``always_adapt`` is
    set, since a weight decay of 0 would otherwise turn LARS into SGD.

    Args:
        parameters: what is trained, on its device, with a floating dtype. The fused kernels need each gradient in its
            parameter's memory layout, as autograd makes it; on the CPU they do not check.
        config: the schedule overwrites ``lr`` in the groups before each step.

    Raises:
        RuntimeError: the fused kernels do not support the parameters (from torch).
    """
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.name == "sgd":
        sgd = torch.optim.SGD(parameters, momentum=config.momentum, fused=True, **options)
        if config.momentum:
            # Fused SGD makes its buffers in the first step; if that step is masked they stay uninitialised, and the
            # second step would read them. Buffers of zeros give the same first step.
            for parameter in parameters:
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    decayed: dict[str, Any] = {"params": [p for p in parameters if p.ndim > 1]}
    others: dict[str, Any] = {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}
    if config.name == "adamw":
        return torch.optim.AdamW([decayed, others], betas=(config.momentum, 0.999), fused=True, **options)
    from timm.optim.lars import Lars  # slow to import, and only this choice needs it

    return Lars([decayed | {"always_adapt": True}, others], momentum=config.momentum, nesterov=False, **options)


def masked_step(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Take one step if ``finite`` is true; otherwise change neither parameters nor state.

    torch's fused optimisers read the flag on the device, so the host never waits; ``torch.amp.GradScaler`` drives them
    in the same way. LARS has no such hook: there the host reads the flag, which costs one wait per step.

    Args:
        optimizer: from `build_optimizer`; the gradients are set.
        finite: bool scalar on the parameters' device. If false, gradients may hold anything.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = finite.logical_not().float()  # type: ignore[attr-defined]
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf  # type: ignore[attr-defined]
    elif finite:
        optimizer.step()
