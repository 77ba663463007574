"""The whole stage: root, digest, exclusion, and an artifact that repeats byte for byte."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pycocotools.coco import COCO

from mls.config.datasets import CocoDataset, FolderDataset, ScenesDataset
from mls.data import ingest, sources
from mls.data.image_store import ImageStore
from mls.download.reader import Reader
from mls.pipeline.plan import DATA_LOCK, read_lock
from mls.runtime.errors import Interrupted, MlsError
from tests.data.support import experiment_of, make, plan_of

MLS_DATA = os.environ.get("MLS_DATA", "/nonexistent")
FILES = [
    "annotations.json",
    "classes.json",
    "excluded.json",
    "images.bin",
    "index.parquet",
    "labels.parquet",
    "params.json",
]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder data set of 20 images, pinned, in a fresh working tree."""
    root = tmp_path / "data" / "photos"
    root.mkdir(parents=True)
    lines = ["file,split,red,blue"]
    for i in range(20):
        Image.new("RGB", (10 + i, 9), (200 * (i % 2), 0, i)).save(root / f"{i:02d}.jpg")
        lines.append(f"{i:02d}.jpg,{'train' if i < 14 else 'test'},{i % 2},1")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("MLS_DATA", str(tmp_path / "data"))
    tree = tmp_path / "tree"
    tree.mkdir()
    monkeypatch.chdir(tree)
    pin()
    return root


def pin(**config: Any) -> dict[str, Any]:
    return sources.pin("photos", FolderDataset(source="folder", **config), DATA_LOCK)


def test_the_scenes_artifact_repeats_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"source": "scenes", "train": 5, "val": 2, "test": 3, "size": 32}
    paths = []
    for tree in ("a", "b"):
        (tmp_path / tree).mkdir()
        monkeypatch.chdir(tmp_path / tree)
        paths.append(make(scenes=config))
    assert sorted(file.name for file in paths[0].iterdir() if file.name != "artifact.json") == FILES
    for name in FILES:
        assert (paths[0] / name).read_bytes() == (paths[1] / name).read_bytes(), name
    store = ImageStore(paths[0])
    assert [len(store.split(s)) for s in ("train", "val", "test")] == [5, 2, 3]
    assert store.decode(9).shape == (3, 32, 32)
    assert len(store.ground_truth("test")["images"]) == 3


def test_the_folder_artifact_holds_images_and_labels(photos: Path) -> None:
    path = make(photos={"source": "folder"})
    store = ImageStore(path)
    assert [len(store.split(s)) for s in ("train", "val", "test")] == [13, 1, 6]
    by_name = {store.name(row): row for row in range(20)}
    assert store.size(by_name["07.jpg"]) == (17, 9) and store.decode(by_name["07.jpg"]).shape == (3, 9, 17)
    assert store.labels([by_name["07.jpg"]]).tolist() == [[True, True]]
    assert (photos / "07.jpg").read_bytes() in (path / "images.bin").read_bytes()
    assert json.loads((path / "annotations.json").read_text())["annotations"] == []


def test_the_number_of_threads_changes_nothing(photos: Path) -> None:
    digests = []
    for threads in (1, 5):
        reader = Reader(photos)
        config = FolderDataset(source="folder", max_excluded=0)
        listing = sources.read_listing(config, reader)
        digests.append([r.sha256 for r in ingest.load_records(listing, reader, [], config, threads)])
    assert digests[0] == digests[1] and len(digests[0]) == 20


def test_pin_keeps_other_entries_and_matches_what_is_read(photos: Path) -> None:
    DATA_LOCK.write_text("zoo:\n  sha256: abc\n  files: 1\n  bytes: 2\n")
    digest = pin()
    assert read_lock(DATA_LOCK) == {"photos": digest, "zoo": {"sha256": "abc", "files": 1, "bytes": 2}}
    assert DATA_LOCK.read_text().index("photos") < DATA_LOCK.read_text().index("zoo")
    assert digest["files"] == 21
    assert digest["bytes"] == sum(f.stat().st_size for f in photos.iterdir())
    (photos / "stray.txt").write_text("not listed, not part of it")
    assert pin() == digest
    with pytest.raises(MlsError, match="needs no digest"):
        sources.pin("s", ScenesDataset(source="scenes"), DATA_LOCK)


