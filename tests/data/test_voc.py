"""PASCAL VOC's layout: image sets, boxes counted from 1, difficult objects, and how each fault is named."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mls.config.datasets import VocDataset
from mls.config.load import ExperimentError, check
from mls.data import sources
from mls.data.image_store import ImageStore
from mls.data.listing import Entry
from mls.data.voc import CLASSES, devkit, read_listing
from mls.download.reader import Reader
from mls.pipeline.plan import DATA_LOCK, Job, Plan
from mls.runtime.errors import MlsError
from mls.transfer.instances import TrainingInstances
from tests.data.support import HEIGHT, WIDTH, add_set, an_object, experiment_of, make, make_voc_tree, plan_of, xml

CONFIG = VocDataset(source="voc", val_share=0.25)
DIGEST = {"voc": {"sha256": "a" * 64}}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_voc_tree(tmp_path, monkeypatch)


def first_with(root: Path, *objects: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Entry:
    """The first image's entry if its file has these objects and this size."""
    (root / "VOC2007/Annotations/000001.xml").write_text(xml("000001", *objects, size=size))
    entries = read_listing(CONFIG, Reader(root)).entries
    return next(entry for entry in entries if entry.name == "VOC2007/JPEGImages/000001.jpg")


def test_splits_classes_and_names(root: Path) -> None:
    listing = read_listing(CONFIG, Reader(root))
    assert listing.classes == sorted(listing.classes) and len(listing.classes) == 20 and listing.multi_label
    assert Counter(e.split for e in listing.entries) == {"train": 6, "val": 2, "test": 3}
    order = [(("train", "val", "test").index(e.split), e.name) for e in listing.entries]
    assert order == sorted(order)
    assert listing.entries[-1] == Entry(
        "VOC2007/JPEGImages/000011.jpg",
        "test",
        [11],
        [
            {
                "category_id": 12,
                "bbox": [2, 3, 10, 7],
                "area": 70,
                "iscrowd": 0,
                "segmentation": [],
                "difficult": 0,
                "truncated": 0,
            }
        ],
        (WIDTH, HEIGHT),
    )
    assert listing.classes[11] == "dog"


@pytest.mark.parametrize(
    ("box", "expected", "area"),
    [
        ((1, 1, WIDTH, HEIGHT), [0, 0, 40, 30], 1200),  # all of the image
        ((1, 1, 1, 1), [0, 0, 1, 1], 1),  # its first pixel
        ((WIDTH, HEIGHT, WIDTH, HEIGHT), [39, 29, 1, 1], 1),  # its last
        ((8, 12, 35, 20), [7, 11, 28, 9], 252),
        (("5.70000076293945", "8.0", " 10 ", "9"), [4.7, 7, 5.3, 2], 10.6),
        ((0, 0, WIDTH + 1, HEIGHT), [-1, -1, 42, 31], 1302),  # within the slack
    ],
)
def test_boxes_are_counted_from_one(root: Path, box: tuple[object, ...], expected: list[float], area: float) -> None:
    (annotation,) = first_with(root, an_object(box=box)).annotations
    assert (annotation["bbox"], annotation["area"]) == (expected, area)
    assert [type(value) for value in annotation["bbox"]] == [type(value) for value in expected]


def test_difficult_objects_keep_their_flag_and_are_not_labels(root: Path) -> None:
    """The only cat is difficult, so cat is not a label; one of the dogs is not, so dog is."""
    entry = first_with(
        root,
        an_object("dog", extra="<difficult>1</difficult><truncated>1</truncated>"),
        an_object("dog", extra="<truncated>0</truncated><difficult>0</difficult>"),
        an_object("cat", extra="<difficult>1</difficult>"),
        an_object("person"),
    )
    assert [CLASSES[i] for i in entry.classes] == ["dog", "person"]
    assert [(a["difficult"], a["truncated"], a["iscrowd"]) for a in entry.annotations] == [
        (1, 1, 0),
        (0, 0, 0),
        (1, 0, 0),
        (0, 0, 0),
    ]
    ignored = {a["category_id"] - 1 for a in entry.annotations} - set(entry.classes)
    assert [CLASSES[i] for i in ignored] == ["cat"], "the benchmark's 0 differs from its -1"


