"""Set up torch for one job: device, threads, determinism, autocast."""

from __future__ import annotations

import os
import random
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import numpy as np
import torch

from mls.runtime.errors import MlsError


def set_up(device_name: str, threads: int, seed: int) -> torch.device:
    """Seed every generator, fix the thread count, choose the device.

    On a CPU, operations are deterministic: equal inputs give equal bytes at equal threads.

    Args:
        device_name: ``execution.device``: auto, cpu or cuda.
        threads: of this process on the CPU.
        seed: of the generators of Python, NumPy and torch.

    Raises:
        MlsError: ``device: cuda`` without a usable GPU; more ranks than GPUs.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    has_gpu = torch.cuda.is_available()
    if device_name == "cuda" and not has_gpu:
        raise MlsError("execution.device is 'cuda', but torch sees no GPU here; use 'auto' or 'cpu'")
    device = torch.device("cpu")
    if has_gpu and device_name != "cpu":
        local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()  # the first is set by torchrun
        if local >= gpus:
            raise MlsError(
                f"torchrun started more processes than this machine has GPUs ({gpus}); lower --nproc-per-node"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    torch.use_deterministic_algorithms(device.type == "cpu")
    # Filling fresh memory costs time; it guards against bugs, not against another order of sums.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = device.type == "cuda"
    return device


def workers_of(workers: int | Literal["auto"], threads: int, device: torch.device) -> int:
    """Processes that prepare images for a job on a device, of ``execution.workers`` and ``execution.threads``."""
    if workers != "auto":
        return workers
    if device.type == "cpu":
        return threads
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun
    return min(16, max(1, len(os.sched_getaffinity(0)) // ranks))


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """bf16 autocast, or nothing for fp32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
