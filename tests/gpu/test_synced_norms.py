"""Batch norm over two ranks, each with half of the batch, is batch norm of the whole batch on the CPU, in float64.

Two ranks share a GPU if there is only one: then gloo connects them, which copies through the CPU; NCCL needs one each.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mls.models.batchnorm import MaskedBatchNorm

CHANNELS = 5
ROOT = Path(__file__).parents[2]


class AllValid(nn.Module):
    """`MaskedBatchNorm` of maps whose every position counts; it also runs on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = MaskedBatchNorm(CHANNELS)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BMC = x_BCHW.flatten(2).transpose(1, 2).contiguous()
        valid_BM = torch.ones(x_BMC.shape[:2], dtype=torch.bool, device=x_BMC.device)
        return self.norm(x_BMC, valid_BM).transpose(1, 2).reshape(x_BCHW.shape)


def synced(name: str) -> nn.Module:
    """A norm over ranks, as `mls.methods.method` makes it."""
    if name == "masked":
        return AllValid()
    return nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm2d(CHANNELS))


def outcome(norm: nn.Module, x_BCHW: Tensor, weight_BCHW: Tensor) -> list[Tensor]:
    """Output, gradient of the input, gradients of scale and shift, and running statistics if there are any."""
    torch.manual_seed(3)
    norm.to(x_BCHW)
    for parameter in norm.parameters():
        parameter.data.copy_(torch.rand(CHANNELS, dtype=torch.float64) + 0.5)
    leaf = x_BCHW.requires_grad_()
    found = norm(leaf)
    (found * weight_BCHW).sum().backward()
    statistics = [buffer for name, buffer in norm.named_buffers() if name.startswith("running")]
    parts = [found.detach(), leaf.grad, *(p.grad for p in norm.parameters()), *statistics]
    return [part.cpu() for part in parts if part is not None]


def batch() -> tuple[Tensor, Tensor]:
    """Images whose means differ much, so that half a batch has other statistics, and weights of a loss."""
    generator = torch.Generator().manual_seed(4)
    x_BCHW, weight_BCHW = torch.randn(2, 6, CHANNELS, 4, 3, generator=generator, dtype=torch.float64)
    return x_BCHW + torch.arange(6).view(-1, 1, 1, 1), weight_BCHW


def run_rank(folder: Path, name: str, device: str, rank: int) -> None:
    """Be one of two ranks: write the outcome of its half."""
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    if gpus:
        torch.cuda.set_device(rank % gpus)
    backend = "nccl" if gpus > 1 else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    half = slice(3 * rank, 3 * rank + 3)
    x_BCHW, weight_BCHW = (part[half].to(device) for part in batch())
    torch.save(outcome(synced(name), x_BCHW, weight_BCHW), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["masked", "SyncBN"])
def test_two_ranks_are_the_whole_batch_on_the_cpu(tmp_path: Path, name: str, device: torch.device) -> None:
    if name == "SyncBN" and device.type == "cpu":
        pytest.skip("torch has SyncBN for GPUs only")
    command = [sys.executable, "-m", "tests.gpu.test_synced_norms", str(tmp_path), name, device.type]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([*command, str(rank)], cwd=ROOT, env=environment) for rank in (0, 1)]
    try:
        assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    whole = outcome(nn.BatchNorm2d(CHANNELS), *batch())
    close = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-10)
    for part in (0, 1):  # of the images
        close(torch.cat([one[part], two[part]]), whole[part])
    for part in (2, 3):  # each rank has its images' share
        close(one[part] + two[part], whole[part])
    assert len(one) == (4 if name == "masked" else 6)
    for part in range(4, len(one)):
        close(one[part], whole[part])
        close(two[part], whole[part])
    half = outcome(nn.BatchNorm2d(CHANNELS), *(part[:3] for part in batch()))
    assert not torch.allclose(half[0], whole[0][:3], atol=0.1), "statistics of half a batch differ"


if __name__ == "__main__":
    run_rank(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
