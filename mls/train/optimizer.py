"""Optimisers, and a step that does nothing where the gradients are not finite.

    optimizer = build_optimizer([*method.backbone.parameters()], config.optimizer)
    loss.backward()
    masked_step(optimizer, torch.isfinite(loss.detach() + gradient_norm))

The parameters are on their device before the optimiser is built.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mls.config.experiment import Optimizer


def build_optimizer(parameters: list[nn.Parameter], config: Optimizer) -> torch.optim.Optimizer:
    """Return SGD or AdamW (torch's fused ones) or LARS (timm's, without Nesterov).

    SGD decays every parameter. AdamW and LARS have two groups: parameters of two dimensions or more,
    and the others (biases, batch norm), which are not decayed. timm's LARS scales a group by the
    trust ratio where ``weight_decay != 0 or always_adapt``; so the others are not scaled, and for the
    first group ``always_adapt`` is set, without which a weight decay of 0 would turn LARS into SGD.

    Args:
        parameters: what is trained, on its device, of a floating dtype. The fused kernels need each
            gradient in its parameter's memory layout, as autograd makes it; on the CPU they don't check.
        config: the schedule overwrites ``lr`` in the groups before each step.

    Raises:
        RuntimeError: the fused kernels don't support the parameters, from torch.
    """
    if config.name == "sgd":
        sgd = torch.optim.SGD(
            parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
        )
        if config.momentum:
            # By itself fused SGD makes its buffers in the first step, uninitialised if that step is
            # masked, and the second step would read them. From zeros the first step gives the same.
            for parameter in parameters:
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    decayed: dict[str, Any] = {"params": [p for p in parameters if p.ndim > 1]}
    others: dict[str, Any] = {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}
    if config.name == "adamw":
        return torch.optim.AdamW(
            [decayed, others],
            lr=config.lr,
            betas=(config.momentum, 0.999),
            weight_decay=config.weight_decay,
            fused=True,
        )
    from timm.optim.lars import Lars  # slow to import, and needed by this choice alone

    return Lars(
        [{**decayed, "always_adapt": True}, others],
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=False,
    )


def masked_step(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Take one step where ``finite`` is true; where false, change neither parameters nor state.

    torch's fused optimisers read the flag on the device, so that the host never waits: this is how
    ``torch.amp.GradScaler`` drives them. Others (LARS) have no such hook; for them the host reads the
    flag, which is one wait a step.

    Args:
        optimizer: from `build_optimizer`; the gradients are set.
        finite: bool scalar on the parameters' device. Where false, gradients may hold anything.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = finite.logical_not().float()  # type: ignore[attr-defined]
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf  # type: ignore[attr-defined]
    elif finite:
        optimizer.step()
