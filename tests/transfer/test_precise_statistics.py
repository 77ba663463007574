"""Batch norm statistics from further batches: those of all cells; what no batch reaches stays as it was."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mls.transfer.precise_statistics import precise_statistics


class Net(nn.Module):
    """A norm that each batch reaches, and one that none does."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.reached(x_BCHW)


def test_statistics_are_those_of_all_cells_and_an_unreached_norm_keeps_its_own() -> None:
    net = Net().double().train()
    for norm in (net.reached, net.other):
        norm.running_mean = torch.tensor([1.0, 2.0, 3.0]).double()
        norm.running_var = torch.tensor([4.0, 5.0, 6.0]).double()
    batches = [torch.randn(size, 3, 4, 5).double() * 2 + 7 for size in (2, 4, 1)]
    precise_statistics(net, batches)
    cells_NC = torch.cat([batch.movedim(1, 3).flatten(0, 2) for batch in batches])
    assert net.reached.running_mean is not None and net.reached.running_var is not None
    torch.testing.assert_close(net.reached.running_mean, cells_NC.mean(0))
    torch.testing.assert_close(net.reached.running_var, cells_NC.var(0, correction=0))
    assert [t.tolist() for t in net.other.buffers()][:2] == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    assert net.reached.momentum == net.other.momentum == 0.1
