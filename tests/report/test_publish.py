"""results/<experiment>/ is whole or not there, shows one tables artifact, and heals after a kill."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from mls.pipeline.plan import Plan
from mls.report.publish import marker, publish_tables, show_tables
from mls.runtime.errors import DamagedArtifact
from tests.report.support import make_tables, small_plan, write_inputs


def made(**changes: object) -> Plan:
    """A plan whose tables artifact is there."""
    plan = small_plan(tables={"main": {"columns": ["linear.mAP"]}}, transfer={}, **changes)
    write_inputs(plan, lambda label: {"mAP": 50.0})
    make_tables(plan)
    return plan


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_publishes_a_copy_and_a_marker(in_tmp: Path) -> None:
    plan = made()
    folder = publish_tables(plan)
    assert folder == Path("results/tiny")
    wanted = content(plan.tables.path)
    del wanted["artifact.json"], wanted["params.json"]
    assert content(folder) == {**wanted, f".published-{plan.tables.id}": f"tiny {plan.tables.id}\n".encode()}
    before = content(folder)
    assert content(publish_tables(plan)) == before
    assert [p.name for p in Path("results").iterdir()] == ["tiny"]


def test_replaces_an_older_view_and_its_marker(in_tmp: Path) -> None:
    old = made()
    publish_tables(old)
    new = made(runs={"random": {"method": "none"}, "other": {}})
    folder = publish_tables(new)
    assert new.tables.id != old.tables.id
    assert [p.name for p in folder.glob(".published-*")] == [f".published-{new.tables.id}"]
    publish_tables(old)  # back to old params: nothing is made, only published again
    assert [p.name for p in folder.glob(".published-*")] == [f".published-{old.tables.id}"]


def test_fills_the_folder_that_snakemake_made(in_tmp: Path) -> None:
    plan = made()
    publish_tables(plan)
    marker(plan).unlink()
    (Path("results/tiny/tables/main.md")).write_text("stale")
    publish_tables(plan)
    assert marker(plan).exists()
    assert "stale" not in Path("results/tiny/tables/main.md").read_text()


def test_removes_only_this_experiments_leftovers(in_tmp: Path) -> None:
    plan = made()
    mine = [
        Path("results/.tiny.123.tmp"),
        Path("results/.tiny.123.before.tmp"),
        Path(f"results/.tiny.{os.getpid()}.tmp"),
    ]
    others = [Path("results/.tiny.2.123.tmp"), Path("results/.other.123.tmp"), Path("results/tiny.2")]
    for folder in (*mine, *others):
        (folder / "tables").mkdir(parents=True)
        (folder / ".published-0123456789").write_text("half")
    publish_tables(plan)
    assert not any(folder.exists() for folder in mine)
    assert all(folder.exists() for folder in others)
    assert [p.name for p in Path("results/tiny").glob(".published-*")] == [f".published-{plan.tables.id}"]


def publish_and_die(plan: Plan, at: int) -> int:
    """Publish in a child that is killed before its ``at``-th file operation; return its exit status."""
    child = os.fork()
    if child == 0:
        left = at

        def die(event: str, arguments: object) -> None:
            nonlocal left
            if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(die)
        try:
            publish_tables(plan)
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


def test_a_publisher_killed_anywhere_leaves_a_marker_only_in_a_whole_folder(in_tmp: Path) -> None:
    plan = made()
    whole = content(publish_tables(plan))
    statuses: list[int] = []
    while not statuses or statuses[-1] == signal.SIGKILL:
        statuses.append(publish_and_die(plan, len(statuses) + 1))
        for published in Path("results").glob("tiny/.published-*"):
            assert content(published.parent) == whole
        for published in Path("results").glob(".tiny.*/.published-*"):  # in staging, but complete
            assert content(published.parent) == whole
    assert statuses[-1] == 0 and len(statuses) > 30
    assert content(Path("results/tiny")) == whole
    assert [p.name for p in Path("results").iterdir()] == ["tiny"]


def test_refuses_a_changed_artifact(in_tmp: Path) -> None:
    plan = made()
    file = plan.tables.path / "tables" / "main.md"
    file.write_text(file.read_text().replace("5", "6"))  # the same size
    with pytest.raises(DamagedArtifact, match=r"tables/main\.md"):
        publish_tables(plan)
    assert not Path("results").exists()


def test_show_prints_every_table_and_where_files_are(in_tmp: Path) -> None:
    plan = made()
    text = show_tables(plan)
    assert (plan.tables.path / "tables" / "main.md").read_text() in text
    assert text.splitlines()[-1] == "Tables and figures: results/tiny/"
