"""Ids: what changes them, what does not, and which jobs are shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mls.config import identity
from mls.config.datasets import DATASETS
from mls.config.methods import METHODS, Moco, Slotcon
from mls.config.probes import PROBES
from mls.config.section import values_of
from mls.config.transfers import KINDS
from mls.pipeline.plan import Plan, experiment_files, payload, plan_file
from mls.runtime.errors import MlsError
from tests.conftest import PEERS, SMALL, plan_of, small

ROOT = Path(__file__).parents[2]
SHIPPED = experiment_files(ROOT)


def id_of(plan: Plan, stage: str, label: str) -> str:
    (job,) = plan.find(stage, label)
    return job.id


def changed(**pretrain: Any) -> dict[str, Any]:
    return small(pretrain={**SMALL["pretrain"], **pretrain})


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_experiment_is_valid_and_planned(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan = plan_file(path)
    assert plan.stage("tables") and all(up.id in plan.jobs for job in plan.jobs.values() for up in plan.inputs(job))


def test_ids_of_the_micro_experiment_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed id makes everybody's finished artifacts useless, so it must be a decision: raise a stage's version."""
    monkeypatch.chdir(ROOT)
    plan = plan_file(Path("experiments/micro.yaml"))
    assert {f"{job.stage} {label}": job.id for job in plan.jobs.values() for label in plan.labels[job.id]} == PINNED


def test_another_methods_block_and_execution_change_nothing() -> None:
    base = plan_of(small())
    other = plan_of(changed(mls={"topk": 7}) | {"execution": {"threads": 2, "workers": 1, "device": "cpu"}})
    assert id_of(base, "pretrain", "moco-v2") == id_of(other, "pretrain", "moco-v2")
    assert id_of(base, "pretrain", "random") == id_of(other, "pretrain", "random")
    assert id_of(base, "pretrain", "mls") != id_of(other, "pretrain", "mls")


READ_BY_ALL = ({"epochs": 4}, {"moco": {"queue_size": 24}}, {"moco": {"bn_splits": 4}}, {"augment": {"overlap": 0.1}})
OF_MOCO = ({"moco": {"temperature": 0.1}}, {"moco": {"momentum": 0.5}}, {"moco": {"projection_dim": 4}})
READ = {
    "densecl": (*READ_BY_ALL, *OF_MOCO, {"densecl": {"weight": 0.3}}),
    "byol": (*READ_BY_ALL, *({"byol": {key: value}} for key, value in (("momentum", 0.5), ("hidden_dim", 8)))),
    "slotcon": (*READ_BY_ALL, {"slotcon": {"prototypes": 4}}, {"slotcon": {"teacher_temperature": 0.04}}),
}
OTHERS = ({"mls": {"topk": 7}}, {"densecl": {"weight": 0.2}}, {"byol": {"momentum": 0.7}}, {"slotcon": {"weight": 0.1}})
UNREAD = {
    run: tuple(change for change in (*OTHERS, *(() if run == "densecl" else OF_MOCO)) if run not in change)
    for run in PEERS
}


@pytest.mark.parametrize(("changes", "matter"), [(READ, True), (UNREAD, False)])
@pytest.mark.parametrize("run", PEERS)
def test_an_id_covers_exactly_the_params_that_the_method_reads(run: str, changes: dict[str, Any], matter: bool) -> None:
    base = id_of(plan_of(small(runs=PEERS)), "pretrain", run)
    for change in changes[run]:
        merged = {
            key: {**PEERS[run].get(key, {}), **value} if isinstance(value, dict) else value
            for key, value in change.items()
        }
        other = plan_of(small(runs={run: {**PEERS[run], **merged}}))
        assert (id_of(other, "pretrain", run) != base) == matter, change


def test_params_json_has_exactly_the_params_that_the_method_reads() -> None:
    plan = plan_of(small(runs=PEERS))
    engine = {name for name in METHODS["moco"].reads if name not in ("moco", "resident")}
    found = {}
    for run in PEERS:
        (job,) = plan.find("pretrain", run)
        found[run] = payload(job)["resolved"]
        assert found[run].keys() == engine | {"moco", run}
    assert found["byol"]["moco"] == found["slotcon"]["moco"] == {"queue_size": 20, "bn_splits": 2}
    assert found["densecl"]["moco"].keys() == set(Moco.model_fields)
    assert found["densecl"]["densecl"] == {"weight": 0.5}
    assert found["byol"]["byol"] == {"momentum": 0.9, "hidden_dim": 16, "projection_dim": 8}
    assert found["slotcon"]["slotcon"].keys() == set(Slotcon.model_fields)


