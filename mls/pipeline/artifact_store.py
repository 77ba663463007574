"""The store keeps finished artifacts by id, where DVC, git and Snakemake can't remove them.

    with building(job) as out: ...              # the finished artifact enters the store and is linked from there
    reuse(job)                                  # is it there? If only the store has it, link it
    plan = plan_here(Path("params.yaml"))       # plan, and link whatever artifacts/ lacks and the store has

``artifacts/`` belongs to DVC, which removes what its lock file does not name (`dvc checkout`, `dvc exp apply`), and to
Snakemake, which removes outputs before it makes them. Its folders are therefore linked copies of the store's
(`mls.runtime.links`). The store's files are read-only, because a hard link in ``artifacts/`` is the same file.
``artifact.json`` is always a copy, because Snakemake refuses to make a read-only output again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mls.config.identity import KIND_VERSIONS, STAGE_VERSIONS, kind_of
from mls.pipeline.artifact import MANIFEST, damage, open_artifact, state
from mls.pipeline.plan import ARTIFACTS, Job, Plan, plan_file
from mls.pipeline.provenance import start_record
from mls.runtime.errors import DamagedArtifact
from mls.runtime.files import explain_full_disk, sha256, sync, write_atomic
from mls.runtime.links import link_folder
from mls.runtime.locks import is_locked, locked, say
from mls.runtime.paths import store, work


@contextmanager
def building(job: Job) -> Iterator[Path]:
    """Yield an empty staging folder; on success it becomes the artifact, in the store and in ``artifacts/``.

    On any error the folder is removed, and nothing appears at the artifact's path. The caller holds the job's lock.
    """
    staging = job.work / "build"
    shutil.rmtree(staging, ignore_errors=True)  # from a process that was killed
    staging.mkdir(parents=True)
    finish_record = start_record()
    try:
        yield staging
        for file in staging.rglob("*"):
            sync(file)
        # The manifest comes last: a folder without one is never taken for an artifact.
        manifest = {
            "stage": job.stage,
            "id": job.id,
            "version": STAGE_VERSIONS[job.stage],
            "kind_version": KIND_VERSIONS.get((job.stage, kind_of(job.config)), 1),
            "params": job.params,
            "inputs": job.inputs,
            "files": {
                str(file.relative_to(staging)): {"size": file.stat().st_size, "sha256": sha256(file)}
                for file in sorted(staging.rglob("*"))
                if file.is_file()
            },
            "made": finish_record(),
        }
        write_atomic(staging / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        # The store comes first: if the process is killed between the two, the next one links the artifact.
        _install(staging, job.stored)
        _install(job.stored, job.path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def reuse(job: Job) -> bool:
    """Whether a complete artifact exists, in ``artifacts/`` or in the store; afterwards both have it.

    An artifact that only ``artifacts/`` has (it was pulled, or is older than the store) is verified and enters the
    store. One that only the store has replaces what is missing, incomplete or damaged in ``artifacts/``. The caller
    holds the job's lock.

    Raises:
        DamagedArtifact: a file that was to enter the store does not have the sha256 in its manifest.
    """
    stored = _is_stored(job)
    if state(job.path) == "done":
        if not stored:
            open_artifact(job.path, deep=True)
            _install(job.path, job.stored)
        return True
    if stored:
        _install(job.stored, job.path)
    return stored


def restore(plan: Plan, job: Job) -> bool:
    """`reuse`, for a caller without the job's lock, which is taken only if something has to be linked."""
    if state(job.path) == state(job.stored) == "done":
        return True
    with locked(lock_of(job.id), plan.name(job)):
        return reuse(job)


def plan_here(path: Path) -> Plan:
    """Plan an experiment file, and link whatever ``artifacts/`` lacks and the store has."""
    plan = plan_file(path)
    link_back(plan)
    return plan


def link_back(plan: Plan) -> None:
    """Link what ``artifacts/`` lacks and the store has.

    If nothing is lacking, this only looks for each artifact's manifest, so every command can afford it.
    """
    lost = [
        job for job in plan.jobs.values() if not (job.path / MANIFEST).exists() and (job.stored / MANIFEST).exists()
    ]
    for job in lost:
        if _is_stored(job):  # a damaged one is skipped without its lock, which its next maker may hold for days
            restore(plan, job)
    if back := sum(state(job.path) == "done" for job in lost):
        say(f"{back} of {len(plan.jobs)} artifacts linked from {store()}/")


def add_all() -> None:
    """Verify every finished artifact in ``artifacts/`` that the store lacks, add it, and print the counts.

    Raises:
        DamagedArtifact: lists every damaged artifact, after all others were added.
    """
    there, added, problems = 0, 0, []
    for manifest in sorted(ARTIFACTS.glob(f"[!.]*/{'[0-9a-f]' * 10}/{MANIFEST}")):
        path = manifest.parent
        stored = store() / path.parent.name / path.name
        with locked(lock_of(path.name), str(path)):
            if state(stored) == "done":
                there += 1
                continue
            try:
                open_artifact(path, deep=True)
                _install(path, stored)
                added += 1
            except DamagedArtifact as error:
                problems.append(str(error))
    print(f"{added} artifacts added to the store, {store()}/, which already had {there} of those in artifacts/")
    if problems:
        raise DamagedArtifact("\n".join(problems))


@contextmanager
def claimed(job: Job, name: str) -> Iterator[None]:
    """Hold the right to make an artifact; wait while another process makes it.

    The store's lock decides, so processes, clones and users that share a store make an artifact once. The lock in
    ``work/<id>/`` protects the state where clones share $MLS_WORK but not the store.
    """
    with locked(lock_of(job.id), name), locked(state_lock_of(job.id), name):
        yield


def being_made(job_id: str) -> bool:
    """Whether a live process makes the artifact, here or in a clone that shares the store or the state."""
    return is_locked(lock_of(job_id)) or is_locked(state_lock_of(job_id))


def lock_of(job_id: str) -> Path:
    """The lock under which an artifact is made, enters the store and is linked."""
    return store() / "locks" / f"{job_id}.lock"


def state_lock_of(job_id: str) -> Path:
    """The lock under which the resumable state of an artifact is written."""
    return work() / job_id / "lock"


def _is_stored(job: Job) -> bool:
    """Whether the store has the whole artifact; a damaged one is reported, and not used."""
    found = state(job.stored)
    if found == "damaged":
        say(f"{damage(job.stored)} It is not used")
    return found == "done"


def _install(source: Path, target: Path) -> None:
    """Make ``target``, ``<root>/<stage>/<id>``, a linked copy of a whole artifact; the caller holds its lock."""
    root = target.parents[1]
    with explain_full_disk(root):
        link_folder(
            source, target, root / ".staging" / target.name, open_artifact(source).manifest["files"], [MANIFEST]
        )
