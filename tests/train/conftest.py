"""A small plan whose data artifact exists; torch's global settings are restored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import mls.data.build_store
from mls.pipeline.plan import Plan
from mls.pipeline.runner import run_stage
from tests.conftest import plan_of, small


@pytest.fixture(autouse=True)
def restore_torch() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def plan(in_tmp: Path) -> Plan:
    """9 steps of 8 images, 3 per epoch; the data artifact exists."""
    plan = plan_of(small())
    run_stage(plan, plan.stage("data")[0], mls.data.build_store.run)
    return plan