def test_a_value_written_out_that_equals_the_default_changes_nothing() -> None:
    written = changed(mls={"topk": 3, "weight": 0.5}, backbone={**SMALL["pretrain"]["backbone"]})
    assert id_of(plan_of(small()), "pretrain", "mls") == id_of(plan_of(written), "pretrain", "mls")


def test_equal_rows_are_one_job_and_renaming_runs_only_the_table() -> None:
    twice = plan_of(small(runs={"a": {}, "b": {"epochs": 3}}))
    assert id_of(twice, "pretrain", "a") == id_of(twice, "pretrain", "b")
    assert len(twice.stage("pretrain")) == len(twice.stage("probe")) == 1
    renamed = plan_of(small(runs={"c": {}, "d": {}}))
    assert set(twice.jobs) - set(renamed.jobs) == {twice.tables.id}


def test_a_baseline_changes_only_the_tables() -> None:
    columns = ["linear.mAP"]
    plain, compared = (
        plan_of(small(tables={"main": {"columns": columns, **more}})) for more in ({}, {"baseline": "mls"})
    )
    assert set(plain.jobs) ^ set(compared.jobs) == {plain.tables.id, compared.tables.id}


def test_a_sweep_point_and_a_run_with_its_values_are_one_job() -> None:
    plan = plan_of(small(runs={"mls": {}, "five": {"mls": {"topk": 5}}}, sweep={"mls": {"mls.topk": [3, 5]}}))
    assert id_of(plan, "pretrain", "five") == id_of(plan, "pretrain", "mls[topk=5]")
    assert id_of(plan, "pretrain", "mls:0") == id_of(plan, "pretrain", "mls[topk=3]")


def test_a_listed_point_and_a_run_with_its_values_are_one_job() -> None:
    points = [{"mls.topk": 5, "mls.weight": 0.5}, {"mls.topk": 4, "mls.weight": 0.2}]
    runs = {"mls": {}, "mine": {"mls": {"topk": 4, "weight": 0.2}}}
    plan = plan_of(small(runs=runs, sweep={"mls": points}))
    assert id_of(plan, "pretrain", "mine") == id_of(plan, "pretrain", "mls[topk=4,weight=0.2]")
    assert len(plan.stage("pretrain")) == len(plan.stage("probe")) == 3


def test_a_data_param_reaches_everything_that_reads_it() -> None:
    data = {"scenes": {**SMALL["datasets"]["scenes"], "seed": 8}}
    base, other = plan_of(small()), plan_of(small(datasets=data))
    shared = set(base.jobs) & set(other.jobs)
    assert shared == {id_of(base, "pretrain", "random")}, "random weights read no data"


def test_only_runs_with_a_seed_are_repeated() -> None:
    sha = "0" * 64
    runs = {"random": {"method": "none"}, "mine": {"method": "weights", "weights": {"file": "a.pth", "sha256": sha}}}
    plan = plan_of(small(seeds=[0, 1, 2], runs=runs))
    assert len(plan.find("pretrain", "random")) == 3
    assert len(plan.find("pretrain", "mine")) == 1, "given weights have no seed"
    moved = plan_of(small(runs={"mine": {"method": "weights", "weights": {"file": "b.pth", "sha256": sha}}}))
    assert id_of(plan, "pretrain", "mine") == id_of(moved, "pretrain", "mine"), "a path is never in an id"


def test_a_stage_version_changes_that_stage_and_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    base = plan_of(small())
    monkeypatch.setitem(identity.STAGE_VERSIONS, "probe", 99)
    other = plan_of(small())
    gone = {base.jobs[i].stage for i in set(base.jobs) - set(other.jobs)}
    assert gone == {"probe", "tables"}


@pytest.mark.parametrize(
    ("stage", "kind", "stages"),
    [
        ("data", "scenes", {"data", "pretrain", "features", "probe", "transfer", "tables"}),
        ("pretrain", "moco", {"pretrain", "features", "probe", "transfer", "tables"}),
        ("probe", "svm", {"probe", "tables"}),
        ("transfer", "instance", {"transfer", "tables"}),
        ("transfer", "detectron2", {"transfer", "tables"}),
    ],
)
def test_a_raised_kind_changes_its_jobs_and_what_reads_them_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, stage: str, kind: str, stages: set[str]
) -> None:
    tasks = {
        "pretrain": SMALL["pretrain"] | {"backbone": {"name": "resnet18"}},
        "runs": {"moco-v2": {"method": "moco"}, "mls": {}},
        "probe": {name: {"kind": name, "dataset": "scenes"} for name in ("linear", "svm", "finetune")},
        "transfer": {
            "light": {"kind": "instance", "dataset": "scenes"},
            "heavy": {"kind": "instance", "backend": "detectron2", "dataset": "scenes"},
        },
    }
    monkeypatch.delitem(identity.KIND_VERSIONS, (stage, kind), raising=False)
    base = plan_of(small(**tasks))
    monkeypatch.setitem(identity.KIND_VERSIONS, (stage, kind), 2)
    raised = plan_of(small(**tasks))
    gone = [base.jobs[i] for i in set(base.jobs) - set(raised.jobs)]
    assert {job.stage for job in gone} == stages
    roots = [job for job in base.stage(stage) if identity.kind_of(job.config) == kind]
    read = {job.id for job in roots}
    for job in base.jobs.values():  # each after those that it reads
        if any(upstream.id in read for upstream in base.inputs(job)):
            read.add(job.id)
    assert {job.id for job in gone} == read and roots
    monkeypatch.setitem(identity.KIND_VERSIONS, (stage, kind), 3)
    assert not {job.id for job in roots} & set(plan_of(small(**tasks)).jobs)


