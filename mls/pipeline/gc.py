"""Find artifacts and state that nothing needs any more: no experiment file, no branch, no published result.

Ids are collected from the working tree, from every branch, tag and remote branch, and from every
DVC experiment, in two ways: by planning their experiment files with this code, and from the ids
that their committed ``results/*/provenance.json`` name. A file that this code can't plan stops a
deletion, because what it needs is unknown.

Who else uses a store or a ``$MLS_WORK`` outside this working tree is unknown too: there nothing is removed, unless one
says that nobody does (``shared``).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from mls.config.load import check, parse_yaml
from mls.pipeline.artifact import MANIFEST
from mls.pipeline.artifact_store import being_made, held_if_free
from mls.pipeline.plan import ARTIFACTS, DATA_LOCK, make_plan, read_lock
from mls.runtime.errors import MlsError
from mls.runtime.paths import home, is_shared, store, work

ID = re.compile("[0-9a-f]{10}")
REFERENCES = ("refs/heads", "refs/tags", "refs/remotes", "refs/exps", "refs/stash")


def collect(delete: bool, shared: bool = False) -> None:
    """Print what nothing refers to, with sizes; remove it if asked.

    Args:
        delete: remove it.
        shared: also where others may use it.

    Raises:
        MlsError: with ``delete``, where a reference can't be read.
    """
    needed, unreadable = needed_ids()
    made, kept = _by_id(ARTIFACTS, "*/*"), _by_id(store(), "*/*")
    known = needed | {path.name for path in [*made, *kept]}
    artifacts = [path for path in [*made, *kept] if path.name not in needed and not being_made(path.name)]
    states = [path for path in _by_id(work(), "*") if path.name not in known and not being_made(path.name)]
    unneeded = [*artifacts, *states]
    others: set[Path] = set() if shared else {path for path in unneeded if is_shared(path)}
    for problem in unreadable:
        print(f"can't tell what is needed by {problem}")
    for path in unneeded:
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        print(f"{size / 1e6:10.1f} MB  {path}{' (others may need it)' if path in others else ''}")
    ids = len({path.name for path in artifacts})
    print(f"{ids} artifacts and {len(states)} work folders that nothing refers to")
    if not delete:
        if unneeded:
            print("nothing was removed; to remove them: mls gc --delete")
        return
    if unreadable:
        raise MlsError("nothing was removed, since not every reference can be read (see above)")
    for path in unneeded:
        if path not in others:
            _remove(path)
    spared = f", but for {len(others)} that others may need; those too: mls gc --delete --shared"
    print(f"removed{spared if others else ''}")


def _remove(path: Path) -> None:
    """Remove an artifact or state, unless somebody has begun to make it; never is half an artifact taken for one."""
    with held_if_free(path.name) as free:
        if free:
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path)
        else:
            print(f"{path} is being made now, and stays")


def _by_id(folder: Path, pattern: str) -> list[Path]:
    return [path for path in sorted(folder.glob(pattern)) if ID.fullmatch(path.name)]


def needed_ids() -> tuple[set[str], list[str]]:
    """All ids something refers to, and the files that could not be read."""
    needed: set[str] = set()
    unreadable: list[str] = []
    listed = _git("for-each-ref", "--format=%(refname)", *REFERENCES).split()
    for stash in [ref for ref in listed if ref.endswith("stash")]:  # git's, and DVC's queue: one name for all entries
        listed += _git("reflog", "show", "--format=%H", stash).split()
    for copy in sorted((home() / ".dvc" / "tmp" / "exps").glob("*/params.yaml")):
        unreadable.append(f"the DVC experiment that runs in {copy.parent}, or left it there")
    for ref in [None, *listed]:
        names = _files(ref)
        lock = _lock(ref, names)
        for name in names:
            try:
                needed |= _needed_by(ref, name, lock)
            except (MlsError, ValueError, KeyError, TypeError) as error:
                unreadable.append(f"{ref or 'the working tree'}: {name} ({str(error).splitlines()[0]})")
    return needed, unreadable


def _needed_by(ref: str | None, name: str, lock: dict[str, Any]) -> set[str]:
    text = _read(ref, name)
    if name.endswith("provenance.json"):
        return {job_id for ids in json.loads(text)["artifacts"].values() for job_id in ids}
    loaded = check(parse_yaml(text, name), Path(name))
    return set(make_plan(loaded, lock, lambda file: _read(ref, file)).jobs)


def _files(ref: str | None) -> list[str]:
    """Experiment files and published provenance of a reference, or of the working tree (None)."""
    if ref is None:
        paths = [Path("params.yaml"), *Path("experiments").glob("*.yaml"), *Path("results").glob("*/provenance.json")]
        return sorted(str(path) for path in paths if path.exists())
    listed = _git("ls-tree", "-r", "--name-only", ref, "--", "params.yaml", "experiments", "results").splitlines()
    return [n for n in listed if n.endswith((".yaml", "/provenance.json"))]


def _lock(ref: str | None, names: list[str]) -> dict[str, Any]:
    if ref is None:
        return read_lock(DATA_LOCK)
    has_lock = bool(names) and _git("ls-tree", "--name-only", ref, "--", str(DATA_LOCK)).strip()
    return parse_yaml(_read(ref, str(DATA_LOCK)), f"{ref}:{DATA_LOCK}") if has_lock else {}


def _read(ref: str | None, name: str) -> str:
    return Path(name).read_text(encoding="utf-8") if ref is None else _git("show", f"{ref}:{name}")


def _git(*args: str) -> str:
    done = subprocess.run(["git", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MlsError(f"git {args[0]} failed: {done.stderr.strip()}")
    return done.stdout