def test_parts_are_left_out(root: Path) -> None:
    """A person's head is not an object, and its box is not the person's."""
    part = "<part><name>head</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>6</xmax><ymax>6</ymax></bndbox></part>"
    entry = first_with(root, an_object("person", extra=part))
    assert [a["bbox"] for a in entry.annotations] == [[2, 3, 10, 7]]


def test_an_image_without_objects_has_no_classes(root: Path) -> None:
    entry = first_with(root)
    assert (entry.classes, entry.annotations, entry.size) == ([], [], (WIDTH, HEIGHT))


GOOD = xml("000001", an_object())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD.replace("dog", "wolf"), "object 1: name is 'wolf', not one of aeroplane, bicycle"),
        (GOOD.replace("<name>dog</name>", ""), "object 1: has no <name>"),
        (GOOD.replace("<xmin>3</xmin>", ""), "object 1 (dog): has no <xmin>"),
        (GOOD.replace("<xmin>3</xmin>", "<xmin/>"), "object 1 (dog): xmin is '', not a number"),
        (GOOD.replace("<xmin>3</xmin>", "<xmin>3</xmin>" * 2), "object 1 (dog): has 2 <xmin>"),
        (GOOD.replace("<xmin>3<", "<xmin>nan<"), "object 1 (dog): xmin is 'nan', not a number"),
        (GOOD.replace("<xmin>3<", "<xmin>1_0<"), "object 1 (dog): xmin is '1_0', not a number"),
        (GOOD.replace("<xmin>3<", f"<xmin>{'9' * 400}<"), "not a number"),
        (GOOD.replace("bndbox", "box"), "object 1 (dog): has no <bndbox>"),
        (GOOD.replace("<xmin>3<", "<xmin>13<"), "object 1 (dog): the box from (13, 4) to (12, 10) ends before"),
        (GOOD.replace("<ymin>4<", "<ymin>-2<"), "does not lie in the image, which is 40 x 30"),
        (GOOD.replace("<xmax>12<", "<xmax>42.5<"), "the box from (3, 4) to (42.5, 10) does not lie in the image"),
        (GOOD.replace("<ymax>10<", "<ymax>33<"), "the box from (3, 4) to (12, 33) does not lie in the image"),
        (GOOD.replace("<pose>", "<difficult>2</difficult><pose>"), "object 1 (dog): difficult is '2', not 0 or 1"),
        (GOOD.replace("<pose>", "<truncated>no</truncated><pose>"), "object 1 (dog): truncated is 'no'"),
        (GOOD.replace("size>", "sizes>"), "has no <size>"),
        (GOOD.replace("<width>40<", "<width>0<"), "size: width is '0', not a number of pixels"),
        (GOOD.replace("<height>30</height>", ""), "size: has no <height>"),
        (GOOD.replace("000001.jpg", "000002.jpg"), "filename is '000002.jpg': this is the annotation of another"),
        (GOOD.replace("annotation>", "html>"), "holds <html>, not <annotation>"),
        (GOOD[:-20], "not an annotation file: "),
        ("", "not an annotation file: "),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "not an annotation file: "),
    ],
)
def test_faults_in_a_file_are_named(root: Path, content: str, message: str) -> None:
    file = root / "VOC2007/Annotations/000001.xml"
    file.write_text(content)
    with pytest.raises(MlsError) as caught:
        read_listing(CONFIG, Reader(root))
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)


BOMB = "".join(f'<!ENTITY l{i + 1} "{f"&l{i};" * 10}">' for i in range(12))


