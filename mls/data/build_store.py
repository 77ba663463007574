"""The data stage: from a source to a verified store (see ``mls.data.image_store`` for its files).

    run_stage(plan, plan.find("data", "scenes")[0], mls.data.build_store.run)     # `mls data scenes`

The stage saves no state: after an interruption it starts again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mls.config.datasets import LocalDataset, ScenesDataset
from mls.config.load import Loaded, load
from mls.data import ingest, scenes, sources
from mls.data.listing import Listing
from mls.data.writer import Record, write_store
from mls.download.reader import Reader
from mls.pipeline.plan import DATA_LOCK, make_plan, read_lock
from mls.pipeline.runner import Context, run_stage
from mls.runtime.files import explain_full_disk
from mls.runtime.locks import locked, say
from mls.runtime.paths import work
from mls.runtime.progress import Bar
from mls.runtime.signals import InterruptGuard


def run(context: Context) -> None:
    """Fill ``context.out`` with the prepared data set.

    Raises:
        MlsError: the source is missing, contradicts itself, or is not what ``data.lock`` pins.
        Interrupted: a signal asked to stop.
    """
    with InterruptGuard() as guard:
        if isinstance(context.job.config, ScenesDataset):
            _generate(context, context.job.config, guard)
        else:
            _ingest(context, context.job.config, guard)


def _generate(context: Context, config: ScenesDataset, guard: InterruptGuard) -> None:
    records = scenes.records(config)
    if config.format == "raw":
        from mls.data.decode import prove  # these import torch, which drawing does without
        from mls.data.shrink import transcode

        records = (transcode(record, prove(record.data, record.name), None, "raw") for record in records)
    watched = _watched(records, guard, context.label, config.train + config.val + config.test)
    write_store(context.out, watched, scenes.CLASSES, True, [], config.format)


def _ingest(context: Context, config: LocalDataset, guard: InterruptGuard) -> None:
    # Equal data sets share an id, hence their content: the folder of any of their names will do.
    names = context.plan.labels[context.job.id]
    _fill(context.out, names, config, context.execution.threads, guard, context.log, context.job.params["digest"])


def _fill(
    out: Path,
    names: Sequence[str],
    config: LocalDataset,
    threads: int,
    guard: InterruptGuard,
    log: Callable[[str], None],
    digest: str | None,
) -> Reader:
    """Fill a folder with the data set; compare it with a digest, unless the digest is still to be made."""

    def poll() -> None:
        guard.stop_if_asked(lambda: None)

    reader = sources.open_reader(names, config, poll)
    if digest is not None:
        sources.check_origin(names, config, reader, digest)  # before minutes of reading
    listing = sources.read_listing(config, reader, poll)
    if digest is not None:
        sources.check_counts(names, config, reader, listing, digest)
    excluded: list[dict[str, str]] = []
    records = ingest.load_records(listing, reader, excluded, config, threads)
    watched = _watched(records, guard, names[0], len(listing.entries))
    write_store(out, watched, listing.classes, listing.multi_label, excluded, config.format)
    if digest is not None:
        sources.check_content(names, config, reader, digest)
    _log_excluded(log, listing, excluded)
    return reader


def pin_and_make(names: Sequence[str], experiment: Path) -> None:
    """Pin data sets in ``data.lock`` and make them, in one pass over each one's files.

    The digest, and with it the artifact's id, is known only when everything was read; so the store is built in
    ``work/pin-<name>/`` and then moved in.

    Raises:
        MlsError: as `run` and `mls.data.sources.pin`; ``data.lock`` is then as it was.
        Interrupted: a signal asked to stop; the next call starts again.
    """
    loaded = load(experiment)
    for name in names:
        # until then, any digest will do to find an entry, and a name that is not planned stops here
        unknown = {other: {"sha256": "0" * 64} for other in names}
        config = make_plan(loaded, read_lock(DATA_LOCK) | unknown).find("data", name)[0].config
        out = work() / f"pin-{name}" / "build"
        with locked(out.with_name("lock"), f"data {name}"), explain_full_disk(work()):
            try:
                _pin_and_make(name, sources.require_files(name, config), loaded, out, unknown)
            finally:
                shutil.rmtree(out, ignore_errors=True)


def _pin_and_make(name: str, config: LocalDataset, loaded: Loaded, out: Path, unknown: dict[str, Any]) -> None:
    shutil.rmtree(out, ignore_errors=True)  # from a process that was killed
    out.mkdir()
    with InterruptGuard() as guard:
        threads = loaded.experiment.execution.threads
        reader = _fill(out, [name], config, threads, guard, lambda text: say(f"[data {name}] {text}"), None)
    found = sources.write_pin(name, reader.digest(), DATA_LOCK)
    say(f"{name}: {found['files']} files, {found['bytes']:,} bytes, sha256 {found['sha256']} -> {DATA_LOCK}")
    plan = make_plan(loaded, unknown | read_lock(DATA_LOCK))
    run_stage(plan, plan.find("data", name)[0], lambda context: _move(out, context.out))


def _move(source: Path, target: Path) -> None:
    for file in source.iterdir():
        file.rename(target / file.name)


def _log_excluded(log: Callable[[str], None], listing: Listing, excluded: list[dict[str, str]]) -> None:
    objects = sum("object" in item for item in excluded)
    if images := len(excluded) - objects:
        log(f"left out {images} of {len(listing.entries):,} images; excluded.json says which and why")
    if objects:
        total = sum(len(entry.annotations) for entry in listing.entries)
        log(
            f"{objects} of {total:,} objects have no area, and are left out where boxes or masks are learned; "
            "excluded.json says which and why"
        )


def _watched(records: Iterable[Record], guard: InterruptGuard, label: str, total: int) -> Iterator[Record]:
    """Pass records on, show progress, and stop between two records after a signal."""
    with Bar(f"data {label}", total) as bar:
        for record in records:
            guard.stop_if_asked(lambda: None)
            yield record
            bar.advance(1, 1)
