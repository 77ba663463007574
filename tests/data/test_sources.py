"""From nothing to a store: `mls data NAME` against a web server of this machine; where sources are looked for."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mls.data.build_store
from mls.config import catalog
from mls.config.catalog import Archive
from mls.config.load import check
from mls.data import sources
from mls.data.image_store import ImageStore
from mls.download.reader import Reader
from mls.pipeline.plan import Plan, make_plan, read_ids, read_lock
from mls.pipeline.runner import run_stage
from mls.runtime.errors import MlsError
from tests.data.support import make_coco
from tests.download.server import File, Server

LOCK = Path("data.lock")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def coco(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server that has all of a COCO of 14 images, as archives and one by one; an empty working tree."""
    made = tmp_path / "made"
    made.mkdir()
    make_coco(made)
    archives = []
    for file, gives in (("annotations", "annotations"), ("train2017", "train2017"), ("val2017", "val2017")):
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            for path in sorted((made / gives).iterdir()):
                archive.write(path, path.relative_to(made))
        server.files[f"/{file}.zip"] = File(data.getvalue())
        sha256 = Reader(made)  # hashes as everywhere else
        (made / f"{file}.zip").write_bytes(data.getvalue())
        checksum = f"sha256:{sha256.read(f'{file}.zip')[1]}"
        archives.append(Archive(f"{file}.zip", (server.url(f"/{file}.zip"),), None, checksum, (gives,)))
    for image in made.glob("*2017/*.jpg"):
        server.files[f"/{image.parent.name}/{image.name}"] = File(image.read_bytes())

    def needed(config: Any) -> tuple[Archive, ...]:
        return tuple(archives[:1] if config.subset else archives)

    monkeypatch.setattr(catalog, "needed", needed)
    monkeypatch.setattr(catalog, "expected", lambda config: None if config.subset else {"train": 10, "test": 4})
    monkeypatch.setattr(catalog, "image_url", lambda path: server.url(f"/{path}"))
    (tmp_path / "tree").mkdir()
    monkeypatch.chdir(tmp_path / "tree")
    monkeypatch.delenv("MLS_DATA", raising=False)
    return server


def plan_of(entry: dict[str, Any], name: str = "photos") -> Plan:
    raw = {
        "experiment": "x",
        "datasets": {name: {"source": "coco", "val_share": 0.2, **entry}},
        "runs": {"random": {"method": "none"}},
        "probe": {"linear": {"kind": "linear", "dataset": name}},
        "tables": {"main": {"columns": ["linear.mAP"]}},
    }
    return make_plan(check(raw, Path("x.yaml")), read_lock(LOCK))


def make(plan: Plan) -> ImageStore:
    (job,) = plan.stage("data")
    run_stage(plan, job, mls.data.build_store.run)
    return ImageStore(job.path)


def pin(entry: dict[str, Any]) -> None:
    from mls.config.datasets import CocoDataset

    sources.pin("photos", CocoDataset.model_validate({"source": "coco", "val_share": 0.2, **entry}), LOCK)


def test_from_nothing_to_a_store(coco: Server) -> None:
    store = make(plan_of({}))
    assert [len(store.split(split)) for split in ("train", "val", "test")] == [8, 2, 4]
    assert Path("downloads/photos/train2017").is_dir() and not list(Path("downloads").rglob("*.zip"))
    asked = len(coco.asked)
    shutil.rmtree("artifacts")
    shutil.rmtree(".store")
    make(plan_of({}))
    assert len(coco.asked) == asked, "nothing is fetched twice"


def test_downloaded_and_copied_files_give_the_same_bytes(coco: Server, tmp_path: Path) -> None:
    downloaded = {f.name: f.read_bytes() for f in make(plan_of({})).path.iterdir()}
    pin({"root": str(tmp_path / "made")})
    copied = {f.name: f.read_bytes() for f in make(plan_of({"root": str(tmp_path / "made")})).path.iterdir()}
    for name in set(downloaded) - {"artifact.json", "params.json"}:
        assert downloaded[name] == copied[name], name


def test_an_unverified_copy_is_not_taken_for_the_published_set(coco: Server, tmp_path: Path) -> None:
    plan = plan_of({"root": str(tmp_path / "made")})
    (tmp_path / "made/annotations/instances_train2017.json").write_text("is not read")
    with pytest.raises(MlsError, match=r"nothing proves what it holds.*pin it first: mls data photos --pin"):
        make(plan)
    assert not plan.stage("data")[0].path.exists()


@pytest.mark.parametrize("path", ["val2017/000000000051.jpg", "annotations/instances_val2017.json"])
def test_a_file_changed_after_unpacking_is_an_error(coco: Server, path: str) -> None:
    make(plan_of({}))
    shutil.rmtree("artifacts")
    shutil.rmtree(".store")
    shutil.rmtree("work")
    file = Path("downloads/photos") / path
    file.write_bytes(file.read_bytes() + b"\n")
    with pytest.raises(MlsError, match=rf"{path} below .* is not as the published archives held it"):
        make(plan_of({}))
    assert not Path("artifacts").exists() or not list(Path("artifacts").rglob("*.bin"))
    shutil.rmtree(file.parent)
    make(plan_of({}))