@pytest.mark.parametrize(
    "declared",
    [
        f'<!DOCTYPE annotation [<!ENTITY l0 "lol">{BOMB}]>',
        '<!DOCTYPE annotation [<!ENTITY l12 SYSTEM "file:///etc/hostname">]>',
        '<!DOCTYPE annotation SYSTEM "http://localhost/x.dtd">',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused(root: Path, declared: str, encoding: str) -> None:
    content = declared + GOOD.replace("Left", "&l12;")
    (root / "VOC2007/Annotations/000001.xml").write_bytes(content.encode(encoding))
    since = time.monotonic()
    with pytest.raises(MlsError, match=r"000001\.xml: .*declares a document type"):
        read_listing(CONFIG, Reader(root))
    assert time.monotonic() - since < 10


def test_an_undeclared_entity_is_refused(root: Path) -> None:
    (root / "VOC2007/Annotations/000001.xml").write_text(GOOD.replace("Left", "&l12;"))
    with pytest.raises(MlsError, match=r"000001\.xml: not an annotation file: undefined entity"):
        read_listing(CONFIG, Reader(root))


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"train_sets": ["2008/train"]}, "2008/train: there is no folder VOC2008; there are: VOC2007, VOC2012"),
        ({"train_sets": ["2007/all"]}, "ImageSets/Main/all.txt is missing; there are: test, train, trainval"),
        (
            {"train_sets": ["2007/trainval", "2007/train"]},
            "line 1: image 'VOC2007/JPEGImages/000001.jpg' was listed before, in 2007/trainval (train), line 1",
        ),
        ({"val_sets": ["2007/train"]}, "000001.jpg' was listed before, in 2007/trainval (train), line 1"),
        (
            {"train_sets": ["2007/train"], "test_sets": ["2007/trainval"]},
            "was listed before, in 2007/train (train)",
        ),
        ({"train_sets": ["2007/train"]}, "train needs two images"),
        ({"train_sets": ["2007/dog_trainval"]}, "line 1: '000001  1' is not one image; the sets of single classes"),
    ],
)
def test_wrong_sets_are_named(root: Path, sets: dict[str, Any], message: str) -> None:
    (root / "VOC2007/ImageSets/Main/train.txt").write_text("000001\n")
    with pytest.raises(MlsError, match=re.escape(message)):
        read_listing(CONFIG.model_copy(update=sets), Reader(root))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("000009\n000099\n", "line 2: image 'VOC2007/JPEGImages/000099.jpg' is missing"),
        (
            "000009\n\n000009\n",
            "000009.jpg' was listed before, in 2007/test (test), line 1",
        ),
        ("..\n", "line 1: image 'VOC2007/JPEGImages/...jpg' is missing"),
        ("../x\n", "line 1: image '../x' is a path, not a name"),
        ("a/b\n", "line 1: image 'a/b' is a path, not a name"),
        ("\n", "lists no image"),
    ],
)
def test_wrong_lines_are_named(root: Path, content: str, message: str) -> None:
    file = root / "VOC2007/ImageSets/Main/test.txt"
    file.write_text(content)
    with pytest.raises(MlsError) as caught:
        read_listing(CONFIG, Reader(root))
    assert str(caught.value).startswith(str(file)) and message in str(caught.value)


def test_a_missing_annotation_is_named_with_its_set(root: Path) -> None:
    (root / "VOC2007/Annotations/000009.xml").unlink()
    with pytest.raises(MlsError, match=r"Annotations/000009\.xml: is missing, and 2007/test lists its image"):
        read_listing(CONFIG, Reader(root))


def test_val_is_drawn_from_train_by_the_seed(root: Path) -> None:
    def val(seed: int) -> frozenset[str]:
        entries = read_listing(CONFIG.model_copy(update={"seed": seed}), Reader(root)).entries
        assert [e.split for e in entries] == ["train"] * 6 + ["val"] * 2 + ["test"] * 3
        return frozenset(e.name for e in entries if e.split == "val")

    assert len({val(seed) for seed in range(8)}) > 1
    before = val(0)
    file = root / "VOC2007/ImageSets/Main/trainval.txt"
    file.write_text("\r\n".join(reversed(file.read_text().split())))
    assert val(0) == before, "the order of lines is nothing"


