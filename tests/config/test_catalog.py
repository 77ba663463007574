"""The catalog: its table is well-formed, entries need the right archives, and ids and docs agree with it."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter

from mls.config.catalog import SOURCES, Archive, expected, hint, image_url, needed, published_digest, source
from mls.config.datasets import LocalDataset
from mls.data.image_store import SPLITS
from mls.download.reader import unsafe
from mls.download.unpack import is_archive

ROOT = Path(__file__).parents[2]
ARCHIVES = [(key, archive) for key, one in SOURCES.items() for archive in one.archives]
MAIN = "VOCdevkit/VOC{}/ImageSets/Main/{}.txt"


def entry(**keys: Any) -> LocalDataset:
    return TypeAdapter(LocalDataset).validate_python(keys)


def files(**keys: Any) -> list[str]:
    return sorted(archive.file for archive in needed(entry(**keys)))


def test_every_public_source_has_archives() -> None:
    keys = {key for one in get_args(LocalDataset) for key in get_args(one.model_fields["source"].annotation)}
    assert keys - {"folder"} == set(SOURCES)
    for key, one in SOURCES.items():
        assert source(entry(source=key)) is one
        assert one.title and one.licence and one.page.startswith(("https://", "http://"))
        assert one.archives
        assert len({archive.file for archive in one.archives}) == len(one.archives)


@pytest.mark.parametrize(("key", "archive"), ARCHIVES, ids=[archive.file for _, archive in ARCHIVES])
def test_archives_are_well_formed(key: str, archive: Archive) -> None:
    assert re.fullmatch(r"[A-Za-z0-9][\w.-]*", archive.file), "a plain file name"
    assert archive.urls or hint(entry(source=key)), "an archive without an address needs a hint"
    assert len(set(archive.urls)) == len(archive.urls)
    for url in archive.urls:
        assert re.fullmatch(r"https?://[a-z0-9.-]+/[\w./~-]+(\?download=1)?", url)
        assert url.split("?")[0].endswith(f"/{archive.file}"), "a mirror serves the publisher's own archive"
    if archive.checksum is not None:
        assert re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", archive.checksum)
    assert archive.size is None or archive.size > 0
    assert archive.gives
    for path in (*archive.gives, *([archive.into] if archive.into else [])):
        assert unsafe(path) is None
    for path in archive.gives:
        assert path.startswith(f"{archive.into}/" if archive.into else "")
    if not is_archive(archive.file):
        assert archive.gives == (f"{archive.into}/{archive.file}".lstrip("/"),)


def test_archives_differ() -> None:
    checksums = [archive.checksum for _, archive in ARCHIVES if archive.checksum]
    assert len(set(checksums)) == len(checksums)
    for key, one in SOURCES.items():
        given = [path for archive in one.archives for path in archive.gives]
        assert len(set(given)) == len(given), f"{key}: two archives give the same path"


def test_coco_entries_need_their_archives() -> None:
    annotations = "annotations_trainval2017.zip"
    assert files(source="coco") == [annotations, "train2017.zip", "val2017.zip"]
    assert files(source="coco", subset={"images": 2}) == [annotations]
    assert files(source="coco", unlabeled=True) == [
        annotations,
        "image_info_unlabeled2017.zip",
        "train2017.zip",
        "unlabeled2017.zip",
        "val2017.zip",
    ]
    assert expected(entry(source="coco")) == {"train": 118_287, "test": 5_000}
    assert expected(entry(source="coco", unlabeled=True)) == {"train": 118_287, "test": 5_000, "unlabeled": 123_403}
    assert expected(entry(source="coco", subset={"images": 2})) is None
    assert image_url("train2017/000000000009.jpg") == "http://images.cocodataset.org/train2017/000000000009.jpg"


def test_your_own_coco_splits_have_no_archive() -> None:
    mine = entry(source="coco", train_split="mine")
    assert [a.file for a in needed(mine)] == ["annotations_trainval2017.zip", "val2017.zip", "instances_mine.json"]
    assert (needed(mine)[-1].urls, needed(mine)[-1].gives) == ((), ("annotations/instances_mine.json",))
    assert expected(mine) is None
    assert published_digest(mine) is None
    assert files(source="coco", train_split="a", test_split="b") == ["instances_a.json", "instances_b.json"]


@pytest.mark.parametrize(
    ("sets", "wanted", "counts"),
    [
        ({}, ["VOCtest_06-Nov-2007.tar", "VOCtrainval_06-Nov-2007.tar"], {"train": 5_011, "test": 4_952}),
        (
            {"train_sets": ["2007/trainval", "2012/trainval"]},
            ["VOCtest_06-Nov-2007.tar", "VOCtrainval_06-Nov-2007.tar", "VOCtrainval_11-May-2012.tar"],
            {"train": 16_551, "test": 4_952},
        ),
        (
            {"train_sets": ["2012/train"], "test_sets": ["2012/val"]},
            ["VOCtrainval_11-May-2012.tar"],
            {"train": 5_717, "test": 5_823},
        ),
        (
            {"train_sets": ["2007/train"], "val_sets": ["2007/val"]},
            ["VOCtest_06-Nov-2007.tar", "VOCtrainval_06-Nov-2007.tar"],
            {"train": 2_501, "val": 2_510, "test": 4_952},
        ),
        ({"train_sets": ["2010/train"]}, ["VOCtest_06-Nov-2007.tar", "VOCtrainval_03-May-2010.tar"], None),
    ],
)
def test_voc_entries_need_their_archives(
    sets: dict[str, list[str]], wanted: list[str], counts: dict[str, int] | None
) -> None:
    config = entry(source="voc", **sets)
    assert sorted(archive.file for archive in needed(config)) == wanted
    assert expected(config) == counts
    assert published_digest(config)
    assert all(len(archive.gives) == 1 for archive in needed(config))


@pytest.mark.parametrize("name", ["2012/test", "2007/mine", "2011/trainval", "2031/val"])
def test_voc_image_sets_without_an_archive_have_no_digest(name: str) -> None:
    """A person must provide them, and `data.lock` identifies them: no published checksum covers them."""
    config = entry(source="voc", train_sets=[name])
    own = [archive for archive in needed(config) if archive.file != "VOCtest_06-Nov-2007.tar"]
    year, stem = name.split("/")
    assert [(a.file, a.urls, a.checksum) for a in own] == [(f"{stem}.txt", (), None)]
    assert own[0].gives == (MAIN.format(year, stem),) == (f"{own[0].into}/{own[0].file}",)
    assert expected(config) is None
    assert published_digest(config) is None


def test_folders_need_nothing() -> None:
    folder = entry(source="folder")
    assert (needed(folder), expected(folder), source(folder), hint(folder)) == ((), None, None, "")
    assert published_digest(folder) is None


@pytest.mark.parametrize("key", sorted(set(SOURCES) - {"coco", "voc"}))
def test_other_sources_need_all_their_archives(key: str) -> None:
    config = entry(source=key)
    assert needed(config) == SOURCES[key].archives
    counts = expected(config) or {}
    assert {"train", "test"} <= set(counts) <= set(SPLITS)
    counts["train"] = 0
    assert (expected(config) or {})["train"], "callers get a copy of the table"


def test_public_data_is_identified_by_published_checksums() -> None:
    known = {key for key in SOURCES if published_digest(entry(source=key))}
    assert known == set(SOURCES) - {"indoor67"}
    assert published_digest(entry(source="coco", subset={"images": 2})) is None
    digests = [published_digest(entry(source=key)) for key in known]
    digests += [published_digest(entry(source="coco", unlabeled=True))]
    assert len(set(digests)) == len(digests)
    assert all(re.fullmatch(r"archives:[0-9a-f]{64}", digest or "") for digest in digests)


def test_only_file_names_and_checksums_change_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    config = entry(source="dtd", val_share=0.5, root="/elsewhere")
    a, b = (Archive(f"{name}.tar", (), None, f"md5:{name * 32}", (name,)) for name in "ab")

    def digest(*archives: Archive) -> str | None:
        monkeypatch.setitem(SOURCES, "dtd", replace(SOURCES["dtd"], archives=archives))
        return published_digest(config)

    assert digest(a, b) == digest(b, a)
    assert digest(a, b) == digest(replace(a, urls=("https://mirror/a.tar",), size=3, into="x"), b)
    assert digest(a, b) != digest(a)
    assert digest(a, b) != digest(a, replace(b, checksum="md5:" + "c" * 32))
    assert digest(a, b) != digest(a, replace(b, file="c.tar"))
    assert digest(a, replace(b, checksum=None)) is None
    assert digest() is None


def test_published_digests_are_pinned() -> None:
    """Ids of artifacts depend on them: after a change, every such data set is made again."""
    assert (
        published_digest(entry(source="voc"))
        == "archives:62b83fab19425555a78d456340dfd8099e5ab81ef1c3fdd073fe472a3bc14124"
    )


def test_the_catalog_imports_nothing_heavy() -> None:
    heavy = {"torch", "torchvision", "requests", "scipy"}
    code = f"import sys, mls.config.catalog; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


def test_the_docs_agree_with_the_catalog() -> None:
    lines = (ROOT / "docs/datasets.md").read_text().splitlines()
    for key, one in SOURCES.items():
        rows = "\n".join(line for line in lines if line.startswith(f"| `{key}` |"))
        assert one.title in rows
        assert f"<{one.page}> | {one.licence} |" in rows
        for name, count in one.images.items():
            assert re.search(rf"(?<![\d,]){count:,}(?!,?\d)", rows), f"{key} {name}: {count:,}"
        stated = sum(float(n) * {"G": 1e9, "M": 1e6}[unit] for n, unit in re.findall(r"\| ([\d.]+) ([GM])B \|", rows))
        total = sum(archive.size or 0 for archive in one.archives)
        assert abs(stated - total) < 0.03 * total, f"{key}: {stated:,.0f} instead of {total:,}"
        kinds = {archive.checksum.split(":")[0] for archive in one.archives if archive.checksum} or {"none published"}
        assert all(f"| {kind} |" in rows for kind in kinds), f"{key}: {kinds}"
