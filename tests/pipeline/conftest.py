"""A small plan, and one of its jobs that reads no input."""

from __future__ import annotations

from pathlib import Path

import pytest

from mls.pipeline.plan import Job, Plan
from tests.conftest import plan_of, small


@pytest.fixture
def plan(in_tmp: Path) -> Plan:
    return plan_of(small())


@pytest.fixture
def job(plan: Plan) -> Job:
    return plan.find("pretrain", "random")[0]