def test_val_sets_and_several_years_are_read(root: Path) -> None:
    add_set(root, "2012/val", ["2009_000001"])
    sets = {"train_sets": ["2007/trainval", "2012/trainval"], "val_sets": ["2012/val"]}
    entries = read_listing(CONFIG.model_copy(update=sets), Reader(root)).entries
    assert Counter(e.split for e in entries) == {"train": 10, "val": 1, "test": 3}
    assert [e.name for e in entries][8:11] == [
        "VOC2012/JPEGImages/2008_000008.jpg",
        "VOC2012/JPEGImages/2008_000015.jpg",
        "VOC2012/JPEGImages/2009_000001.jpg",
    ]


def plan_voc(lock: dict[str, Any], **voc: Any) -> tuple[Plan, Job]:
    return plan_of(lock, voc={"source": "voc", **voc})


def make_voc(**voc: Any) -> Path:
    return make(voc={"source": "voc", **voc})


def pin() -> dict[str, Any]:
    return sources.pin("voc", VocDataset(source="voc"), DATA_LOCK)


def test_ids_cover_only_what_changes_the_result() -> None:
    same = plan_voc(DIGEST)[1]
    assert plan_voc(DIGEST, train_sets=["2007/trainval"], val_share=0.04, max_excluded=0.5)[1].id == same.id
    assert same.params == {"source": "voc", "digest": "a" * 64}
    assert same.path.parts[:2] == ("artifacts", "photos"), "photos stay on the machine"
    changes: list[dict[str, Any]] = [
        {"seed": 1},
        {"val_share": 0.1},
        {"val_sets": ["2012/val"]},
        {"test_sets": ["2012/val"]},
        {"train_sets": ["2007/trainval", "2012/trainval"]},
    ]
    assert len({same.id, *(plan_voc(DIGEST, **change)[1].id for change in changes)}) == 6
    published = plan_voc({})[1].params["digest"]
    assert published.startswith("archives:"), "of the official archives; data.lock goes first"
    with pytest.raises(MlsError, match="mls data pin voc"):
        plan_voc({}, test_sets=["2012/mine"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_sets": ["trainval"]}, "datasets.voc.train_sets.0: String should match pattern"),
        ({"train_sets": ["2007/../x"]}, "datasets.voc.train_sets.0: String should match pattern"),
        ({"train_sets": []}, "datasets.voc.train_sets: List should have at least 1 item"),
        ({"train_sets": ["2007/test"]}, "datasets.voc: image set '2007/test' is used twice"),
        ({"val_sets": ["2012/val", "2012/val"]}, "image set '2012/val' is used twice"),
        ({"train_set": ["2007/train"]}, "datasets.voc.train_set: unknown key; did you mean 'train_sets'?"),
    ],
)
def test_wrong_entries_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        check(experiment_of(voc={"source": "voc", **values}), Path("t.yaml"))
    assert message in str(caught.value)


def test_there_are_no_masks() -> None:
    transfer = {"detect": {"kind": "instance", "dataset": "voc"}}
    with pytest.raises(
        ExperimentError,
        match=r"transfer\.detect\.dataset: 'voc' has boxes; kind 'instance' is trained on boxes and masks",
    ):
        check({**experiment_of(voc={"source": "voc"}), "transfer": transfer}, Path("t.yaml"))


def test_both_layouts_give_the_same_digest_id_and_bytes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With or without the official archives' ``VOCdevkit/``: one digest, one id, the same bytes."""
    digest = pin()
    assert digest["files"] == 2 + 2 * 11, "the image sets, and of each image two files"
    (root / "VOC2007/JPEGImages/stray.jpg").write_bytes(b"not listed, not part of it")
    assert pin() == digest
    first = make_voc()
    moved = root.parent / "all"
    moved.mkdir()
    shutil.move(root, moved / "VOCdevkit")
    shutil.move(moved, root)
    assert devkit(root, CONFIG) == root / "VOCdevkit"
    tree = root.parent / "other"
    tree.mkdir()
    monkeypatch.chdir(tree)
    assert pin() == digest
    second = make_voc()
    assert first != second and first.name == second.name
    for file in sorted(first.iterdir()):
        if file.name != "artifact.json":
            assert file.read_bytes() == (second / file.name).read_bytes(), file.name


