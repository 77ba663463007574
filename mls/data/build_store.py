"""The data stage: from a source to a verified store (see ``mls.data.image_store`` for its files).

    run_stage(plan, plan.find("data", "scenes")[0], mls.data.build_store.run)     # `mls data scenes`

The stage saves no state: after an interruption it starts again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mls.config.datasets import LocalDataset, ScenesDataset
from mls.data import ingest, scenes, sources
from mls.data.writer import Record, write_store
from mls.pipeline.runner import Context
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
    digest: str = context.job.params["digest"]

    def poll() -> None:
        guard.stop_if_asked(lambda: None)

    reader = sources.open_reader(names, config, poll)
    listing = sources.read_listing(config, reader, poll)
    sources.check_origin(names, config, reader, listing, digest)
    excluded: list[dict[str, str]] = []
    records = ingest.load_records(listing, reader, excluded, config, context.execution.threads)
    watched = _watched(records, guard, context.label, len(listing.entries))
    write_store(context.out, watched, listing.classes, listing.multi_label, excluded, config.format)
    sources.check_content(names, config, reader, digest)
    if excluded:
        context.log(f"left out {len(excluded)} of {len(listing.entries):,} images; excluded.json says which and why")


def _watched(records: Iterable[Record], guard: InterruptGuard, label: str, total: int) -> Iterator[Record]:
    """Pass records on, show progress, and stop between two records after a signal."""
    with Bar(f"data {label}", total) as bar:
        for record in records:
            guard.stop_if_asked(lambda: None)
            yield record
            bar.advance(1, 1)
