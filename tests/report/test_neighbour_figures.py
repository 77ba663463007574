"""`mls draw`: the files, equal bytes, and a clear line where nothing can be drawn."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mls import cli
from mls.pipeline.artifact import Artifact
from mls.pipeline.plan import Job, Plan
from mls.pipeline.runner import open_inputs
from mls.report import drawing, neighbours
from mls.report.drawing import draw_job
from mls.report.neighbour_figures import ENTRY, QUERY, listed
from mls.report.neighbours import initial_state
from mls.runtime.errors import MlsError
from tests.report.support import FinishedRun, finished_runs

FILES = ["fig3.png", "fig3.pdf", "fig3.json", "fig4.png", "fig4.pdf"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, FinishedRun]]:
    with finished_runs(tmp_path_factory.mktemp("figures")) as made:
        yield made


def shows(path: Path, colour: str) -> int:
    """How many pixels have a colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.asarray(Image.open(path).convert("RGB")) == wanted).all(axis=2).sum())


@pytest.mark.parametrize(("name", "topk"), [("mls", 3), ("moco-v2", 20)])
def test_files_are_a_function_of_the_id_and_arguments(runs: dict[str, FinishedRun], name: str, topk: int) -> None:
    run = runs[name]
    out = Path(f"first-{name}")
    assert draw_job(run.plan, run.job, out, images=2) == [out / file for file in FILES]
    torch.manual_seed(99)  # whatever state a process has
    state = torch.get_rng_state()
    for again in draw_job(run.plan, run.job, Path(f"second-{name}"), images=2):
        assert again.read_bytes() == (out / again.name).read_bytes(), again.name
    assert torch.equal(torch.get_rng_state(), state)
    draw_job(run.plan, run.job, Path(f"other-{name}"), images=2, seed=1)
    assert Path(f"other-{name}/fig4.png").read_bytes() != (out / "fig4.png").read_bytes()

    text = (out / "fig3.json").read_text()
    numbers = json.loads(text)
    assert text == json.dumps(numbers, indent=1, sort_keys=True) + "\n"
    assert numbers["pretrain"] == run.job.id and numbers["topk"] == topk and numbers["entries"] == 20
    assert numbers["before"]["known"] == 8 and numbers["after"]["known"] == 20
    for panel in ("before", "after"):
        assert sum(numbers[panel]["backbone"]["counts"]) == sum(numbers[panel]["mlp"]["counts"]) == 20
    assert shows(out / "fig4.png", QUERY) > 500 and shows(out / "fig4.png", ENTRY) > 2000
    assert (out / "fig3.pdf").read_bytes().startswith(b"%PDF")


def test_few_keys_are_drawn_and_none_is_an_error(
    runs: dict[str, FinishedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs["mls"]
    state = initial_state(run.job.config, 0)
    monkeypatch.setattr(neighbours, "final_state", lambda config, artifact: state)
    with pytest.raises(MlsError, match=r"dictionary without keys.*lower pretrain\.optimizer\.lr"):
        draw_job(run.plan, run.job, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    state.dictionary.row_D[0] = 1
    state.dictionary.box_D4[0] = torch.tensor([2, 3, 20, 18])
    draw_job(run.plan, run.job, tmp_path / "one", images=2)
    assert shows(tmp_path / "one/fig4.png", QUERY) > shows(tmp_path / "one/fig4.png", ENTRY) / 2 > 100


def test_a_method_without_training_cannot_be_drawn(runs: dict[str, FinishedRun], tmp_path: Path) -> None:
    plan = runs["mls"].plan
    (job,) = plan.find("pretrain", "random")
    with pytest.raises(MlsError, match=r"random:0 .*method 'none'.*can draw: moco-v2:0, mls:0"):
        draw_job(plan, job, tmp_path)


def test_missing_and_damaged_artifacts_name_the_command(
    runs: dict[str, FinishedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, job = runs["mls"].plan, runs["mls"].job
    shutil.copytree("artifacts", tmp_path / "artifacts")
    monkeypatch.chdir(tmp_path)
    file = job.path / "checkpoint.pt"
    content = bytearray(file.read_bytes())
    content[:4000] = bytes(4000)
    for damage, message in (
        (bytes(content), r"checkpoint\.pt can't be read"),
        (bytes(content[:-1]), r"is damaged: checkpoint\.pt has"),
        (None, r"is damaged: checkpoint\.pt is missing"),
    ):
        file.unlink()
        if damage is not None:
            file.write_bytes(damage)
        else:
            assert not file.exists()
        with pytest.raises(MlsError, match=rf"{message}.*mls pretrain mls:0 -e small\.yaml"):
            draw_job(plan, job, tmp_path / "out")
        file.touch()
    shutil.rmtree(job.path)
    with pytest.raises(MlsError, match=rf"{job.id} is missing.*mls pretrain mls:0 -e small\.yaml"):
        draw_job(plan, job, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("source", "lines"), [("scenes", 0), ("folder", 1)])
def test_pictures_of_photos_come_with_a_warning(
    runs: dict[str, FinishedRun],
    source: str,
    lines: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def opened(plan: Plan, job: Job) -> dict[str, Artifact]:
        data = open_inputs(plan, job)["data"]
        return {"data": Artifact(data.path, {**data.manifest, "params": {"source": source}})}

    monkeypatch.setattr(drawing, "open_inputs", opened)
    draw_job(runs["mls"].plan, runs["mls"].job, tmp_path, images=1)
    assert capsys.readouterr().err.count("show photos of the data set; don't publish them") == lines


def test_the_command_prints_its_files(
    runs: dict[str, FinishedRun], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = runs["mls"].job
    plan = runs["mls"].plan
    monkeypatch.setattr(cli, "plan_here", lambda path: plan)

    def run(*args: str) -> None:
        monkeypatch.setattr(sys, "argv", ["mls", "draw", *args])
        cli.main()

    run("mls", "--images", "1")
    assert capsys.readouterr().out.splitlines() == [f"drawn/{job.id}/{file}" for file in FILES]
    run(job.id, "-o", "elsewhere", "--images", "1")
    assert (Path("elsewhere") / "fig4.pdf").read_bytes() == Path(f"drawn/{job.id}/fig4.pdf").read_bytes()
    for wrong in (["mls", "--images", "0"], ["mls", "--seed", "-1"]):
        with pytest.raises(SystemExit):
            run(*wrong)
        assert "--images must be at least 1 and --seed at least 0" in capsys.readouterr().err
    monkeypatch.setattr(plan, "find", lambda stage, target: [job, runs["moco-v2"].job])
    with pytest.raises(SystemExit):
        run("m", "-o", "elsewhere")
    assert "-o is one path, but m is pretrain mls:0" in capsys.readouterr().err


def test_many_classes_are_counted() -> None:
    assert listed([]) == "no class" and listed(["cat"]) == "cat" and listed(["cat", "dog"]) == "cat, dog"
    assert listed(["cat", "dog", "cow", "bus"]) == "cat, dog +2"