def test_the_artifact_holds_boxes_and_flags(root: Path, tmp_path: Path) -> None:
    difficult = an_object("cat", (1, 1, 4, 4), "<difficult>1</difficult>")
    (root / "VOC2007/Annotations/000009.xml").write_text(xml("000009", an_object(), difficult))
    pin()
    store = ImageStore(make_voc())
    assert [len(store.split(s)) for s in ("train", "val", "test")] == [7, 1, 3]
    row = int(store.split("test")[0])
    assert store.name(row) == "VOC2007/JPEGImages/000009.jpg" and store.size(row) == (WIDTH, HEIGHT)
    assert store.decode(row).shape == (3, HEIGHT, WIDTH)
    assert store.multi_label and store.labels([row])[0].nonzero()[0].tolist() == [CLASSES.index("dog")]
    truth = store.ground_truth("test")
    assert [(a["difficult"], a["iscrowd"]) for a in truth["annotations"]] == [(0, 0), (1, 0), (0, 0), (0, 0)]
    with pytest.raises(MlsError, match=r"holds no instances with masks; the task .instance. needs boxes"):
        TrainingInstances(store, "train", masks=True)
    (tmp_path / "test.json").write_text(json.dumps(truth))
    coco = COCO(str(tmp_path / "test.json"))
    found = coco.loadRes(
        [{**{k: a[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.9} for a in truth["annotations"]]
    )
    evaluation = COCOeval(coco, found, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_classes_with_only_difficult_objects_are_ignored(root: Path) -> None:
    def hard(name: str) -> str:
        return an_object(name, extra="<difficult>1</difficult>")

    shown = {
        "000009": [hard("dog"), an_object("dog")],
        "000010": [hard("cat")],
        "000011": [hard("cat"), hard("cat"), an_object("person"), hard("aeroplane"), hard("tvmonitor")],
        "000001": [hard("cat"), hard("dog")],
        "000002": [],
    }
    for image, objects in shown.items():
        (root / f"VOC2007/Annotations/{image}.xml").write_text(xml(image, *objects))
    pin()
    store = ImageStore(make_voc())
    row_of = {Path(store.name(row)).stem: row for row in range(len(store))}

    def found(mask: Any) -> list[list[str]]:
        return [[CLASSES[c] for c in line.nonzero()[0]] for line in mask]

    rows = [row_of[image] for image in [*shown, "000003"]]  # the last has only an easy dog
    ignored = [[], ["cat"], ["aeroplane", "cat", "tvmonitor"], ["cat", "dog"], [], []]
    assert found(store.ignored(rows)) == ignored
    assert found(store.labels(rows)) == [["dog"], [], ["person"], [], [], ["dog"]]
    assert found(store.ignored(rows[::-1])) == ignored[::-1], "in the order asked for"
    everywhere = store.ignored(range(len(store)))
    assert everywhere.dtype == bool and everywhere.shape == (11, 20) and everywhere.sum() == 1 + 3 + 2


def test_a_changed_annotation_is_an_error(root: Path) -> None:
    pin()
    (root / "VOC2007/Annotations/000001.xml").write_text(xml("000001", an_object("cat")))
    with pytest.raises(MlsError, match=r"not those pinned in data\.lock.*mls data pin voc"):
        make_voc()


def test_an_image_of_another_size_is_left_out(root: Path) -> None:
    (root / "VOC2007/Annotations/000001.xml").write_text(xml("000001", an_object(), size=(HEIGHT, WIDTH)))
    pin()
    with pytest.raises(MlsError, match=r"max_excluded = 0\.01.*000001\.jpg is 40 x 30 px, but its annotations are for"):
        make_voc()
    path = make_voc(max_excluded=0.1)
    assert json.loads((path / "excluded.json").read_text()) == [
        {"name": "VOC2007/JPEGImages/000001.jpg", "reason": "is 40 x 30 px, but its annotations are for 30 x 40"}
    ]
    assert len(ImageStore(path)) == 10
