"""What a GPU computes; each test also runs on the CPU, so that its body is known to work.

`benchmarks/gpu.py` runs these files where little more than torch is installed (benchmarks/gpu-requirements.txt), so
they import neither what scores nor what downloads.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mls.data import scenes
from mls.data.writer import write_store
from mls.pipeline.plan import Plan


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The CPU, and the GPU if there is one; torch's global settings are restored."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    threads = torch.get_num_threads()
    yield torch.device(request.param)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def with_data(plan: Plan) -> Plan:
    """Make a plan's generated scenes, without the data stage, which can download too."""
    (job,) = plan.stage("data")
    if not job.path.exists():
        job.path.mkdir(parents=True)
        write_store(job.path, scenes.records(job.config), scenes.CLASSES, True, [])
    return plan
