"""What runs again and what does not: the promises of identity, with the real tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image
from ruamel.yaml import YAML

from mls.config.identity import STAGES
from tests.workflow.clone import Clone

EVERYTHING = {
    "data_artifact": 1,
    "pretrain_artifact": 2,
    "features_artifact": 2,
    "probe_artifact": 2,
    "transfer_artifact": 4,
    "tables_artifact": 1,
    "publish": 1,
}


def numbers(clone: Clone) -> dict[str, Any]:
    """The published numbers."""
    text = (clone.path / "results" / "micro" / "metrics.json").read_text()
    found: dict[str, Any] = json.loads(text)
    return found


def test_nothing_to_do_after_a_finished_run(original: Clone) -> None:
    assert original.planned() == {}
    assert "Data and pipelines are up to date" in original.run("dvc", "repro")


def test_figures_3_and_4_of_a_drawn_run_are_published(finished: Clone) -> None:
    figures = finished.path / "results" / "micro" / "figures"
    assert {file.name for file in figures.glob("fig[34]-*")} == {
        f"fig{number}-mls.{kind}" for number in (3, 4) for kind in ("png", "pdf")
    }


def test_fresh_clone_and_pull_nothing_to_do(pulled: Clone) -> None:
    assert not (pulled.path / ".snakemake").exists()
    assert pulled.planned() == {}
    assert "Data and pipelines are up to date" in pulled.run("dvc", "repro")


def test_artifacts_of_another_experiment_are_pushed_and_pulled(original: Clone, tmp_path: Path) -> None:
    """The paper's Table 1 at micro size, beside the default experiment: dvc.yaml names only params.yaml."""
    file = "experiments/paper-table1.yaml"
    yaml = YAML()
    micro, paper = (yaml.load((original.path / name).read_text()) for name in ("params.yaml", file))
    paper |= {key: micro[key] for key in ("datasets", "pretrain", "execution")}
    paper["pretrain"]["epochs"] = 2
    paper["runs"] = {run: paper["runs"][run] for run in ("moco-v2", "mls")}
    paper["probe"] = {"linear": micro["probe"]["linear"]}
    paper["transfer"] = {"detect": micro["transfer"]["detect"]}
    paper["tables"] = {"main": paper["tables"]["main"]}
    paper["tables"]["main"]["paper"]["rows"] = {"mls": "MLS, 400 epochs"}
    yaml.dump(paper, original.path / file)
    other = ("--config", f"experiment={file}")
    original.run("snakemake", *other)
    original.run("dvc", "commit", "--force")
    assert "Data and pipelines are up to date" in original.run("dvc", "repro")
    original.commit("another experiment's run")
    original.run("dvc", "remote", "modify", "--local", "store", "url", str(tmp_path / "remote"))
    original.run("dvc", "push")

    clone = original.clone(tmp_path / "other")
    clone.run("dvc", "pull")
    assert clone.planned() == clone.planned(*other) == {}, "both experiments are there"
    assert clone.digests() == original.digests()
    shown = clone.run("mls", "show", "-e", file)
    assert "paper" in shown and shown == original.run("mls", "show", "-e", file)


def test_pulled_backbones_are_not_trained_again_when_their_data_is_missing(fresh: Clone) -> None:
    """And `dvc fetch --all-commits` then brings everything else."""
    fresh.run("dvc", "pull", "artifacts/pretrain")
    assert fresh.planned() == {rule: jobs for rule, jobs in EVERYTHING.items() if rule != "pretrain_artifact"}
    manifests = {file: file.stat().st_ino for file in fresh.path.glob("artifacts/pretrain/*/artifact.json")}
    fresh.run("snakemake", "features")
    assert len(manifests) == 2 and all(file.stat().st_ino == number for file, number in manifests.items())
    fresh.run("dvc", "fetch", "--all-commits")
    fresh.run("dvc", "checkout", "--force")
    assert fresh.planned() == {}


def test_fresh_clone_without_pull_runs_everything_and_prints_this_runs_table(fresh: Clone, finished: Clone) -> None:
    """With Snakemake here; the finished clone was made with DVC."""
    file = fresh.path / "results" / "micro" / "tables" / "main.md"
    honest = file.read_text()
    file.write_text(honest.replace("moco-v2", "a committed table"))
    assert fresh.planned() == EVERYTHING
    fresh.run("snakemake")
    assert fresh.digests() == finished.digests()
    assert "a committed table" not in fresh.run("mls", "show")
    assert file.read_text() == honest, "results/ shows this run too"
    assert fresh.planned() == {}


