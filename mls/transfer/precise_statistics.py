"""Batch norm statistics of a trained network, from further batches; on several ranks too.

    precise_statistics(model, batches)

fvcore's ``update_bn_stats``, whose numbers these are, weighs each batch by the cells that a norm sees. With several
ranks it would take those of the own rank, which differ, and fail where a rank has none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mls.runtime.collectives import sum_over_ranks


@torch.no_grad()
def precise_statistics(model: nn.Module, batches: Iterable[Any]) -> None:
    """Replace running statistics by mean and variance of all cells in some batches, in place.

    Args:
        model: in training mode; takes a batch.
        batches: this rank's shares of them. A norm that sees no cell in any of them keeps its statistics.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    cells: dict[nn.Module, int] = {}

    def count(norm: nn.Module, given: tuple[Tensor]) -> None:
        cells[norm] = given[0].numel() // given[0].shape[1]

    hooks = [norm.register_forward_pre_hook(count) for norm in norms]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0  # running statistics are then those of the batch
    running = [(cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)) for norm in norms]
    precise = [(torch.zeros_like(mean_C), torch.zeros_like(var_C)) for mean_C, var_C in running]
    before = [(mean_C.clone(), var_C.clone()) for mean_C, var_C in running]
    totals = [0.0] * len(norms)
    for batch in batches:
        cells.clear()
        model(batch)
        counts = sum_over_ranks(torch.tensor([cells.get(norm, 0) for norm in norms], dtype=torch.float64)).tolist()
        for index, number in enumerate(counts):
            if not number:  # a head, in a batch without regions for it
                continue
            totals[index] += number
            (mean_C, var_C), (precise_C, square_C) = running[index], precise[index]
            precise_C += (mean_C - precise_C) * (number / totals[index])
            square_C += (mean_C.square() + var_C * ((number - 1) / number) - square_C) * (number / totals[index])
    for index, (mean_C, var_C) in enumerate(running):
        precise_C, square_C = precise[index]
        found = (precise_C, square_C - precise_C.square()) if totals[index] else before[index]
        mean_C.copy_(found[0])
        var_C.copy_(found[1])
    for norm, momentum, hook in zip(norms, momenta, hooks, strict=True):
        norm.momentum = momentum
        hook.remove()
