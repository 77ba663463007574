"""Differences of classes, detections, agreement, and the neighbours that ``draw`` asks for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer

from mls.config.load import ExperimentError
from mls.data.image_store import ImageStore
from mls.report.class_figures import class_differences, draw_differences
from mls.report.curves import draw_agreement, draw_losses
from mls.report.figures import positives_of
from mls.report.object_figures import draw_detections
from tests.report.support import PREDICTIONS, small_plan, write_scenes


class Task:
    """An opened probe or transfer with given metrics."""

    def __init__(self, kind: str, per_class: dict[str, Any]) -> None:
        self.manifest = {"params": {"kind": kind}}
        self.per_class = per_class

    def read_json(self, name: str) -> dict[str, Any]:
        assert name == "metrics.json"
        return {"per_class": self.per_class}


def differences(seeds: int) -> tuple[dict[str, Any], dict[str, Task]]:
    """Table ``t`` of moco (the baseline) and mls, which has 2 + seed points more of disc and one less of star."""
    tasks, rows = {}, []
    for row, gain in (("moco", 0.0), ("mls", 1.0)):
        for seed in range(seeds):
            found = {"disc": 40.0 + gain * (2 + seed), "star": 50.0 - gain, "ring": None if gain else 1.0}
            tasks[f"{row}{seed}"] = Task("linear", found)
        rows.append({"label": row, "tasks": {"linear": [[f"p{row}{seed}", f"{row}{seed}"] for seed in range(seeds)]}})
    return {"tables": {"t": {"rows": rows, "baseline": "moco"}}}, tasks


@pytest.mark.parametrize(("seeds", "bars"), [(1, 0), (2, 1)])
def test_differences_of_classes_are_paired_and_sorted(seeds: int, bars: int) -> None:
    params, tasks = differences(seeds)
    (place,), (apart,) = zip(*class_differences(params, tasks).items(), strict=True)  # type: ignore[arg-type]
    assert place == ("t", "linear") and list(apart.rows) == ["mls"]
    disc = apart.rows["mls"]["disc"].summary
    assert disc and disc.mean == pytest.approx(2.0 + (seeds - 1) / 2) and disc.n == seeds
    assert apart.rows["mls"]["ring"].summary is None
    figure = draw_differences("t", apart, ["moco", "mls"])
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["disc", "star"], "greatest on top"
    assert len([c for c in axes.containers if isinstance(c, ErrorbarContainer)]) == bars
    assert "1 class without a value" in figure._supxlabel.get_text()  # type: ignore[attr-defined]


def test_tables_without_a_baseline_have_no_differences() -> None:
    params, tasks = differences(1)
    del params["tables"]["t"]["baseline"]
    assert class_differences(params, tasks) == {}  # type: ignore[arg-type]


def test_detections_beside_the_truth(tmp_path: Path) -> None:
    write_scenes(tmp_path)
    figure = draw_detections(ImageStore(tmp_path), {"mls": PREDICTIONS, "random": []})
    assert len(figure.axes) == 2 * 3, "two test images; ground truth and two runs"
    words = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert words == [["disc"], ["disc 0.90"], ["nothing found"], ["star"], ["nothing found"], ["nothing found"]]
    assert "score of at least 0.3" in figure._supxlabel.get_text()  # type: ignore[attr-defined]


def test_agreement_is_drawn_with_chance() -> None:
    frame = pd.DataFrame({"epoch": [1.0, 2.0], "agreement": [0.3, 0.6], "agreement_base": [0.2, 0.2]})
    labels = {"a": ["mls:0"], "b": ["moco:0"]}
    figure = draw_agreement({"a": frame, "b": frame[["epoch"]]}, labels, ["moco", "mls"], {"a": 5, "b": 20})
    assert figure is not None
    (axes,) = figure.axes
    assert axes.get_title() == "mls, k = 5", "runs with different k must not be compared"
    assert [np.asarray(line.get_ydata()).tolist() for line in axes.lines] == [[0.3, 0.6], [0.2, 0.2]]
    assert axes.lines[0].get_linestyle() == "-" and axes.lines[1].get_linestyle() == ":"
    assert draw_agreement({"b": frame[["epoch"]]}, labels, ["moco", "mls"], {"b": 20}) is None


def test_agreement_counts_topk_or_20_but_no_more_than_there_are() -> None:
    params: dict[str, Any] = {"a": {}, "b": {"mls": {"topk": 5}}, "c": {"moco": {"queue_size": 16}}}
    inputs: Any = {f"pretrain/{one}": SimpleNamespace(manifest={"params": of}) for one, of in params.items()}
    assert positives_of(inputs) == {"a": 20, "b": 5, "c": 16}


def test_many_runs_have_one_line_and_a_band_each() -> None:
    """Of up to eight runs every seed has a line."""

    def lines(runs: int) -> tuple[int, int]:
        frames = {
            f"{run}-{seed}": pd.DataFrame({"epoch": [1.0, 2.0], "loss": [3.0 + seed, 2.0 + seed]})
            for run in range(runs)
            for seed in range(3)
        }
        labels = {one: [f"r{one.replace('-', ':')}"] for one in frames}
        (axes,) = draw_losses(frames, labels, [f"r{run}" for run in range(runs)]).axes
        return len(axes.lines), len(axes.collections)

    assert lines(8) == (24, 0) and lines(9) == (9, 9)


def test_only_an_experiment_that_draws_has_another_id() -> None:
    plan = small_plan(draw=["mls"])
    (job,) = plan.find("pretrain", "mls")
    assert plan.tables.params["draw"] == {"mls": job.id}
    assert "draw" not in small_plan().tables.params


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (["msl"], "draw: 'msl' is not in runs; did you mean 'mls'?"),
        (["random"], "draw: 'random' has method 'none', which trains nothing"),
        (["mls", "mls"], "draw: 'mls' is named twice"),
    ],
)
def test_undrawable_runs_are_refused(draw: list[str], message: str) -> None:
    with pytest.raises(ExperimentError) as error:
        small_plan(draw=draw)
    assert message in str(error.value)