def test_a_changed_probe_param_reruns_the_probe_and_tables_only(original: Clone, pulled: Clone) -> None:
    before = numbers(pulled)
    for clone in (original, pulled):
        clone.edit(probe__linear__image_size=24)
        reads = {"features_artifact": 2, "probe_artifact": 2}
        assert clone.planned() == {**reads, "tables_artifact": 1, "publish": 1}
    pulled.run("snakemake")
    assert pulled.planned() == {}
    after = numbers(pulled)
    assert after != before
    detect = [{row: cells["detect.box_AP"] for row, cells in found["main"].items()} for found in (before, after)]
    assert detect[0] == detect[1]


def test_a_changed_param_of_one_run_reruns_that_run(pulled: Clone) -> None:
    pulled.edit(runs__mls__mls__topk=5)
    one = {"pretrain_artifact": 1, "features_artifact": 1, "probe_artifact": 1, "transfer_artifact": 2}
    assert pulled.planned() == {**one, "tables_artifact": 1, "publish": 1}


def test_renaming_a_row_prints_the_table_again_and_runs_nothing(pulled: Clone) -> None:
    pulled.edit(runs__mls=None, runs__ours={}, draw=["ours"])
    assert pulled.planned() == {"tables_artifact": 1, "publish": 1}
    pulled.run("snakemake")
    assert "| ours" in pulled.run("mls", "show")


def test_rows_with_equal_params_are_one_job(pulled: Clone) -> None:
    pulled.edit(runs__twin={"mls": {"topk": 5}}, runs__other={"mls": {"topk": 5}})
    assert pulled.planned()["pretrain_artifact"] == 1


def test_changing_back_only_publishes_and_shows_the_old_numbers(original: Clone) -> None:
    old, params = numbers(original), (original.path / "params.yaml").read_text()
    original.edit(probe__linear__strengths=[3.0])
    original.run("snakemake")
    assert numbers(original) != old
    (original.path / "params.yaml").write_text(params)
    assert original.planned() == {"publish": 1}
    original.run("snakemake")
    assert numbers(original) == old
    assert original.planned() == {}


def test_dvc_repro_follows_a_changed_param_after_a_direct_run(original: Clone) -> None:
    original.edit(probe__linear__strengths=[3.0])
    original.run("snakemake")
    before = original.digests()
    original.run("dvc", "repro")
    assert original.digests() == before
    assert "Data and pipelines are up to date" in original.run("dvc", "repro")


def test_a_raised_stage_version_is_planned_by_snakemake_and_dvc(pulled: Clone) -> None:
    file = pulled.path / "mls" / "config" / "identity.py"
    text = file.read_text()
    assert '"probe": 3' in text
    file.write_text(text.replace('"probe": 3', '"probe": 4'))
    assert pulled.planned() == {"probe_artifact": 2, "tables_artifact": 1, "publish": 1}
    status = pulled.run("dvc", "status")
    assert "probe:" in status and "mls" in status
    pulled.run("dvc", "repro", "--single-item", "--force", "probe")
    assert len(list(pulled.path.glob("artifacts/probe/*/artifact.json"))) == 4


def test_code_edited_in_a_clone_is_the_code_that_runs_there(pulled: Clone) -> None:
    file = pulled.path / "mls" / "train" / "pretrain.py"
    file.write_text(file.read_text().replace("def run(context", 'print("EDITED HERE")\n\n\ndef run(context'))
    pulled.edit(runs__mls__mls__topk=5)
    assert "EDITED HERE" in pulled.run("snakemake", "pretrain")
    assert "EDITED HERE" in pulled.run("mls", "pretrain", "mls"), "the installed command runs the clone's code too"


