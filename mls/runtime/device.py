"""Set up torch for one job: device, threads, determinism, mixed precision."""

from __future__ import annotations

import os
import random
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import numpy as np
import torch

from mls.runtime.errors import MlsError
from mls.runtime.ranks import ranks


def set_up(device_name: str, threads: int, seed: int) -> torch.device:
    """Seed every random generator, set the number of threads and choose the device.

    On a CPU, operations are deterministic: equal inputs give equal bytes with an equal number of threads.

    Args:
        device_name: ``execution.device``: auto, cpu or cuda.
        threads: CPU threads of this process.
        seed: for the generators of Python, NumPy and torch.

    Raises:
        MlsError: the device is cuda and torch sees no GPU, or there are more ranks than GPUs.
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
        local, gpus = ranks().local_rank, torch.cuda.device_count()
        if local >= gpus:
            raise MlsError(
                f"torchrun started more processes than this machine has GPUs ({gpus}); lower --nproc-per-node"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    torch.use_deterministic_algorithms(device.type == "cpu")
    # Deterministic mode also fills uninitialised memory. That costs time and only guards against bugs.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = device.type == "cuda"
    return device


def workers_of(workers: int | Literal["auto"], threads: int, device: torch.device) -> int:
    """Number of processes that prepare images for a job, from ``execution.workers`` and ``execution.threads``."""
    if workers != "auto":
        return workers
    if device.type == "cpu":
        return threads
    return min(16, max(1, len(os.sched_getaffinity(0)) // ranks().local_world))


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context for a forward pass: bf16 autocast, or nothing for fp32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