def test_a_download_does_not_overwrite_your_own_file(coco: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *rest = catalog.needed(plan_of({}).stage("data")[0].config)
    both = ("annotations/instances_train2017.json", "annotations/instances_val2017.json")
    monkeypatch.setattr(catalog, "needed", lambda config: (replace(first, gives=both), *rest))
    own = Path("downloads/photos") / both[0]
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    for _ in range(2):
        with pytest.raises(MlsError, match=r"annotations.zip holds annotations/instances_train2017.json, and .* other"):
            make(plan_of({}))
        assert own.read_text() == "mine" and not Path("downloads/photos", both[1]).exists()
    own.unlink()
    make(plan_of({}))


def test_equal_data_sets_may_be_read_from_either_folder(coco: Server) -> None:
    plan = plan_of({})
    make(plan)
    Path("downloads/photos").rename("downloads/other")
    shutil.rmtree("artifacts")
    shutil.rmtree(".store")
    both = make_plan(
        check(
            {
                "experiment": "x",
                "datasets": {name: {"source": "coco", "val_share": 0.2} for name in ("photos", "other")},
                "runs": {"random": {"method": "none"}},
                "probe": {name: {"kind": "linear", "dataset": name} for name in ("photos", "other")},
                "tables": {"main": {"columns": ["photos.mAP"]}},
            },
            Path("x.yaml"),
        ),
        {},
    )
    asked = len(coco.asked)
    assert len(make(both)) == 14 and len(coco.asked) == asked


def test_too_few_images_are_an_error(coco: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "expected", lambda config: {"train": 11, "test": 4})
    with pytest.raises(MlsError, match=r"lists {'train': 10, 'test': 4} images, but the official counts are"):
        make(plan_of({}))


def test_a_subset_downloads_only_its_images(coco: Server) -> None:
    entry = {"subset": {"images": 4, "test": 2}}
    with pytest.raises(MlsError, match=r"no checksums are published.*mls data pin photos"):
        plan_of(entry)
    pin(entry)
    store = make(plan_of(entry))
    assert len(store) == 6 and len(list(Path("downloads").rglob("*.jpg"))) == 6
    assert "/train2017.zip" not in {path for path, *_ in coco.asked}


def test_a_subset_by_ids_is_identified_by_its_ids_not_by_its_file(coco: Server) -> None:
    Path("ids.txt").write_text("2\n7 # a cat\n\n52\n53\n")
    Path("same.txt").write_text("# other order\n53\n52\n7\n2\n")
    Path("other.txt").write_text("2\n7\n52\n")
    pin({"subset": {"ids": "ids.txt"}})
    ids = {f: plan_of({"subset": {"ids": f}}).stage("data")[0].id for f in ("ids.txt", "same.txt", "other.txt")}
    assert ids["ids.txt"] == ids["same.txt"] != ids["other.txt"]
    assert len(make(plan_of({"subset": {"ids": "ids.txt"}}))) == 4
    with pytest.raises(MlsError, match=r"not those pinned in data.lock"):
        make(plan_of({"subset": {"ids": "other.txt"}}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\nx\n", "line 2: 'x' is not an image id"),
        ("1\n-2\n", "line 2: '-2' is not an image id"),
        ("1\n2\n1\n", "line 3: id 1 was listed before, on line 1"),
        ("# none\n", "lists no image ids"),
    ],
)
def test_bad_id_files_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "ids.txt").write_text(text)
    with pytest.raises(MlsError, match=message):
        read_ids(str(tmp_path / "ids.txt"))
    with pytest.raises(MlsError, match="can't be read"):
        read_ids(str(tmp_path / "none.txt"))


def test_a_changed_image_of_a_subset_is_an_error(coco: Server) -> None:
    entry = {"subset": {"images": 4, "test": 2}}
    pin(entry)
    image = next(Path("downloads").rglob("*.jpg"))
    image.write_bytes(image.read_bytes() + b"more")
    with pytest.raises(MlsError, match=r"not those pinned in data.lock"):
        make(plan_of(entry))


def test_nothing_is_downloaded_offline(coco: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLS_OFFLINE", "1")
    with pytest.raises(MlsError, match="MLS_OFFLINE"):
        make(plan_of({}))
    assert not coco.asked


def test_roots_are_absolute_or_below_mls_data(coco: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLS_DATA", str(tmp_path))
    pin({"root": "made"})
    digest = read_lock(LOCK)["photos"]
    pin({"root": str(tmp_path / "made")})
    assert read_lock(LOCK)["photos"] == digest and not coco.asked
    same = {plan_of({"root": root}).stage("data")[0].id for root in ("made", str(tmp_path / "made"), "elsewhere")}
    assert len(same) == 1, "a machine's path is in no id"
    with pytest.raises(MlsError, match=r"its root, .*elsewhere, is not a folder.*relative ones are below"):
        make(plan_of({"root": "elsewhere"}))


def test_unlabeled_images_are_pretrained_on(coco: Server, tmp_path: Path) -> None:
    from mls.config.experiment import Pretrain
    from mls.data.loader import TwoViews

    made = tmp_path / "made"
    (made / "unlabeled2017").mkdir()
    shutil.copy(next((made / "train2017").iterdir()), made / "unlabeled2017/9.jpg")
    info = {"images": [{"id": 9, "file_name": "9.jpg", "width": 20, "height": 10}]}
    (made / "annotations/image_info_unlabeled2017.json").write_text(json.dumps(info))
    entry = {"root": str(made), "unlabeled": True}
    pin(entry)
    store = make(plan_of(entry))
    views = TwoViews(store, Pretrain.model_validate({"batch_size": 9, "epochs": 1, "augment": {"crop": 16}}), 0)
    assert len(store.split("train")) == 8 and len(store.split("unlabeled")) == 1
    assert sorted(views[0].rows_B.tolist()) == [*store.split("train"), *store.split("unlabeled")]