def test_a_deleted_file_of_a_pulled_artifact_is_named_and_mended(pulled: Clone) -> None:
    victim = sorted((pulled.path / "artifacts" / "pretrain").glob("*/curves.csv"))[0]
    content = victim.read_bytes()
    victim.unlink()
    name = str(victim.parent.relative_to(pulled.path))
    for command in ("status", "verify"):
        text = pulled.run("mls", command, ok=command == "status")
        assert f"{name} is damaged: curves.csv is missing" in text.replace("\n", " ")
    assert "dvc pull --force artifacts/pretrain" in text
    pulled.run("dvc", "pull", "--force", "artifacts/pretrain")
    assert victim.read_bytes() == content
    assert "0 damaged" in pulled.run("mls", "verify")


def test_dvc_does_not_track_photos(pulled: Clone) -> None:
    """Data of local sources lies where DVC tracks nothing, so it cannot be pushed."""
    photos = pulled.path / "photos" / "snaps" / "images"
    photos.mkdir(parents=True)
    for i in range(6):
        Image.new("RGB", (40, 40), (40 * i, 90, 10)).save(photos / f"{i}.jpg")
    rows = [f"images/{i}.jpg,{'train' if i < 4 else 'test'},{i % 2},1" for i in range(6)]
    (photos.parent / "labels.csv").write_text("\n".join(["file,split,a,b", *rows]) + "\n")
    file = pulled.path / "experiments" / "snaps.yaml"
    file.write_text(
        "experiment: snaps\ndatasets: {snaps: {source: folder}}\nruns: {random: {method: none}}\n"
        "probe: {linear: {kind: linear, dataset: snaps}}\ntables: {main: {columns: [linear.mAP]}}\n"
    )
    env = ("env", f"MLS_DATA={photos.parent.parent}")
    pulled.run(*env, "mls", "data", "pin", "snaps", "-e", "experiments/snaps.yaml")
    pulled.run(*env, "snakemake", "data", "--config", "experiment=experiments/snaps.yaml")
    assert len(list(pulled.path.glob("artifacts/photos/*/images.bin"))) == 1
    tracked = {
        out
        for stage in YAML().load((pulled.path / "dvc.yaml").read_text())["stages"].values()
        for out in stage["outs"][0]
    }
    assert tracked == {f"artifacts/{stage}" for stage in STAGES}
    assert len(list(pulled.path.glob("artifacts/data/*/images.bin"))) == 1, "only the generated scenes"


def test_no_key_of_params_yaml_reaches_another_experiment(fresh: Clone, finished: Clone) -> None:
    (fresh.path / "params.yaml").write_text("experiment: other\nruns: {unwanted: {method: none}}\nnonsense: 1\n")
    text = fresh.run("snakemake", "-n", "--config", "experiment=experiments/micro.yaml")
    made = [path.parent for path in finished.path.glob("artifacts/*/*/artifact.json")]
    assert all(one.name in text for one in made if one.parent.name != "tables") and "unwanted" not in text


def test_an_experiment_that_changed_under_a_run_is_a_clear_error(fresh: Clone) -> None:
    text = fresh.run("mls", "pretrain", "0123456789", ok=False)
    assert "params.yaml plans no pretrain '0123456789'; it plans: moco-v2:0" in text
    (fresh.path / "params.yaml").write_text("experiment: [")
    assert "not valid YAML" in fresh.run("snakemake", "-n", ok=False)
    assert Path(fresh.path / "artifacts").exists() is False


def test_finished_artifacts_can_be_scored_and_exported(pulled: Clone) -> None:
    """By label or id, in a clone that made none of them."""
    for target, metric in (("detect/mls", "box_AP"), ("segment/mls", "mIoU"), ("linear/mls", "mAP")):
        text = pulled.run("mls", "score", target)
        assert metric in text and "Agrees with artifacts/" in text, target
    artifact = next(path.parent for path in pulled.path.glob("artifacts/transfer/*/artifact.json"))
    assert f"Agrees with artifacts/transfer/{artifact.name}/metrics.json" in pulled.run("mls", "score", artifact.name)
    text = pulled.run("mls", "export", "mls", "--format", "torchvision")
    assert "mls-0-torchvision.safetensors: 120 tensors in torchvision's names" in text
    assert "torchvision has no resnet18 of width 0.125 with stem small: nothing to compare" in text
    assert (pulled.path / "mls-0-torchvision.safetensors").exists()
    text = pulled.run("mls", "export", "mls", "--format", "timm", ok=False)
    assert "timm has no resnet18 of width 0.125 with stem small" in text
    assert "everything that params.yaml needs is here" in pulled.run("mls", "doctor")