def test_one_pass_pins_and_makes(
    photos: Path, monkeypatch: pytest.MonkeyPatch, run_mls: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    pinned = DATA_LOCK.read_bytes()
    expected = {name: (make(photos={"source": "folder"}) / name).read_bytes() for name in FILES}
    for folder in ("artifacts", ".store", "work"):
        shutil.rmtree(folder)
    DATA_LOCK.unlink()
    Path("params.yaml").write_text(json.dumps(experiment_of(photos={"source": "folder"})))
    assert run_mls("data", "photos") == 1
    assert "mls data photos --pin -e params.yaml" in capsys.readouterr().err
    read: list[str] = []
    whole = Reader.read

    def counted(self: Reader, name: str) -> tuple[bytes, str]:
        read.append(name)
        return whole(self, name)

    monkeypatch.setattr(Reader, "read", counted)
    assert run_mls("data", "photos", "--pin") == 0
    assert len(read) == len(set(read)) == 21, "each file once"
    assert DATA_LOCK.read_bytes() == pinned
    _, job = plan_of(photos={"source": "folder"})
    assert {name: (job.path / name).read_bytes() for name in FILES} == expected
    assert not Path("work/pin-photos/build").exists()
    assert run_mls("data", "pin", "photos", "--pin") == 1 and run_mls("data", "other", "--pin") == 1
    assert "plans no data 'other'" in capsys.readouterr().err


def test_a_failed_pass_pins_nothing(photos: Path, run_mls: Callable[..., int]) -> None:
    DATA_LOCK.unlink()
    (photos / "03.jpg").write_bytes(b"no image")
    Path("params.yaml").write_text(json.dumps(experiment_of(photos={"source": "folder"})))
    assert run_mls("data", "photos", "--pin") == 1
    assert not DATA_LOCK.exists() and not Path("artifacts").exists() and not Path("work/pin-photos/build").exists()


@pytest.mark.parametrize("changed", ["03.jpg", "labels.csv"])
def test_a_changed_source_is_an_error(photos: Path, changed: str) -> None:
    pinned = read_lock(DATA_LOCK)["photos"]["sha256"]
    if changed == "03.jpg":
        Image.new("RGB", (13, 9)).save(photos / changed)
    else:
        text = (photos / changed).read_text()
        (photos / changed).write_text(text.replace("03.jpg,train,1", "03.jpg,train,0"))
    with pytest.raises(MlsError) as caught:
        make(photos={"source": "folder"})
    assert pinned in str(caught.value) and "mls data pin photos" in str(caught.value)
    assert not list(Path("artifacts").rglob("*"))
    pin()
    assert pinned != read_lock(DATA_LOCK)["photos"]["sha256"]
    make(photos={"source": "folder"})


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_an_image_that_does_not_decode_is_excluded(photos: Path, content: bytes | None) -> None:
    whole = (photos / "03.jpg").read_bytes()
    (photos / "03.jpg").write_bytes(whole[:-200] if content is None else content)
    pin()
    path = make(photos={"source": "folder", "max_excluded": 0.05})
    (item,) = json.loads((path / "excluded.json").read_text())
    assert item["name"] == "03.jpg" and item["reason"].startswith("does not decode: ")
    store = ImageStore(path)
    assert len(store) == 19 and "03.jpg" not in [store.name(row) for row in range(19)]


def test_too_many_bad_images_are_an_error(photos: Path) -> None:
    for name in ("02.jpg", "03.jpg"):
        (photos / name).write_bytes(b"not an image")
    pin()
    with pytest.raises(MlsError, match=r"max_excluded = 0\.05 of 20 images.*02\.jpg does not decode.*03\.jpg"):
        make(photos={"source": "folder", "max_excluded": 0.05})


def test_an_image_that_vanishes_is_an_error(photos: Path) -> None:
    reader = Reader(photos)
    config = FolderDataset(source="folder", max_excluded=1.0)
    listing = sources.read_listing(config, reader)
    (photos / "05.jpg").unlink()
    with pytest.raises(MlsError, match=r"05\.jpg can't be read"):
        list(ingest.load_records(listing, reader, [], config, 2))


def test_a_missing_root_is_an_error_with_a_remedy(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLS_DATA", str(photos.parent.parent))
    with pytest.raises(MlsError, match=r"no folder .*photos .*export MLS_DATA=/path/that/holds/photos"):
        make(photos={"source": "folder"})
    monkeypatch.delenv("MLS_DATA")
    with pytest.raises(
        MlsError, match=r"downloads/photos .MLS_DATA is not set.; .*export MLS_DATA=/path/that/holds/photos"
    ):
        make(photos={"source": "folder"})


def test_equal_data_sets_may_be_read_from_either_root(photos: Path) -> None:
    """Two names with one digest are one artifact, made from whichever folder exists."""
    lock = read_lock(DATA_LOCK)["photos"]
    DATA_LOCK.write_text("".join(f"{n}: {{sha256: {lock['sha256']}}}\n" for n in ("elsewhere", "photos")))
    path = make(elsewhere={"source": "folder"}, photos={"source": "folder"})
    assert len(ImageStore(path)) == 20


def test_a_signal_stops_between_images(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ingest.load_records

    def with_signal(*args: Any) -> Any:
        for i, record in enumerate(real(*args)):
            if i == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield record

    monkeypatch.setattr(ingest, "load_records", with_signal)
    threads = threading.active_count()
    with pytest.raises(Interrupted):
        make(photos={"source": "folder"})
    assert not list(Path("artifacts").rglob("*"))
    assert threading.active_count() == threads, "decoding threads are gone"


@pytest.mark.parametrize(("entry", "side"), [({"short_side": 16}, 16), ({"format": "raw"}, 20)])
def test_short_side_and_raw_make_different_artifacts_of_one_source(
    photos: Path, entry: dict[str, Any], side: int
) -> None:
    for i in range(20):  # larger than 16 px both ways
        Image.new("RGB", (21 + i, 20), (200 * (i % 2), 0, i)).save(photos / f"{i:02d}.jpg")
    pin()
    plain, other = (ImageStore(make(photos={"source": "folder", **change})) for change in ({}, entry))
    assert plain.path != other.path and [plain.name(r) for r in range(20)] == [other.name(r) for r in range(20)]
    assert all(other.decode(row).shape == (3, side, other.size(row)[0]) for row in range(20))
    assert (other.labels(range(20)) == plain.labels(range(20))).all()
    if entry == {"format": "raw"}:
        assert all((other.decode(row) == plain.decode(row)).all() for row in range(20))
    again = {file.name: file.read_bytes() for file in other.path.iterdir()}
    shutil.rmtree("artifacts")
    shutil.rmtree(".store")
    shutil.rmtree("work")
    store = make(photos={"source": "folder", **entry})
    assert {name: (store / name).read_bytes() for name in again if name != "artifact.json"} == {
        name: content for name, content in again.items() if name != "artifact.json"
    }


@pytest.mark.parametrize("place", ["images.bin", "index.parquet", "params.json", "artifact.json"])
def test_a_killed_stage_leaves_no_artifact(photos: Path, place: str) -> None:
    """SIGKILL as soon as this file exists; the same command then makes the same bytes as an undisturbed run."""
    code = f"""
import threading, time, os, signal
from pathlib import Path
def watch():
    while not list(Path("work").glob("*/build/{place}")): pass
    os.kill(os.getpid(), signal.SIGKILL)
import mls.data.build_store
from mls.pipeline import artifact_store; from mls.runtime import links
sync = links.sync
links.sync = artifact_store.sync = lambda path: (time.sleep(0.05), sync(path))
threading.Thread(target=watch, daemon=True).start()
from tests.data.support import make
make(photos={{"source": "folder"}})
"""
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(root)}, check=False)
    _, job = plan_of(photos={"source": "folder"})
    assert killed.returncode == -signal.SIGKILL and not job.path.exists()
    first = make(photos={"source": "folder"})
    made = {name: (first / name).read_bytes() for name in FILES}
    shutil.rmtree("artifacts")
    shutil.rmtree(".store")
    shutil.rmtree("work")
    second = make(photos={"source": "folder"})
    assert made == {name: (second / name).read_bytes() for name in FILES}


@pytest.mark.skipif(not Path(MLS_DATA, "coco-tiny").is_dir(), reason="needs $MLS_DATA/coco-tiny")
def test_coco_tiny_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    digest = sources.pin("coco-tiny", CocoDataset(source="coco"), DATA_LOCK)
    assert digest["files"] == 102
    store = ImageStore(make(**{"coco-tiny": {"source": "coco"}}))
    assert [len(store.split(s)) for s in ("train", "val", "test")] == [48, 2, 50]
    truth = store.ground_truth("test")
    assert len(truth["annotations"]) == 382 and sum(a["iscrowd"] for a in truth["annotations"]) == 5
    (tmp_path / "test.json").write_text(json.dumps(truth))
    coco = COCO(str(tmp_path / "test.json"))
    for annotation in truth["annotations"]:
        width, height = store.size(annotation["image_id"])
        assert coco.annToMask(annotation).shape == (height, width)
    assert all(store.decode(row).shape[1:] == store.size(row)[::-1] for row in range(100))


@pytest.mark.skipif(not Path(MLS_DATA, "miml-scenes").is_dir(), reason="needs $MLS_DATA/miml-scenes")
def test_miml_scenes_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sources.pin("miml-scenes", FolderDataset(source="folder"), DATA_LOCK)
    store = ImageStore(make(**{"miml-scenes": {"source": "folder"}}))
    assert [len(store.split(s)) for s in ("train", "val", "test")] == [900, 100, 1000]
    assert store.multi_label and store.labels(store.split("test")).sum(axis=0).tolist() == [204, 230, 289, 234, 280]
