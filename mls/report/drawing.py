"""What `mls draw` does for every kind of job: refuse what cannot be drawn, open artifacts, warn about photos."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from mls.pipeline.artifact import Artifact, open_artifact
from mls.pipeline.plan import Job, Plan
from mls.pipeline.runner import open_inputs
from mls.runtime.errors import DamagedArtifact, MlsError
from mls.runtime.locks import say

Content = TypeVar("Content")


def open_drawable(
    plan: Plan,
    job: Job,
    read: Callable[[Artifact], Content],
    drawable: Callable[[Any], bool],
    problem: str,
    images: int,
    seed: int = 0,
) -> tuple[Content, Artifact]:
    """The content of a job's artifact, and the artifact of its data set.

    Args:
        plan: the job's plan.
        job: what to draw.
        read: gives the content of the job's artifact.
        drawable: whether a job's config can be drawn.
        problem: why this job's cannot, if ``drawable`` says so.
        images: how many the command asks for.
        seed: the seed that the command asks for.

    Raises:
        MlsError: the job or an argument cannot be drawn, or an artifact is missing or damaged; says what to do.
    """
    if images < 1 or seed < 0:
        raise MlsError(f"--images must be at least 1 and --seed at least 0, not {images} and {seed}")
    if not drawable(job.config):
        others = ", ".join(plan.labels[one.id][0] for one in plan.stage(job.stage) if drawable(one.config))
        can = f"{plan.loaded.path} can draw: {others or 'nothing'}"
        raise MlsError(f"{plan.name(job)} {problem}; {can}")
    try:
        content = read(open_artifact(job.path))
    except DamagedArtifact as error:
        command = f"mls {job.stage} {plan.labels[job.id][0]} -e {plan.loaded.path}"
        raise MlsError(f"{plan.name(job)} can't be drawn: {error}. The command that makes it: {command}") from error
    return content, open_inputs(plan, job)["data"]


def is_generated(data: Artifact) -> bool:
    """Whether a data set has no photos; photos have licences, which may not allow publication."""
    return bool(data.manifest["params"].get("source") == "scenes")


def warn_of_photos(data: Artifact, files: str) -> None:
    """Say that files show photos, if they do."""
    if not is_generated(data):
        say(f"{files} show photos of the data set; don't publish them without the photos' licences")
