"""A disk that fills up while a checkpoint is written, and files that are damaged."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.drill.watch import Lost, clone_in, compare, until
from tests.workflow.clone import Clone


def fill_disk(calm: Clone, expected: dict[str, str], folder: Path) -> str:
    """Interrupt a pretraining after its first checkpoint, leave no room for the next, then make room."""
    with small_disk(folder) as mounted:
        clone = clone_in(folder / "clone")
        shutil.copytree(calm.path / "artifacts" / "data", clone.path / "artifacts" / "data")
        life = clone.start("mls", "pretrain", "mls")
        if not until(lambda: list(clone.path.glob("work/*/checkpoint-*.pt")), life):
            raise Lost("no checkpoint before the end")
        life.kill()
        life.wait()
        checkpoint = max(clone.path.glob("work/*/checkpoint-*.pt"))
        room, before = checkpoint.stat().st_size // 2, checkpoint.read_bytes()
        filler = folder / "filler"
        if mounted:
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free - room)
        limit = () if mounted else ("prlimit", f"--fsize={room}")
        output = clone.run(*limit, "mls", "pretrain", "mls", ok=False)
        wanted = "is full; nothing half-written was kept" if mounted else "File too large"  # in torch's traceback
        if wanted not in output:
            raise Lost(f"it did not print {wanted!r}, but: {output}")
        if not checkpoint.exists() or checkpoint.read_bytes() != before:
            raise Lost("the checkpoint from before")
        filler.unlink(missing_ok=True)
        if "resumes at step" not in clone.run("mls", "pretrain", "mls"):
            raise Lost("it started again at step 0")
        mine = {name: digest for name, digest in expected.items() if (clone.path / "artifacts" / name).exists()}
        compare(mine, clone)
        how = "ENOSPC of a tmpfs" if mounted else "EFBIG of a limit on the size of files (mount is not allowed here)"
        return f"{how}, reported; the checkpoint before it was kept and resumed from; {len(mine)} equal files"


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a tmpfs of 128 MB and yield True; where mount is not allowed, make a plain folder and yield False."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(folder)]
    mounted = shutil.which("mount") is not None and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def damage(clone: Clone, expected: dict[str, str], moments: random.Random) -> str:
    """Flip a byte of one backbone and cut another short; verify, remove what it names, make both again."""
    flipped, cut = moments.sample(sorted(clone.path.glob("artifacts/pretrain/*/backbone.safetensors")), 2)
    content = bytearray(flipped.read_bytes())
    at = moments.randrange(len(content))
    content[at] ^= 1 << moments.randrange(8)
    for file in (flipped, cut):  # hard links share the read-only mode of the store's file
        file.chmod(0o644)
    flipped.write_bytes(content)
    os.truncate(cut, moments.randrange(cut.stat().st_size))
    output = clone.run("mls", "verify", ok=False).replace("\n", " ")
    for file, what in ((flipped, "has another content"), (cut, "bytes instead of")):
        if not re.search(rf"{file.parent.name} is damaged: {file.name} [^;.]*{what}", output):
            raise Lost(f"mls verify did not report that {file} {what}: {output}")
        shutil.rmtree(file.parent)
        shutil.rmtree(clone.path / ".store" / "pretrain" / file.parent.name)
    clone.run("snakemake")
    compare(expected, clone)
    clone.run("mls", "verify")
    return f"byte {at:,} flipped and a file cut short: both were named and made again with the same bytes"
