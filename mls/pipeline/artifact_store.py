"""The store: finished artifacts by id, out of reach of DVC, git and Snakemake.

    with building(job) as out: ...      # a finished artifact goes into the store, and is linked from there
    reuse(job)                          # is it there? else link it from the store
    plan = plan_here(Path("params.yaml"))       # plan, and link back all of it that artifacts/ lacks

``artifacts/`` belongs to DVC, which removes what its lock file does not name (`dvc checkout`, `dvc exp apply`), and to
Snakemake, which removes outputs before it makes them. Its folders are therefore links of the store's
(`mls.runtime.links`). The store's files are read-only, since through a hard link one in ``artifacts/`` may be the
same file. ``artifact.json`` alone is always a copy: Snakemake refuses to make an output again that is read-only.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mls.config.identity import STAGE_VERSIONS
from mls.pipeline.artifact import MANIFEST, damage, open_artifact, state
from mls.pipeline.plan import ARTIFACTS, Job, Plan, plan_file
from mls.pipeline.provenance import provenance
from mls.runtime.errors import DamagedArtifact
from mls.runtime.files import explain_full_disk, sha256, sync, write_atomic
from mls.runtime.links import link_folder
from mls.runtime.locks import is_locked, locked, locked_if_free, say
from mls.runtime.paths import store, work


@contextmanager
def building(job: Job) -> Iterator[Path]:
    """Give a fresh folder to fill; on success seal it, put it into the store and link it to the artifact's path.

    On any error the folder is removed, and nothing appears at the artifact's path. The caller has claimed the job.
    """
    aside = job.work / "build"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    clock = provenance()
    try:
        yield aside
        for file in aside.rglob("*"):
            sync(file)
        seal = {
            "stage": job.stage,
            "id": job.id,
            "version": STAGE_VERSIONS[job.stage],
            "params": job.params,
            "inputs": job.inputs,
            "files": {
                str(file.relative_to(aside)): {"size": file.stat().st_size, "sha256": sha256(file)}
                for file in sorted(aside.rglob("*"))
                if file.is_file()
            },
            "made": clock.finish(),
        }
        write_atomic(aside / MANIFEST, json.dumps(seal, indent=1, sort_keys=True) + "\n")
        _keep(aside, job.stored)
        _link(job)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def reuse(job: Job) -> bool:
    """Take an artifact that is complete, wherever it is; the caller holds its lock.

    One that ``artifacts/`` alone has, since it was pulled or is older than the store, is verified and enters the store.
    One that the store has replaces what is missing, half or damaged in ``artifacts/``.

    Raises:
        DamagedArtifact: what was to enter the store has another content than its seal says.
    """
    stored = state(job.stored)
    if stored == "damaged":
        say(f"{damage(job.stored)} It is not used")
    if state(job.path) == "done":
        if stored != "done":
            open_artifact(job.path, deep=True)
            _keep(job.path, job.stored)
        return True
    if stored == "done":
        _link(job)
    return stored == "done"


def plan_here(path: Path) -> Plan:
    """Plan an experiment file, and link back whatever of it ``artifacts/`` lacks and the store has."""
    plan = plan_file(path)
    link_back(plan)
    return plan


def link_back(plan: Plan) -> None:
    """Link what ``artifacts/`` lacks and the store has.

    Where nothing is lacking, this only looks whether a file of each artifact exists.
    """
    lost = [
        job for job in plan.jobs.values() if not (job.path / MANIFEST).exists() and (job.stored / MANIFEST).exists()
    ]
    for job in lost:
        if state(job.stored) == "done":
            restore(plan, job)
        else:  # whoever makes it anew may hold its lock for long
            say(f"{damage(job.stored)} It is not used")
    if back := sum(state(job.path) == "done" for job in lost):
        say(f"{back} of {len(plan.jobs)} artifacts linked from {store()}/")


def restore(plan: Plan, job: Job) -> bool:
    """Whether an artifact is complete, in the store too; waits for its lock only if something must be done."""
    if state(job.path) == state(job.stored) == "done":
        return True
    with locked(lock_of(job.id), plan.name(job)):
        return reuse(job)


def add_all() -> None:
    """Verify every finished artifact of ``artifacts/`` that the store lacks, and take it in; print what was done.

    Raises:
        DamagedArtifact: lists every artifact that is damaged, after all others were taken in.
    """
    there, added, problems = 0, 0, []
    for seal in sorted(ARTIFACTS.glob(f"[!.]*/{'[0-9a-f]' * 10}/{MANIFEST}")):
        path = seal.parent
        stored = store() / path.parent.name / path.name
        with locked(lock_of(path.name), str(path)):
            try:
                if state(stored) == "done":
                    there += 1
                else:
                    open_artifact(path, deep=True)
                    _keep(path, stored)
                    added += 1
            except DamagedArtifact as error:
                problems.append(str(error))
    print(f"{added} artifacts entered the store, {store()}/, which had {there} of artifacts/ before")
    if problems:
        raise DamagedArtifact("\n".join(problems))


@contextmanager
def claimed(job: Job, name: str) -> Iterator[None]:
    """Hold the right to make an artifact; wait for another maker.

    The store's lock decides: processes, clones and users that share a store make an artifact once. The lock of
    ``work/<id>/`` only keeps clones that share $MLS_WORK, but not the store, from writing one state.
    """
    with locked(lock_of(job.id), name), locked(job.work / "lock", name):
        yield


@contextmanager
def held_if_free(job_id: str) -> Iterator[bool]:
    """Keep all who share the store from making an artifact; False where somebody does, who is not waited for."""
    state_lock = work() / job_id / "lock"
    with locked_if_free(lock_of(job_id)) as free:
        yield free and not is_locked(state_lock)


def being_made(job_id: str) -> bool:
    """Whether a live process makes the artifact, here or in a clone that shares the store or the state."""
    return is_locked(lock_of(job_id)) or is_locked(work() / job_id / "lock")


def lock_of(job_id: str) -> Path:
    """The lock that decides who makes an artifact, and under which it enters the store and is linked."""
    return store() / "locks" / f"{job_id}.lock"


def _keep(source: Path, stored: Path) -> None:
    """Put a verified artifact into the store, unless it has it whole; the caller holds its lock."""
    if state(stored) == "done":
        return
    with explain_full_disk(store()):
        names = open_artifact(source).manifest["files"]
        link_folder(source, stored, store() / "aside" / stored.name, names, [MANIFEST])


def _link(job: Job) -> None:
    """Make the artifact's path a link of the store's."""
    with explain_full_disk(ARTIFACTS):
        names = open_artifact(job.stored).manifest["files"]
        link_folder(job.stored, job.path, ARTIFACTS / ".aside" / job.id, names, [MANIFEST])
