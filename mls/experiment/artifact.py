"""Artifacts: built aside, sealed by ``artifact.json``, renamed in whole, checked when opened.

``artifact.json`` is written last. It lists every file with size and sha256, the params and inputs
that the id was computed from, and, under ``made``, the only volatile facts: when, where, by which
code and how fast. Every other file is a function of the id.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mls.errors import DamagedArtifact, MlsError
from mls.experiment.identity import STAGE_VERSIONS
from mls.experiment.plan import Job
from mls.experiment.provenance import provenance

SEAL = "artifact.json"
VOLATILE = (SEAL, "timing.csv")
"""Files that may differ between two makings of the same artifact."""


@dataclass(frozen=True)
class Artifact:
    """A complete artifact on disk."""

    path: Path
    seal: dict[str, Any]

    def file(self, name: str) -> Path:
        """Path of one of its files.

        Raises:
            DamagedArtifact: the artifact never had, or no longer has, this file.
        """
        if name not in self.seal["files"]:
            raise DamagedArtifact(f"{self.path} holds no {name}")
        return self.path / name

    def read_json(self, name: str) -> Any:
        """Parse one of its JSON files."""
        return json.loads(self.file(name).read_text(encoding="utf-8"))


def open_artifact(path: Path, *, deep: bool = False) -> Artifact:
    """Open an artifact after checking the names and sizes of its files (``deep``: their sha256).

    Raises:
        DamagedArtifact: says which file is wrong, and how to mend it.
    """
    try:
        seal = json.loads((path / SEAL).read_text(encoding="utf-8"))
        listed = {name: (entry["size"], entry["sha256"]) for name, entry in seal["files"].items()}
    except FileNotFoundError as error:
        raise DamagedArtifact(f"{path} is missing; make it with snakemake, or fetch it: dvc pull") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedArtifact(f"{path}/{SEAL} can't be read ({error}). {how_to_mend(path)}") from error
    problems = []
    for name, (size, digest) in listed.items():
        file = path / name
        if not file.is_file():
            problems.append(f"{name} is missing")
        elif file.stat().st_size != size:
            problems.append(f"{name} has {file.stat().st_size:,} bytes instead of {size:,}")
        elif deep and sha256(file) != digest:
            problems.append(f"{name} has another content (sha256)")
    if problems:
        raise DamagedArtifact(f"{path} is damaged: {'; '.join(problems)}. {how_to_mend(path)}")
    return Artifact(path, seal)


def how_to_mend(path: Path) -> str:
    """The two ways out of damage: fetch the files again, or remove and remake."""
    return (
        f"Mend: `dvc pull --force {path.parent}` (or `dvc checkout --force {path.parent}`) where DVC has it, "
        f"else `rm -r {path}` and run snakemake again"
    )


def state(path: Path) -> str:
    """``done``, ``damaged`` or ``missing``, by names and sizes alone."""
    if not (path / SEAL).exists():
        return "missing"
    try:
        open_artifact(path)
    except DamagedArtifact:
        return "damaged"
    return "done"


@contextmanager
def building(job: Job) -> Iterator[Path]:
    """Give a fresh folder to fill; on success seal it and rename it to the artifact's path.

    On any error the folder is removed, and nothing appears at the artifact's path.
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
        write_atomic(aside / SEAL, json.dumps(seal, indent=1, sort_keys=True) + "\n")
        # A copy outlives Snakemake, which deletes declared outputs before it runs a job again.
        write_atomic(job.work / SEAL, (aside / SEAL).read_text(encoding="utf-8"))
        if job.path.exists():  # empty, made by Snakemake, or the remains of a damaged artifact
            shutil.rmtree(job.path)
        job.path.parent.mkdir(parents=True, exist_ok=True)
        aside.rename(job.path)
        sync(job.path.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def adopt(job: Job) -> bool:
    """Take an artifact that is complete as made, even where its seal was deleted since.

    Snakemake deletes ``artifact.json`` before it runs a job; when a killed Snakemake's child went
    on and finished, the next run would remake it. The seal's copy in ``work/`` proves otherwise.
    """
    copy = job.work / SEAL
    if state(job.path) == "done":
        return True
    if not (job.path.is_dir() and copy.is_file()) or (job.path / SEAL).exists():
        return False
    write_atomic(job.path / SEAL, copy.read_text(encoding="utf-8"))
    try:
        open_artifact(job.path, deep=True)
    except DamagedArtifact:
        (job.path / SEAL).unlink()
        return False
    return True


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write whose content appears at ``path`` whole or not at all, also after a power cut."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync(path.parent)


def write_atomic(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_file(path) as file:
        file.write(text.encode())


def sync(path: Path) -> None:
    """Make a file's content, or the renames in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def out_of_space(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error; torch and safetensors wrap it in errors of their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def explain_full_disk(where: Path) -> Iterator[None]:
    """Turn 'no space left' into a line that says what to do."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MlsError) or not out_of_space(error):  # what speaks to people names its own disk
            raise
        raise MlsError(
            f"the disk that holds {where.resolve()} is full; nothing half-written was kept. "
            "Free some space (mls gc lists what nothing needs) and run the same command again"
        ) from error
