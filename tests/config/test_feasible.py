"""What can only fail after hours of training is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mls.config.load import ExperimentError, check, load, parse_yaml
from mls.pipeline.plan import make_plan, read_lock
from mls.runtime.device import set_up
from mls.runtime.errors import MlsError
from tests.conftest import SMALL, plan_of, small

LONG = (
    *("augment.jitter_p", "augment.gray_p", "augment.flip_p", "augment.overlap", "moco.temperature", "moco.momentum"),
    *("mls.weight", "mls.warmup_epochs", "optimizer.weight_decay", "optimizer.momentum"),
)
KNN = {"near": {"kind": "knn", "dataset": "scenes"}}
SEGMENT = {"segment": {"kind": "semantic", "dataset": "scenes"}}


def pretrain(**changes: Any) -> dict[str, Any]:
    return {"pretrain": {**SMALL["pretrain"], **changes}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tables": {"main": {"columns": ["linear.mAP", "linear.mAP"]}}},
            "tables.main.columns: 'linear.mAP' is listed twice",
        ),
        ({"tables": {"main": {"columns": []}}}, "tables.main.columns: List should have at least 1 item"),
        (
            {"tables": {"main": {"columns": ["linear.mAP"], "rows": []}}},
            "tables.main.rows: List should have at least 1 item",
        ),
        (
            {"tables": {"main": {"columns": ["linear.mAP"], "rows": ["mls", "mls"]}}},
            "tables.main.rows: 'mls' is listed twice",
        ),
        (
            {"tables": {"main": {"columns": ["linear.mAP"], "not_implemented": ["a.mIoU", "a.mIoU"]}}},
            "tables.main.not_implemented: 'a.mIoU' is listed twice",
        ),
        ({"seeds": [0, 1, 0]}, "seeds: 0 is listed twice"),
        ({"seeds": [2**64]}, "seeds.0: Input should be less than 18446744073709551616"),
        ({"experiment": "e" * 101}, "experiment: String should have at most 100 characters"),
        ({"tables": {"t" * 101: {"columns": ["linear.mAP"]}}}, "String should have at most 100 characters"),
        (
            {"sweep": {"mls": {key: [0.1234567890123456] for key in LONG}}},
            "letters, and files named after it take 200",
        ),
        ({"sweep": {"mls": {"epochs": [*range(1, 102)], "batch_size": [*range(2, 102)]}}}, "has 10,100 points"),
        (
            {"execution": {"gpus": 3, "nodes": 2}},
            "runs.mls.batch_size: 6 ranks (execution.gpus x nodes) do not divide 8 images evenly",
        ),
        (
            {"execution": {"gpus": 4}, "transfer": {"segment": {**SEGMENT["segment"], "accumulate": 4}}},
            "transfer.segment.batch_size: 4 ranks (execution.gpus x nodes) do not divide 2 images evenly",
        ),
        (
            {"transfer": {"segment": {**SEGMENT["segment"], "accumulate": 3}}},
            "transfer.segment: accumulate 3 does not divide batch_size 8",
        ),
        (
            {"transfer": {"segment": {**SEGMENT["segment"], "accumulate": 8}}},
            "transfer.segment: batch norm needs parts of at least 2 images",
        ),
        (pretrain(augment={"crop": 10**5}), "pretrain.augment.crop: should be at most 4,096"),
        (pretrain(augment={"crop": 4096}, batch_size=1024), "are 17,179,869,184 pixels; a batch should have at most"),
        (pretrain(moco={"queue_size": 10**10}), "pretrain.moco.queue_size: Input should be less than"),
        (pretrain(moco={"queue_size": 2**21}), "pretrain.moco.queue_size: should be at most 1,048,576"),
        (pretrain(batch_size=25), "batch_size: 25 is more than the 24 train images of 'scenes'"),
        ({"probe": KNN, "tables": {"main": {"columns": ["near.mAP"]}}}, "probe.near.ks: 200 is more than the 24 train"),
        (
            {"probe": {"linear": {**SMALL["probe"]["linear"], "kind": "svm", "folds": 33}}},
            "probe.linear.folds: 33 is more than the 32 train and val images of 'scenes'",
        ),
        (
            {"probe": {"linear": {**SMALL["probe"]["linear"], "kind": "svm", "low_shot": [1, 40]}}},
            "probe.linear.low_shot: 40 is more than the 32 train and val images",
        ),
        (
            {"transfer": {"segment": {**SEGMENT["segment"], "output_stride": 32}}},
            "transfer.segment.output_stride: with stem 'small' it is at most 16; 32 does not fit random, moco-v2, mls",
        ),
        ({"transfer": {"segment": {**SEGMENT["segment"], "scale": [0.5, 1e6]}}}, "scale: should be at most 10"),
        ({"transfer": {"segment": {**SEGMENT["segment"], "pools": [10**6]}}}, "pools: should be at most 256"),
        (
            {"transfer": {"segment": {**SEGMENT["segment"], "head": "psa", "attention_window": 10**6}}},
            "attention_window: should be at most 255",
        ),
        ({"transfer": {"segment": {**SEGMENT["segment"], "trials": 10**7}}}, "trials: should be at most 1,000"),
        ({"execution": {"threads": 10**6}}, "execution.threads: should be at most 1,024"),
    ],
)
def test_a_hopeless_value_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ExperimentError) as error:
        check(small(**changes), Path("x.yaml"))
    assert message in str(error.value)


def test_the_largest_values_are_taken(in_tmp: Path) -> None:
    wide = pretrain(moco={"queue_size": 2**20, "bn_splits": 2}, augment={"crop": 4096}, batch_size=24)
    segment = {**SEGMENT["segment"], "output_stride": 16}
    names = {"experiment": "e" * 100, "seeds": [2**64 - 1], "transfer": {"segment": segment}}
    assert plan_of(small(**wide, **names)).stage("pretrain")[0].seed == 2**64 - 1
    assert set_up("cpu", torch.get_num_threads(), seed=2**64 - 1).type == "cpu"


def test_a_plan_of_too_many_jobs_is_refused() -> None:
    tuned = {"tuned": {"kind": "finetune", "dataset": "scenes", "trials": 1000}}
    raw = small(seeds=[*range(100)], probe=tuned, tables={"main": {"columns": ["tuned.mAP"]}})
    with pytest.raises(MlsError, match="make 300,300 jobs; a plan has at most 200,000"):
        make_plan(check(raw, Path("x.yaml")), {})


def test_a_long_message_is_cut() -> None:
    raw = small(probe={f"p{number}": {"kind": "x" * 1000} for number in range(300)})
    with pytest.raises(ExperimentError) as error:
        check(raw, Path("x.yaml"))
    lines = str(error.value).splitlines()
    assert len(lines) == 52 and lines[-1] == "  - and so on" and max(map(len, lines)) < 1000


DOUBLING = "x0: &x0 [lol, lol]\n" + "".join(f"x{n}: &x{n} [*x{n - 1}, *x{n - 1}]\n" for n in range(1, 28))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DOUBLING, "holds more than 1,000,000 letters, counting what anchors repeat"),
        ("runs: &a {b: *a}", "runs.b.b.b"),
        ("a: " + "[" * 1500, "nested too deep; at most 32 levels"),
        (f"seeds: [{'9' * 5000}]", "not valid YAML: Exceeds the limit"),
        ("seeds: [0x" + "f" * 5000 + "]", "seeds.0: a number of 20000 bits; at most 64 fit"),
        ("seeds: [18446744073709551616]", "seeds.0: a number of 65 bits; at most 64 fit"),
        ("a: 2001-99-99", "not valid YAML: month must be in 1..12"),
        ('pretrain: {weights: {file: "a\\0b"}}', "pretrain.weights.file: holds the character U+0000"),
        ('tables: {"\\ud800": 1}', r"tables.\ud800: holds the character U+D800"),
        ("a: " + "x" * 300_000, "has 300,003 bytes; at most 300,000 are read"),
    ],
)
def test_yaml_that_nothing_can_use_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ExperimentError) as error:
        parse_yaml(text, "x.yaml")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"photos: 5", b"photos: {sha256: 5}", b"\xff", b"[1"])
def test_a_damaged_data_lock_is_named(tmp_path: Path, content: bytes) -> None:
    lock = tmp_path / "data.lock"
    lock.write_bytes(content)
    with pytest.raises(MlsError, match=str(lock)):
        read_lock(lock)


@pytest.mark.parametrize("name", ["a\0b.yaml", "a" * 300, "\ud800.yaml"])
def test_a_file_that_can_have_no_such_name_is_an_error_for_people(name: str) -> None:
    with pytest.raises(ExperimentError, match="can't be read"):
        load(Path(name))
