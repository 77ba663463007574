"""Every part of the drill in turn: make drill, or python -m tests.drill."""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests import drill
from tests.drill.damage import damage, fill_disk
from tests.drill.kills import kill
from tests.drill.watch import Lost, clone_in, made, say


def main() -> None:
    """Run every part and print what was lost."""
    parser = argparse.ArgumentParser(description=(drill.__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, nargs="+", default=[random.randrange(10**6)], help="of the kills")
    parser.add_argument("--kills", type=int, default=20, help="how many, for each seed")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mls-drill-")).resolve()
    began, losses = time.monotonic(), 0
    calm = clone_in(folder / "calm")
    calm.run("snakemake")
    expected = calm.digests()
    took_s, jobs = time.monotonic() - began, len(made(calm))
    say(f"undisturbed: {len(expected)} files of {jobs} artifacts in {took_s:.0f} s")

    def part(title: str, survive: Callable[[], str]) -> None:
        nonlocal losses
        say(title)
        try:
            say(f"  survived: {survive()}")
        except (Lost, AssertionError, subprocess.TimeoutExpired) as error:  # Clone.run asserts exit codes
            losses += 1
            say(f"  LOST: {error}")

    for seed in args.seed:
        moments, clone = random.Random(seed), clone_in(folder / f"killed-{seed}")
        part(f"{args.kills} kills, --seed {seed}", partial(kill, clone, expected, args.kills, moments, took_s / jobs))
        part("damage", partial(damage, clone, expected, moments))
    part("a full disk", partial(fill_disk, calm, expected, folder / "small"))
    say(f"{losses or 'no'} parts lost anything; {time.monotonic() - began:.0f} s")
    if losses:
        say(f"to look at: {folder}")
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
