"""Finished artifacts: folders with a manifest, ``artifact.json``, that is checked when they are opened.

    artifact = open_artifact(job.path)          # DamagedArtifact if a file is missing or has another size
    artifact.read_json("metrics.json")

The manifest is written last. It lists every file with its size and sha256, the params and inputs that the id was
computed from and, under ``made``, the only volatile facts: when, where, by which code and how fast. Every other file is
a function of the id. `mls.pipeline.artifact_store` builds and keeps artifacts.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mls.runtime.errors import DamagedArtifact
from mls.runtime.files import sha256
from mls.runtime.paths import store

MANIFEST = "artifact.json"
VOLATILE = (MANIFEST, "timing.csv")
"""Files that may differ between two builds of the same artifact."""


@dataclass(frozen=True)
class Artifact:
    """A complete artifact on disk."""

    path: Path
    manifest: dict[str, Any]

    def file(self, name: str) -> Path:
        """Path of one of its files.

        Raises:
            DamagedArtifact: the manifest lists no such file.
        """
        if name not in self.manifest["files"]:
            raise DamagedArtifact(f"{self.path} holds no {name}")
        return self.path / name

    def read_json(self, name: str) -> Any:
        """Parse one of its JSON files."""
        return json.loads(self.file(name).read_text(encoding="utf-8"))


def open_artifact(path: Path, *, deep: bool = False) -> Artifact:
    """Open an artifact after checking the names and sizes of its files.

    Args:
        path: the artifact's folder.
        deep: compare every file's sha256 too, which reads all of them.

    Raises:
        DamagedArtifact: says which files are wrong, and how to repair the artifact.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        listed = {name: (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except FileNotFoundError as error:
        raise DamagedArtifact(f"{path} is missing; make it with snakemake, or fetch it: dvc pull") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedArtifact(f"{path}/{MANIFEST} can't be read ({error}). {how_to_mend(path)}") from error
    problems = {}
    for name, (size, digest) in listed.items():
        file = path / name
        if not file.is_file():
            problems[name] = "is missing"
        elif file.stat().st_size != size:
            problems[name] = f"has {file.stat().st_size:,} bytes instead of {size:,}"
        elif deep and sha256(file) != digest:
            problems[name] = "has another content (sha256)"
    if problems:
        found = "; ".join(f"{name} {problem}" for name, problem in problems.items())
        raise DamagedArtifact(f"{path} is damaged: {found}. {how_to_mend(path, problems)}")
    return Artifact(path, manifest)


def how_to_mend(path: Path, wrong: Iterable[str] = ()) -> str:
    """How to repair a damaged artifact: link it from the store, fetch it, or make it again.

    Args:
        path: the artifact, in ``artifacts/`` or in the store.
        wrong: names of its damaged files. Where one is a hard link into the store, the store's copy is damaged too.
    """
    stored = store() / path.parent.name / path.name
    in_both = [name for name in wrong if (path / name).exists() and (stored / name).exists()]
    remove = [path]
    if path == stored:
        then = "it is made again or, if artifacts/ has it, added by `mls store add`"
    elif state(stored) == "done" and not any((path / name).samefile(stored / name) for name in in_both):
        then = f"{stored} is whole, and the next command that needs it links it from there"
    else:
        remove += [stored] if stored.exists() else []
        then = f"then `dvc pull --force {path.parent}` if DVC has it, else run snakemake again"
    return f"To repair it: `rm -rf {shlex.join(map(str, remove))}`; {then}"


def state(path: Path) -> str:
    """Whether an artifact is ``done``, ``damaged`` or ``missing``, by file names and sizes only."""
    if not (path / MANIFEST).exists():
        return "missing"
    return "damaged" if damage(path) else "done"


def damage(path: Path) -> str:
    """What is wrong with an artifact, by file names and sizes, and how to repair it; empty if nothing is."""
    try:
        open_artifact(path)
    except DamagedArtifact as error:
        return str(error)
    return ""