def test_raised_kinds_exist_and_start_at_two() -> None:
    """1 is what ids leave out, and a misspelt kind would void nothing."""
    kinds = {
        "data": set(DATASETS),
        "pretrain": set(METHODS),
        "probe": {kind for section in PROBES for kind in values_of(section, "kind")},
        "transfer": {*KINDS, "detectron2"},
    }
    assert all(kind in kinds[stage] and version >= 2 for (stage, kind), version in identity.KIND_VERSIONS.items())


def test_features_are_shared_by_all_probes_that_read_equal_ones() -> None:
    probe = {
        "linear": {"kind": "linear", "dataset": "scenes", "image_size": 32},
        "knn": {"kind": "knn", "dataset": "scenes", "image_size": 32, "ks": [5]},
        "other": {"kind": "linear", "dataset": "scenes", "image_size": 32, "strengths": [1.0]},
        "early": {"kind": "linear", "dataset": "scenes", "image_size": 32, "layer": "layer3"},
        "tuned": {"kind": "finetune", "dataset": "scenes", "trials": 2},
    }
    plan = plan_of(small(runs={"mls": {}}, probe=probe))
    assert [sorted(plan.labels[job.id]) for job in plan.stage("features")] == [
        ["knn/mls:0", "linear/mls:0", "other/mls:0"],
        ["early/mls:0"],
    ]
    (read,) = plan.find("features", "knn/mls")
    (knn,) = plan.find("probe", "knn/mls")
    assert plan.inputs(knn) == [read, *plan.find("pretrain", "mls")]
    trials = plan.find("probe", "tuned/mls:0") + plan.find("probe", "tuned/mls:0.1")
    assert len({job.id for job in trials}) == 2 and {job.seed for job in trials} == {0, 1}
    assert all("data" in job.inputs and "features" not in job.inputs for job in trials)


def test_a_local_source_needs_its_digest() -> None:
    raw = small(datasets={"scenes": {"source": "folder"}})
    with pytest.raises(MlsError, match="mls data pin scenes"):
        plan_of(raw)
    one, two = (plan_of(raw, {"scenes": {"sha256": c * 64}}) for c in "ab")
    assert id_of(one, "data", "scenes") != id_of(two, "data", "scenes")


def test_an_unknown_target_names_the_known_ones() -> None:
    with pytest.raises(MlsError, match=r"plans no pretrain 'mlss'; it plans: random:0"):
        plan_of(small()).find("pretrain", "mlss")


PINNED = {
    "data scenes": "d20ecc2b65",
    "pretrain random:0": "07cf188556",
    "pretrain moco-v2:0": "af84c60694",
    "pretrain mls:0": "9951ab318f",
    "features linear/random:0": "b671518b99",
    "features svm/random:0": "b671518b99",
    "features linear/moco-v2:0": "fd575eda28",
    "features svm/moco-v2:0": "fd575eda28",
    "features linear/mls:0": "d4568b9dce",
    "features svm/mls:0": "d4568b9dce",
    "probe linear/random:0": "755e7f987f",
    "probe linear/moco-v2:0": "cea3f7c95d",
    "probe linear/mls:0": "303ed20d59",
    "probe svm/random:0": "9d7f32ef24",
    "probe svm/moco-v2:0": "064cac0894",
    "probe svm/mls:0": "2b7e55248f",
    "probe tuned/random:0": "3862701f96",
    "probe tuned/moco-v2:0": "e7988e8c32",
    "probe tuned/mls:0": "37c12335b2",
    "transfer detect/random:0": "587e39749c",
    "transfer detect/moco-v2:0": "2b201eec1c",
    "transfer detect/mls:0": "40f22ea4d1",
    "transfer segment/random:0": "2eb70d19c6",
    "transfer segment/moco-v2:0": "0d8f8f43bb",
    "transfer segment/mls:0": "371d2331ca",
    "tables micro": "31f73bedf6",
}
