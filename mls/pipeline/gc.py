"""Find and remove artifacts and state that no experiment file, branch or published result needs.

    collect(delete=False)       # `mls gc`: list them, with sizes

Needed ids come from the working tree, every branch, tag and remote branch, and every DVC experiment: from planning
their experiment files with this code, and from their committed ``results/*/provenance.json``. If this code can't plan
one of those files, nothing is deleted, because the file's needs are unknown.

Other clones may use a store or a ``$MLS_WORK`` outside this working tree, and their needs are unknown too. Nothing is
removed there without ``shared``.
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
from mls.pipeline.artifact_store import being_made, lock_of, state_lock_of
from mls.pipeline.plan import ARTIFACTS, DATA_LOCK, experiment_files, make_plan, read_lock
from mls.runtime.errors import MlsError
from mls.runtime.locks import is_locked, locked_if_free
from mls.runtime.paths import home, store, work

ID = re.compile("[0-9a-f]{10}")
REFERENCES = ("refs/heads", "refs/tags", "refs/remotes", "refs/exps", "refs/stash")


def collect(delete: bool, shared: bool = False) -> None:
    """Print what nothing needs, with sizes, and remove it if asked.

    Args:
        delete: remove it.
        shared: remove it also where other clones may use it.

    Raises:
        MlsError: with ``delete``, if the needs of a reference are unknown.
    """
    needed, unreadable = needed_ids()
    made = [*_by_id(ARTIFACTS, "*/*"), *_by_id(store(), "*/*")]
    known = needed | {path.name for path in made}
    artifacts = [path for path in made if path.name not in needed and not being_made(path.name)]
    states = [path for path in _by_id(work(), "*") if path.name not in known and not being_made(path.name)]
    unneeded = [*artifacts, *states]
    others = {path for path in unneeded if not shared and not path.resolve().is_relative_to(Path.cwd())}
    for problem in unreadable:
        print(f"can't tell what is needed by {problem}")
    for path in unneeded:
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        print(f"{size / 1e6:10.1f} MB  {path}{' (others may need it)' if path in others else ''}")
    print(f"{len({path.name for path in artifacts})} artifacts and {len(states)} work folders that nothing refers to")
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
    """Remove an artifact or state, unless a process has begun to make it since `collect` looked."""
    with locked_if_free(lock_of(path.name)) as free:
        if free and not is_locked(state_lock_of(path.name)):
            (path / MANIFEST).unlink(missing_ok=True)  # first, so that half an artifact is never taken for one
            shutil.rmtree(path)
        else:
            print(f"{path} is being made now, and stays")


def _by_id(folder: Path, pattern: str) -> list[Path]:
    return [path for path in sorted(folder.glob(pattern)) if ID.fullmatch(path.name)]


def needed_ids() -> tuple[set[str], list[str]]:
    """The ids that something needs, and a line for each thing whose needs are unknown."""
    needed: set[str] = set()
    # DVC runs experiments in copies of the working tree, whose params no reference has yet.
    copies = sorted((home() / ".dvc" / "tmp" / "exps").glob("*/params.yaml"))
    unreadable = [f"the DVC experiment that runs in {copy.parent}, or left it there" for copy in copies]
    references = _git("for-each-ref", "--format=%(refname)", *REFERENCES).split()
    for stash in [ref for ref in references if ref.endswith("stash")]:  # git's, and DVC's queue: one ref, many entries
        references += _git("reflog", "show", "--format=%H", stash).split()
    for ref in [None, *references]:
        names = _files(ref)
        digests = _digests(ref) if names else {}
        for name in names:
            try:
                needed |= _needed_by(ref, name, digests)
            except (MlsError, ValueError, KeyError, TypeError) as error:
                unreadable.append(f"{ref or 'the working tree'}: {name} ({str(error).splitlines()[0]})")
    return needed, unreadable


def _needed_by(ref: str | None, name: str, digests: dict[str, Any]) -> set[str]:
    text = _read(ref, name)
    if name.endswith("provenance.json"):
        return {job_id for ids in json.loads(text)["artifacts"].values() for job_id in ids}
    loaded = check(parse_yaml(text, name), Path(name))
    return set(make_plan(loaded, digests, lambda file: _read(ref, file)).jobs)


def _files(ref: str | None) -> list[str]:
    """Experiment files and published provenance of a git reference, or of the working tree (None)."""
    if ref is None:
        return sorted(map(str, [*experiment_files(), *Path("results").glob("*/provenance.json")]))
    listed = _git("ls-tree", "-r", "--name-only", ref, "--", "params.yaml", "experiments", "results").splitlines()
    return [name for name in listed if name.endswith((".yaml", "/provenance.json"))]


def _digests(ref: str | None) -> dict[str, Any]:
    """``data.lock`` of a git reference or of the working tree."""
    if ref is None:
        return read_lock(DATA_LOCK)
    exists = _git("ls-tree", "--name-only", ref, "--", str(DATA_LOCK)).strip()
    return parse_yaml(_read(ref, str(DATA_LOCK)), f"{ref}:{DATA_LOCK}") if exists else {}


def _read(ref: str | None, name: str) -> str:
    return Path(name).read_text(encoding="utf-8") if ref is None else _git("show", f"{ref}:{name}")


def _git(*args: str) -> str:
    done = subprocess.run(["git", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MlsError(f"git {args[0]} failed: {done.stderr.strip()}")
    return done.stdout
