"""Loading an experiment file: every problem is reported at once, with its dotted path."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from mls.config import experiment
from mls.config.load import ExperimentError, check, load, parse_yaml
from mls.config.references import SHALLOW
from mls.config.section import values_of
from tests.conftest import PEERS, SMALL, small


def problems_of(raw: dict[str, object]) -> str:
    with pytest.raises(ExperimentError) as caught:
        check(raw, Path("x.yaml"))
    return str(caught.value)


def test_all_problems_are_reported_together_each_with_its_path() -> None:
    text = problems_of(
        small(
            datasets={"scenes": {"source": "scenes", "trian": 4, "test": "many"}},
            pretrain={"dataset": "scenes", "epochs": 0},
            runs={"mls": {"mls": {"topkk": 3}}, "moco": {"method": "mocoo"}, "far": {"dataset": "sceness"}},
            tables={"main": {"rows": ["ml"], "columns": ["linear.AP", "lin.mAP"]}},
        )
    )
    for line in (
        "datasets.scenes.trian: unknown key; did you mean 'train'?",
        "datasets.scenes.test: Input should be a valid integer (is 'many')",
        "pretrain.epochs: Input should be greater than or equal to 1 (is 0)",
        "runs.mls.mls.topkk: unknown key; did you mean 'topk'?",
        "runs.moco.method: Input should be 'mls', 'moco', 'densecl', 'byol', 'slotcon', 'none', 'weights' "
        "or 'imagenet' (is 'mocoo')",
        "tables.main.rows: 'ml' is not in runs; did you mean 'mls'?",
        "tables.main.columns: 'linear.AP': task 'linear' gives mAP, mAP_11, mAP_envelope, CP",
        "tables.main.columns: 'lin.mAP': no probe or transfer task 'lin'; did you mean 'linear'?",
    ):
        assert line in text, line


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ({"a": {"dataset": "sceness"}}, "runs.a.dataset: 'sceness' is not in datasets; did you mean 'scenes'?"),
        ({"a": {"method": "weights"}}, "runs.a.weights: method 'weights' needs"),
        ({"a": {"method": "imagenet"}}, "runs.a.backbone: torchvision's weights need width 1.0"),
        ({"a": {"mls": {"topk": 21}}}, "runs.a.mls.topk: 21 is more than moco.queue_size (20)"),
        (
            {"a": {"mls": {"topk": 20, "bias": "prior"}}},
            "runs.a.mls.bias: topk = moco.queue_size makes every entry positive; log(k / (D - k)) is infinite",
        ),
        ({"a": {"mls": {"bias": "half"}}}, "runs.a.mls.bias: Input should be 'none' or 'prior' (is 'half')"),
        *(
            (
                {"a": {"mls": {"label_space": "truth", "enqueue": enqueue}}},
                "runs.a.mls.enqueue: label_space 'truth' needs 'after'",
            )
            for enqueue in ("before", "split")
        ),
        ({"a": {"augment": {"scale": [0.9, 0.2]}}}, "runs.a.augment.scale: the smaller value comes first"),
        ({"a": {"optimizer": {"lr": float("inf")}}}, "runs.a.optimizer.lr: Input should be a finite number"),
        (
            {
                "a": {
                    "method": "imagenet",
                    "backbone": {"width": 1.0, "stem": "imagenet"},
                    "imagenet": {"weights": "IMAGENET1K_V2"},
                }
            },
            "runs.a.imagenet.weights: torchvision only has IMAGENET1K_V1 for resnet18",
        ),
        ({"a": {"weights": {"file": "x.pth", "sha256": "12"}}}, "runs.a.weights.sha256: String should match pattern"),
    ],
)
def test_choices_that_cannot_be_combined_are_errors(runs: dict[str, object], message: str) -> None:
    assert message in problems_of(small(runs=runs))


def test_choices_that_can_be_combined() -> None:
    loaded = check(
        small(
            runs={
                "nearly-all": {"mls": {"topk": 19, "bias": "prior"}},
                "all": {"mls": {"topk": 20}},
                "before": {"mls": {"enqueue": "before"}},
                "truth": {"mls": {"label_space": "truth", "enqueue": "after"}},
                "unread": {"method": "moco", "mls": {"topk": 20, "bias": "prior", "label_space": "truth"}},
            },
        ),
        Path("x.yaml"),
    )
    assert loaded.runs["nearly-all"].mls.bias == "prior" and loaded.runs["all"].mls.bias == "none"
    assert loaded.runs["truth"].mls.label_space == "truth"


@pytest.mark.parametrize("method", ["mls", "moco", *PEERS])
def test_every_method_that_trains_is_checked_alike(method: str) -> None:
    runs = {
        "groups": {"method": method, "moco": {"bn_splits": 3}},
        "ones": {"method": method, "moco": {"bn_splits": 8}},
        "warm": {"method": method, "optimizer": {"warmup_epochs": 3}},
        "nowhere": {"method": method, "dataset": "sceness"},
    }
    text = problems_of(small(runs=runs))
    for line in (
        "runs.groups.moco.bn_splits: 3 groups do not divide batch_size 8",
        "runs.ones.moco.bn_splits: batch norm needs groups of at least 2 images, these have 1",
        "runs.warm.optimizer.warmup_epochs: must be less than epochs (3), or none are left for the cosine",
        "runs.nowhere.dataset: 'sceness' is not in datasets; did you mean 'scenes'?",
    ):
        assert line in text, line
    unread = {"topk": 21, "warmup_epochs": 4}  # only MLS reads them
    if method != "mls":
        check(small(runs={"a": {"method": method, "mls": unread}}), Path("x.yaml"))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"method": "slotcn"}, "method: Input should be 'mls', 'moco', 'densecl', 'byol', 'slotcon', 'none'"),
        ({"byol": {"hiden_dim": 8}}, "byol.hiden_dim: unknown key; did you mean 'hidden_dim'?"),
        ({"byol": {"prototypes": 8}}, "byol.prototypes: unknown key; known: momentum, hidden_dim, projection_dim"),
        ({"slotcon": {"temperature": 0.1}}, "slotcon.temperature: unknown key; did you mean 'slot_temperature'?"),
        ({"densecl": {"weight": 1.1}}, "densecl.weight: Input should be less than or equal to 1 (is 1.1)"),
        ({"densecl": {"weight": -0.1}}, "densecl.weight: Input should be greater than or equal to 0 (is -0.1)"),
        ({"byol": {"momentum": 1.0}}, "byol.momentum: Input should be less than 1 (is 1.0)"),
        ({"byol": {"projection_dim": 0}}, "byol.projection_dim: Input should be greater than or equal to 1 (is 0)"),
        ({"slotcon": {"prototypes": 0}}, "slotcon.prototypes: Input should be greater than or equal to 1 (is 0)"),
        ({"slotcon": {"prototypes": 2.5}}, "slotcon.prototypes: Input should be a valid integer"),
        ({"slotcon": {"momentum": 1}}, "slotcon.momentum: Input should be less than 1 (is 1)"),
        ({"slotcon": {"student_temperature": 0}}, "slotcon.student_temperature: Input should be greater than 0 (is 0)"),
        ({"slotcon": {"centre_momentum": 1.5}}, "slotcon.centre_momentum: Input should be less than or equal to 1"),
        ({"slotcon": {"weight": float("nan")}}, "slotcon.weight: Input should be"),
        ({"byol": 3}, "byol: Input should be"),
    ],
)
def test_values_of_each_methods_block_are_checked(run: dict[str, object], message: str) -> None:
    text = problems_of(small(runs={"a": run}))
    assert f"runs.a.{message}" in text and "1 problem(s)" in text
    check(small(runs=PEERS), Path("x.yaml"))


def linear(columns: list[str], **task: object) -> dict[str, object]:
    probe = {"linear": {"kind": "linear", "dataset": "scenes", **task}}
    return small(probe=probe, tables={"main": {"columns": columns}})


@pytest.mark.parametrize("metric", ["mAP", "CF1"])
def test_a_column_of_test_needs_a_task_that_reads_it(metric: str) -> None:
    message = f"tables.main.columns: 'linear.{metric}': task 'linear' gives val"
    text = problems_of(linear(["linear.val", f"linear.{metric}"], test=False))
    assert message in text and "1 problem(s)" in text
    check(linear(["linear.val", f"linear.{metric}"], test=True), Path("x.yaml"))
    check(linear(["linear.val", f"linear.{metric}"]), Path("x.yaml"))
    loaded = check(linear(["linear.val"], test=False), Path("x.yaml"))
    assert not loaded.experiment.probe["linear"].test
    assert "'linear.AP': task 'linear' gives val" in problems_of(linear(["linear.AP"], test=False))
    assert "probe.linear.test: Input should be a valid boolean (is 'no')" in problems_of(linear([], test="no"))


def test_columns_are_metrics_that_the_data_set_allows() -> None:
    assert "'linear.top1': task 'linear' gives mAP, mAP_11" in problems_of(linear(["linear.top1"]))
    pets = linear(["linear.mAP"], dataset="pets") | {"datasets": {**SMALL["datasets"], "pets": {"source": "pets"}}}
    assert "'linear.mAP': task 'linear' gives top1, val" in problems_of(pets)
    snaps = linear(["linear.mAP", "linear.top1"], dataset="snaps")  # a folder's labels.csv decides
    check(snaps | {"datasets": {**SMALL["datasets"], "snaps": {"source": "folder"}}}, Path("x.yaml"))
    ranked = linear(["linear.mAP", "linear.P@5"], kind="retrieval", dataset="pets")
    check(ranked | {"datasets": {**SMALL["datasets"], "pets": {"source": "pets"}}}, Path("x.yaml"))
    assert "task 'linear' gives mAP, P@3, P@1" in problems_of(
        linear(["linear.P@5"], kind="retrieval", precision_at=[3, 1])
    )


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        ({"kind": "linear", "fit": "squash", "resize": 224}, "resize 224 is image_size already"),
        ({"kind": "linear", "resize": 224}, "resize 224 must be more than image_size (224)"),
        (
            {"kind": "finetune", "resize": 256, "augment": {"crop": 448}},
            "resize 256 must be more than augment.crop (448)",
        ),
        ({"kind": "finetune", "epochs": 2, "warmup_epochs": 2.0}, "warmup_epochs must be less than epochs (2)"),
        ({"kind": "sgd", "nesterov": True, "momentum": 0.0}, "nesterov needs a momentum above 0"),
        ({"kind": "svm", "low_shot": [1], "test": False}, "low_shot needs test"),
        ({"kind": "sgd", "classifier_lr": 2.0}, "probe.task.classifier_lr: unknown key"),
        ({"kind": "linear", "trials": 2}, "probe.task.trials: unknown key"),
        ({}, "probe.task.kind: is required"),
    ],
)
def test_contradictory_or_incomplete_tasks_are_errors(task: dict[str, Any], problem: str) -> None:
    text = problems_of(small(probe={"task": {"dataset": "scenes", **task}}, tables={"main": {"columns": ["task.val"]}}))
    assert problem in text and "Value error" not in text


def test_low_shot_needs_several_labels_per_image() -> None:
    datasets = {**SMALL["datasets"], "pets": {"source": "pets"}}
    raw = linear(["linear.top1"], kind="svm", dataset="pets", low_shot=[1]) | {"datasets": datasets}
    assert "probe.linear.low_shot: 'pets' has one label per image" in problems_of(raw)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"baseline": "ml"}, "tables.main.baseline: 'ml' is not a row of this table; did you mean 'mls'?"),
        ({"baseline": "mls", "rows": ["random"]}, "tables.main.baseline: 'mls' is not a row of this table"),
        ({"baseline": ["mls"]}, "tables.main.baseline: Input should be a valid string"),
    ],
)
def test_a_baseline_is_a_row_of_its_table(table: dict[str, object], problem: str) -> None:
    text = problems_of(small(tables={"main": {"columns": ["linear.mAP"], **table}}))
    assert problem in text and "1 problem(s)" in text
    check(small(tables={"main": {"columns": ["linear.mAP"], "baseline": "mls"}}), Path("x.yaml"))


def test_a_hue_shift_is_at_most_half_a_circle() -> None:
    raw = copy.deepcopy(small())
    raw["pretrain"]["augment"]["jitter"] = [0.4, 0.4, 0.4, 0.6]
    assert "pretrain.augment.jitter: the last value, hue, is 0.6; it must be at most 0.5" in problems_of(raw)


@pytest.mark.parametrize("key", ["blur_p", "solarize_p"])
@pytest.mark.parametrize("value", [[1.0], [1.0, 2.0], [0.1, 0.2, 0.3], [0.1, "x"], [], "x", -0.1, 1.5, True, None, {}])
def test_a_share_for_each_view_is_one_number_or_two(key: str, value: object) -> None:
    raw = copy.deepcopy(small())
    raw["pretrain"]["augment"][key] = value
    text = problems_of(raw)
    allowed = "a number from 0 to 1, or a list of two: for the first view and for the second"
    assert f"pretrain.augment.{key}: {allowed} (is {value!r})" in text
    assert "1 problem(s)" in text


def test_equal_shares_for_both_views_are_one_share() -> None:
    runs = {"one": {"augment": {"blur_p": 0.1}}, "two": {"augment": {"blur_p": [0.1, 0.1]}}}
    byol = {"augment": {"blur_p": [1, 0.1], "solarize_p": [0.0, 0.2]}}
    loaded = check(small(runs={**runs, "byol": byol}), Path("x.yaml"))
    assert loaded.runs["one"] == loaded.runs["two"]
    assert loaded.runs["byol"].augment.blur_p == [1.0, 0.1]


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_the_overlap_is_a_share(value: float) -> None:
    text = problems_of(small(runs={"a": {"augment": {"overlap": value}}}))
    assert "runs.a.augment.overlap: Input should be" in text


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"subset": {}}, "give either images (a number, with seed) or ids (a file)"),
        ({"subset": {"images": 5, "ids": "x"}}, "give either images (a number, with seed) or ids (a file)"),
        ({"subset": {"ids": "x", "seed": 1}}, "test and seed have no effect with ids"),
        ({"subset": {"images": 5}, "unlabeled": True}, "subset and unlabeled can't be combined"),
        ({"train_split": "val2017"}, "train_split and test_split are both 'val2017'"),
        ({"short_side": 8}, "short_side: Input should be greater than or equal to 16"),
    ],
)
def test_contradictory_coco_entries_are_errors(entry: dict[str, object], message: str) -> None:
    assert message in problems_of(small(datasets={"scenes": {"source": "coco", **entry}}))


def test_odd_types_are_problems_not_crashes() -> None:
    text = problems_of(
        small(
            datasets={"photos": {"source": "folder"}, "pets": {"source": "pets"}, "city": {"source": "cityscapes"}},
            pretrain={},
            runs={"random": {"method": "none"}},
            probe={"linear": {"kind": "linear", "dataset": ["scenes"]}},
            transfer={
                "detect": {"kind": "instance", "dataset": "photos"},
                "breeds": {"kind": "instance", "dataset": "pets"},
                "streets": {"kind": "instance", "dataset": "city"},
            },
            tables={"main": {"rows": [["random"]], "columns": ["linear.mAP"]}},
        )
    )
    assert "probe.linear.dataset" in text and "tables.main.rows" in text
    assert "transfer.detect.dataset: 'photos' has labels; kind 'instance' is" in text
    assert "transfer.breeds.dataset: 'pets' has labels; kind" in text
    assert "transfer.streets.dataset: 'city' has index masks; kind" in text


def test_the_published_weights_are_those_of_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision")
    for name in values_of(experiment.Backbone, "name"):
        published = [entry.name for entry in torchvision.models.get_model_weights(name)]
        assert published == ["IMAGENET1K_V1"] + ["IMAGENET1K_V2"] * (name not in SHALLOW)


def test_the_example_of_the_schemas_docstring_is_valid() -> None:
    text = experiment.__doc__ or ""
    loaded = check(parse_yaml("\n".join(re.findall(r"^    (.*)$", text, re.MULTILINE)), "example"), Path("x.yaml"))
    assert list(loaded.runs) == ["moco-v2", "mls", "mls[topk=1]", "mls[topk=20]"]


def test_a_wrong_member_of_a_union_is_named_as_in_the_file() -> None:
    text = problems_of(small(execution={"workers": "many"}))
    assert "  - execution.workers: Input should be 'auto' (is 'many')" in text and "constrained" not in text


def test_a_missing_section_is_named() -> None:
    raw = small()
    del raw["datasets"]
    assert "datasets: is required" in problems_of(raw)


def test_runs_override_pretrain_without_changing_it() -> None:
    loaded = check(small(runs={"a": {"moco": {"momentum": 0.5}}, "b": {}}), Path("x.yaml"))
    assert loaded.runs["a"].moco.momentum == 0.5
    assert loaded.runs["a"].moco.queue_size == 20, "other keys of the block stay"
    assert loaded.runs["b"].moco.momentum == 0.9


def test_a_sweep_is_the_grid_of_its_values() -> None:
    raw = small(runs={"mls": {}}, sweep={"mls": {"mls.topk": [1, 5], "optimizer.lr": [0.1]}})
    loaded = check(raw, Path("x.yaml"))
    assert list(loaded.runs) == ["mls", "mls[topk=1,lr=0.1]", "mls[topk=5,lr=0.1]"]
    assert loaded.runs["mls[topk=5,lr=0.1]"].mls.topk == 5
    assert "sweep.moco: no run has this name" in problems_of(small(runs={"mls": {}}, sweep={"moco": {"epochs": [1]}}))


def test_a_sweep_is_the_list_of_its_points() -> None:
    points = [{"mls.topk": 5, "mls.weight": 0.5}, {"mls.topk": 3}, {"optimizer.lr": 0.1, "mls.topk": 3}]
    loaded = check(small(runs={"mls": {"mls": {"weight": 0.25}}}, sweep={"mls": points}), Path("x.yaml"))
    assert list(loaded.runs) == ["mls", "mls[topk=5,weight=0.5]", "mls[topk=3]", "mls[lr=0.1,topk=3]"]
    found = [(run.mls.topk, run.mls.weight, run.optimizer.lr) for run in loaded.runs.values()]
    assert found == [(3, 0.25, 0.03), (5, 0.5, 0.03), (3, 0.25, 0.03), (3, 0.25, 0.1)]


def test_swept_keys_are_named_in_full_where_their_last_parts_are_equal() -> None:
    points = [{"mls.weight": 0.5}, {"densecl.weight": 0.5}]
    loaded = check(small(runs={"mls": {}}, sweep={"mls": points}), Path("x.yaml"))
    assert list(loaded.runs) == ["mls", "mls[mls.weight=0.5]", "mls[densecl.weight=0.5]"]


@pytest.mark.parametrize(
    ("sweep", "problem"),
    [
        (5, "sweep.mls: should be a grid, such as {mls.topk: [1, 5]}, or a list of points"),
        ([], "sweep.mls: should be a grid"),
        ({"mls.topk": 5}, "sweep.mls.mls.topk: should be a list of at least one value (is 5)"),
        ({"mls.topk": []}, "sweep.mls.mls.topk: should be a list of at least one value (is [])"),
        ([{"mls.topk": 5}, {}], "sweep.mls.1: should map dotted keys of pretrain to values (is {})"),
        ([{"mls.topk": 5}, 3], "sweep.mls.1: should map dotted keys of pretrain to values (is 3)"),
        ([{"mls": {"topk": 5}}], "sweep.mls.0.mls: should be one value; write dotted keys, such as mls.topk"),
        ([{"mls.topk": 5}, {"mls.topk": 5}], "sweep.mls.1: is the same point as sweep.mls.0"),
        ([{"mls.topk": 5}, {"mls.topkk": 5}], "sweep.mls.1.mls.topkk: unknown key; did you mean 'topk'?"),
        ([{"mls.topk": "5"}], "sweep.mls.0.mls.topk: Input should be a valid integer (is '5')"),
        ([{"mls.topk": 99}], "runs.mls[topk=99].mls.topk: 99 is more than moco.queue_size (20)"),
        ([{"mls": 5}, {"mls.topk": 5}], "sweep.mls.0.mls"),
    ],
)
def test_a_wrong_sweep_is_named(sweep: object, problem: str) -> None:
    assert problem in problems_of(small(runs={"mls": {}}, sweep={"mls": sweep}))


def test_exponents_are_numbers_and_duplicate_keys_errors() -> None:
    assert parse_yaml("a: 1e-4", "x") == {"a": 1e-4}
    with pytest.raises(ExperimentError, match="duplicate key"):
        parse_yaml("a: 1\na: 2", "x")


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "\x00"])
def test_malformed_yaml_is_one_clear_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "malformed.yaml"
    file.write_text(text)
    with pytest.raises(ExperimentError, match=r"malformed\.yaml"):
        load(file)


def test_an_absent_or_binary_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="can't be read"):
        load(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    with pytest.raises(ExperimentError, match=r"binary\.yaml"):
        load(tmp_path / "binary.yaml")
