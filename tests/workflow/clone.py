"""Temporary clones of this repository, with the real Snakemake and the real DVC."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mls.pipeline.artifact import VOLATILE
from mls.runtime.files import sha256

ROOT = Path(__file__).parents[2]
MICRO = ROOT / "experiments" / "micro.yaml"


def environment() -> dict[str, str]:
    """An environment with the tools of this Python and no variable that leads a clone to another one's code or data."""
    leading = ("PYTHONPATH", "MLS_DATA", "MLS_WEIGHTS", "MLS_STORE", "MLS_WORK", "MLS_ROOT")
    env = {k: v for k, v in os.environ.items() if k not in leading}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    env |= {"OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "1", "MLS_PLAIN": "1"}
    for who in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{who}_NAME": "test", f"GIT_{who}_EMAIL": "test@example.org"}
    return env


@dataclass
class Clone:
    """A working tree with a repository of its own; its params.yaml is a part of micro, see `new_clone`."""

    path: Path

    def run(self, *args: str, ok: bool = True) -> str:
        """Run a command in the clone; return stdout and stderr together."""
        done = subprocess.run(
            args,
            cwd=self.path,
            env=environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        assert not ok or done.returncode == 0, f"{' '.join(args)} exited with {done.returncode}\n{done.stdout}"
        return done.stdout

    def start(self, *args: str) -> subprocess.Popen[bytes]:
        """Start a command in a process group of its own, output to ``<clone>.log``."""
        log = self.path.with_suffix(".log").open("ab")
        return subprocess.Popen(
            args,
            cwd=self.path,
            env=environment(),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait_for(self, pattern: str, seconds: float = 120) -> None:
        """Wait until a file of the clone matches a glob pattern."""
        end = time.monotonic() + seconds
        while not list(self.path.glob(pattern)):
            assert time.monotonic() < end, (
                f"no {pattern} after {seconds} s\n{self.path.with_suffix('.log').read_text()}"
            )
            time.sleep(0.02)

    def processes(self) -> dict[int, str]:
        """Command lines of the live processes that work in the clone."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and (entry / "cwd").readlink() == self.path:
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def planned(self, *args: str) -> dict[str, int]:
        """What ``snakemake -n`` would run: rule -> number of jobs (targets left out)."""
        text = self.run("snakemake", "-n", *args)
        if "Nothing to be done" in text:
            return {}
        stats = text.split("Job stats:")[1].split("total")[0]
        found = {name: int(count) for name, count in re.findall(r"^(\w+)\s+(\d+)$", stats, re.MULTILINE)}
        return {
            name: count
            for name, count in found.items()
            if name not in ("all", "data", "pretrain", "features", "probe", "transfer", "tables")
        }

    def edit(self, **changes: Any) -> None:
        """Set dotted keys (``pretrain__mls__topk=5``) of params.yaml; None removes a key."""
        yaml = YAML()
        raw = yaml.load((self.path / "params.yaml").read_text())
        for dotted, value in changes.items():
            *parents, last = dotted.split("__")
            node = raw
            for part in parents:
                node = node.setdefault(part, {})
            if value is None:
                del node[last]
            else:
                node[last] = value
        with (self.path / "params.yaml").open("w") as file:
            yaml.dump(raw, file)

    def commit(self, message: str) -> None:
        """Commit everything git does not ignore."""
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "-m", message)

    def digests(self) -> dict[str, str]:
        """sha256 of every file of every artifact, except volatile ones."""
        root = self.path / "artifacts"
        files = (file for file in sorted(root.rglob("*")) if file.is_file() and file.name not in VOLATILE)
        return {str(file.relative_to(root)): sha256(file) for file in files if not file.name.startswith(".")}

    def copy(self, to: Path) -> Clone:
        """The whole folder again, ignored files included."""
        shutil.copytree(self.path, to, symlinks=True)
        return Clone(to)

    def clone(self, to: Path) -> Clone:
        """What someone else gets from git, with the DVC remote beside it."""
        subprocess.run(["git", "clone", "-q", str(self.path), str(to)], check=True, env=environment())
        other = Clone(to)
        other.run("dvc", "remote", "add", "-q", "--local", "-d", "store", str(self.path.parent / "remote"))
        return other


def new_clone(to: Path) -> Clone:
    """A new repository with the files that git tracks or would add here, as they are in the working tree.

    Its params.yaml is micro with two runs and one probe: each stage costs seconds, mostly its start. `make micro` makes
    the rest.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("results/", "dvc.lock")):
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    shutil.copy(MICRO, to / "params.yaml")
    dvc = to / "dvc.yaml"
    dvc.write_text(dvc.read_text().replace("results/scenes/", "results/micro/"))
    ignored = to / ".gitignore"
    ignored.write_text(ignored.read_text().replace("/results/micro/\n", ""))
    clone = Clone(to)
    clone.edit(runs__random=None, probe__svm=None, probe__tuned=None, tables__classification__columns=["linear.mAP"])
    clone.run("git", "init", "-q", "-b", "main")
    clone.commit("the code")
    return clone
