"""Artifacts: sealed by ``artifact.json``, checked when opened; `mls.pipeline.artifact_store` builds and keeps them.

``artifact.json`` is written last. It lists every file with size and sha256, the params and inputs
that the id was computed from, and, under ``made``, the only volatile facts: when, where, by which
code and how fast. Every other file is a function of the id.
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
"""Files that may differ between two makings of the same artifact."""


@dataclass(frozen=True)
class Artifact:
    """A complete artifact on disk."""

    path: Path
    manifest: dict[str, Any]

    def file(self, name: str) -> Path:
        """Path of one of its files.

        Raises:
            DamagedArtifact: the artifact never had, or no longer has, this file.
        """
        if name not in self.manifest["files"]:
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
    """The ways out of damage: link it back from the store, fetch it again, or make it again.

    A ``wrong`` file is as wrong in the store, where both are one file by a hard link.
    """
    stored = store() / path.parent.name / path.name
    mine, kept = shlex.quote(str(path)), shlex.quote(str(stored))
    if path == stored:
        return f"Mend: `rm -rf {mine}`; made again, or by `mls store add` where artifacts/ has it, it enters again"
    in_both = [name for name in wrong if (path / name).exists() and (stored / name).exists()]
    if state(stored) == "done" and not any((path / name).samefile(stored / name) for name in in_both):
        return f"Mend: `rm -rf {mine}`; {stored} is whole, and what needs it next links it from there"
    both = f"{mine} {kept}" if stored.exists() else mine
    return f"Mend: `rm -rf {both}`, then `dvc pull --force {path.parent}` where DVC has it, else run snakemake again"


def damage(path: Path) -> str:
    """What is wrong with a damaged artifact, by names and sizes, and how to mend it."""
    try:
        open_artifact(path)
    except DamagedArtifact as error:
        return str(error)
    return ""


def state(path: Path) -> str:
    """``done``, ``damaged`` or ``missing``, by names and sizes alone."""
    if not (path / MANIFEST).exists():
        return "missing"
    try:
        open_artifact(path)
    except DamagedArtifact:
        return "damaged"
    return "done"
