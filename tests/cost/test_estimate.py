"""The cost of experiments: shared runs count once, only known hours count, devices are never mixed, sizes match."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mls.data.build_store
import mls.train.pretrain
from mls.cli import main
from mls.cost import estimate as cost_module
from mls.cost.devices import read_devices
from mls.cost.disk import artifact_bytes, download_bytes, peak_bytes
from mls.cost.estimate import Cost, estimate, print_costs, totals
from mls.cost.rates import CPU, GIVEN, read_recorded, recorded
from mls.cost.workload import images_of, work_of
from mls.pipeline.artifact import MANIFEST
from mls.pipeline.artifact_store import building
from mls.pipeline.plan import Job, Plan, experiment_files, plan_file
from mls.pipeline.runner import run_stage
from mls.runtime.errors import MlsError
from tests.conftest import SMALL, plan_of, small

ROOT = Path(__file__).parents[2]
COCO: dict[str, Any] = {
    "datasets": {"coco": {"source": "coco"}},
    "pretrain": {"dataset": "coco"},
    "runs": {"moco": {"method": "moco"}, "mls": {}, "byol": {"method": "byol"}},
    "probe": {"linear": {"kind": "linear", "dataset": "coco"}},
    "transfer": {"detect": {"kind": "instance", "backend": "detectron2", "dataset": "coco"}},
}
"""Three runs as the paper trains them."""


def job_of(plan: Plan, stage: str, label: str) -> Job:
    (job,) = plan.find(stage, label)
    return job


def cost_of(costs: list[Cost], job: Job) -> Cost:
    (cost,) = [cost for cost in costs if cost.id == job.id]
    return cost


def make(plan: Plan, job: Job, wall_s: float, **made: Any) -> None:
    """Make an artifact whose manifest says that it took ``wall_s`` seconds, by default on a CPU with two threads."""
    with building(job) as out:
        (out / "file").write_bytes(b"x" * 1000)
    manifest = json.loads((job.path / MANIFEST).read_text())
    manifest["made"] |= {"wall_s": wall_s, "device": "cpu", "threads": 2, "ranks": 1} | made
    (job.path / MANIFEST).write_text(json.dumps(manifest))


def test_work_agrees_with_hand_arithmetic(in_tmp: Path) -> None:
    tuned = {"kind": "finetune", "dataset": "coco", "epochs": 2, "batch_size": 64}
    detect = {"kind": "instance", "dataset": "coco", "epochs": 12.0, "batch_size": 16}
    segment = {"kind": "semantic", "dataset": "coco", "iterations": 40_000, "batch_size": 8}
    probe = {**COCO["probe"], "tuned": tuned, "val": {"kind": "knn", "dataset": "coco", "test": False}}
    transfer = {**COCO["transfer"], "fpn": detect, "segment": segment}
    runs = {"mls": {}, "random": {"method": "none"}}
    plan = plan_of(small(**{**COCO, "runs": runs, "probe": probe, "transfer": transfer}))
    # 4 % of 118,287 are val
    assert images_of(plan.stage("data")[0]) == {"train": 113_556, "val": 4_731, "test": 5_000}
    expected = {
        ("data", "coco"): 123_287,
        ("pretrain", "mls"): 400 * 443 * 256,  # 113,556 images are 443 batches and a rest, which is dropped
        ("pretrain", "random"): 0,
        ("features", "linear/mls"): 123_287,
        ("features", "val/mls"): 118_287,
        ("probe", "linear/mls"): 123_287,
        ("probe", "tuned/mls"): 3_696 * 64,  # 2 x 118,287 / 64 = 3,696.47
        ("transfer", "detect/mls"): 90_000 * 16,
        ("transfer", "fpn/mls"): 85_167 * 16,
        ("transfer", "segment/mls"): 320_000,
        ("tables", "small"): None,
    }
    assert {key: work_of(job_of(plan, *key), plan.jobs) for key in expected} == expected


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (SMALL["datasets"]["scenes"], {"train": 24, "val": 8, "test": 8}),
        (
            {"source": "coco", "subset": {"images": 100, "test": 7}, "val_share": 0.1},
            {"train": 90, "val": 10, "test": 7},
        ),
        (
            {"source": "voc", "train_sets": ["2007/train"], "val_sets": ["2007/val"]},
            {"train": 2_501, "val": 2_510, "test": 4_952},
        ),
        ({"source": "coco", "root": "mine"}, None),  # your own copy may be a part
        ({"source": "folder"}, None),
    ],
)
def test_images_per_split(dataset: dict[str, Any], expected: dict[str, int] | None, in_tmp: Path) -> None:
    lock = {} if dataset["source"] in ("scenes", "voc") else {"scenes": {"sha256": "a" * 64, "bytes": 1}}
    plan = plan_of(small(datasets={"scenes": dataset}), lock)
    assert images_of(plan.stage("data")[0]) == expected
    if expected is None:
        assert all(cost.hours is None for cost in estimate([plan]) if cost.stage == "pretrain" and cost.images != 0)


def test_pretraining_reads_unlabeled_images(in_tmp: Path) -> None:
    plan = plan_of(small(**{**COCO, "datasets": {"coco": {"source": "coco", "unlabeled": True}}}))
    steps = (113_556 + 123_403) // 256
    assert work_of(job_of(plan, "pretrain", "mls"), plan.jobs) == 400 * steps * 256


def test_hours_are_done_here_or_measured_here_or_published_or_computed(in_tmp: Path) -> None:
    plan = plan_of(small(**COCO))
    moco, mls, byol = (job_of(plan, "pretrain", run) for run in ("moco", "mls", "byol"))
    costs = estimate([plan], "V100")
    hours = 400 * 443 * 256 / 136.9 / 3600
    for job in (moco, mls):
        found = cost_of(costs, job)
        assert found.hours == pytest.approx(hours) and (found.unit, found.basis) == ("V100-h", "published")
        assert found.source == "DenseCL's repository, 8 V100 (moco-v2)"
    assert any("mls is taken as moco-v2" in note for note in cost_of(costs, mls).notes)
    assert not any("mls is taken as" in note for note in cost_of(costs, moco).notes)
    other = cost_of(costs, byol)
    assert (other.unit, other.basis) == ("V100-h", "computed") and "GFLOP an image" in other.source
    assert any("V100: fp32 at 8.6 TFLOP/s, 0.55 of the peak" in note for note in other.notes)

    short = {**COCO, "pretrain": {"dataset": "coco", "epochs": 2}}
    short_plan = plan_of(small(**short))
    for seed, wall in enumerate((100.0, 300.0, 110.0)):  # the median counts
        again = plan_of(small(**{**short, "seeds": [seed]}))
        make(again, job_of(again, "pretrain", "mls"), wall, device="NVIDIA H100", ranks=4, threads=8)
    found = cost_of(estimate([plan]), mls)
    assert (found.basis, found.source, found.unit) == ("measured", "here (3)", "NVIDIA H100-h")
    assert found.hours == pytest.approx(200 * 110 * 4 / 3600)
    for device, basis in (("H100", "measured"), ("A100", "computed"), ("cpu", "computed")):
        assert cost_of(estimate([plan], device), mls).basis == basis
    done = cost_of(estimate([short_plan]), job_of(short_plan, "pretrain", "mls"))
    assert done.done and done.source == "done here" and done.hours == pytest.approx(100 * 4 / 3600)
    assert totals([done])["hours"] == {} and done.disk == 1000


def test_jobs_with_other_traits_are_not_estimated_from_what_was_measured(in_tmp: Path) -> None:
    plan = plan_of(small())
    make(plan, job_of(plan, "pretrain", "mls"), 60.0)
    same = plan_of(small(pretrain={**SMALL["pretrain"], "epochs": 30, "optimizer": {"lr": 0.1}}))
    found = cost_of(estimate([same]), job_of(same, "pretrain", "mls"))
    assert found.hours == pytest.approx(10 * 60 * 2 / 3600) and found.unit == CPU
    size = {"scenes": {**SMALL["datasets"]["scenes"], "size": 48}}
    gpu = {**SMALL["execution"], "device": "cuda"}
    crops = {**SMALL["pretrain"]["augment"], "local_crops": {"count": 2, "size": 16}}
    for changes in ({"batch_size": 12}, {"precision": "bf16"}, {"augment": {"crop": 24}}, {"augment": crops}):
        other = plan_of(small(pretrain={**SMALL["pretrain"], **changes}))
        assert cost_of(estimate([other]), job_of(other, "pretrain", "mls")).basis == "computed"
    for other in (plan_of(small(datasets=size)), plan_of(small(seeds=[1], execution=gpu))):
        assert cost_of(estimate([other]), job_of(other, "pretrain", "mls")).basis == "computed"


def test_heads_of_segmentation_have_their_own_hours(in_tmp: Path) -> None:
    task = {"kind": "semantic", "dataset": "scenes", "iterations": 10}
    plan = plan_of(small(transfer={"segment": task}))
    make(plan, job_of(plan, "transfer", "segment/mls"), 60.0)
    longer, other = (
        plan_of(small(transfer={"segment": {**task, **changes}})) for changes in ({"iterations": 30}, {"head": "psa"})
    )
    found = cost_of(estimate([longer]), job_of(longer, "transfer", "segment/mls"))
    assert (found.basis, found.source) == ("measured", "here (1)") and found.what.startswith("semantic, resnet18")
    found = cost_of(estimate([other]), job_of(other, "transfer", "segment/mls"))
    assert found.basis == "computed" and found.what.startswith("semantic psa, resnet18")


def test_hours_of_a_gpu_and_of_a_cpu_are_never_added(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(small(seeds=[0, 1]))
    make(plan, job_of(plan, "pretrain", "mls:0"), 3600.0)
    make(plan, job_of(plan, "pretrain", "moco-v2:0"), 7200.0, device="Tesla V100-SXM2-16GB")
    costs = estimate([plan])
    left = [cost for cost in costs if cost.stage == "pretrain" and cost.unit and not cost.done]
    assert totals(left)["hours"] == {CPU: pytest.approx(2.0), "Tesla V100-SXM2-16GB-h": pytest.approx(2.0)}
    print_costs(left)
    text = capsys.readouterr().out
    assert "CPU-h: 2.0\n" in text and "Tesla V100-SXM2-16GB-h: 2.0\n" in text
    assert set(totals(costs)["hours"]) == {CPU, "Tesla V100-SXM2-16GB-h", "A100-h"}  # features are computed


def test_damaged_and_foreign_artifacts_are_ignored(in_tmp: Path) -> None:
    plan = plan_of(small())
    for run, text in (("mls", "{"), ("moco-v2", '{"stage": "pretrain", "params": {"epoch": 1}, "inputs": {}}')):
        job = job_of(plan, "pretrain", run)
        job.path.mkdir(parents=True)
        (job.path / MANIFEST).write_text(text)
    assert not any(cost.done or "here" in cost.source for cost in estimate([plan]))


def test_sizes_are_those_of_the_files(in_tmp: Path) -> None:
    plan = plan_of(small())
    for job in (plan.stage("data")[0], job_of(plan, "pretrain", "mls"), job_of(plan, "pretrain", "random")):
        before = artifact_bytes(job, plan.jobs)
        run_stage(plan, job, mls.data.build_store.run if job.stage == "data" else mls.train.pretrain.run)
        if job.stage == "pretrain":
            files = {file.name: file.stat().st_size for file in job.path.iterdir()}
            size = files["backbone.safetensors"] + files.get("checkpoint.pt", 0)
            assert before is not None and size == pytest.approx(before, rel=0.1)
    job = job_of(plan, "pretrain", "mls")
    one = (job.path / "checkpoint.pt").stat().st_size
    assert peak_bytes(job, plan.jobs, keep=2) == pytest.approx(3 * one, rel=0.1)
    assert work_of(job, plan.jobs) == 8 * json.loads((job.path / "params.json").read_text())["derived"]["steps"]
    found = cost_of(estimate([plan]), job)
    assert (
        found.done
        and found.disk == sum(file.stat().st_size for file in job.path.iterdir()) - (job.path / MANIFEST).stat().st_size
    )


def test_downloads_are_the_published_archives(in_tmp: Path) -> None:
    whole, own = (plan_of(small(**COCO)), plan_of(small()))
    assert download_bytes(whole.stage("data")[0]) == 252_907_541 + 19_336_861_798 + 815_585_330
    assert download_bytes(own.stage("data")[0]) == 0
    sizes = [artifact_bytes(job, whole.jobs) for job in whole.stage("features")]
    assert sizes == [123_287 * 2048 * 4] * 3
    job = whole.stage("features")[0]
    for changes, numbers in (({"dtype": "float16"}, 2048 / 2), ({"pool": 2}, 4 * 2048)):
        other = replace(job, config=job.config.model_copy(update=changes))
        assert artifact_bytes(other, whole.jobs) == 123_287 * numbers * 4


def test_every_recorded_figure_has_a_source() -> None:
    rows = read_recorded()
    assert rows and set(GIVEN) < set(rows[0])
    for row in rows:
        assert None not in row and row["source"].startswith("https://") and float(row["images_per_s"]) > 0
        assert all(row[name] for name in ("stage", "device", "gpus", "by", "measured", "published", "differs"))


def test_recorded_figures_follow_from_what_was_published() -> None:
    for row in read_recorded():
        published = row["published"].split()
        if row["stage"] == "transfer":  # 0.261 s per step of 16 images
            rate = float(published[-2]) / float(published[0])
        else:  # 800 epochs of 118,287 images in 1.0 d
            rate = float(published[0]) * 118_287 / (float(published[-2]) * 86_400)
        assert float(row["images_per_s"]) == pytest.approx(rate / int(row["gpus"]), rel=1e-3)


def test_a_published_figure_only_holds_for_its_own_protocol(in_tmp: Path) -> None:
    plan = plan_of(small(**COCO))
    detector = job_of(plan, "transfer", "detect/mls")
    found = recorded(detector, plan.jobs, read_devices()["V100"])
    assert found is not None and found.hours(1_440_000) == pytest.approx(52.2, abs=0.1)
    changed = {**COCO["transfer"]["detect"], "kind": "detection"}
    other = plan_of(small(**{**COCO, "transfer": {"detect": changed}}))
    assert recorded(job_of(other, "transfer", "detect/mls"), other.jobs, read_devices()["V100"]) is None
    assert recorded(detector, plan.jobs, read_devices()["A100"]) is None
    pretrain = {**COCO["pretrain"], "method": "moco"}
    with_crops = {**pretrain, "augment": {"local_crops": {"count": 4}}}
    both, local = (
        recorded(job_of(one, "pretrain", "moco"), one.jobs, read_devices()["V100"])
        for one in (plan_of(small(**{**COCO, "pretrain": p, "runs": {"moco": {}}})) for p in (pretrain, with_crops))
    )
    assert both and local is None


def test_mls_plan_runs_nothing(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(path) for path in experiment_files(ROOT) if path.stem in ("micro", "params")]
    monkeypatch.setattr("sys.argv", ["mls", "plan", *files])
    main()
    text, progress = capsys.readouterr()
    assert "40 jobs, 0 done, 40 left" in text and "nothing is trained" in text
    assert progress.splitlines()[-1].startswith("[plan] 40/40 ")
    assert "computed: " in text and "GPU memory: " in text and not list(in_tmp.iterdir())
    monkeypatch.setattr("sys.argv", ["mls", "plan", "--json", *files])
    main()
    read = json.loads(capsys.readouterr().out)
    assert len(read["jobs"]) == read["totals"]["jobs"] == 40 and not read["totals"]["unknown_hours"]


def test_an_unreadable_file_is_a_one_line_error(in_tmp: Path) -> None:
    with pytest.raises(MlsError, match=r"absent\.yaml: can't be read"):
        plan_file(Path("absent.yaml"))


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.0001, "<0.001"), (0.028, "0.028"), (9.97, "10.0"), (1234.5, "1,234")]
)
def test_hours_are_rounded_for_people(value: float, text: str) -> None:
    assert cost_module.hours(value) == text
